// What the files of MinHash signatures share, and their tests. Not for other folders.
#ifndef TANDEM_DATA_MINHASH_INTERNAL_H
#define TANDEM_DATA_MINHASH_INTERNAL_H

#include "runtime/data/minhash.h"

typedef enum td_minhash_level {
    TD_MINHASH_PLAIN,
    TD_MINHASH_AVX2,
    TD_MINHASH_AVX512,
    TD_MINHASH_LEVELS,
} td_minhash_level;

// Lowers every place of the signature to the least value of its permutation over the shingles.
typedef void td_minhash_update(uint32_t signature[TD_MINHASH_PERMUTATIONS],
                               const uint64_t *shingles, size_t count);

// NULL when this processor has no such instructions. All levels give the same bits.
td_minhash_update *td_minhash_update_at(td_minhash_level level);
// The best of this processor.
td_minhash_update *td_minhash_update_best(void);

#endif
