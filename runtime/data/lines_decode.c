// gzip (RFC 1952) by zlib and Zstandard (RFC 8878) by libzstd, told by their first bytes.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ZLIB_CONST
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "runtime/core/files.h"
#include "runtime/data/lines_internal.h"

enum {
    INPUT_BYTES = 256 << 10,
    ZSTD_WINDOW_LOG = 27, // 128 MiB, the most that zstd itself takes without being told
};

typedef enum encoding {
    PLAIN,
    GZIP,
    ZSTD,
} encoding;

struct td_decoder {
    const char *path;
    int file;
    encoding encoding;
    unsigned char *input; // (INPUT_BYTES)
    size_t begin, end;    // unread input is [begin, end)
    int is_input_at_end;
    int in_frame; // a gzip member or zstd frame has begun and not ended
    int has_zlib;
    z_stream zlib;
    ZSTD_DStream *zstd;
};

// The next bytes of the file, after those that are left.
static td_status fill_input(td_decoder *self, const char *where) {
    ssize_t got;
    size_t left = self->end - self->begin;
    memmove(self->input, self->input + self->begin, left);
    self->begin = 0;
    self->end = left;
    do
        got = read(self->file, self->input + left, INPUT_BYTES - left);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return td_fail(TD_ERR_IO, "%s: cannot read: %s", where, strerror(errno));
    self->end += (size_t)got;
    self->is_input_at_end = got == 0;
    return TD_OK;
}

static int begins_with(const td_decoder *self, const char *magic, size_t bytes) {
    return self->end - self->begin >= bytes && memcmp(self->input + self->begin, magic, bytes) == 0;
}

static int is_gzip(const td_decoder *self) {
    return begins_with(self, "\x1f\x8b", 2);
}

// A frame with data, or one to be skipped, of which there are sixteen kinds.
static int is_zstd(const td_decoder *self) {
    const unsigned char *first = self->input + self->begin;
    return begins_with(self, "\x28\xb5\x2f\xfd", 4) ||
           (self->end - self->begin >= 4 && (first[0] & 0xf0) == 0x50 &&
            memcmp(first + 1, "\x2a\x4d\x18", 3) == 0);
}

static td_status refuse_other_formats(const td_decoder *self) {
    static const struct {
        const char *magic;
        size_t bytes;
        const char *name;
    } others[] = {
        {"\xfd\x37zXZ", 5, "xz data"},      {"BZh", 3, "bzip2 data"},
        {"PK\x03\x04", 4, "a zip archive"}, {"PAR1", 4, "a Parquet file"},
        {"ARROW1", 6, "an Arrow file"},     {"\x89HDF", 4, "an HDF5 file"},
        {"\xff\xfe", 2, "UTF-16 text"},     {"\xfe\xff", 2, "UTF-16 text"},
    };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (begins_with(self, others[i].magic, others[i].bytes))
            return td_fail(
                TD_ERR_DATA,
                "%s: is %s: rows are read from JSON Lines or a JSON list in UTF-8, plain "
                "or compressed with gzip or zstd",
                self->path, others[i].name);
    return TD_OK;
}

static td_status open_zlib(td_decoder *self) {
    self->encoding = GZIP;
    self->has_zlib = inflateInit2(&self->zlib, 16 + MAX_WBITS) == Z_OK;
    return self->has_zlib ? TD_OK
                          : td_fail(TD_ERR_MEMORY, "%s: no memory to decompress it", self->path);
}

static td_status open_zstd(td_decoder *self) {
    self->encoding = ZSTD;
    self->zstd = ZSTD_createDStream();
    if (!self->zstd ||
        ZSTD_isError(ZSTD_DCtx_setParameter(self->zstd, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG)))
        return td_fail(TD_ERR_MEMORY, "%s: no memory to decompress it", self->path);
    return TD_OK;
}

