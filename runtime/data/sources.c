#include "runtime/data/sources.h"

#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "runtime/core/files.h"

enum { MAX_DEPTH = 64 }; // of folders below "**"

// A file and what it is, whatever the path to it.
typedef struct source {
    char *path; // owned
    dev_t device;
    ino_t inode;
    int entry; // index of the entry that named it
} source;

typedef struct source_list {
    source *items;
    size_t count, room;
} source_list;

void td_sources_fini(td_string_list *files) {
    for (int i = 0; i < files->count; i++)
        free(files->items[i]);
    free(files->items);
    *files = (td_string_list){0};
}

static void list_fini(source_list *list) {
    for (size_t i = 0; i < list->count; i++)
        free(list->items[i].path);
    free(list->items);
}

static td_status fail_memory(const char *entry) {
    return td_fail(TD_ERR_MEMORY, "%s: no memory for its files", entry);
}

static td_status add_file(source_list *list, const char *path, const struct stat *info, int entry) {
    if (list->count == list->room) {
        size_t room = list->room ? list->room * 2 : 16;
        source *grown = realloc(list->items, room * sizeof *grown);
        if (!grown)
            return fail_memory(path);
        list->items = grown;
        list->room = room;
    }
    source *item = &list->items[list->count];
    *item = (source){strdup(path), info->st_dev, info->st_ino, entry};
    if (!item->path)
        return fail_memory(path);
    list->count++;
    return TD_OK;
}

static int ends_with(const char *name, const char *end) {
    size_t n = strlen(name), m = strlen(end);
    return n > m && strcmp(name + n - m, end) == 0;
}

static int is_data_name(const char *name) {
    return name[0] != '.' && (ends_with(name, ".jsonl") || ends_with(name, ".jsonl.gz") ||
                              ends_with(name, ".jsonl.zst"));
}

// The data files that lie in the folder itself.
static td_status add_folder(source_list *list, const char *folder, int entry) {
    char **names;
    size_t count;
    td_status status = td_folder_list(folder, &names, &count);
    TD_TRY(status);
    for (size_t i = 0; i < count && status == TD_OK; i++) {
        char path[TD_PATH_MAX];
        struct stat info;
        if (!is_data_name(names[i]))
            continue;
        status = td_path_join(path, folder, names[i]);
        if (status == TD_OK && stat(path, &info) == 0 && S_ISREG(info.st_mode))
            status = add_file(list, path, &info, entry);
    }
    td_names_free(names, count);
    return status;
}

static td_status add_glob(source_list *list, const char *pattern, int entry) {
    glob_t found;
    int result = glob(pattern, GLOB_NOSORT, NULL, &found);
    if (result == GLOB_NOMATCH)
        return TD_OK;
    if (result != 0)
        return result == GLOB_NOSPACE
                   ? fail_memory(pattern)
                   : td_fail(TD_ERR_IO, "%s: cannot read the folders of the pattern", pattern);
    td_status status = TD_OK;
    for (size_t i = 0; i < found.gl_pathc && status == TD_OK; i++) {
        struct stat info;
        if (stat(found.gl_pathv[i], &info) == 0 && S_ISREG(info.st_mode))
            status = add_file(list, found.gl_pathv[i], &info, entry);
    }
    globfree(&found);
    return status;
}

// FOLDER/rest as a pattern in which the folder stands for itself.
static td_status add_below(source_list *list, const char *folder, const char *rest, int entry) {
    char pattern[2 * TD_PATH_MAX];
    size_t n = 0;
    for (const char *c = folder; *c; c++) {
        if (strchr("*?[]\\", *c))
            pattern[n++] = '\\';
        pattern[n++] = *c;
    }
    int written = snprintf(pattern + n, sizeof pattern - n, "%s%s",
                           n > 0 && pattern[n - 1] == '/' ? "" : "/", rest);
    if (written < 0 || (size_t)written >= sizeof pattern - n)
        return td_fail(TD_ERR_USAGE, "%s/%s: the path is too long", folder, rest);
    return add_glob(list, pattern, entry);
}

// The folder and all in it, links to folders and hidden ones left out. Without `rest`: their data
// files.
static td_status add_tree(source_list *list, const char *folder, const char *rest, int depth,
                          int entry) {
    char **names;
    size_t count;
    if (depth > MAX_DEPTH)
        return td_fail(TD_ERR_DATA, "%s: folders are nested too deeply", folder);
    TD_TRY(*rest ? add_below(list, folder, rest, entry) : add_folder(list, folder, entry));
    TD_TRY(td_folder_list(folder, &names, &count));
    td_status status = TD_OK;
    for (size_t i = 0; i < count && status == TD_OK; i++) {
        char path[TD_PATH_MAX];
        struct stat info;
        if (names[i][0] == '.')
            continue;
        status = td_path_join(path, folder, names[i]);
        if (status == TD_OK && lstat(path, &info) == 0 && S_ISDIR(info.st_mode))
            status = add_tree(list, path, rest, depth + 1, entry);
    }
    td_names_free(names, count);
    return status;
}

