#include "runtime/data/minhash.h"

#include "data/minhash_texts.h"
#include "runtime/data/minhash_internal.h"

enum { PLACES = TD_MINHASH_PERMUTATIONS };

static double similarity_of(const char *a, size_t a_bytes, const char *b, size_t b_bytes) {
    uint32_t left[PLACES], right[PLACES];
    td_minhash_signature(a, a_bytes, left);
    td_minhash_signature(b, b_bytes, right);
    return td_minhash_similarity(left, right);
}

static double similarity(const char *a, const char *b) {
    return similarity_of(a, strlen(a), b, strlen(b));
}

#define CHECK_SAME(a, b)  CHECK_NEAR(similarity(a, b), 1, 0)
#define CHECK_OTHER(a, b) CHECK_NEAR(similarity(a, b), 0, 0.05)

static void case_space_and_punctuation_make_no_difference(void) {
    CHECK_SAME("One two, three four -- five six!", "one\ttwo\nTHREE  (four) FIVE. six");
    CHECK_SAME("one two", " One\r\n\r\nTwo. ");
    CHECK_SAME("\xc3\x84pfel und \xd0\x96\xd0\xa3\xd0\x9a",
               "\xc3\xa4pfel\xc2\xa0UND \xd0\xb6\xd1\x83\xd0\xba");
    CHECK_SAME("\xce\xb1\xe2\x80\x94\xce\xb2", "\xce\x91 \xce\x92"); // em dash
    CHECK_SAME("it's five o'clock now", "It s five o clock now");
}

static void words_their_order_and_number_do(void) {
    CHECK_OTHER("one two three four five", "one two three five four");
    CHECK_OTHER("a", "a a");
    CHECK_OTHER("a a a a", "a a a a a");
    CHECK_OTHER("ab c", "a bc");
    CHECK_OTHER("snake_case", "snake case");
    CHECK_OTHER("x1", "x2");
    CHECK_OTHER("caf\xc3\xa9", "cafe");
}

static void texts_without_words_are_told_apart(void) {
    CHECK_SAME("", " \n\t\xe3\x80\x80");
    CHECK_SAME("? !", "?!\n");
    CHECK_OTHER("?!", "!?");
    CHECK_OTHER("", "!");
    CHECK_OTHER("\xf0\x9f\x98\x80", "\xf0\x9f\x98\x81");
    CHECK_NEAR(similarity_of(NULL, 0, "", 0), 1, 0);
}

// Six letters have two 5-grams; the longer text has one more.
static void scripts_without_spaces_have_a_word_per_letter(void) {
    uint32_t spaced[PLACES], joined[PLACES];
    const char *with =
        "\xe4\xb8\x80 \xe4\xba\x8c \xe4\xb8\x89 \xe5\x9b\x9b \xe4\xba\x94 \xe5\x85\xad";
    const char *without =
        "\xe4\xb8\x80\xe4\xba\x8c\xe4\xb8\x89\xe5\x9b\x9b\xe4\xba\x94\xe5\x85\xad";
    td_minhash_signature(with, strlen(with), spaced);
    td_minhash_signature(without, strlen(without), joined);
    CHECK(memcmp(spaced, joined, sizeof spaced) == 0);
    CHECK_SAME("abc\xe3\x81\x82\x64\x65\x66", "abc \xe3\x81\x82 def");
    double shared =
        similarity("\xe0\xb8\x81\xe0\xb8\x82\xe0\xb8\x84\xe0\xb8\x87\xe0\xb8\x88\xe0\xb8\x89",
                   "\xe0\xb8\x81\xe0\xb8\x82\xe0\xb8\x84\xe0\xb8\x87\xe0\xb8\x88\xe0\xb8\x8a");
    CHECK_NEAR(shared, 1.0 / 3, 5 * sqrt(2.0 / 9 / PLACES));
}

// In memory of their own size, so that a read past the end is seen by the sanitizer.
static double similarity_exact_bytes(const char *a, size_t a_bytes, const char *b, size_t b_bytes) {
    char *left = malloc(a_bytes), *right = malloc(b_bytes);
    REQUIRE(left && right);
    memcpy(left, a, a_bytes);
    memcpy(right, b, b_bytes);
    double result = similarity_of(left, a_bytes, right, b_bytes);
    free(left);
    free(right);
    return result;
}

