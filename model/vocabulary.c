// Token strings and the byte-level alphabet.
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "model/tokenizer_internal.h"
#include "model/unicode.h"

enum { FIRST_SLOTS = 1024, LAST_SYMBOL = 256 + 67 };

// GPT-2's table: printable characters of Latin-1 stand for themselves, the 68 others follow U+0100
// in order.
static int is_own_symbol(uint32_t byte) {
    return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

uint32_t td_byte_symbol(unsigned char byte) {
    if (is_own_symbol(byte))
        return byte;
    if (byte <= ' ')
        return 0x100u + byte;
    return byte == 0xad ? LAST_SYMBOL : 0x100u + 33 + (byte - 0x7fu);
}

int td_symbol_byte(uint32_t code) {
    if (code < 0x100)
        return is_own_symbol(code) ? (int)code : -1;
    if (code <= 0x100 + ' ')
        return (int)code - 0x100;
    if (code == LAST_SYMBOL)
        return 0xad;
    return code < LAST_SYMBOL ? (int)code - 0x100 - 33 + 0x7f : -1;
}

int td_bytes_from_symbols(const char *text, size_t bytes, char *out, size_t *out_bytes) {
    size_t size = 0;
    for (size_t i = 0, length; i < bytes; i += length) {
        int byte = td_symbol_byte(td_utf8_decode(text + i, &length));
        if (byte < 0)
            return 0;
        out[size++] = (char)byte;
    }
    *out_bytes = size;
    return 1;
}

size_t td_symbols_from_bytes(const char *bytes, size_t size, char *out) {
    size_t written = 0;
    for (size_t i = 0; i < size; i++)
        written += td_utf8_encode(td_byte_symbol((unsigned char)bytes[i]), out + written);
    return written;
}

const char *td_vocabulary_text(const td_vocabulary *vocabulary, int32_t id, size_t *out_bytes) {
    if (id < 0 || id >= vocabulary->size || vocabulary->begins[id] == UINT64_MAX)
        return NULL;
    if (out_bytes)
        *out_bytes = vocabulary->lengths[id];
    return vocabulary->text.data + vocabulary->begins[id];
}

// The slot that holds the string, or the empty one where it belongs. The table is never full.
static size_t find_slot(const td_vocabulary *vocabulary, const char *text, size_t bytes) {
    size_t mask = vocabulary->n_slots - 1;
    for (size_t slot = XXH3_64bits(text, bytes) & mask;; slot = (slot + 1) & mask) {
        int32_t id = vocabulary->slots[slot];
        if (id < 0 || (vocabulary->lengths[id] == bytes &&
                       memcmp(vocabulary->text.data + vocabulary->begins[id], text, bytes) == 0))
            return slot;
    }
}

int32_t td_vocabulary_find(const td_vocabulary *vocabulary, const char *text, size_t bytes) {
    return vocabulary->n_slots ? vocabulary->slots[find_slot(vocabulary, text, bytes)] : -1;
}

static td_status grow_slots(td_vocabulary *vocabulary) {
    size_t n_slots = vocabulary->n_slots ? vocabulary->n_slots * 2 : FIRST_SLOTS;
    int32_t *slots = malloc(n_slots * sizeof *slots);
    if (!slots)
        return td_fail(TD_ERR_MEMORY, "cannot allocate a vocabulary of %zu slots", n_slots);
    memset(slots, 0xff, n_slots * sizeof *slots);
    free(vocabulary->slots);
    vocabulary->slots = slots;
    vocabulary->n_slots = n_slots;
    for (int32_t id = 0; id < vocabulary->size; id++) {
        size_t bytes;
        const char *text = td_vocabulary_text(vocabulary, id, &bytes);
        if (text)
            slots[find_slot(vocabulary, text, bytes)] = id;
    }
    return TD_OK;
}

static td_status grow_ids(td_vocabulary *vocabulary, int32_t size) {
    TD_TRY(td_grow(&vocabulary->begins, &vocabulary->begins_capacity, (size_t)size,
                   sizeof *vocabulary->begins));
    TD_TRY(td_grow(&vocabulary->lengths, &vocabulary->lengths_capacity, (size_t)size,
                   sizeof *vocabulary->lengths));
    for (int32_t id = vocabulary->size; id < size; id++)
        vocabulary->begins[id] = UINT64_MAX;
    vocabulary->size = size;
    return TD_OK;
}

td_status td_vocabulary_add(td_vocabulary *vocabulary, const char *where, const char *text,
                            size_t bytes, int32_t id) {
    if (id < 0 || id >= TD_TOKENIZER_MAX_ID)
        return td_fail(TD_ERR_DATA, "%s: token \"%.60s\" has id %d; ids go from 0 to %d", where,
                       text, (int)id, TD_TOKENIZER_MAX_ID - 1);
    const char *other = td_vocabulary_text(vocabulary, id, NULL);
    if (other)
        return td_fail(TD_ERR_DATA, "%s: tokens \"%.60s\" and \"%.60s\" both have id %d", where,
                       other, text, (int)id);
    if (id >= vocabulary->size)
        TD_TRY(grow_ids(vocabulary, id + 1));
    if ((size_t)vocabulary->count * 2 >= vocabulary->n_slots)
        TD_TRY(grow_slots(vocabulary));
    size_t slot = find_slot(vocabulary, text, bytes);
    if (vocabulary->slots[slot] >= 0)
        return td_fail(TD_ERR_DATA, "%s: token \"%.60s\" is listed twice", where, text);
    size_t begin = vocabulary->text.size;
    TD_TRY(td_bytes_append(&vocabulary->text, text, bytes + 1));
    vocabulary->begins[id] = begin;
    vocabulary->lengths[id] = (uint32_t)bytes;
    vocabulary->slots[slot] = id;
    vocabulary->count++;
    return TD_OK;
}

void td_vocabulary_fini(td_vocabulary *vocabulary) {
    td_bytes_fini(&vocabulary->text);
    free(vocabulary->begins);
    free(vocabulary->lengths);
    free(vocabulary->slots);
    *vocabulary = (td_vocabulary){0};
}
