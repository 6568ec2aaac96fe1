// cp.async: a thread's copies wait in a list, and happen as late as the instructions allow: at the
// wait that covers their group. What is at the destination until then, or changes at either end
// meanwhile, is the kernel's fault.
#include <cstdlib>
#include <cstring>

#include "tests/cuda_host/include/cuda_host_ptx.h"

struct pending_copy {
    cuda_host_site site;
    unsigned char *to;
    const unsigned char *from;
    int bytes, source_bytes;
    int64_t group;            // the commit that it belongs to
    unsigned char before[16]; // the source's bytes at issue
};

// Of one thread, zeros at first.
struct copy_list {
    pending_copy *copies; // oldest first
    int n, capacity;
    int64_t commits; // groups made so far
};

static void finish(void *storage) {
    auto *list = static_cast<copy_list *>(storage);
    if (list->n > 0)
        cuda_host_fail("a %s (%s:%d) is never waited for", list->copies[0].site.primitive,
                       list->copies[0].site.file, list->copies[0].site.line);
    free(list->copies);
}

static copy_list *list_here() {
    static const cuda_host_storage_kind kind = {"cp.async", sizeof(copy_list), finish};
    return static_cast<copy_list *>(cuda_host_thread_storage(&kind));
}

static bool in_shared(const void *memory, int bytes) {
    auto begin = reinterpret_cast<uintptr_t>(cuda_host_shared_memory());
    auto at = reinterpret_cast<uintptr_t>(memory);
    return at >= begin && at + static_cast<uintptr_t>(bytes) <= begin + cuda_host_shared_bytes();
}

static void check_copy(const pending_copy &copy) {
    const char *name = copy.site.primitive, *file = copy.site.file;
    int line = copy.site.line;
    auto size = static_cast<uintptr_t>(copy.bytes);
    if (copy.source_bytes < 0 || copy.source_bytes > copy.bytes)
        cuda_host_fail("%s (%s:%d): %d source bytes of %d", name, file, line, copy.source_bytes,
                       copy.bytes);
    if (!in_shared(copy.to, copy.bytes))
        cuda_host_fail("%s (%s:%d): the destination is outside the block's shared memory", name,
                       file, line);
    if (in_shared(copy.from, 1))
        cuda_host_fail("%s (%s:%d): the source is shared memory", name, file, line);
    if (reinterpret_cast<uintptr_t>(copy.to) % size ||
        reinterpret_cast<uintptr_t>(copy.from) % size)
        cuda_host_fail("%s (%s:%d): an address is not a multiple of %d", name, file, line,
                       copy.bytes);
}

static void append(copy_list *list, const pending_copy &copy) {
    if (list->n == list->capacity) {
        list->capacity = list->capacity ? list->capacity * 2 : 16;
        size_t bytes = static_cast<size_t>(list->capacity) * sizeof(pending_copy);
        list->copies = static_cast<pending_copy *>(realloc(list->copies, bytes));
        if (!list->copies)
            cuda_host_fail("no memory for the copies of a thread");
    }
    list->copies[list->n++] = copy;
}

void cuda_host_cp_async(cuda_host_site site, void *shared, const void *global, int bytes,
                        int source_bytes) {
    copy_list *list = list_here();
    pending_copy copy = {site,
                         static_cast<unsigned char *>(shared),
                         static_cast<const unsigned char *>(global),
                         bytes,
                         source_bytes,
                         list->commits,
                         {}};
    check_copy(copy);
    memcpy(copy.before, copy.from, static_cast<size_t>(source_bytes));
    memset(copy.to, 0xff, static_cast<size_t>(bytes));
    append(list, copy);
}

static void complete(const pending_copy &copy) {
    const char *name = copy.site.primitive, *file = copy.site.file;
    for (int i = 0; i < copy.bytes; i++)
        if (copy.to[i] != 0xff)
            cuda_host_fail("%s (%s:%d): its destination was written while it was under way", name,
                           file, copy.site.line);
    if (memcmp(copy.before, copy.from, static_cast<size_t>(copy.source_bytes)) != 0)
        cuda_host_fail("%s (%s:%d): its source changed while it was under way", name, file,
                       copy.site.line);
    memset(copy.to, 0, static_cast<size_t>(copy.bytes));
    memcpy(copy.to, copy.from, static_cast<size_t>(copy.source_bytes));
}

void cuda_host_cp_async_commit() {
    list_here()->commits++;
}

void cuda_host_cp_async_wait(int groups_left) {
    copy_list *list = list_here();
    int n_done = 0;
    while (n_done < list->n && list->copies[n_done].group < list->commits - groups_left)
        complete(list->copies[n_done++]);
    list->n -= n_done;
    if (n_done > 0)
        memmove(list->copies, list->copies + n_done,
                static_cast<size_t>(list->n) * sizeof(pending_copy));
}
