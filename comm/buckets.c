#include "comm/buckets.h"

#include <stdlib.h>

struct td_buckets {
    td_device_comm *device_comm;
    td_page_map map;
    td_collective_type type;
    unsigned char *values; // (n_elements) int64 or fp32, device memory
    int64_t pages_per_bucket;
    int64_t first_started; // the pages from here on are started
    int64_t first_waited;  // the pages from here on are complete
    td_request *requests;  // (n_pages)
};

td_status td_buckets_create(td_device_comm *device_comm, const td_page_map *map,
                            td_collective_type type, void *values, int64_t pages_per_bucket,
                            td_buckets **out) {
    int size = td_comm_size(device_comm->comm);
    if (pages_per_bucket < 1 || map->size != size)
        return td_fail(TD_ERR_INTERNAL, "buckets of %lld pages, owned by %d ranks, on %d ranks",
                       (long long)pages_per_bucket, map->size, size);
    td_buckets *buckets = calloc(1, sizeof *buckets);
    td_request *requests = calloc((size_t)map->n_pages + 1, sizeof *requests);
    if (!buckets || !requests) {
        free(buckets);
        free(requests);
        return td_fail(TD_ERR_MEMORY, "cannot allocate the gradient buckets of %lld pages",
                       (long long)map->n_pages);
    }
    *buckets = (td_buckets){
        .device_comm = device_comm,
        .map = *map,
        .type = type,
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

static td_status start_page(td_buckets *buckets, int64_t page, td_stream *stream) {
    td_page_span span = td_page_map_span(&buckets->map, page);
    size_t begin = (size_t)span.begin * td_collective_type_bytes(buckets->type);
    return buckets->device_comm->transport->reduce_start(
        buckets->device_comm, buckets->values + begin, (size_t)span.count, buckets->type,
        td_page_map_owner(&buckets->map, page), stream, "gradient page", &buckets->requests[page]);
}

// Bucket b has the pages b * pages_per_bucket and on; the last one to start is bucket 0.
static int64_t next_bucket_begin(const td_buckets *buckets) {
    int64_t bucket = (buckets->first_started - 1) / buckets->pages_per_bucket;
    return bucket * buckets->pages_per_bucket;
}

td_status td_buckets_advance(td_buckets *buckets, int64_t first_final_element, td_stream *stream) {
    while (buckets->first_started > 0) {
        int64_t begin = next_bucket_begin(buckets);
        if (td_page_map_span(&buckets->map, begin).begin < first_final_element)
            break;
        while (buckets->first_started > begin) {
            TD_TRY(start_page(buckets, buckets->first_started - 1, stream));
            buckets->first_started--;
        }
    }
    return buckets->device_comm->transport->progress(buckets->device_comm);
}

td_status td_buckets_wait(td_buckets *buckets, td_stream *stream) {
    td_device_comm *device_comm = buckets->device_comm;
    if (buckets->first_started != 0)
        return td_fail(TD_ERR_INTERNAL,
                       "wait for gradient buckets of which %lld pages were never "
                       "started",
                       (long long)buckets->first_started);
    while (buckets->first_waited > 0) {
        td_request request = buckets->requests[buckets->first_waited - 1];
        TD_TRY(device_comm->transport->wait(device_comm, request, stream));
        buckets->first_waited--;
    }
    return TD_OK;
}
