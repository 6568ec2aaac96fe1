#include "runtime/data/duplicates.h"

#include <signal.h>
#include <sys/resource.h>

#include "data/minhash_texts.h"
#include "runtime/data/duplicates_internal.h"
#include "unit/scratch.h"

enum { PLACES = TD_MINHASH_PERMUTATIONS, ROWS_MAX = 20000 };

typedef struct row {
    td_hash content;
    int has_signature;
    uint32_t places[PLACES];
} row;

static row rows[ROWS_MAX];

static td_duplicates *create(int near, double threshold) {
    td_duplicates *duplicates = NULL;
    const char *path = scratch("duplicates");
    td_duplicates_options options = {.path = path, .near = near, .threshold = threshold};
    REQUIRE(td_duplicates_create(&options, &duplicates) == TD_OK);
    CHECK(!td_path_exists(path));
    return duplicates;
}

static td_duplicates *find(int near, double threshold, const row *all, int count,
                           td_duplicates_account *account) {
    td_duplicates *duplicates = create(near, threshold);
    for (int i = 0; i < count; i++)
        REQUIRE(td_duplicates_add(duplicates, all[i].content,
                                  all[i].has_signature ? all[i].places : NULL) == TD_OK);
    REQUIRE(td_duplicates_finish(duplicates, account) == TD_OK);
    CHECK_INT(account->rows, count);
    return duplicates;
}

static td_hash random_hash(void) {
    td_hash hash;
    hash.low = (uint64_t)text_random() << 32 | text_random();
    hash.high = (uint64_t)text_random() << 32 | text_random();
    return hash;
}

static void fill_random(row *out) {
    out->content = random_hash();
    out->has_signature = 1;
    for (int i = 0; i < PLACES; i++)
        out->places[i] = text_random();
}

// Another row's signature with `unequal` places changed, evenly spread.
static void fill_like(row *out, const row *other, int unequal) {
    *out = *other;
    out->content = random_hash();
    for (int i = 0; i < unequal; i++)
        out->places[PLACES * i / unequal] = text_random();
}

static void fill_text(row *out, const text_words *words) {
    static char text[TEXT_WORDS_MAX * 12];
    size_t bytes = text_write(words, text);
    out->content = td_hash_bytes(text, bytes);
    out->has_signature = 1;
    td_minhash_signature(text, bytes, out->places);
}

static uint32_t set_first(uint32_t *parent, uint32_t i) {
    while (parent[i] != i)
        i = parent[i];
    return i;
}

static int band_agrees(const row *a, const row *b, td_minhash_bands bands) {
    for (int i = 0; i < bands.bands; i++)
        if (memcmp(a->places + i * bands.places, b->places + i * bands.places,
                   (size_t)bands.places * 4) == 0)
            return 1;
    return 0;
}

static int are_duplicates(const row *a, const row *b, double threshold, td_minhash_bands bands) {
    if (td_hash_equal(a->content, b->content))
        return 1;
    return threshold > 0 && a->has_signature && b->has_signature && band_agrees(a, b, bands) &&
           td_minhash_similarity(a->places, b->places) >= threshold;
}

// All pairs, by the definition. threshold 0: exact duplicates only.
static void find_plainly(const row *all, int count, double threshold, uint32_t *first) {
    td_minhash_bands bands = td_minhash_choose_bands(threshold, 0.1, 0.9);
    for (int i = 0; i < count; i++) {
        first[i] = (uint32_t)i;
        for (int j = 0; j < i; j++) {
            if (!are_duplicates(&all[i], &all[j], threshold, bands))
                continue;
            uint32_t a = set_first(first, (uint32_t)i), b = set_first(first, (uint32_t)j);
            first[a > b ? a : b] = a > b ? b : a;
        }
    }
    for (int i = 0; i < count; i++)
        first[i] = set_first(first, (uint32_t)i);
}

