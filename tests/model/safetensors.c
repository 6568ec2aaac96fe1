// Reading and writing safetensors: what a good file gives, and what every kind of damage says.
#include <errno.h>

#include "model/safetensors.h"
#include "model/safetensors_internal.h"
#include "safetensors_build.h"

static const char two_tensors[] =
    "{\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
    "\"a\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[24,32]}}";

static td_safetensors *open_good(const char *path) {
    td_safetensors *files = NULL;
    td_status status = td_safetensors_open(path, &files);
    if (status != TD_OK)
        fprintf(stderr, "    %s\n", td_error_message());
    REQUIRE(status == TD_OK);
    return files;
}

static void lists_tensors_by_name(void) {
    td_safetensors *files = open_good(write_file("good.safetensors", two_tensors, 32));
    CHECK_INT(td_safetensors_count(files), 2);
    CHECK_STRING(td_safetensors_name(files, 0), "a");
    CHECK_STRING(td_safetensors_name(files, 1), "b");
    td_tensor a = td_safetensors_view(files, 0), b = td_safetensors_view(files, 1);
    CHECK_INT(a.dtype, TD_BF16);
    CHECK_INT(a.n_dims, 1);
    CHECK_INT(a.shape[0], 4);
    CHECK_INT(((unsigned char *)a.data)[0], 24);
    CHECK_INT(b.dtype, TD_F32);
    CHECK_INT(b.n_dims, 2);
    CHECK_INT(b.shape[1], 3);
    CHECK_INT(((unsigned char *)b.data)[23], 23);
    td_safetensors_close(files);
}

static void finds_and_requires(void) {
    const char *path = write_file("require.safetensors", two_tensors, 32);
    td_safetensors *files = open_good(path);
    td_tensor view;
    int64_t good[2] = {2, 3}, turned[2] = {3, 2};
    CHECK_INT(td_safetensors_find(files, "b", &view), 1);
    CHECK_INT(td_safetensors_find(files, "c", &view), 0);
    CHECK_INT(td_safetensors_require(files, "b", 2, good, &view), TD_OK);
    CHECK_INT(view.shape[0], 2);
    CHECK_INT(td_safetensors_require(files, "b", 2, turned, &view), TD_ERR_DATA);
    CHECK(strstr(td_error_message(), path) != NULL);
    CHECK(strstr(td_error_message(), "[3, 2]") != NULL);
    CHECK_MESSAGE("[2, 3]");
    CHECK_INT(td_safetensors_require(files, "b", 1, good, &view), TD_ERR_DATA);
    CHECK_MESSAGE("\"b\"");
    CHECK_INT(td_safetensors_require(files, "c", 2, good, &view), TD_ERR_DATA);
    CHECK_MESSAGE("\"c\" is missing");
    td_safetensors_close(files);
}

// A file may hold other dtypes beside what is used; they cannot be taken for weights.
static void other_dtypes_are_no_weights(void) {
    td_safetensors *files =
        open_good(write_file("dtypes.safetensors",
                             "{\"f\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8]},"
                             "\"i\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[8,16]},"
                             "\"t\":{\"dtype\":\"BOOL\",\"shape\":[3],\"data_offsets\":[16,19]},"
                             "\"u\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[19,20]}}",
                             20));
    td_tensor view;
    int64_t one = 1;
    CHECK_INT(td_safetensors_count(files), 2);
    CHECK_INT(td_safetensors_find(files, "f", &view), 0);
    CHECK_INT(td_safetensors_find(files, "u", &view), 1);
    CHECK_INT(view.n_dims, 0);
    CHECK_INT(td_safetensors_require(files, "f", 1, &one, &view), TD_ERR_DATA);
    CHECK_MESSAGE("found F64");
    CHECK_INT(td_safetensors_require(files, "i", 1, &one, &view), TD_ERR_DATA);
    CHECK_MESSAGE("found I64");
    td_safetensors_close(files);
}

// Files of early versions of the library do not align their data.
static void unaligned_data_is_read(void) {
    char header[200];
    snprintf(header, sizeof header, "%s", two_tensors);
    while (strlen(header) % 4 != 1)
        strcat(header, " ");
    td_safetensors *files = open_good(write_file("unaligned.safetensors", header, 32));
    td_tensor view;
    float values[6];
    uint32_t bits;
    CHECK_INT(td_safetensors_find(files, "b", &view), 1);
    CHECK(((uintptr_t)view.data & 3) != 0);
    td_convert_to_f32(view.data, view.dtype, 6, values);
    memcpy(&bits, &values[1], sizeof bits);
    CHECK_INT(bits, 0x07060504);
    td_safetensors_forget(files, &view);
    CHECK_INT(((unsigned char *)view.data)[5], 5);
    td_safetensors_close(files);
}

