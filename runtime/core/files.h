// Files and folders. Failures are TD_ERR_IO with the path and the system's reason; a missing or
// unreadable input file is TD_ERR_DATA. Local to the calling rank. Only the owner may write what is
// created.
#ifndef TANDEM_CORE_FILES_H
#define TANDEM_CORE_FILES_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/core/status.h"

enum { TD_PATH_MAX = 4096 };

// "a/b"; fails with TD_ERR_USAGE when longer than TD_PATH_MAX.
td_status td_path_join(char out[TD_PATH_MAX], const char *folder, const char *name);
int td_path_exists(const char *path);
int td_path_is_folder(const char *path);
int td_path_is_link(const char *path); // itself, wherever it leads
// 1 when `name` is a plain file name: no separator or control character, not "." or "..", not
// empty.
int td_path_is_plain_name(const char *name);

// 1 for "NAME.tmp-PID-N", which a killed process may have left.
int td_name_is_temporary(const char *name);

// Whole file, NUL-terminated after its bytes; the caller frees. Over max_bytes: TD_ERR_DATA.
td_status td_file_read(const char *path, size_t max_bytes, char **out, size_t *out_bytes);
// Refuses a link. For folders that may come from anywhere and whose files lie in them.
td_status td_file_read_no_link(const char *path, size_t max_bytes, char **out, size_t *out_bytes);
td_status td_file_size(const char *path, uint64_t *out_bytes);
// A descriptor for reading, which the caller closes, and the size. Only a regular file: pipes and
// devices are refused without waiting for them.
td_status td_file_open(const char *path, int follow_links, int *out_file, uint64_t *out_bytes);
// A descriptor for writing at the end, made when missing. A link, or a file that has a second name
// elsewhere, is refused.
td_status td_file_open_append(const char *path, int *out_file);
// Makes "PATH.tmp-PID-N" with an N that is free and opens it for writing. The caller closes it, and
// renames or removes it.
td_status td_file_create_beside(const char *path, char out_temporary[TD_PATH_MAX], int *out_file);

// The bytes at `offset` of an open file; TD_ERR_DATA when it ends before. Moves no position: any
// thread. `path` is for messages, here and below.
td_status td_file_read_at(int file, const char *path, uint64_t offset, void *out, size_t bytes);
// All of it, at the position of the file.
td_status td_file_write_all(int file, const char *path, const void *data, size_t bytes);

// Writes to a temporary beside `path`, fsync, rename, fsync of the folder: the old or the new file,
// never half.
td_status td_file_write_atomic(const char *path, const void *data, size_t bytes);
td_status td_file_sync(const char *path); // file or folder

td_status td_folder_make(const char *path);     // with parents; exists already: TD_OK
td_status td_folder_make_new(const char *path); // without parents; anything there: fails
// Makes "PATH.tmp-PID-N" with an N that is free, and parents.
td_status td_folder_make_beside(const char *path, char out_temporary[TD_PATH_MAX]);
td_status td_folder_remove_tree(const char *path); // missing: TD_OK; does not follow links
// Sorted names without "." and ".."; the caller frees with td_names_free().
td_status td_folder_list(const char *path, char ***out_names, size_t *out_count);
void td_names_free(char **names, size_t count);
td_status td_folder_free_bytes(const char *path, uint64_t *out_bytes);

// Read-only mapping of a whole file; an empty file is an error. The caller unmaps.
typedef struct td_mapping {
    const unsigned char *data;
    size_t bytes;
} td_mapping;
td_status td_file_map(const char *path, td_mapping *out);
void td_file_unmap(td_mapping *mapping);

#endif