static int64_t count_later(const uint32_t *first, int count) {
    int64_t later = 0;
    for (int i = 0; i < count; i++)
        later += first[i] != (uint32_t)i;
    return later;
}

static void check_against_plain(const row *all, int count, double threshold) {
    static uint32_t expected[ROWS_MAX];
    td_duplicates_account account;
    td_duplicates *duplicates = find(1, threshold, all, count, &account);
    size_t bytes = (size_t)count * sizeof *expected;
    find_plainly(all, count, 0, expected);
    CHECK(memcmp(td_duplicates_exact_first(duplicates), expected, bytes) == 0);
    CHECK_INT(account.exact_duplicates, count_later(expected, count));
    find_plainly(all, count, threshold, expected);
    CHECK(memcmp(td_duplicates_near_first(duplicates), expected, bytes) == 0);
    CHECK_INT(account.near_duplicates, count_later(expected, count));
    td_duplicates_destroy(duplicates);
}

// Families of texts whose members are at different distances, exact copies, rows without a text.
static int fill_families(void) {
    static text_words original, edited;
    int count = 0;
    for (int family = 0; family < 60; family++) {
        text_fill(&original, 120 + family * 4, 100000);
        for (int member = 0; member < 10; member++, count++) {
            edited = original;
            text_edit(&edited, 0.6 + 0.4 * (text_random() % 1000) / 999);
            fill_text(&rows[count], &edited);
            rows[count].has_signature = member != 7;
            if (member == 9)
                rows[count] = rows[text_random() % (unsigned)count];
        }
    }
    for (int i = count - 1; i > 0; i--) {
        int j = (int)(text_random() % (unsigned)(i + 1));
        row other = rows[i];
        rows[i] = rows[j];
        rows[j] = other;
    }
    return count;
}

static void clusters_are_those_of_all_pairs(void) {
    int count = fill_families();
    static const double thresholds[] = {0.5, 0.6, 0.7, 0.8, 0.9, 1};
    for (size_t i = 0; i < sizeof thresholds / sizeof *thresholds; i++)
        check_against_plain(rows, count, thresholds[i]);
}

static void both_halves_of_the_hash_count(void) {
    td_duplicates_account account;
    for (int i = 0; i < 6; i++)
        fill_random(&rows[i]);
    rows[2].content.low = rows[0].content.low;
    rows[3].content.high = rows[1].content.high;
    rows[4].content = rows[2].content;
    rows[5].content = rows[0].content;
    td_duplicates *duplicates = find(0, 0, rows, 6, &account);
    static const uint32_t expected[] = {0, 1, 2, 3, 2, 0};
    CHECK(memcmp(td_duplicates_exact_first(duplicates), expected, sizeof expected) == 0);
    CHECK(td_duplicates_near_first(duplicates) == td_duplicates_exact_first(duplicates));
    CHECK_INT(account.exact_duplicates, 2);
    CHECK_INT(account.near_duplicates, 2);
    td_duplicates_destroy(duplicates);
}

// Of 200 pairs at one exact similarity, how many are joined at threshold 0.8.
static int pairs_found(double jaccard, double *out_mean) {
    enum { PAIRS = 200 };
    static text_words original, edited;
    td_duplicates_account account;
    *out_mean = 0;
    for (int i = 0; i < PAIRS; i++) {
        text_fill(&original, 1200, 1000000);
        edited = original;
        text_edit(&edited, jaccard);
        *out_mean += text_jaccard(&original, &edited) / PAIRS;
        fill_text(&rows[2 * i], &original);
        fill_text(&rows[2 * i + 1], &edited);
    }
    td_duplicates *duplicates = find(1, 0.8, rows, 2 * PAIRS, &account);
    const uint32_t *first = td_duplicates_near_first(duplicates);
    int found = 0;
    for (uint32_t i = 0; i < 2 * PAIRS; i++) {
        CHECK(first[i] == i || (first[i] == i - 1 && i % 2 == 1));
        found += first[i] != i;
    }
    td_duplicates_destroy(duplicates);
    return found;
}

