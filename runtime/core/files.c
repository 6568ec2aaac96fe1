#include "runtime/core/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    FILE_MODE = 0644,
    FOLDER_MODE = 0755,
    MAX_TEMPORARIES = 1000, // of one name that killed processes with our id have left
};

static td_status fail_input(const char *path, const char *verb) {
    return td_fail(TD_ERR_DATA, "%s: cannot %s: %s", path, verb, strerror(errno));
}

static td_status fail_io(const char *path, const char *verb) {
    return td_fail(TD_ERR_IO, "%s: cannot %s: %s", path, verb, strerror(errno));
}

td_status td_path_join(char out[TD_PATH_MAX], const char *folder, const char *name) {
    size_t chars = strlen(folder);
    const char *separator = chars > 0 && folder[chars - 1] == '/' ? "" : "/";
    if (snprintf(out, TD_PATH_MAX, "%s%s%s", folder, separator, name) >= TD_PATH_MAX)
        return td_fail(TD_ERR_USAGE, "path is longer than %d characters: %.80s...", TD_PATH_MAX - 1,
                       folder);
    return TD_OK;
}

int td_path_exists(const char *path) {
    struct stat info;
    return stat(path, &info) == 0;
}

int td_path_is_folder(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

int td_path_is_link(const char *path) {
    struct stat info;
    return lstat(path, &info) == 0 && S_ISLNK(info.st_mode);
}

int td_path_is_plain_name(const char *name) {
    for (const unsigned char *c = (const unsigned char *)name; *c; c++)
        if (*c < 0x20 || *c == 0x7f || *c == '/')
            return 0;
    return name[0] != '\0' && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

// O_NONBLOCK: opening a pipe without a writer must not hang.
td_status td_file_open(const char *path, int follow_links, int *out_file, uint64_t *out_bytes) {
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | (follow_links ? 0 : O_NOFOLLOW));
    if (file < 0 && errno == ELOOP && !follow_links)
        return td_fail(TD_ERR_DATA, "%s: is a link, which is not followed here", path);
    if (file < 0)
        return fail_input(path, "open");
    struct stat info;
    td_status status = TD_OK;
    if (fstat(file, &info) != 0)
        status = fail_input(path, "examine");
    else if (!S_ISREG(info.st_mode))
        status = td_fail(TD_ERR_DATA, "%s: is not a regular file", path);
    if (status != TD_OK) {
        close(file);
        return status;
    }
    *out_file = file;
    *out_bytes = (uint64_t)info.st_size;
    return TD_OK;
}

static td_status read_all(int file, const char *path, char *buffer, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        ssize_t got = read(file, buffer + done, bytes - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return fail_io(path, "read");
        if (got == 0)
            return td_fail(TD_ERR_DATA, "%s: became shorter while it was read", path);
        done += (size_t)got;
    }
    return TD_OK;
}

static td_status read_file(const char *path, int follow_links, size_t max_bytes, char **out,
                           size_t *out_bytes) {
    int file;
    uint64_t size;
    TD_TRY(td_file_open(path, follow_links, &file, &size));
    td_status status = TD_OK;
    size_t bytes = (size_t)size;
    char *buffer = NULL;
    if (bytes > max_bytes)
        status = td_fail(TD_ERR_DATA, "%s: has %zu bytes; at most %zu are accepted", path, bytes,
                         max_bytes);
    else if (!(buffer = malloc(bytes + 1)))
        status = td_fail(TD_ERR_MEMORY, "%s: no memory for its %zu bytes", path, bytes);
    else
        status = read_all(file, path, buffer, bytes);
    close(file);
    if (status != TD_OK) {
        free(buffer);
        return status;
    }
    buffer[bytes] = '\0';
    *out = buffer;
    if (out_bytes)
        *out_bytes = bytes;
    return TD_OK;
}

td_status td_file_read(const char *path, size_t max_bytes, char **out, size_t *out_bytes) {
    return read_file(path, 1, max_bytes, out, out_bytes);
}

td_status td_file_read_no_link(const char *path, size_t max_bytes, char **out, size_t *out_bytes) {
    return read_file(path, 0, max_bytes, out, out_bytes);
}

td_status td_file_size(const char *path, uint64_t *out_bytes) {
    struct stat info;
    if (stat(path, &info) != 0)
        return fail_input(path, "examine");
    if (!S_ISREG(info.st_mode))
        return td_fail(TD_ERR_DATA, "%s: is not a regular file", path);
    *out_bytes = (uint64_t)info.st_size;
    return TD_OK;
}

td_status td_file_read_at(int file, const char *path, uint64_t offset, void *out, size_t bytes) {
    for (char *to = out; bytes > 0;) {
        ssize_t n = pread(file, to, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return td_fail(TD_ERR_DATA, "%s: cannot read %zu bytes at %llu: %s", path, bytes,
                           (unsigned long long)offset, n < 0 ? strerror(errno) : "it ends before");
        to += n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return TD_OK;
}

td_status td_file_write_all(int file, const char *path, const void *data, size_t bytes) {
    for (const char *from = data; bytes > 0;) {
        ssize_t n = write(file, from, bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_io(path, "write");
        from += n;
        bytes -= (size_t)n;
    }
    return TD_OK;
}

// Writes, flushes to the disk and closes `file`.
static td_status fill_and_close(int file, const char *path, const void *data, size_t bytes) {
    td_status status = td_file_write_all(file, path, data, bytes);
    if (status == TD_OK && fsync(file) != 0)
        status = fail_io(path, "flush to disk");
    if (close(file) != 0 && status == TD_OK)
        status = fail_io(path, "close");
    return status;
}

// The folder that holds `path`.
static void parent_of(const char *path, char out[TD_PATH_MAX]) {
    const char *slash = strrchr(path, '/');
    if (!slash)
        snprintf(out, TD_PATH_MAX, ".");
    else if (slash == path)
        snprintf(out, TD_PATH_MAX, "/");
    else
        snprintf(out, TD_PATH_MAX, "%.*s", (int)(slash - path), path);
}

static td_status name_temporary(const char *path, char out[TD_PATH_MAX]) {
    static atomic_uint counter;
    size_t chars = strlen(path);
    while (chars > 1 && path[chars - 1] == '/')
        chars--;
    if (chars + 32 >= TD_PATH_MAX)
        return td_fail(TD_ERR_USAGE, "path is longer than %d characters: %.80s...",
                       TD_PATH_MAX - 33, path);
    snprintf(out, TD_PATH_MAX, "%.*s.tmp-%ld-%u", (int)chars, path, (long)getpid(),
             atomic_fetch_add(&counter, 1));
    return TD_OK;
}

int td_name_is_temporary(const char *name) {
    const char *mark = NULL;
    for (const char *at = name; (at = strstr(at, ".tmp-")); at++)
        mark = at + strlen(".tmp-");
    size_t process = mark ? strspn(mark, "0123456789") : 0;
    if (process == 0 || mark[process] != '-')
        return 0;
    const char *number = mark + process + 1;
    return number[0] && number[strspn(number, "0123456789")] == '\0';
}

// A name that is taken may be a trap, or be left from a process that had our id (in a container all
// of them have): it is passed over.
td_status td_file_create_beside(const char *path, char out_temporary[TD_PATH_MAX], int *out_file) {
    int file = -1;
    for (int i = 0; i < MAX_TEMPORARIES && file < 0; i++) {
        TD_TRY(name_temporary(path, out_temporary));
        file = open(out_temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, FILE_MODE);
        if (file < 0 && errno != EEXIST)
            break;
    }
    *out_file = file;
    return file < 0 ? fail_io(out_temporary, "create") : TD_OK;
}

td_status td_folder_make_beside(const char *path, char out_temporary[TD_PATH_MAX]) {
    char parent[TD_PATH_MAX];
    int made = 0;
    TD_TRY(name_temporary(path, out_temporary));
    parent_of(out_temporary, parent);
    TD_TRY(td_folder_make(parent));
    for (int i = 0; i < MAX_TEMPORARIES && !made; i++) {
        TD_TRY(name_temporary(path, out_temporary));
        made = mkdir(out_temporary, FOLDER_MODE) == 0;
        if (!made && errno != EEXIST)
            break;
    }
    return made ? TD_OK : fail_io(out_temporary, "create folder");
}

static td_status check_append(int file, const char *path) {
    struct stat info;
    if (fstat(file, &info) != 0)
        return fail_io(path, "examine");
    if (!S_ISREG(info.st_mode))
        return td_fail(TD_ERR_IO, "%s: is not a regular file", path);
    if (info.st_nlink > 1)
        return td_fail(TD_ERR_IO, "%s: has a second name (a hard link), which would be written too",
                       path);
    return TD_OK;
}

td_status td_file_open_append(const char *path, int *out_file) {
    int flags = O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    int file = open(path, flags, FILE_MODE);
    if (file < 0 && errno == ELOOP)
        return td_fail(TD_ERR_IO, "%s: is a link, which is not written through", path);
    if (file < 0)
        return fail_io(path, "open for writing");
    td_status status = check_append(file, path);
    if (status != TD_OK)
        close(file);
    else
        *out_file = file;
    return status;
}

td_status td_file_write_atomic(const char *path, const void *data, size_t bytes) {
    char temporary[TD_PATH_MAX], parent[TD_PATH_MAX];
    int file;
    TD_TRY(td_file_create_beside(path, temporary, &file));
    td_status status = fill_and_close(file, temporary, data, bytes);
    if (status == TD_OK && rename(temporary, path) != 0)
        status = fail_io(path, "replace");
    if (status != TD_OK) {
        unlink(temporary);
        return status;
    }
    parent_of(path, parent);
    return td_file_sync(parent);
}

td_status td_file_sync(const char *path) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return fail_io(path, "open");
    td_status status = TD_OK;
    // Some file systems do not flush folders and say so with EINVAL.
    if (fsync(file) != 0 && errno != EINVAL)
        status = fail_io(path, "flush to disk");
    close(file);
    return status;
}

td_status td_file_map(const char *path, td_mapping *out) {
    int file;
    uint64_t size;
    TD_TRY(td_file_open(path, 1, &file, &size));
    size_t bytes = (size_t)size;
    if (bytes == 0) {
        close(file);
        return td_fail(TD_ERR_DATA, "%s: is empty", path);
    }
    void *data = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, file, 0);
    td_status status = data == MAP_FAILED ? fail_io(path, "map") : TD_OK;
    close(file);
    if (status == TD_OK)
        *out = (td_mapping){.data = data, .bytes = bytes};
    return status;
}

void td_file_unmap(td_mapping *mapping) {
    if (mapping->data)
        munmap((void *)(uintptr_t)mapping->data, mapping->bytes);
    *mapping = (td_mapping){0};
}