static td_status open_file(td_decoder *self) {
    uint64_t bytes;
    TD_TRY(td_file_size(self->path, &bytes));
    self->file = open(self->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (self->file < 0)
        return td_fail(TD_ERR_DATA, "%s: cannot open: %s", self->path, strerror(errno));
    self->input = malloc(INPUT_BYTES);
    if (!self->input)
        return td_fail(TD_ERR_MEMORY, "%s: no memory to read it", self->path);
    while (self->end < 8 && !self->is_input_at_end)
        TD_TRY(fill_input(self, self->path));
    self->is_input_at_end = 0;
    if (is_gzip(self))
        return open_zlib(self);
    if (is_zstd(self))
        return open_zstd(self);
    return refuse_other_formats(self);
}

td_status td_decoder_open(const char *path, td_decoder **out) {
    td_decoder *self = calloc(1, sizeof *self);
    if (!self)
        return td_fail(TD_ERR_MEMORY, "%s: no memory to read it", path);
    self->path = path;
    self->file = -1;
    td_status status = open_file(self);
    if (status != TD_OK) {
        td_decoder_close(self);
        return status;
    }
    *out = self;
    return TD_OK;
}

void td_decoder_close(td_decoder *self) {
    if (!self)
        return;
    if (self->file >= 0)
        close(self->file);
    if (self->has_zlib)
        inflateEnd(&self->zlib);
    ZSTD_freeDStream(self->zstd);
    free(self->input);
    free(self);
}

// What was read to recognise the file, then the file itself, without a copy in between.
static td_status read_plain(td_decoder *self, const char *where, char *out, size_t room,
                            size_t *out_bytes) {
    size_t left = self->end - self->begin;
    ssize_t got;
    if (left > 0) {
        *out_bytes = left < room ? left : room;
        memcpy(out, self->input + self->begin, *out_bytes);
        self->begin += *out_bytes;
        return TD_OK;
    }
    do
        got = read(self->file, out, room);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return td_fail(TD_ERR_IO, "%s: cannot read: %s", where, strerror(errno));
    *out_bytes = (size_t)got;
    return TD_OK;
}

static td_status fail_corrupt(const char *where, const char *format, const char *reason) {
    return td_fail(TD_ERR_DATA, "%s: corrupt %s data (%s)", where, format, reason);
}

static td_status inflate_some(td_decoder *self, const char *where, char *out, size_t room,
                              size_t *out_bytes) {
    unsigned ask = room < UINT_MAX ? (unsigned)room : UINT_MAX;
    self->zlib.next_in = self->input + self->begin;
    self->zlib.avail_in = (unsigned)(self->end - self->begin);
    self->zlib.next_out = (unsigned char *)out;
    self->zlib.avail_out = ask;
    int result = inflate(&self->zlib, Z_NO_FLUSH);
    self->begin = self->end - self->zlib.avail_in;
    *out_bytes = ask - self->zlib.avail_out;
    if (result == Z_MEM_ERROR)
        return td_fail(TD_ERR_MEMORY, "%s: no memory to decompress it", where);
    if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR)
        return fail_corrupt(where, "gzip", self->zlib.msg ? self->zlib.msg : "cannot be read");
    self->in_frame = result != Z_STREAM_END;
    return TD_OK;
}

static td_status unzstd_some(td_decoder *self, const char *where, char *out, size_t room,
                             size_t *out_bytes) {
    ZSTD_inBuffer input = {self->input + self->begin, self->end - self->begin, 0};
    ZSTD_outBuffer output = {out, room, 0};
    size_t result = ZSTD_decompressStream(self->zstd, &output, &input);
    self->begin += input.pos;
    *out_bytes = output.pos;
    if (ZSTD_getErrorCode(result) == ZSTD_error_frameParameter_windowTooLarge)
        return td_fail(TD_ERR_DATA,
                       "%s: needs a zstd window of more than %d MiB (zstd --long or --ultra): "
                       "compress it again without",
                       where, 1 << (ZSTD_WINDOW_LOG - 20));
    if (ZSTD_getErrorCode(result) == ZSTD_error_memory_allocation)
        return td_fail(TD_ERR_MEMORY, "%s: no memory to decompress it", where);
    if (ZSTD_isError(result))
        return fail_corrupt(where, "zstd", ZSTD_getErrorName(result));
    self->in_frame = result != 0;
    return TD_OK;
}

// Between members: another one, or the end. Zeros there are padding, as gzip itself has it.
static td_status begin_frame(td_decoder *self, const char *where, int *out_is_end) {
    int is_gzip_file = self->encoding == GZIP;
    while (self->end - self->begin < 4 && !self->is_input_at_end)
        TD_TRY(fill_input(self, where));
    *out_is_end = self->begin == self->end;
    if (*out_is_end)
        return TD_OK;
    if (is_gzip_file ? is_gzip(self) : is_zstd(self)) {
        self->in_frame = 1;
        if (is_gzip_file)
            inflateReset(&self->zlib);
        return TD_OK;
    }
    if (!is_gzip_file || self->input[self->begin] != 0)
        return td_fail(TD_ERR_DATA, "%s: the %s data is followed by something else", where,
                       is_gzip_file ? "gzip" : "zstd");
    while (self->begin < self->end && self->input[self->begin] == 0)
        self->begin++;
    return TD_OK;
}

// One step of work; neither bytes nor the end may come of it.
static td_status decode_some(td_decoder *self, const char *where, char *out, size_t room,
                             size_t *out_bytes, int *out_is_end) {
    *out_bytes = 0;
    *out_is_end = 0;
    if (!self->in_frame)
        return begin_frame(self, where, out_is_end);
    TD_TRY(self->encoding == GZIP ? inflate_some(self, where, out, room, out_bytes)
                                  : unzstd_some(self, where, out, room, out_bytes));
    if (*out_bytes > 0 || !self->in_frame || self->begin < self->end)
        return TD_OK;
    if (self->is_input_at_end)
        return td_fail(TD_ERR_DATA, "%s: the %s data ends too early: the file is truncated", where,
                       self->encoding == GZIP ? "gzip" : "zstd");
    return fill_input(self, where);
}

td_status td_decoder_read(td_decoder *self, const char *where, char *out, size_t room,
                          size_t *out_bytes) {
    int is_end = 0;
    if (self->encoding == PLAIN)
        return read_plain(self, where, out, room, out_bytes);
    do
        TD_TRY(decode_some(self, where, out, room, out_bytes, &is_end));
    while (*out_bytes == 0 && !is_end);
    return TD_OK;
}