// The estimate's standard deviation is 0.035 at 0.8 and 0.027 at 0.9; with 14 bands of 9 places,
// 0.1 % of the pairs at 0.9 and 0.001 % at 0.95 have no equal band, 13 % at 0.8. The bounds leave
// five deviations of the binomial count, or more.
static void similar_texts_are_found_and_others_are_not(void) {
    static const struct {
        double jaccard;
        int least, most; // of 200
    } cases[] = {{0.5, 0, 0},    {0.6, 0, 1},     {0.7, 0, 12},
                 {0.8, 45, 140}, {0.9, 197, 200}, {0.95, 200, 200}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double mean;
        int found = pairs_found(cases[i].jaccard, &mean);
        CHECK_NEAR(mean, cases[i].jaccard, 0.005);
        CHECK(found >= cases[i].least && found <= cases[i].most);
        printf("    similarity %.3f: %d of 200 pairs joined\n", mean, found);
    }
}

// Each text is an edit of the one before: the first and the last have little in common.
static void clusters_are_transitive(void) {
    enum { LINKS = 30 };
    static text_words first_words, words;
    td_duplicates_account account;
    text_fill(&first_words, 600, 1000000);
    words = first_words;
    for (int i = 0; i < LINKS; i++) {
        fill_text(&rows[i], &words);
        for (int j = 0; j < 6; j++)
            words.words[(i * 6 + j) * 3 + 10] = 0x40000000u | text_random();
    }
    fill_random(&rows[LINKS]);
    CHECK(td_minhash_similarity(rows[0].places, rows[LINKS - 1].places) < 0.5);
    td_duplicates *duplicates = find(1, 0.8, rows, LINKS + 1, &account);
    for (int i = 0; i < LINKS; i++)
        CHECK_INT(td_duplicates_near_first(duplicates)[i], 0);
    CHECK_INT(td_duplicates_near_first(duplicates)[LINKS], LINKS);
    CHECK_INT(account.near_duplicates, LINKS - 1);
    CHECK_INT(account.exact_duplicates, 0);
    td_duplicates_destroy(duplicates);
}

// Changes one place, at `offset`, of every band but one.
static void change_all_bands_but(row *out, td_minhash_bands bands, int kept, int offset) {
    for (int band = 0; band < bands.bands; band++)
        if (band != kept)
            out->places[band * bands.places + offset] ^= 1;
}

// Rows 0 and 2 are joined by the first band, and so are 1 and 3; the second band joins 2 and 3,
// neither of which is the first of its cluster. No other band agrees.
static void clusters_are_merged_whole(void) {
    td_duplicates_account account;
    td_minhash_bands bands = td_minhash_choose_bands(0.8, 0.1, 0.9);
    fill_random(&rows[2]);
    fill_like(&rows[0], &rows[2], 0);
    change_all_bands_but(&rows[0], bands, 0, 0);
    fill_like(&rows[3], &rows[2], 0);
    change_all_bands_but(&rows[3], bands, 1, 1);
    fill_like(&rows[1], &rows[3], 0);
    change_all_bands_but(&rows[1], bands, 0, 2);
    td_duplicates *duplicates = find(1, 0.8, rows, 4, &account);
    for (int i = 0; i < 4; i++)
        CHECK_INT(td_duplicates_near_first(duplicates)[i], 0);
    td_duplicates_destroy(duplicates);
}

// Keys that differ in some bits only, each several times.
static void sorting_orders_by_all_of_the_key_then_by_row(void) {
    enum { COUNT = 5000 };
    static td_keyed_row items[COUNT], spare[COUNT];
    for (int kept_bits = 0; kept_bits < 64; kept_bits += 4) {
        for (uint32_t i = 0; i < COUNT; i++) {
            uint64_t key = (uint64_t)(text_random() % 512) << kept_bits;
            items[i] = (td_keyed_row){(uint32_t)key, (uint32_t)(key >> 32), i};
        }
        const td_keyed_row *sorted = td_keyed_rows_sort(items, spare, COUNT);
        int is_ordered = 1;
        for (int i = 1; i < COUNT; i++) {
            uint64_t before = td_keyed_row_key(sorted[i - 1]), here = td_keyed_row_key(sorted[i]);
            is_ordered &= before < here || (before == here && sorted[i - 1].row < sorted[i].row);
        }
        CHECK(is_ordered);
    }
}