static void empty_tensors_and_metadata_are_good(void) {
    td_safetensors *files = open_good(
        write_file("empty.safetensors",
                   "{\"__metadata__\":{\"format\":\"pt\",\"x\":\"\"},"
                   "\"none\":{\"dtype\":\"F32\",\"shape\":[3,0],\"data_offsets\":[0,0]}}   ",
                   0));
    CHECK_INT(td_safetensors_count(files), 1);
    td_tensor view = td_safetensors_view(files, 0);
    CHECK_INT(view.shape[1], 0);
    td_safetensors_forget(files, &view);
    td_safetensors_close(files);
}

#define ENTRY(name, dtype, shape, offsets)                                                         \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

typedef struct damage {
    const char *what;
    const char *header;
    size_t data_bytes;
    const char *message; // part of it
} damage;

static const damage damages[] = {
    {"no object", "[1,2]", 0, "begin"},
    {"space first", " {}", 0, "begin"},
    {"cut JSON", "{" ENTRY("a", "F32", "[1]", "[0,4]"), 4, "malformed"},
    {"trailing text", "{} x", 0, "unexpected"},
    {"invalid UTF-8", "{\"\xff\":{}}", 0, "UTF-8"},
    {"not an object", "{\"a\":3}", 0, "\"a\""},
    {"no dtype", "{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype"},
    {"no shape", "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "shape"},
    {"no offsets", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "data_offsets"},
    {"unknown dtype", "{" ENTRY("a", "F33", "[1]", "[0,4]") "}", 4, "F33"},
    {"lower case dtype", "{" ENTRY("a", "f32", "[1]", "[0,4]") "}", 4, "f32"},
    {"dtype no string", "{\"a\":{\"dtype\":4,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype"},
    {"shape no list", "{" ENTRY("a", "F32", "1", "[0,4]") "}", 4, "shape"},
    {"negative extent", "{" ENTRY("a", "F32", "[-1]", "[0,4]") "}", 4, "shape"},
    {"broken extent", "{" ENTRY("a", "F32", "[1.5]", "[0,4]") "}", 4, "shape"},
    {"extent as text", "{" ENTRY("a", "F32", "[\"1\"]", "[0,4]") "}", 4, "shape"},
    {"nine dimensions", "{" ENTRY("a", "U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]") "}", 1, "dimensions"},
    {"product overflows", "{" ENTRY("a", "F32", "[4294967296,4294967296]", "[0,4]") "}", 4,
     "overflow"},
    {"bytes overflow", "{" ENTRY("a", "F32", "[4503599627370496,1024]", "[0,0]") "}", 0,
     "overflow"},
    {"huge extent", "{" ENTRY("a", "F32", "[1e300]", "[0,4]") "}", 4, "shape"},
    {"one offset", "{" ENTRY("a", "F32", "[1]", "[0]") "}", 4, "data_offsets"},
    {"three offsets", "{" ENTRY("a", "F32", "[1]", "[0,4,4]") "}", 4, "data_offsets"},
    {"negative offset", "{" ENTRY("a", "F32", "[1]", "[-4,0]") "}", 4, "data_offsets"},
    {"offsets reversed", "{" ENTRY("a", "F32", "[1]", "[4,0]") "}", 4, "data_offsets"},
    {"offset beyond 2^53", "{" ENTRY("a", "F32", "[1]", "[0,18446744073709551620]") "}", 4,
     "data_offsets"},
    {"beyond the file", "{" ENTRY("a", "F32", "[2]", "[0,8]") "}", 4, "truncated"},
    {"size too small", "{" ENTRY("a", "F32", "[2]", "[0,4]") "}", 4, "8 bytes"},
    {"size too large", "{" ENTRY("a", "F16", "[1]", "[0,4]") "}", 4, "2 bytes"},
    {"gap at the front", "{" ENTRY("a", "U8", "[2]", "[2,4]") "}", 4, "gap of 2"},
    {"gap between", "{" ENTRY("a", "U8", "[1]", "[0,1]") "," ENTRY("b", "U8", "[1]", "[2,3]") "}",
     3, "gap of 1"},
    {"overlap", "{" ENTRY("a", "U8", "[2]", "[0,2]") "," ENTRY("b", "U8", "[2]", "[1,3]") "}", 3,
     "overlap"},
    {"same bytes twice",
     "{" ENTRY("a", "U8", "[2]", "[0,2]") "," ENTRY("b", "U8", "[2]", "[0,2]") "}", 2, "overlap"},
    {"bytes left over", "{" ENTRY("a", "U8", "[2]", "[0,2]") "}", 5, "3 bytes after"},
    {"name twice", "{" ENTRY("a", "U8", "[1]", "[0,1]") "," ENTRY("a", "U8", "[1]", "[1,2]") "}", 2,
     "twice"},
    {"field twice",
     "{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
     "twice"},
    {"metadata twice", "{\"__metadata__\":{},\"__metadata__\":{}}", 0, "twice"},
    {"metadata no object", "{\"__metadata__\":[]}", 0, "__metadata__"},
    {"metadata of numbers", "{\"__metadata__\":{\"a\":1}}", 0, "strings"},
};

static void check_refused(const char *what, const char *path, const char *message) {
    td_safetensors *files = NULL;
    td_status status = td_safetensors_open(path, &files);
    const char *name = strrchr(path, '/') + 1;
    int good = status == TD_ERR_DATA && files == NULL && strstr(td_error_message(), name) &&
               strstr(td_error_message(), message);
    if (!CHECK(good))
        fprintf(stderr, "    %s: status %d, \"%s\", expected \"%s\"\n", what, (int)status,
                td_error_message(), message);
    td_error_clear();
    td_safetensors_close(files);
}

static void every_damage_of_the_header_is_named(void) {
    for (size_t i = 0; i < sizeof damages / sizeof damages[0]; i++)
        check_refused(damages[i].what,
                      write_file("damaged.safetensors", damages[i].header, damages[i].data_bytes),
                      damages[i].message);
}

static void implausible_lengths_are_named(void) {
    check_refused("empty", scratch_file("l0.safetensors", ""), "empty");
    check_refused("seven bytes", scratch_file("l1.safetensors", "1234567"), "too few");
    check_refused("no header", write_raw("l2.safetensors", 0, "", 0), "too few");
    check_refused("zero length", write_raw("l3.safetensors", 0, "{}", 4), "begin");
    check_refused("beyond the file", write_raw("l4.safetensors", 300, "{}", 100), "truncated");
    check_refused("over the limit", write_raw("l5.safetensors", 100000001, "{}", 0), "plausible");
    check_refused("2^64 - 1", write_raw("l6.safetensors", UINT64_MAX, "{}", 0), "plausible");
    check_refused("2^63", write_raw("l7.safetensors", (uint64_t)1 << 63, "{}", 0), "plausible");
}

static void deep_nesting_is_refused(void) {
    char header[4096] = "{\"a\":";
    size_t used = strlen(header);
    memset(header + used, '[', 2000);
    memset(header + used + 2000, ']', 2000);
    strcpy(header + used + 4000, "}");
    check_refused("nesting", write_file("deep.safetensors", header, 0), "deep");
}

static void a_header_that_would_fill_memory_is_refused(void) {
    size_t count = 9u << 20;
    char *header = malloc(count + 32);
    REQUIRE(header != NULL);
    strcpy(header, "{\"a\":[");
    memset(header + 6, ',', count);
    strcpy(header + 6 + count, "]}");
    check_refused("values", write_file("values.safetensors", header, 0), "values");
    free(header);
}

// Cut a good file at every length: never read beyond it, always refused.
static void every_truncation_is_refused(void) {
    char *bytes;
    size_t count;
    REQUIRE(td_file_read(write_file("whole.safetensors", two_tensors, 32), 1 << 20, &bytes,
                         &count) == TD_OK);
    for (size_t keep = 0; keep < count; keep++) {
        td_safetensors_entries entries;
        unsigned char *cut = malloc(keep + 1);
        memcpy(cut, bytes, keep);
        CHECK_INT(td_safetensors_parse("cut", cut, keep, &entries), TD_ERR_DATA);
        td_safetensors_entries_fini(&entries);
        td_error_clear();
        free(cut);
    }
    free(bytes);
}

// Change every byte of the header: refused, or what is listed lies within the file.
static void every_changed_byte_stays_in_bounds(void) {
    char *bytes;
    size_t count;
    REQUIRE(td_file_read(write_file("flip.safetensors", two_tensors, 32), 1 << 20, &bytes,
                         &count) == TD_OK);
    int refused = 0;
    for (size_t at = 0; at < count - 32; at++)
        for (int value = 0; value < 256; value += 5) {
            td_safetensors_entries entries;
            char kept = bytes[at];
            bytes[at] = (char)value;
            td_status status =
                td_safetensors_parse("flip", (unsigned char *)bytes, count, &entries);
            refused += status != TD_OK;
            for (int64_t i = 0; status == TD_OK && i < entries.count; i++)
                CHECK((size_t)((char *)entries.items[i].tensor.data - bytes) +
                          entries.items[i].end - entries.items[i].begin <=
                      count);
            td_safetensors_entries_fini(&entries);
            td_error_clear();
            bytes[at] = kept;
        }
    CHECK(refused > 1000);
    free(bytes);
}

static const char *make_folder(const char *name) {
    const char *path = scratch(name);
    REQUIRE(td_folder_make(path) == TD_OK);
    return path;
}

static const char one_tensor[] = "{" ENTRY("x", "U8", "[4]", "[0,4]") "}";
static const char other_tensor[] =
    "{" ENTRY("y", "U8", "[2]", "[0,2]") "," ENTRY("x", "U8", "[2]", "[2,4]") "}";

static void an_index_joins_files(void) {
    const char *folder = make_folder("sharded");
    write_file("sharded/one.safetensors", one_tensor, 4);
    write_file("sharded/two.safetensors", other_tensor, 4);
    scratch_file("sharded/model.safetensors.index.json",
                 "{\"metadata\":{\"total_size\":6},\"weight_map\":"
                 "{\"y\":\"two.safetensors\",\"x\":\"one.safetensors\"}}");
    td_safetensors *files = open_good(folder);
    td_tensor view;
    CHECK_INT(td_safetensors_count(files), 2);
    CHECK_INT(td_safetensors_find(files, "x", &view), 1);
    CHECK_INT(view.shape[0], 4); // the index says which of the two x counts
    CHECK_INT(td_safetensors_find(files, "y", &view), 1);
    CHECK_INT(((unsigned char *)view.data)[1], 1);
    td_safetensors_close(files);
}

// A snapshot folder of the Hugging Face cache holds links to ../../blobs/.
static void links_to_files_elsewhere_are_followed(void) {
    make_folder("cache/blobs");
    const char *folder = make_folder("cache/snapshots/abc");
    write_file("cache/blobs/0123", one_tensor, 4);
    REQUIRE(symlink("../../blobs/0123", scratch("cache/snapshots/abc/model.safetensors")) == 0);
    td_safetensors *files = open_good(folder);
    CHECK_INT(td_safetensors_count(files), 1);
    td_safetensors_close(files);
}

static void check_index(const char *what, const char *text, const char *message) {
    td_safetensors *files = NULL;
    const char *folder = make_folder("index");
    write_file("index/one.safetensors", one_tensor, 4);
    scratch_file("index/model.safetensors.index.json", text);
    td_status status = td_safetensors_open(folder, &files);
    int good = status == TD_ERR_DATA && files == NULL &&
               strstr(td_error_message(), "model.safetensors.index.json") &&
               strstr(td_error_message(), message);
    if (!CHECK(good))
        fprintf(stderr, "    %s: status %d, \"%s\"\n", what, (int)status, td_error_message());
    td_error_clear();
}

static void every_damage_of_an_index_is_named(void) {
    check_index("no JSON", "weight_map", "malformed");
    check_index("empty", "", "malformed");
    check_index("a list", "[]", "weight_map");
    check_index("no map", "{}", "weight_map");
    check_index("map is a list", "{\"weight_map\":[\"x\"]}", "weight_map");
    check_index("empty map", "{\"weight_map\":{}}", "weight_map");
    check_index("number", "{\"weight_map\":{\"x\":1}}", "\"x\"");
    check_index("absolute", "{\"weight_map\":{\"x\":\"/etc/passwd\"}}", "/etc/passwd");
    check_index("parent", "{\"weight_map\":{\"x\":\"../one.safetensors\"}}", "same folder");
    check_index("dots", "{\"weight_map\":{\"x\":\"..\"}}", "same folder");
    check_index("below", "{\"weight_map\":{\"x\":\"a/one.safetensors\"}}", "same folder");
    check_index("no name", "{\"weight_map\":{\"x\":\"\"}}", "same folder");
    check_index("no file", "{\"weight_map\":{\"x\":\"three.safetensors\"}}", "three.safetensors");
    check_index("no tensor", "{\"weight_map\":{\"z\":\"one.safetensors\"}}", "one.safetensors");
    check_index("twice", "{\"weight_map\":{\"x\":\"one.safetensors\",\"x\":\"one.safetensors\"}}",
                "twice");
}

static void check_folder(const char *folder, const char *message) {
    td_safetensors *files = NULL;
    CHECK_INT(td_safetensors_open(folder, &files), TD_ERR_DATA);
    CHECK(strstr(td_error_message(), folder) != NULL);
    CHECK_MESSAGE(message);
}

static void folders_without_weights_say_so(void) {
    check_folder(make_folder("nothing"), "neither");
    const char *pickled = make_folder("pickled");
    scratch_file("pickled/pytorch_model.bin", "x");
    check_folder(pickled, "safe_serialization");
    check_folder(scratch("not-there"), "No such file");
    make_folder("a-folder/model.safetensors");
    check_folder(scratch("a-folder"), "regular file");
}

static void what_is_written_is_read_back(void) {
    float a[6] = {1, 2, 3, 4, 5, 6};
    uint16_t b[3] = {7, 8, 9};
    td_named_tensor tensors[] = {
        {"first", {a, TD_F32, 2, {2, 3}}},
        {"odd \"name\" \\ \x01 \xc3\xa9", {b, TD_BF16, 1, {3}}},
        {"none", {a, TD_F32, 2, {0, 3}}},
    };
    const char *path = scratch("written.safetensors");
    REQUIRE(td_safetensors_write(path, tensors, 3) == TD_OK);
    td_safetensors *files = open_good(path);
    CHECK_INT(td_safetensors_count(files), 3);
    for (int i = 0; i < 3; i++) {
        td_tensor view;
        CHECK_INT(td_safetensors_find(files, tensors[i].name, &view), 1);
        CHECK_INT(view.dtype, tensors[i].tensor.dtype);
        CHECK_INT(view.n_dims, tensors[i].tensor.n_dims);
        CHECK_INT(view.shape[0], tensors[i].tensor.shape[0]);
        CHECK(memcmp(view.data, tensors[i].tensor.data, i == 0 ? 24 : i == 1 ? 6 : 0) == 0);
    }
    td_safetensors_close(files);
}

static void data_begin_aligned_and_metadata_says_pt(void) {
    float a[1] = {1};
    char name[9] = "";
    for (int chars = 1; chars <= 8; chars++) {
        char *bytes;
        size_t count;
        name[chars - 1] = 'n';
        td_named_tensor tensor = {name, {a, TD_F32, 1, {1}}};
        const char *path = scratch("aligned.safetensors");
        REQUIRE(td_safetensors_write(path, &tensor, 1) == TD_OK);
        REQUIRE(td_file_read(path, 1 << 20, &bytes, &count) == TD_OK);
        CHECK_INT((count - sizeof a) % 8, 0);
        CHECK(strstr(bytes + 8, "{\"__metadata__\":{\"format\":\"pt\"},") == bytes + 8);
        free(bytes);
    }
}

static void failed_writing_leaves_nothing(void) {
    float a[1] = {1};
    td_named_tensor tensor = {"a", {a, TD_F32, 1, {1}}};
    char **names;
    size_t count;
    CHECK_INT(td_safetensors_write(scratch("missing/x.safetensors"), &tensor, 1), TD_ERR_IO);
    CHECK_MESSAGE("missing/x.safetensors");
    make_folder("occupied/x.safetensors");
    CHECK_INT(td_safetensors_write(scratch("occupied/x.safetensors"), &tensor, 1), TD_ERR_IO);
    td_error_clear();
    REQUIRE(td_folder_list(scratch("occupied"), &names, &count) == TD_OK);
    CHECK_INT(count, 1);
    td_names_free(names, count);
}

int main(void) {
    TEST(lists_tensors_by_name);
    TEST(finds_and_requires);
    TEST(other_dtypes_are_no_weights);
    TEST(unaligned_data_is_read);
    TEST(empty_tensors_and_metadata_are_good);
    TEST(every_damage_of_the_header_is_named);
    TEST(implausible_lengths_are_named);
    TEST(deep_nesting_is_refused);
    TEST(a_header_that_would_fill_memory_is_refused);
    TEST(every_truncation_is_refused);
    TEST(every_changed_byte_stays_in_bounds);
    TEST(an_index_joins_files);
    TEST(links_to_files_elsewhere_are_followed);
    TEST(every_damage_of_an_index_is_named);
    TEST(folders_without_weights_say_so);
    TEST(what_is_written_is_read_back);
    TEST(data_begin_aligned_and_metadata_says_pt);
    TEST(failed_writing_leaves_nothing);
    return test_report();
}
