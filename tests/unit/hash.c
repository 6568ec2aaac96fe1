#include "runtime/core/hash.h"

#include "scratch.h"

// XXH3_128bits of nothing, from the xxHash specification's test vectors (seed 0).
static void the_empty_hash_is_the_published_one(void) {
    char hex[TD_HASH_HEX_CHARS];
    td_hash_to_hex(td_hash_bytes("", 0), hex);
    CHECK_STRING(hex, "99aa06d3014798d86001c324468d497f");
}

static void pieces_hash_like_the_whole(void) {
    unsigned char data[5000];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (unsigned char)(i * 31 >> 3);
    td_hash whole = td_hash_bytes(data, sizeof data);
    td_hasher *hasher;
    REQUIRE(td_hasher_create(&hasher) == TD_OK);
    for (size_t done = 0, piece = 1; done < sizeof data; done += piece, piece = piece % 300 + 7) {
        if (piece > sizeof data - done)
            piece = sizeof data - done;
        td_hasher_add(hasher, data + done, piece);
    }
    td_hasher_add(hasher, NULL, 0);
    CHECK(td_hash_equal(td_hasher_value(hasher), whole));
    td_hasher_destroy(hasher);
    data[4321] ^= 1;
    CHECK(!td_hash_equal(td_hash_bytes(data, sizeof data), whole));
}

static td_hash of_strings(const char *a, const char *b) {
    td_hasher *hasher;
    REQUIRE(td_hasher_create(&hasher) == TD_OK);
    td_hasher_add_string(hasher, a);
    td_hasher_add_string(hasher, b);
    td_hash hash = td_hasher_value(hasher);
    td_hasher_destroy(hasher);
    return hash;
}

static void strings_do_not_run_together(void) {
    CHECK(td_hash_equal(of_strings("ab", "c"), of_strings("ab", "c")));
    CHECK(!td_hash_equal(of_strings("ab", "c"), of_strings("a", "bc")));
}

static void a_file_hashes_like_its_bytes(void) {
    size_t bytes = 3 * 1024 * 1024 + 17;
    unsigned char *data = malloc(bytes);
    REQUIRE(data != NULL);
    for (size_t i = 0; i < bytes; i++)
        data[i] = (unsigned char)(i * i >> 7);
    REQUIRE(td_file_write_atomic(scratch("data"), data, bytes) == TD_OK);
    td_hash hash;
    REQUIRE(td_hash_file(scratch("data"), &hash) == TD_OK);
    CHECK(td_hash_equal(hash, td_hash_bytes(data, bytes)));
    free(data);
    CHECK_INT(td_hash_file(scratch("missing"), &hash), TD_ERR_DATA);
    CHECK_MESSAGE("missing");
}

static void hex_reads_back(void) {
    td_hash hash = {.low = 0x0123456789abcdefu, .high = 0xfedcba9876543210u}, back;
    char hex[TD_HASH_HEX_CHARS];
    td_hash_to_hex(hash, hex);
    CHECK_STRING(hex, "fedcba98765432100123456789abcdef");
    REQUIRE(td_hash_from_hex(hex, &back) == TD_OK);
    CHECK(td_hash_equal(hash, back));
    REQUIRE(td_hash_from_hex("FEDCBA98765432100123456789ABCDEF", &back) == TD_OK);
    CHECK(td_hash_equal(hash, back));
}

static void other_text_is_no_checksum(void) {
    static const char *const wrong[] = {"",
                                        "0",
                                        "fedcba98765432100123456789abcde",
                                        "fedcba98765432100123456789abcdef0",
                                        "fedcba98765432100123456789abcdeg",
                                        " fedcba98765432100123456789abcde"};
    td_hash hash = {1, 2};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        CHECK_INT(td_hash_from_hex(wrong[i], &hash), TD_ERR_DATA);
        CHECK_MESSAGE("32 hexadecimal digits");
    }
    CHECK(hash.low == 1 && hash.high == 2);
}

int main(void) {
    TEST(the_empty_hash_is_the_published_one);
    TEST(pieces_hash_like_the_whole);
    TEST(strings_do_not_run_together);
    TEST(a_file_hashes_like_its_bytes);
    TEST(hex_reads_back);
    TEST(other_text_is_no_checksum);
    return test_report();
}
