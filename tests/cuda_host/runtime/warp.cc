// The steps of the warp primitives of cuda_host_warp.h.
#include "tests/cuda_host/include/cuda_host_warp.h"

#include "internal.h"

static void end_warp_phase(void *const *, unsigned) {
    phases.of_warp[phases.thread / 32]++;
}

void cuda_host_warp_barrier(cuda_host_site site, unsigned mask) {
    static const bool skipped = cuda_host_fault("no-syncwarp");
    if (!skipped)
        cuda_host_warp_collective(site, mask, nullptr, end_warp_phase);
}

void cuda_host_shuffle_step(void *const *lanes, unsigned mask) {
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        auto *to = static_cast<cuda_host_shuffle_lane *>(lanes[__builtin_ctz(rest)]);
        auto *from = static_cast<cuda_host_shuffle_lane *>(lanes[to->source]);
        to->result = from ? from->value : ~uint64_t(0);
        if (to->width <= 0 || to->width > 32 || (to->width & (to->width - 1)))
            cuda_host_fail("a shuffle's width is %d, not a power of two up to 32", to->width);
    }
}

void cuda_host_vote_step(void *const *lanes, unsigned mask) {
    unsigned holds = 0;
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        int lane = __builtin_ctz(rest);
        if (static_cast<cuda_host_vote_lane *>(lanes[lane])->predicate)
            holds |= 1u << lane;
    }
    for (unsigned rest = mask; rest; rest &= rest - 1)
        static_cast<cuda_host_vote_lane *>(lanes[__builtin_ctz(rest)])->holds = holds;
}
