// libFuzzer target: the manifest.json of a checkpoint, with its checksum and as if its checksum
// were right. Whatever it says, it is refused or names plain files and sizes that fit each other,
// and prints to a manifest that says the same.
#include <stdlib.h>
#include <string.h>

#include "runtime/train/checkpoint_internal.h"
#include "tests/fuzz/support/fuzz.h"

static void check_files(const td_manifest *manifest) {
    for (int64_t i = 0; i < manifest->n_files; i++) {
        const char *name = manifest->files[i].name;
        fuzz_require(td_path_is_plain_name(name), "a file is in the folder itself");
        if (i < 4)
            (void)td_manifest_verify_file(fuzz_folder(), &manifest->files[i]);
        td_error_clear();
    }
}

static void check_map(const td_page_map *map) {
    int64_t last = map->n_pages - 1;
    td_page_span span = td_page_map_span(map, last);
    fuzz_require(map->size > 0 && map->n_pages > 0, "there are pages");
    fuzz_require(span.count > 0 && span.begin + span.count == map->n_elements, "pages cover all");
}

static void check_identity(const td_manifest *manifest) {
    const td_checkpoint_options options = {.map = {8, 8, 1, 1}, .state_bytes = 8};
    if (td_manifest_require_identity("manifest", manifest, &options) != TD_OK)
        fuzz_require(td_error_message()[0], "a refusal says why");
    td_error_clear();
}

static void check_again(const td_manifest *manifest) {
    td_manifest again = {0};
    char *first = NULL, *second = NULL;
    fuzz_require(td_manifest_print(manifest, &first) == TD_OK, "a manifest prints");
    fuzz_require(td_manifest_parse("again", first, strlen(first), &again) == TD_OK,
                 "and reads back");
    fuzz_require(td_manifest_print(&again, &second) == TD_OK && strcmp(first, second) == 0,
                 "the same");
    td_manifest_fini(&again);
    free(first);
    free(second);
}

static void check_manifest(const char *text, size_t bytes) {
    td_manifest manifest = {0};
    if (td_manifest_parse("manifest", text, bytes, &manifest) == TD_OK) {
        check_files(&manifest);
        check_map(&manifest.map);
        check_identity(&manifest);
        check_again(&manifest);
    } else {
        fuzz_require(td_error_message()[0], "a refusal says why");
    }
    td_error_clear();
    td_manifest_fini(&manifest);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_accept_checksums = 0;
    check_manifest((const char *)data, size);
    fuzz_accept_checksums = 1;
    check_manifest((const char *)data, size);
    return 0;
}
