#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/device_cpu_internal.h"
#include "runtime/core/files.h"

typedef struct memory_bound {
    uint64_t free_bytes, total_bytes;
} memory_bound;

// "MemTotal:   12345 kB" -> bytes, 0 when the line is not there.
static uint64_t meminfo_field(const char *text, const char *name) {
    const char *line = strstr(text, name);
    return line ? strtoull(line + strlen(name), NULL, 10) * 1024 : 0;
}

// Kernel files have no size, so they are read as streams. An unreadable one gives "".
static void read_text(const char *root, const char *path, char *out, size_t room) {
    char full[TD_PATH_MAX];
    out[0] = '\0';
    if (snprintf(full, sizeof full, "%s%s", root, path) >= (int)sizeof full)
        return;
    FILE *file = fopen(full, "r");
    if (!file)
        return;
    size_t bytes = fread(out, 1, room - 1, file);
    out[bytes] = '\0';
    fclose(file);
}

// The number in a control group's file; UINT64_MAX for "max" and for what cannot be read.
static uint64_t read_limit(const char *root, const char *folder, const char *name) {
    char path[TD_PATH_MAX], text[64];
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        return UINT64_MAX;
    read_text(root, path, text, sizeof text);
    return text[0] >= '0' && text[0] <= '9' ? strtoull(text, NULL, 10) : UINT64_MAX;
}

static void apply_group(const char *root, const char *folder, const char *limit_name,
                        const char *usage_name, memory_bound *bound) {
    uint64_t limit = read_limit(root, folder, limit_name);
    uint64_t usage = read_limit(root, folder, usage_name);
    if (limit >= bound->total_bytes)
        return;
    bound->total_bytes = limit;
    uint64_t left = usage < limit ? limit - usage : 0;
    if (left < bound->free_bytes)
        bound->free_bytes = left;
}

// A group is bound by its own limit and by every limit above it.
static void apply_group_chain(const char *root, const char *mount, const char *group,
                              const char *limit_name, const char *usage_name, memory_bound *bound) {
    char folder[TD_PATH_MAX];
    if (snprintf(folder, sizeof folder, "%s%s", mount, group) >= (int)sizeof folder)
        return;
    size_t mount_chars = strlen(mount);
    for (;;) {
        apply_group(root, folder, limit_name, usage_name, bound);
        char *slash = strrchr(folder, '/');
        if (strlen(folder) <= mount_chars || !slash || (size_t)(slash - folder) < mount_chars)
            return;
        *slash = '\0';
    }
}

// Lines of /proc/self/cgroup: "0::/path" (version 2) or "5:memory:/path" (version 1).
static void apply_control_groups(const char *root, memory_bound *bound) {
    char text[8192];
    read_text(root, "/proc/self/cgroup", text, sizeof text);
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char *controllers = strchr(line, ':');
        char *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path)
            continue;
        *path++ = '\0';
        controllers++;
        if (controllers[0] == '\0')
            apply_group_chain(root, "/sys/fs/cgroup", path, "memory.max", "memory.current", bound);
        else if (strcmp(controllers, "memory") == 0)
            apply_group_chain(root, "/sys/fs/cgroup/memory", path, "memory.limit_in_bytes",
                              "memory.usage_in_bytes", bound);
    }
}

td_status td_cpu_memory_read(const char *root, size_t *free_bytes, size_t *total_bytes) {
    char text[8192];
    read_text(root, "/proc/meminfo", text, sizeof text);
    memory_bound bound = {meminfo_field(text, "MemAvailable:"), meminfo_field(text, "MemTotal:")};
    if (bound.total_bytes == 0)
        return td_fail(TD_ERR_IO, "cannot read the size of memory from /proc/meminfo");
    apply_control_groups(root, &bound);
    *free_bytes = (size_t)bound.free_bytes;
    *total_bytes = (size_t)bound.total_bytes;
    return TD_OK;
}
