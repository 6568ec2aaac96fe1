#include "runtime/core/rng.h"

#include "test.h"

static void check_words(td_philox_words counter, uint64_t key, td_philox_words expected) {
    td_philox_words words = td_philox(key, counter);
    for (int i = 0; i < 4; i++)
        CHECK_INT(words.word[i], expected.word[i]);
}

// Random123, tests/kat_vectors, "philox4x32 10".
static void philox_gives_the_published_vectors(void) {
    check_words((td_philox_words){{0, 0, 0, 0}}, 0,
                (td_philox_words){{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
    check_words((td_philox_words){{~0u, ~0u, ~0u, ~0u}}, UINT64_MAX,
                (td_philox_words){{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
    check_words((td_philox_words){{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
                0x299f31d0a4093822u,
                (td_philox_words){{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

static void uniform_is_in_range_and_even(void) {
    uint64_t key = td_rng_key(7, TD_RNG_TEST);
    double sum = 0;
    enum { N = 100000 };
    for (uint64_t i = 0; i < N; i++) {
        float value = td_rng_uniform(td_rng_word(key, 1, 2, i));
        REQUIRE(value >= 0 && value < 1);
        sum += value;
    }
    CHECK_NEAR(sum / N, 0.5, 0.005);
    CHECK(td_rng_uniform(~0u) < 1.0f);
}

static void streams_differ_by_seed_domain_and_counter(void) {
    uint32_t base = td_rng_word(td_rng_key(1, TD_RNG_TEST), 0, 0, 0);
    CHECK(base != td_rng_word(td_rng_key(2, TD_RNG_TEST), 0, 0, 0));
    CHECK(base != td_rng_word(td_rng_key(1, TD_RNG_SAMPLER), 0, 0, 0));
    CHECK(base != td_rng_word(td_rng_key(1, TD_RNG_TEST), 1, 0, 0));
    CHECK(base != td_rng_word(td_rng_key(1, TD_RNG_TEST), 0, 1, 0));
    CHECK(base != td_rng_word(td_rng_key(1, TD_RNG_TEST), 0, 0, 1));
    CHECK(base != td_rng_word(td_rng_key(1, TD_RNG_TEST), 0, 0, (uint64_t)1 << 40));
}

static void dropout_keeps_the_asked_share(void) {
    td_dropout dropout = {.key = td_rng_key(3, TD_RNG_DROPOUT),
                          .step = 1,
                          .micro_batch = 2,
                          .module = 3,
                          .threshold = (uint32_t)(0.25 * 4294967296.0),
                          .scale = 1 / 0.75f};
    int kept = 0;
    enum { N = 100000 };
    for (uint64_t i = 0; i < N; i++) {
        int keep = td_dropout_keep(&dropout, i);
        kept += keep;
        CHECK_INT(keep, td_dropout_words(&dropout, i / 4).word[i % 4] >= dropout.threshold);
    }
    CHECK_NEAR(kept / (double)N, 0.75, 0.01);
    dropout.threshold = 0;
    for (uint64_t i = 0; i < 1000; i++)
        CHECK(td_dropout_keep(&dropout, i));
}

int main(void) {
    TEST(philox_gives_the_published_vectors);
    TEST(uniform_is_in_range_and_even);
    TEST(streams_differ_by_seed_domain_and_counter);
    TEST(dropout_keeps_the_asked_share);
    return test_report();
}
