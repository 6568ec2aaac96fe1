// The order of the sum behind absmax_quantize's offset, the mean of absmax. It is stored with the
// codes and has to have the same bits on every backend, so all add up in one order, in double:
// element i belongs to lane i % TD_MEAN_LANES, which adds its elements in ascending order; then
// groups of 32 lanes are folded into one number each, groups of 8 of those, and the last 32.
// Folding adds the upper half of a group to the lower half until one number is left.
#ifndef TANDEM_KERNELS_ABSMAX_MEAN_H
#define TANDEM_KERNELS_ABSMAX_MEAN_H

enum {
    TD_MEAN_WARP = 32,   // lanes of a warp
    TD_MEAN_WARPS = 8,   // of a block
    TD_MEAN_BLOCKS = 32, // of the grid
    TD_MEAN_LANES = TD_MEAN_BLOCKS * TD_MEAN_WARPS * TD_MEAN_WARP,
};

#endif