// "**" as a whole component of the path, or NULL.
static const char *find_stars(const char *pattern) {
    for (const char *at = pattern; (at = strstr(at, "**")); at += 2)
        if ((at == pattern || at[-1] == '/') && (at[2] == '/' || at[2] == '\0'))
            return at;
    return NULL;
}

static td_status add_pattern(source_list *list, const char *pattern, int entry) {
    const char *stars = find_stars(pattern);
    if (!stars)
        return add_glob(list, pattern, entry);
    const char *rest = stars[2] ? stars + 3 : "";
    if (find_stars(rest))
        return td_fail(TD_ERR_USAGE, "%s: \"**\" can stand in a pattern once", pattern);
    char base[TD_PATH_MAX];
    size_t bytes = (size_t)(stars - pattern);
    if (bytes >= sizeof base)
        return td_fail(TD_ERR_USAGE, "%s: the path is too long", pattern);
    // Without the slash before the stars, unless it is the root.
    if (bytes == 0)
        strcpy(base, ".");
    else
        snprintf(base, sizeof base, "%.*s", (int)(bytes > 1 ? bytes - 1 : 1), pattern);
    if (strpbrk(base, "*?["))
        return td_fail(TD_ERR_USAGE, "%s: what stands before \"**\" must be a plain folder",
                       pattern);
    if (!td_path_is_folder(base))
        return td_fail(TD_ERR_DATA, "%s: no such folder: %s", pattern, base);
    return add_tree(list, base, rest, 0, entry);
}

static int by_path(const void *a, const void *b) {
    return strcmp(((const source *)a)->path, ((const source *)b)->path);
}

static td_status fail_nothing(const char *entry, int is_folder) {
    if (is_folder)
        return td_fail(TD_ERR_DATA,
                       "%s: the folder has no *.jsonl, *.jsonl.gz or *.jsonl.zst (name other files "
                       "by a pattern, such as \"%s/*.json\")",
                       entry, entry);
    if (strpbrk(entry, "*?["))
        return td_fail(TD_ERR_DATA, "%s: the pattern matches no file", entry);
    return td_fail(TD_ERR_DATA, "%s: no such file or folder", entry);
}

static td_status add_entry(source_list *list, const char *entry, int index) {
    struct stat info;
    size_t before = list->count;
    int exists = stat(entry, &info) == 0, is_folder = exists && S_ISDIR(info.st_mode);
    if (is_folder)
        TD_TRY(add_folder(list, entry, index));
    else if (exists && !S_ISREG(info.st_mode))
        return td_fail(TD_ERR_DATA, "%s: is no regular file", entry);
    else if (exists)
        TD_TRY(add_file(list, entry, &info, index));
    else if (strpbrk(entry, "*?["))
        TD_TRY(add_pattern(list, entry, index));
    if (list->count == before)
        return fail_nothing(entry, is_folder);
    qsort(list->items + before, list->count - before, sizeof *list->items, by_path);
    return TD_OK;
}

static int by_identity(const void *a, const void *b) {
    const source *x = *(const source *const *)a, *y = *(const source *const *)b;
    if (x->device != y->device)
        return x->device < y->device ? -1 : 1;
    if (x->inode != y->inode)
        return x->inode < y->inode ? -1 : 1;
    return (x > y) - (x < y);
}

// The first file that is one named before.
static td_status check_different(const source_list *list, const td_string_list *patterns) {
    const source **order = malloc((list->count + 1) * sizeof *order);
    const source *first = NULL, *earlier = NULL;
    if (!order)
        return fail_memory("files");
    for (size_t i = 0; i < list->count; i++)
        order[i] = &list->items[i];
    qsort(order, list->count, sizeof *order, by_identity);
    for (size_t i = 1; i < list->count; i++)
        if (order[i]->inode == order[i - 1]->inode && order[i]->device == order[i - 1]->device &&
            (!first || order[i] < first)) {
            first = order[i];
            earlier = order[i - 1];
        }
    free(order);
    if (!first)
        return TD_OK;
    return td_fail(TD_ERR_DATA,
                   "%s: named twice, by \"%s\" and by \"%s\": its rows would count twice",
                   first->path, patterns->items[earlier->entry], patterns->items[first->entry]);
}

static td_status take_paths(source_list *list, td_string_list *out) {
    char **items = calloc(list->count + 1, sizeof *items);
    if (!items)
        return fail_memory("files");
    for (size_t i = 0; i < list->count; i++) {
        items[i] = list->items[i].path;
        list->items[i].path = NULL;
    }
    *out = (td_string_list){.items = items, .count = (int)list->count};
    return TD_OK;
}

td_status td_sources_expand(const td_string_list *patterns, td_string_list *out) {
    source_list list = {0};
    td_status status = TD_OK;
    for (int i = 0; i < patterns->count && status == TD_OK; i++)
        status = add_entry(&list, patterns->items[i], i);
    if (status == TD_OK)
        status = check_different(&list, patterns);
    if (status == TD_OK)
        status = take_paths(&list, out);
    list_fini(&list);
    return status;
}