static void any_bytes_are_a_text(void) {
    CHECK_NEAR(similarity_exact_bytes("a\0b", 3, "a b", 3), 1, 0);
    CHECK_NEAR(similarity_exact_bytes("a\0b", 3, "a\0c", 3), 0, 0.05);
    CHECK_NEAR(similarity_exact_bytes("caf\xe9", 4, "CAF\xe9", 4), 1, 0);
    CHECK_NEAR(similarity_exact_bytes("caf\xe9", 4, "caf\xe8", 4), 0, 0.05);
    CHECK_NEAR(similarity_exact_bytes("x\xe4\xb8", 3, "x\xe4\xb9", 3), 0, 0.05);
    CHECK_NEAR(similarity_exact_bytes("\xff\xfe", 2, "\xff", 1), 0, 0.05);
}

static void every_byte_string_is_read_to_its_end(void) {
    uint32_t places[PLACES];
    for (int i = 0; i < 20000; i++) {
        size_t bytes = 1 + text_random() % 12;
        char *text = malloc(bytes);
        REQUIRE(text != NULL);
        for (size_t j = 0; j < bytes; j++)
            text[j] = (char)(text_random() % 3 ? 0x80 + text_random() % 0x80 : text_random());
        td_minhash_signature(text, bytes, places);
        free(text);
        uint32_t all = UINT32_MAX; // without a shingle every place would be this
        for (int j = 0; j < PLACES; j++)
            all &= places[j];
        CHECK(all != UINT32_MAX);
    }
}

// Computed by tests/reference/minhash_reference.py: a signature that is kept must mean the same.
static void the_signature_is_the_one_described(void) {
    static const uint32_t expected[] = {0x1cff2ada, 0x0d170859, 0x313b3958, 0x014a9020,
                                        0x105bb778, 0x005760d7, 0x04f5cba2, 0x149e711b};
    const char *text =
        "The quick brown fox jumps over the lazy dog; the DOG sleeps on, and on_and_on, until 9.";
    uint32_t places[PLACES];
    td_minhash_signature(text, strlen(text), places);
    CHECK(memcmp(places, expected, 16) == 0);
    CHECK(memcmp(places + PLACES - 4, expected + 4, 16) == 0);
}

static void every_level_gives_the_same_bits(void) {
    static uint64_t shingles[600];
    for (size_t count = 0; count <= 600; count += count < 20 ? 1 : 145) {
        uint32_t plain[PLACES], other[PLACES];
        for (size_t i = 0; i < count; i++)
            shingles[i] = (uint64_t)text_random() << 32 | text_random();
        memset(plain, 0xff, sizeof plain);
        td_minhash_update_at(TD_MINHASH_PLAIN)(plain, shingles, count);
        for (int level = TD_MINHASH_AVX2; level < TD_MINHASH_LEVELS; level++) {
            td_minhash_update *update = td_minhash_update_at((td_minhash_level)level);
            memset(other, 0xff, sizeof other);
            if (update)
                update(other, shingles, count);
            CHECK(!update || memcmp(plain, other, sizeof plain) == 0);
        }
    }
}

// The least value over a union of sets is the least of the sets' least values. The parts overlap by
// four words, so that together they have the 5-grams of the whole.
static void a_text_is_the_least_of_its_parts(void) {
    static text_words whole, part;
    static char text[TEXT_WORDS_MAX * 12];
    uint32_t expected[PLACES], places[PLACES];
    for (int words = 255; words < 1100; words += 103) {
        text_fill(&whole, words, 1000000);
        memset(expected, 0xff, sizeof expected);
        for (int begin = 0; begin + 5 <= words; begin += 7) {
            part.count = words - begin < 11 ? words - begin : 11;
            memcpy(part.words, whole.words + begin, (size_t)part.count * sizeof *part.words);
            td_minhash_signature(text, text_write(&part, text), places);
            for (int i = 0; i < PLACES; i++)
                expected[i] = places[i] < expected[i] ? places[i] : expected[i];
        }
        td_minhash_signature(text, text_write(&whole, text), places);
        CHECK(memcmp(places, expected, sizeof places) == 0);
    }
}

