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

enum { FILE_MODE = 0644 };

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

int td_path_is_plain_name(const char *name) {
    return name[0] != '\0' && strchr(name, '/') == NULL && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0;
}

// Opens a regular file for reading. O_NONBLOCK: opening a pipe without a writer must not hang.
static td_status open_input(const char *path, int *out_file, size_t *out_bytes) {
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
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
    *out_bytes = (size_t)info.st_size;
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

td_status td_file_read(const char *path, size_t max_bytes, char **out, size_t *out_bytes) {
    int file;
    size_t bytes;
    TD_TRY(open_input(path, &file, &bytes));
    td_status status = TD_OK;
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

td_status td_file_size(const char *path, uint64_t *out_bytes) {
    struct stat info;
    if (stat(path, &info) != 0)
        return fail_input(path, "examine");
    if (!S_ISREG(info.st_mode))
        return td_fail(TD_ERR_DATA, "%s: is not a regular file", path);
    *out_bytes = (uint64_t)info.st_size;
    return TD_OK;
}

static td_status write_all(int file, const char *path, const char *data, size_t bytes) {
    while (bytes > 0) {
        ssize_t written = write(file, data, bytes);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return fail_io(path, "write");
        data += written;
        bytes -= (size_t)written;
    }
    return TD_OK;
}

// Writes, flushes to the disk and closes `file`.
static td_status fill_and_close(int file, const char *path, const void *data, size_t bytes) {
    td_status status = write_all(file, path, data, bytes);
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

td_status td_file_write_atomic(const char *path, const void *data, size_t bytes) {
    static atomic_uint counter;
    char temporary[TD_PATH_MAX], parent[TD_PATH_MAX];
    unsigned unique = atomic_fetch_add(&counter, 1);
    if (snprintf(temporary, sizeof temporary, "%s.tmp-%ld-%u", path, (long)getpid(), unique) >=
        (int)sizeof temporary)
        return td_fail(TD_ERR_USAGE, "path is longer than %d characters: %.80s...", TD_PATH_MAX - 1,
                       path);
    int file = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, FILE_MODE);
    if (file < 0)
        return fail_io(temporary, "create");
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
    size_t bytes;
    TD_TRY(open_input(path, &file, &bytes));
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
