#include "comm/buckets.h"

#include <stdlib.h>

struct td_buckets {
    td_comm *comm;
    td_page_map map;
    td_bucket_format format;
    void *values; // (n_elements) int64 or fp32
    int64_t pages_per_bucket;
    int64_t first_started; // the pages from here on are started
    int64_t first_waited;  // the pages from here on are complete
    td_request *requests;  // (n_pages)
};

td_status td_buckets_create(td_comm *comm, const td_page_map *map, td_bucket_format format,
                            void *values, int64_t pages_per_bucket, td_buckets **out) {
    if (pages_per_bucket < 1 || map->size != td_comm_size(comm))
        return td_fail(TD_ERR_INTERNAL, "buckets of %lld pages, owned by %d ranks, on %d ranks",
                       (long long)pages_per_bucket, map->size, td_comm_size(comm));
    td_buckets *buckets = calloc(1, sizeof *buckets);
    td_request *requests = calloc((size_t)map->n_pages + 1, sizeof *requests);
    if (!buckets || !requests) {
        free(buckets);
        free(requests);
        return td_fail(TD_ERR_MEMORY, "cannot allocate the gradient buckets of %lld pages",
                       (long long)map->n_pages);
    }
    *buckets = (td_buckets){
        .comm = comm,
        .map = *map,
        .format = format,
        .values = values,
        .pages_per_bucket = pages_per_bucket,
        .requests = requests,
    };
    td_buckets_reset(buckets);
    *out = buckets;
    return TD_OK;
}

void td_buckets_destroy(td_buckets *buckets) {
    if (!buckets)
        return;
    free(buckets->requests);
    free(buckets);
}

void td_buckets_reset(td_buckets *buckets) {
    buckets->first_started = buckets->map.n_pages;
    buckets->first_waited = buckets->map.n_pages;
}

static td_status start_page(td_buckets *buckets, int64_t page) {
    static const char what[] = "gradient page";
    td_page_span span = td_page_map_span(&buckets->map, page);
    int owner = td_page_map_owner(&buckets->map, page);
    size_t count = (size_t)span.count;
    td_request *request = &buckets->requests[page];
    if (buckets->format == TD_BUCKET_I64)
        return td_comm_reduce_i64_start(buckets->comm, (int64_t *)buckets->values + span.begin,
                                        count, owner, what, request);
    return td_comm_reduce_f32_start(buckets->comm, (float *)buckets->values + span.begin, count,
                                    owner, what, request);
}

// Bucket b has the pages b * pages_per_bucket and on; the last one to start is bucket 0.
static int64_t next_bucket_begin(const td_buckets *buckets) {
    int64_t bucket = (buckets->first_started - 1) / buckets->pages_per_bucket;
    return bucket * buckets->pages_per_bucket;
}

td_status td_buckets_advance(td_buckets *buckets, int64_t first_final_element) {
    while (buckets->first_started > 0) {
        int64_t begin = next_bucket_begin(buckets);
        if (td_page_map_span(&buckets->map, begin).begin < first_final_element)
            break;
        while (buckets->first_started > begin) {
            TD_TRY(start_page(buckets, buckets->first_started - 1));
            buckets->first_started--;
        }
    }
    return TD_OK;
}

td_status td_buckets_wait(td_buckets *buckets) {
    if (buckets->first_started != 0)
        return td_fail(TD_ERR_INTERNAL,
                       "wait for gradient buckets of which %lld pages were never "
                       "started",
                       (long long)buckets->first_started);
    while (buckets->first_waited > 0) {
        TD_TRY(td_comm_wait(buckets->comm, buckets->requests[buckets->first_waited - 1]));
        buckets->first_waited--;
    }
    return TD_OK;
}