// The number of equal places of independent permutations is binomial (128, J). Each estimate must
// lie within 5.5 standard deviations (a chance of 4e-8 per pair, and 1/128 for the lattice); the
// sums of z and of z^2 over the pairs tell a bias, and permutations that depend on each other.
static void estimates_scatter_about_the_exact_similarity(void) {
    static const int lengths[] = {40, 150, 600, 2500};
    static text_words a, b;
    static char left[TEXT_WORDS_MAX * 12], right[TEXT_WORDS_MAX * 12];
    double sum = 0, squares = 0;
    int pairs = 0;
    for (int i = 0; i < 400; i++) {
        text_fill(&a, lengths[i % 4], i % 3 ? 1000000 : 4); // of four words: repeated 5-grams
        b = a;
        text_edit(&b, 0.1 + 0.85 * (i % 37) / 36);
        double exact = text_jaccard(&a, &b);
        double estimate = similarity_of(left, text_write(&a, left), right, text_write(&b, right));
        if (exact == 1) {
            CHECK_NEAR(estimate, 1, 0);
            continue;
        }
        double deviation = sqrt(exact * (1 - exact) / PLACES);
        CHECK_NEAR(estimate, exact, 5.5 * deviation + 1.0 / PLACES);
        sum += (estimate - exact) / deviation;
        squares += pow((estimate - exact) / deviation, 2);
        pairs++;
    }
    CHECK(pairs > 350);
    CHECK_NEAR(sum / sqrt(pairs), 0, 4);
    CHECK_NEAR((squares - pairs) / sqrt(2.0 * pairs), 0, 5);
}

// Printed by tests/reference/minhash_reference.py: what datasketch chooses.
static void bands_are_those_of_datasketch(void) {
    static const struct {
        double threshold, false_positive, false_negative;
        int bands, places;
    } cases[] = {
        {0.50, 0.5, 0.5, 25, 5},  {0.55, 0.5, 0.5, 21, 6},  {0.60, 0.5, 0.5, 18, 7},
        {0.65, 0.5, 0.5, 16, 8},  {0.70, 0.5, 0.5, 14, 9},  {0.75, 0.5, 0.5, 11, 11},
        {0.80, 0.5, 0.5, 9, 13},  {0.85, 0.5, 0.5, 8, 16},  {0.90, 0.5, 0.5, 5, 25},
        {0.95, 0.5, 0.5, 3, 42},  {1.00, 0.5, 0.5, 1, 128}, {0.50, 0.1, 0.9, 32, 4},
        {0.55, 0.1, 0.9, 28, 4},  {0.60, 0.1, 0.9, 25, 5},  {0.65, 0.1, 0.9, 21, 6},
        {0.70, 0.1, 0.9, 20, 6},  {0.75, 0.1, 0.9, 16, 8},  {0.80, 0.1, 0.9, 14, 9},
        {0.85, 0.1, 0.9, 11, 11}, {0.90, 0.1, 0.9, 8, 16},  {0.95, 0.1, 0.9, 5, 25},
        {1.00, 0.1, 0.9, 1, 128},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        td_minhash_bands bands = td_minhash_choose_bands(
            cases[i].threshold, cases[i].false_positive, cases[i].false_negative);
        CHECK_INT(bands.bands, cases[i].bands);
        CHECK_INT(bands.places, cases[i].places);
    }
}

int main(void) {
    TEST(case_space_and_punctuation_make_no_difference);
    TEST(words_their_order_and_number_do);
    TEST(texts_without_words_are_told_apart);
    TEST(scripts_without_spaces_have_a_word_per_letter);
    TEST(any_bytes_are_a_text);
    TEST(every_byte_string_is_read_to_its_end);
    TEST(the_signature_is_the_one_described);
    TEST(every_level_gives_the_same_bits);
    TEST(a_text_is_the_least_of_its_parts);
    TEST(estimates_scatter_about_the_exact_similarity);
    TEST(bands_are_those_of_datasketch);
    return test_report();
}