// Pairs that lie far apart, in other blocks of the file; 13,000 rows are no whole number of blocks.
static void pairs_are_found_across_the_whole_file(void) {
    enum { COUNT = 13000, HALF = COUNT / 2 };
    td_duplicates_account account;
    for (int i = 0; i < HALF; i++) {
        fill_random(&rows[i]);
        fill_like(&rows[COUNT - 1 - i], &rows[i], i % 8 + 1);
    }
    td_duplicates *duplicates = find(1, 0.8, rows, COUNT, &account);
    const uint32_t *first = td_duplicates_near_first(duplicates);
    for (int i = 0; i < HALF; i++) {
        CHECK_INT(first[i], i);
        CHECK_INT(first[COUNT - 1 - i], i);
    }
    CHECK_INT(account.near_duplicates, HALF);
    CHECK(account.compared_pairs <= 14 * HALF);
    td_duplicates_destroy(duplicates);
}

static void copies_cost_next_to_nothing(void) {
    enum { COUNT = 100000 };
    td_duplicates_account account;
    td_duplicates *duplicates = create(1, 0.8);
    fill_random(&rows[0]);
    for (int i = 0; i < COUNT; i++)
        REQUIRE(td_duplicates_add(duplicates, rows[0].content, rows[0].places) == TD_OK);
    REQUIRE(td_duplicates_finish(duplicates, &account) == TD_OK);
    CHECK_INT(account.exact_duplicates, COUNT - 1);
    CHECK_INT(account.near_duplicates, COUNT - 1);
    CHECK_INT(account.compared_pairs, 0);
    CHECK_INT(td_duplicates_near_first(duplicates)[COUNT - 1], 0);
    td_duplicates_destroy(duplicates);
}

// Equal texts in different rows: once a row belongs to the cluster it is compared no more.
static void near_copies_are_compared_once(void) {
    td_duplicates_account account;
    fill_random(&rows[0]);
    for (int i = 1; i < ROWS_MAX; i++)
        fill_like(&rows[i], &rows[0], 0);
    td_duplicates *duplicates = find(1, 0.8, rows, ROWS_MAX, &account);
    CHECK_INT(account.exact_duplicates, 0);
    CHECK_INT(account.near_duplicates, ROWS_MAX - 1);
    CHECK_INT(account.compared_pairs, ROWS_MAX - 1);
    td_duplicates_destroy(duplicates);
}

// Rows that share a band and nothing else: 2e8 pairs, of which at most 1,024 per row are looked at.
// Of the planted pairs, those within the most recent rows are found by that band.
static void a_band_that_all_share_has_bounded_work(void) {
    enum { BAND = 9 };
    td_duplicates_account account;
    td_minhash_bands bands = td_minhash_choose_bands(0.8, 0.1, 0.9);
    CHECK_INT(bands.places, BAND);
    for (int i = 0; i < ROWS_MAX; i++) {
        fill_random(&rows[i]);
        memcpy(rows[i].places, rows[0].places, BAND * sizeof *rows[i].places);
    }
    for (int i = 500; i + 400 < ROWS_MAX; i += 1000) {
        rows[i + 400] = rows[i]; // one place of every other band differs: found by the first alone
        rows[i + 400].content = random_hash();
        for (int band = 1; band < bands.bands; band++)
            rows[i + 400].places[band * BAND] ^= 1;
    }
    td_duplicates *duplicates = find(1, 0.8, rows, ROWS_MAX, &account);
    CHECK(account.compared_pairs <= (int64_t)ROWS_MAX * 1024);
    CHECK_INT(account.near_duplicates, 20);
    for (int i = 500; i + 400 < ROWS_MAX; i += 1000)
        CHECK_INT(td_duplicates_near_first(duplicates)[i + 400], i);
    td_duplicates_destroy(duplicates);
}

