// Best-fit decreasing with a segment tree over free space (Ding et al., ICML 2024, "Fewer
// Truncations Improve Language Modeling"). Bins of equal free space are used in the order in which
// they came to have it, as TRL does.
#include <stdlib.h>

#include "runtime/data/sampler.h"

typedef struct item {
    int64_t length, index;
} item;

// Per amount of free space a queue of bins; the tree tells the smallest amount, at least as large
// as asked, that has one.
typedef struct space_table {
    int64_t capacity, tree_size;
    int64_t *tree;        // (2 * tree_size) largest space below each node
    int64_t *head, *tail; // (capacity + 1) bin, -1: empty
    int64_t *next;        // (n) per bin
} space_table;

static void tree_set(space_table *spaces, int64_t space, int64_t value) {
    int64_t i = spaces->tree_size + space - 1;
    spaces->tree[i] = value;
    while (i > 1) {
        i >>= 1;
        int64_t left = spaces->tree[2 * i], right = spaces->tree[2 * i + 1];
        spaces->tree[i] = left >= right ? left : right;
    }
}

static int64_t tree_search(const space_table *spaces, int64_t length) {
    int64_t i = 1;
    while (i < spaces->tree_size)
        i = spaces->tree[2 * i] >= length ? 2 * i : 2 * i + 1;
    return spaces->tree[i];
}

static void push_bin(space_table *spaces, int64_t space, int64_t bin) {
    spaces->next[bin] = -1;
    if (spaces->head[space] < 0)
        spaces->head[space] = bin;
    else
        spaces->next[spaces->tail[space]] = bin;
    spaces->tail[space] = bin;
    if (space > 0)
        tree_set(spaces, space, space);
}

static int64_t pop_bin(space_table *spaces, int64_t space) {
    int64_t bin = spaces->head[space];
    spaces->head[space] = spaces->next[bin];
    if (spaces->head[space] < 0)
        tree_set(spaces, space, 0);
    return bin;
}

static int spaces_init(space_table *spaces, int64_t capacity, int64_t n) {
    spaces->capacity = capacity;
    for (spaces->tree_size = 1; spaces->tree_size < capacity;)
        spaces->tree_size *= 2;
    spaces->tree = calloc(2 * (size_t)spaces->tree_size, sizeof *spaces->tree);
    spaces->head = malloc(((size_t)capacity + 1) * sizeof *spaces->head);
    spaces->tail = malloc(((size_t)capacity + 1) * sizeof *spaces->tail);
    spaces->next = malloc((size_t)n * sizeof *spaces->next);
    if (!spaces->tree || !spaces->head || !spaces->tail || !spaces->next)
        return 0;
    for (int64_t space = 0; space <= capacity; space++)
        spaces->head[space] = -1;
    tree_set(spaces, capacity, capacity); // an empty bin is always to be had
    return 1;
}

static void spaces_fini(space_table *spaces) {
    free(spaces->next);
    free(spaces->tail);
    free(spaces->head);
    free(spaces->tree);
}

static int longest_first(const void *a, const void *b) {
    const item *x = a, *y = b;
    if (x->length != y->length)
        return x->length < y->length ? 1 : -1;
    return (x->index > y->index) - (x->index < y->index);
}

static int64_t place_all(space_table *spaces, const item *items, int64_t n, int64_t *bin) {
    int64_t n_bins = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t space = tree_search(spaces, items[i].length);
        int64_t chosen = space < spaces->capacity ? pop_bin(spaces, space) : n_bins++;
        bin[items[i].index] = chosen;
        push_bin(spaces, space - items[i].length, chosen);
    }
    return n_bins;
}

int64_t td_pack_best_fit_decreasing(int64_t n, const int64_t *lengths, int64_t capacity,
                                    int64_t *bin) {
    space_table spaces = {0};
    int64_t n_bins = -1;
    if (n == 0)
        return 0;
    item *items = malloc((size_t)n * sizeof *items);
    int64_t total = 0;
    for (int64_t i = 0; items && i < n; i++) {
        items[i] = (item){lengths[i], i};
        total += lengths[i];
        if (lengths[i] < 1 || lengths[i] > capacity) {
            free(items);
            return -1;
        }
    }
    // One bin that holds everything packs the same as any larger one, with smaller tables.
    if (items && spaces_init(&spaces, capacity < total ? capacity : total, n)) {
        qsort(items, (size_t)n, sizeof *items, longest_first);
        n_bins = place_all(&spaces, items, n, bin);
    }
    spaces_fini(&spaces);
    free(items);
    return n_bins;
}
