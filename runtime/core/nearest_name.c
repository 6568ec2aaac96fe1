// The hint in "unknown key ...; did you mean ...?".
#include <string.h>

#include "runtime/core/config.h"

enum { MAX_NAME_CHARS = 63, MIN_PART_CHARS = 3 };

static int smallest(int a, int b, int c) {
    int least = a < b ? a : b;
    return least < c ? least : c;
}

// Insertions, deletions, replacements and swaps of neighbours (optimal string alignment), by rows.
// Both names have at most MAX_NAME_CHARS characters.
static int edit_distance(const char *a, const char *b) {
    int rows[3][MAX_NAME_CHARS + 1];
    int *above2 = rows[0], *above = rows[1], *current = rows[2];
    int length_b = (int)strlen(b);
    for (int j = 0; j <= length_b; j++)
        above[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        current[0] = i;
        for (int j = 1; j <= length_b; j++) {
            current[j] =
                smallest(above[j] + 1, current[j - 1] + 1, above[j - 1] + (a[i - 1] != b[j - 1]));
            int swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped && above2[j - 2] + 1 < current[j])
                current[j] = above2[j - 2] + 1;
        }
        int *oldest = above2;
        above2 = above;
        above = current;
        current = oldest;
    }
    return above[length_b];
}

static int is_near(const char *word, int distance) {
    int limit = (int)strlen(word) / 3;
    return distance <= (limit > 1 ? limit : 1);
}

// "epochs" is far from "num_train_epochs" in edits and yet what was meant.
static const char *containing(const char *word, const char *const *candidates, size_t count) {
    if (strlen(word) < MIN_PART_CHARS)
        return NULL;
    for (size_t i = 0; i < count; i++)
        if (strstr(candidates[i], word) || strstr(word, candidates[i]))
            return candidates[i];
    return NULL;
}

const char *td_nearest_name(const char *word, const char *const *candidates, size_t count) {
    const char *nearest = NULL;
    int least = MAX_NAME_CHARS + 1;
    if (strlen(word) > MAX_NAME_CHARS)
        return NULL;
    for (size_t i = 0; i < count; i++) {
        if (strlen(candidates[i]) > MAX_NAME_CHARS)
            continue;
        int distance = edit_distance(word, candidates[i]);
        if (distance < least) {
            least = distance;
            nearest = candidates[i];
        }
    }
    if (nearest && is_near(word, least))
        return nearest;
    return containing(word, candidates, count);
}
