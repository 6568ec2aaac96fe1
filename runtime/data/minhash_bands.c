#include <math.h>

#include "runtime/data/minhash.h"

enum { STEPS = 500 }; // of the midpoint rule on either side of the threshold

static double found(double similarity, int bands, int places) {
    return 1 - pow(1 - pow(similarity, places), bands);
}

// Area below (missed: above) the curve of what is found, from `low` to `high`.
static double area(double low, double high, int missed, int bands, int places) {
    double sum = 0, width = (high - low) / STEPS;
    for (int i = 0; i < STEPS; i++) {
        double share = found(low + (i + 0.5) * width, bands, places);
        sum += missed ? 1 - share : share;
    }
    return sum * width;
}

td_minhash_bands td_minhash_choose_bands(double threshold, double false_positive_weight,
                                         double false_negative_weight) {
    td_minhash_bands best = {1, TD_MINHASH_PERMUTATIONS};
    double least = INFINITY;
    for (int bands = 1; bands <= TD_MINHASH_PERMUTATIONS; bands++) {
        for (int places = 1; bands * places <= TD_MINHASH_PERMUTATIONS; places++) {
            double error = false_positive_weight * area(0, threshold, 0, bands, places) +
                           false_negative_weight * area(threshold, 1, 1, bands, places);
            if (error < least) {
                least = error;
                best = (td_minhash_bands){bands, places};
            }
        }
    }
    return best;
}
