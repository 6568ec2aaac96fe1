// The seal: the last bytes of a token store. It holds the size and the checksum of everything
// before it, so that a damaged file is refused before anything else in it is looked at.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/core/files.h"
#include "runtime/data/store_internal.h"

// In the byte order of the machine: all that the program runs on are little-endian, as the file is.
typedef struct seal {
    char magic[8];
    uint64_t bytes; // before the seal
    td_hash hash;   // of them
} seal;

_Static_assert(sizeof(seal) == 32, "the seal has no padding");
static const char magic[8] = "TDSEAL2\n";

static td_status fail_write(const char *path) {
    return td_fail(TD_ERR_IO, "%s: cannot write its end: %s", path, strerror(errno));
}

static int read_seal(int file, uint64_t bytes, seal *out) {
    return bytes >= sizeof *out &&
           pread(file, out, sizeof *out, (off_t)(bytes - sizeof *out)) == (ssize_t)sizeof *out &&
           memcmp(out->magic, magic, sizeof magic) == 0;
}

td_status td_store_seal(int file, const char *path) {
    struct stat info;
    seal made, old;
    memcpy(made.magic, magic, sizeof magic);
    if (fstat(file, &info) != 0)
        return fail_write(path);
    made.bytes = (uint64_t)info.st_size;
    if (read_seal(file, made.bytes, &old))
        made.bytes -= sizeof old;
    TD_TRY(td_hash_descriptor(file, path, made.bytes, &made.hash));
    errno = ENOSPC; // what a short write means
    return pwrite(file, &made, sizeof made, (off_t)made.bytes) == (ssize_t)sizeof made
               ? TD_OK
               : fail_write(path);
}

td_status td_store_check_seal(int file, const char *path, uint64_t bytes, uint64_t *out_bytes) {
    seal found;
    td_hash hash = {0};
    if (!read_seal(file, bytes, &found) || found.bytes != bytes - sizeof found)
        return td_fail(TD_ERR_DATA,
                       "%s: is no whole token store: it is truncated, damaged or something else; "
                       "delete it and it is made again from the rows",
                       path);
    TD_TRY(td_hash_descriptor(file, path, found.bytes, &hash));
    if (!td_hash_equal(hash, found.hash))
        return td_fail(TD_ERR_DATA,
                       "%s: damaged token store: the checksum of the file does not match; delete "
                       "it and it is made again from the rows",
                       path);
    *out_bytes = found.bytes;
    return TD_OK;
}
