#include "runtime/core/json.h"
#include "runtime/core/rng.h"
#include "runtime/data/sampler.h"
#include "test.h"

enum { MAX_ITEMS = 4096 };

static int64_t lengths[MAX_ITEMS], bins[MAX_ITEMS], used[MAX_ITEMS];

static int64_t draw_lengths(uint32_t round, int64_t n, int64_t capacity) {
    uint64_t key = td_rng_key(11, TD_RNG_TEST);
    for (int64_t i = 0; i < n; i++) {
        // Every third round is mostly short items.
        uint32_t word = td_rng_word(key, round, 0, (uint64_t)i);
        int64_t most = round % 3 == 0 ? capacity / 10 + 1 : capacity;
        lengths[i] = 1 + (int64_t)word % most;
    }
    return n;
}

static void packs_as_trl_does(void) {
    cJSON *cases;
    REQUIRE(td_json_read(TEST_FIXTURES "/packing/cases.json", 1 << 20, &cases) == TD_OK);
    for (const cJSON *one = cases->child; one; one = one->next) {
        const cJSON *length = cJSON_GetObjectItem(one, "lengths")->child;
        const cJSON *bin = cJSON_GetObjectItem(one, "bins")->child;
        int64_t capacity = (int64_t)cJSON_GetObjectItem(one, "capacity")->valuedouble, n = 0;
        for (; length; length = length->next)
            lengths[n++] = (int64_t)length->valuedouble;
        CHECK(td_pack_best_fit_decreasing(n, lengths, capacity, bins) > 0);
        for (int64_t i = 0; i < n; i++, bin = bin->next)
            CHECK_INT(bins[i], (int64_t)bin->valuedouble);
    }
    CHECK(cJSON_GetArraySize(cases) > 10);
    cJSON_Delete(cases);
}

static void no_bin_is_overfull_or_empty(void) {
    for (uint32_t round = 0; round < 60; round++) {
        int64_t capacity = 1 + round * 37 % 2000, n = draw_lengths(round, 1 + round * 61, capacity);
        int64_t n_bins = td_pack_best_fit_decreasing(n, lengths, capacity, bins);
        REQUIRE(n_bins >= 1 && n_bins <= n);
        memset(used, 0, sizeof used);
        for (int64_t i = 0; i < n; i++) {
            REQUIRE(bins[i] >= 0 && bins[i] < n_bins);
            used[bins[i]] += lengths[i];
        }
        for (int64_t bin = 0; bin < n_bins; bin++)
            CHECK(used[bin] >= 1 && used[bin] <= capacity);
    }
}

// A bin is opened only when the item fits into none: two bins that are at most half full cannot be.
static void at_most_one_bin_is_half_empty(void) {
    for (uint32_t round = 0; round < 60; round++) {
        int64_t capacity = 100 + round, n = draw_lengths(round, 500, capacity), half_empty = 0;
        int64_t n_bins = td_pack_best_fit_decreasing(n, lengths, capacity, bins);
        memset(used, 0, sizeof used);
        for (int64_t i = 0; i < n; i++)
            used[bins[i]] += lengths[i];
        for (int64_t bin = 0; bin < n_bins; bin++)
            half_empty += 2 * used[bin] <= capacity;
        CHECK(half_empty <= 1);
    }
}

static void equal_items_fill_bins_in_order(void) {
    int64_t expected[] = {0, 0, 1, 1, 2};
    for (int i = 0; i < 5; i++)
        lengths[i] = 4;
    CHECK_INT(td_pack_best_fit_decreasing(5, lengths, 9, bins), 3);
    for (int i = 0; i < 5; i++)
        CHECK_INT(bins[i], expected[i]);
}

static void refuses_what_does_not_fit(void) {
    lengths[0] = 3;
    lengths[1] = 9;
    CHECK_INT(td_pack_best_fit_decreasing(2, lengths, 8, bins), -1);
    lengths[1] = 0;
    CHECK_INT(td_pack_best_fit_decreasing(2, lengths, 8, bins), -1);
    CHECK_INT(td_pack_best_fit_decreasing(1, lengths, 8, bins), 1);
}

int main(void) {
    TEST(packs_as_trl_does);
    TEST(no_bin_is_overfull_or_empty);
    TEST(at_most_one_bin_is_half_empty);
    TEST(equal_items_fill_bins_in_order);
    TEST(refuses_what_does_not_fit);
    return test_report();
}