static void no_rows_and_one_row_are_fine(void) {
    td_duplicates_account account;
    for (int near = 0; near < 2; near++) {
        td_duplicates_destroy(find(near, 0.8, rows, 0, &account));
        fill_random(&rows[0]);
        td_duplicates *duplicates = find(near, 0.8, rows, 1, &account);
        CHECK_INT(td_duplicates_near_first(duplicates)[0], 0);
        td_duplicates_destroy(duplicates);
    }
    td_duplicates_destroy(NULL);
}

static void mistakes_are_named(void) {
    td_duplicates *duplicates = NULL;
    const double thresholds[] = {0.49, 1.01, -1, NAN};
    for (int i = 0; i < 4; i++) {
        td_duplicates_options options = {scratch("never"), 1, thresholds[i]};
        CHECK_INT(td_duplicates_create(&options, &duplicates), TD_ERR_USAGE);
        CHECK_MESSAGE("is not from 0.5 to 1");
    }
    td_duplicates_options there = {scratch_file("there", "precious"), 1, 0.8};
    CHECK_INT(td_duplicates_create(&there, &duplicates), TD_ERR_IO);
    CHECK_MESSAGE("there: cannot make the temporary file for finding duplicates: File exists");
    CHECK(td_path_exists(there.path));
    td_duplicates_options nowhere = {scratch("no/folder"), 1, 0.8};
    CHECK_INT(td_duplicates_create(&nowhere, &duplicates), TD_ERR_IO);
    CHECK_MESSAGE("No such file");
    td_duplicates_account account;
    fill_random(&rows[0]);
    duplicates = find(1, 0.8, rows, 1, &account);
    CHECK_INT(td_duplicates_add(duplicates, rows[0].content, NULL), TD_ERR_INTERNAL);
    td_error_clear();
    CHECK_INT(td_duplicates_finish(duplicates, NULL), TD_ERR_INTERNAL);
    td_error_clear();
    td_duplicates_destroy(duplicates);
}

static void a_full_disk_is_one_line(void) {
    struct rlimit before, small;
    td_status status = TD_OK;
    td_duplicates *duplicates = create(1, 0.8);
    signal(SIGXFSZ, SIG_IGN);
    REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
    small = (struct rlimit){4 << 20, before.rlim_max};
    REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
    fill_random(&rows[0]);
    int added = 0;
    for (; added < 10000 && status == TD_OK; added++)
        status = td_duplicates_add(duplicates, rows[0].content, rows[0].places);
    REQUIRE(setrlimit(RLIMIT_FSIZE, &before) == 0);
    CHECK_INT(status, TD_ERR_IO);
    CHECK_INT(added, 8192);
    CHECK(strchr(td_error_message(), '\n') == NULL);
    CHECK_MESSAGE("duplicates: cannot write the temporary file for finding duplicates at row 8192 "
                  "(640 bytes per row): File too large");
    td_duplicates_destroy(duplicates);
}

int main(void) {
    TEST(clusters_are_those_of_all_pairs);
    TEST(both_halves_of_the_hash_count);
    TEST(similar_texts_are_found_and_others_are_not);
    TEST(clusters_are_transitive);
    TEST(clusters_are_merged_whole);
    TEST(sorting_orders_by_all_of_the_key_then_by_row);
    TEST(pairs_are_found_across_the_whole_file);
    TEST(copies_cost_next_to_nothing);
    TEST(near_copies_are_compared_once);
    TEST(a_band_that_all_share_has_bounded_work);
    TEST(no_rows_and_one_row_are_fine);
    TEST(mistakes_are_named);
    TEST(a_full_disk_is_one_line);
    return test_report();
}
