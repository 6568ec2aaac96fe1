// The folder half of files.h.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "runtime/core/files.h"

enum {
    FOLDER_MODE = 0755,
    MAX_REMOVE_DEPTH = 64, // one open folder per level
};

static td_status fail_io(const char *path, const char *verb) {
    return td_fail(TD_ERR_IO, "%s: cannot %s: %s", path, verb, strerror(errno));
}

static td_status make_one(const char *path) {
    if (mkdir(path, FOLDER_MODE) == 0)
        return TD_OK;
    if (errno == EEXIST && td_path_is_folder(path))
        return TD_OK;
    return fail_io(path, "create folder");
}

td_status td_folder_make(const char *path) {
    char partial[TD_PATH_MAX];
    if (snprintf(partial, sizeof partial, "%s", path) >= (int)sizeof partial)
        return td_fail(TD_ERR_USAGE, "path is longer than %d characters: %.80s...", TD_PATH_MAX - 1,
                       path);
    if (td_path_is_folder(path))
        return TD_OK;
    for (char *slash = strchr(partial + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        td_status status = td_path_is_folder(partial) ? TD_OK : make_one(partial);
        *slash = '/';
        if (status != TD_OK)
            return status;
    }
    return make_one(path);
}

td_status td_folder_make_new(const char *path) {
    return mkdir(path, FOLDER_MODE) == 0 ? TD_OK : fail_io(path, "create folder");
}

static td_status remove_entry(int parent, const char *name, const char *root, int depth);

static td_status remove_children(int folder, const char *root, int depth) {
    DIR *listing = fdopendir(folder);
    if (!listing) {
        close(folder);
        return fail_io(root, "list for removal");
    }
    td_status status = TD_OK;
    for (struct dirent *entry; status == TD_OK && (entry = readdir(listing));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            status = remove_entry(dirfd(listing), entry->d_name, root, depth);
    closedir(listing);
    return status;
}

// Works relative to open folders and with O_NOFOLLOW: a link, also one that appears meanwhile, is
// removed and what it points to stays.
static td_status remove_entry(int parent, const char *name, const char *root, int depth) {
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT)
        return TD_OK;
    if (errno != EISDIR && errno != EPERM)
        return fail_io(root, "remove");
    if (depth >= MAX_REMOVE_DEPTH)
        return td_fail(TD_ERR_IO, "%s: not removed: folders are nested deeper than %d", root,
                       MAX_REMOVE_DEPTH);
    int folder = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder < 0)
        return fail_io(root, "open for removal");
    TD_TRY(remove_children(folder, root, depth + 1));
    if (unlinkat(parent, name, AT_REMOVEDIR) != 0 && errno != ENOENT)
        return fail_io(root, "remove");
    return TD_OK;
}

td_status td_folder_remove_tree(const char *path) {
    return remove_entry(AT_FDCWD, path, path, 0);
}

void td_names_free(char **names, size_t count) {
    for (size_t i = 0; names && i < count; i++)
        free(names[i]);
    free(names);
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

typedef struct name_list {
    char **names;
    size_t count, room;
} name_list;

static td_status append_name(name_list *list, const char *name) {
    if (list->count == list->room) {
        size_t room = list->room ? list->room * 2 : 32;
        char **grown = realloc(list->names, room * sizeof *grown);
        if (!grown)
            return td_fail(TD_ERR_MEMORY, "no memory for a list of %zu file names", room);
        list->names = grown;
        list->room = room;
    }
    char *copy = strdup(name);
    if (!copy)
        return td_fail(TD_ERR_MEMORY, "no memory for a file name");
    list->names[list->count++] = copy;
    return TD_OK;
}

td_status td_folder_list(const char *path, char ***out_names, size_t *out_count) {
    DIR *listing = opendir(path);
    if (!listing)
        return td_fail(TD_ERR_DATA, "%s: cannot list folder: %s", path, strerror(errno));
    name_list list = {0};
    td_status status = TD_OK;
    for (struct dirent *entry; status == TD_OK && (entry = readdir(listing));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            status = append_name(&list, entry->d_name);
    closedir(listing);
    if (status != TD_OK) {
        td_names_free(list.names, list.count);
        return status;
    }
    if (list.count > 1)
        qsort(list.names, list.count, sizeof *list.names, compare_names);
    *out_names = list.names;
    *out_count = list.count;
    return TD_OK;
}

td_status td_folder_free_bytes(const char *path, uint64_t *out_bytes) {
    struct statvfs info;
    if (statvfs(path, &info) != 0)
        return fail_io(path, "examine the file system");
    *out_bytes = (uint64_t)info.f_bavail * info.f_frsize;
    return TD_OK;
}
