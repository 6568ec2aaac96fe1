// What kernels are written with: indices, barriers, shuffles, votes, atomics,
// numbers. Expected values are worked out here from CUDA's documentation, not
// by the emulation.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "selftest.cuh"

namespace {

constexpr unsigned full = 0xffffffffu;

std::vector<int> counted(int n) {
    std::vector<int> values(static_cast<size_t>(n));
    std::iota(values.begin(), values.end(), 0);
    return values;
}

__global__ void visit(int *visits) {
    unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    visits[block * blockDim.x * blockDim.y * blockDim.z + thread]++;
}

void every_thread_of_every_block_runs_once() {
    constexpr size_t n = 3 * 4 * 5 * 7 * 6 * 2;
    device_array<int> visits(std::vector<int>(n, 0));
    run(visit, dim3(3, 4, 5), dim3(7, 6, 2), 0, visits.data);
    CHECK(visits.get() == std::vector<int>(n, 1));
}

__global__ void note_order(int *order, int *next) {
    order[atomicAdd(next, 1)] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

std::vector<int> order_of_a_launch() {
    device_array<int> order(256), next(std::vector<int>{0});
    run(note_order, 4, 64, 0, order.data, next.data);
    return order.get();
}

void threads_and_blocks_come_in_changing_orders() {
    std::set<std::vector<int>> orders;
    for (int i = 0; i < 8; i++) {
        std::vector<int> order = order_of_a_launch(), sorted = order;
        std::sort(sorted.begin(), sorted.end());
        CHECK(sorted == counted(256));
        orders.insert(order);
    }
    CHECK(orders.size() > 4);
}

// Rotates the block's values `rounds` times through shared memory.
__global__ void rotate(int *values, int rounds) {
    int *shared = static_cast<int *>(cuda_host_shared_memory());
    unsigned t = threadIdx.x, n = blockDim.x;
    int mine = values[blockIdx.x * n + t];
    for (int i = 0; i < rounds; i++) {
        shared[t] = mine;
        __syncthreads();
        mine = shared[(t + 1) % n];
        __syncthreads();
    }
    values[blockIdx.x * n + t] = mine;
}

void barriers_order_shared_memory() {
    for (int n : {1, 31, 32, 33, 100, 256, 1024}) {
        device_array<int> values(counted(n));
        run(rotate, 1, static_cast<unsigned>(n), sizeof(int) * static_cast<size_t>(n), values.data,
            5);
        std::vector<int> expected = counted(n);
        std::rotate(expected.begin(), expected.begin() + 5 % n, expected.end());
        CHECK(values.get() == expected);
    }
}

__global__ void barrier_votes(int *out) {
    if (threadIdx.x >= 90) // a thread that has returned takes no part
        return;
    int t = static_cast<int>(threadIdx.x), all = 0;
    int odd = __syncthreads_count(t % 2), any = __syncthreads_or(t == 77),
        none = __syncthreads_or(t == 99);
    all = __syncthreads_and(t < 90) * 2 + __syncthreads_and(t < 89);
    out[t] = odd * 1000 + any * 100 + none * 10 + all;
}

void barriers_count_and_vote() {
    device_array<int> out(90);
    run(barrier_votes, 1, 128, 0, out.data);
    CHECK(out.get() == std::vector<int>(90, 45 * 1000 + 100 + 2));
}

// The source of each kind of shuffle as the PTX ISA gives it (shfl.sync,
// "Semantics"): -1 for own.
int shuffle_source(int kind, int lane, int b, int width) {
    int segment_mask = (32 - width) & 31, clamp = kind == 1 ? 0 : 31;
    int largest = (lane & segment_mask) | (clamp & ~segment_mask), smallest = lane & segment_mask;
    int from = kind == 0   ? (smallest | (b & 31 & ~segment_mask))
               : kind == 1 ? lane - (b & 31)
               : kind == 2 ? lane + (b & 31)
                           : (lane ^ (b & 31));
    bool valid = kind == 1 ? from >= largest : from <= largest;
    return valid ? from : lane;
}

template <typename T> __global__ void shuffles(T *out, int b, int width) {
    int lane = static_cast<int>(threadIdx.x);
    T mine = static_cast<T>(3 * lane + 1);
    out[lane] = __shfl_sync(full, mine, b, width);
    out[32 + lane] = __shfl_up_sync(full, mine, static_cast<unsigned>(b), width);
    out[64 + lane] = __shfl_down_sync(full, mine, static_cast<unsigned>(b), width);
    out[96 + lane] = __shfl_xor_sync(full, mine, b, width);
}

template <typename T> void check_shuffles(int b, int width) {
    device_array<T> out(128);
    run(shuffles<T>, 1, 32, 0, out.data, b, width);
    std::vector<T> got = out.get();
    for (int i = 0; i < 128; i++) {
        int from = shuffle_source(i / 32, i % 32, b, width);
        CHECK_INT(static_cast<float>(got[static_cast<size_t>(i)]), 3 * from + 1);
    }
}

void shuffles_take_the_documented_lane() {
    for (int width = 1; width <= 32; width *= 2)
        for (int b : {0, 1, 2, 3, 7, 16, 31})
            check_shuffles<int>(b, width);
    check_shuffles<unsigned>(5, 16);
    check_shuffles<long long>(5, 16);
    check_shuffles<unsigned long long>(1, 32);
    check_shuffles<float>(9, 32);
    check_shuffles<double>(4, 8);
    check_shuffles<__nv_bfloat16>(3, 32);
}

__global__ void partial_masks(int *out) {
    int lane = static_cast<int>(threadIdx.x % 32);
    unsigned mask = lane < 20 ? 0x000fffffu : 0xfff00000u;
    int sum = 0;
    if (lane < 20)
        for (int i = 0; i < 20; i++)
            sum += __shfl_sync(mask, lane, i);
    else
        sum = static_cast<int>(__ballot_sync(mask, lane % 2));
    out[threadIdx.x] = sum;
}

void halves_of_a_warp_go_their_own_ways() {
    device_array<int> out(64);
    run(partial_masks, 1, 64, 0, out.data);
    std::vector<int> got = out.get();
    for (size_t i = 0; i < 64; i++)
        CHECK_INT(got[i], i % 32 < 20 ? 190 : static_cast<int>(0xaaa00000u));
}

__global__ void votes(unsigned *out) {
    int lane = static_cast<int>(threadIdx.x);
    unsigned value = static_cast<unsigned>(lane * lane + 3);
    unsigned results[] = {__ballot_sync(full, lane % 3 == 0),
                          static_cast<unsigned>(__any_sync(full, lane == 31)),
                          static_cast<unsigned>(__any_sync(full, lane == 32)),
                          static_cast<unsigned>(__all_sync(full, lane < 32)),
                          static_cast<unsigned>(__all_sync(full, lane < 31)),
                          __reduce_add_sync(full, value),
                          __reduce_min_sync(full, value),
                          __reduce_max_sync(full, value),
                          __reduce_and_sync(full, value | 16),
                          __reduce_or_sync(full, value),
                          __reduce_xor_sync(full, value),
                          static_cast<unsigned>(__reduce_min_sync(full, lane - 40)),
                          static_cast<unsigned>(__reduce_add_sync(full, -lane))};
    for (unsigned i = 0; i < 13; i++)
        out[i * 32 + threadIdx.x] = results[i];
}

void votes_and_reductions_agree_in_all_lanes() {
    unsigned add = 0, low = ~0u, high = 0, all = ~0u, any = 0, odd = 0, third = 0;
    for (unsigned lane = 0; lane < 32; lane++) {
        unsigned value = lane * lane + 3;
        third |= lane % 3 == 0 ? 1u << lane : 0;
        add += value;
        low = std::min(low, value);
        high = std::max(high, value);
        all &= value | 16;
        any |= value;
        odd ^= value;
    }
    const unsigned expected[] = {third, 1, 0, 1, 0, add, low, high, all, any, odd, -40u, -496u};
    device_array<unsigned> out(13 * 32);
    run(votes, 1, 32, 0, out.data);
    std::vector<unsigned> got = out.get();
    for (size_t i = 0; i < got.size(); i++)
        CHECK_INT(got[i], expected[i / 32]);
}

struct atomic_cells {
    int add, largest, smallest, swapped;
    unsigned ors, compared;
    unsigned long long wide;
    float single;
    double twice;
};

__global__ void atomics(atomic_cells *cells) {
    int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    atomicAdd(&cells->add, i);
    atomicMax(&cells->largest, i * 7 % 1000);
    atomicMin(&cells->smallest, i * 7 % 1000 - 5);
    atomicExch(&cells->swapped, i);
    atomicOr(&cells->ors, 1u << i % 32);
    for (;;) {
        unsigned old = cells->compared;
        if (atomicCAS(&cells->compared, old, old + 2) == old)
            break;
    }
    atomicAdd(&cells->wide, 1ull << 33);
    atomicAdd(&cells->single, 0.5f);
    atomicAdd(&cells->twice, 0.25);
}

void atomics_lose_nothing() {
    atomic_cells none = {};
    device_array<atomic_cells> cells(std::vector<atomic_cells>{none});
    run(atomics, 10, 100, 0, cells.data);
    atomic_cells got = cells.get()[0];
    CHECK_INT(got.add, 499500);
    CHECK_INT(got.largest, 999);
    CHECK_INT(got.smallest, -5);
    CHECK(got.swapped >= 0 && got.swapped < 1000);
    CHECK_INT(got.ors, 0xffffffffu);
    CHECK_INT(got.compared, 2000);
    CHECK(got.wide == 1000ull << 33);
    CHECK_NEAR(got.single, 500, 0);
    CHECK_NEAR(got.twice, 250, 0);
}

// A collective of our own: every lane gets the sum of squares.
void sum_squares_step(void *const *lanes, unsigned mask) {
    int sum = 0;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1)
            sum += *static_cast<int *>(lanes[i]) * *static_cast<int *>(lanes[i]);
    for (int i = 0; i < 32; i++)
        if (lanes[i])
            *static_cast<int *>(lanes[i]) = sum;
}

__global__ void own_collective(int *out) {
    int lane = static_cast<int>(threadIdx.x % 32), value = lane;
    if (lane < 7)
        cuda_host_warp_collective({"squares", __FILE__, __LINE__}, 0x7f, &value, sum_squares_step);
    out[threadIdx.x] = value;
}

void collectives_can_be_added() {
    device_array<int> out(64);
    run(own_collective, 1, 64, 0, out.data);
    std::vector<int> got = out.get();
    for (size_t i = 0; i < 64; i++)
        CHECK_INT(got[i], i % 32 < 7 ? 91 : static_cast<int>(i % 32));
}

int finished_sum;
void finish_storage(void *storage) {
    finished_sum += *static_cast<int *>(storage);
}
const cuda_host_storage_kind storage_kind = {"test", sizeof(int), finish_storage};

__global__ void use_storage(int *out) {
    auto *mine = static_cast<int *>(cuda_host_thread_storage(&storage_kind));
    *mine += static_cast<int>(threadIdx.x);
    __syncthreads();
    out[threadIdx.x] = *static_cast<int *>(cuda_host_thread_storage(&storage_kind));
}

void threads_have_storage_of_their_own() {
    device_array<int> out(64);
    finished_sum = 0;
    run(use_storage, 1, 64, 0, out.data);
    CHECK(out.get() == counted(64));
    CHECK_INT(finished_sum, 2016);
}

__global__ void shared_bytes_seen(unsigned char *out, unsigned n) {
    auto *shared = static_cast<unsigned char *>(cuda_host_shared_memory());
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        out[blockIdx.x * n + i] = shared[i];
        shared[i] = 0;
    }
}

void shared_memory_is_poisoned_for_every_block() {
    constexpr unsigned n = 1003;
    device_array<unsigned char> out(4 * n);
    run(shared_bytes_seen, 4, 64, n, out.data, n);
    CHECK(out.get() == std::vector<unsigned char>(4 * n, 0xff));
}

void conversions_round_as_documented() {
    CHECK_INT(__float2int_rn(2.5f), 2);
    CHECK_INT(__float2int_rn(-3.5f), -4);
    CHECK_INT(__float2int_rz(-3.9f), -3);
    CHECK_INT(__float2int_rn(3e9f), 2147483647);
    CHECK_INT(__float2int_rn(NAN), 0);
    CHECK_INT(__float2ll_rn(-1e30f), INT64_MIN);
    CHECK_INT(__double2ll_rn(0.5), 0);
    CHECK_INT(__double2ll_rn(1.5), 2);
    CHECK_INT(__double2ll_rn(1e19), INT64_MAX);
    CHECK_INT(__float2uint_rn(-1.0f), 0);
    CHECK_INT(__float2uint_rz(4294967295.0f), 4294967295u);
    CHECK(__ll2float_rn((1ll << 24) + 1) == 16777216.0f);
    CHECK_INT(__float_as_uint(1.0f), 0x3f800000);
    CHECK(__longlong_as_double(__double_as_longlong(-0.1)) == -0.1);
    CHECK(__saturatef(NAN) == 0 && __saturatef(2) == 1 && __saturatef(0.25f) == 0.25f);
    // (1 + 2^-12)^2 - (1 + 2^-11), where rounding the square would lose all
    CHECK(__fmaf_rn(0x1.001p0f, 0x1.001p0f, -0x1.002p0f) == 0x1p-24f);
    CHECK(__fadd_rn(__fmul_rn(0x1.001p0f, 0x1.001p0f), -0x1.002p0f) == 0);
}

void bits_are_counted_and_picked_as_documented() {
    CHECK_INT(__clz(0), 32);
    CHECK_INT(__clz(1), 31);
    CHECK_INT(__popc(0xf0f0u), 8);
    CHECK_INT(__ffs(8), 4);
    CHECK_INT(__brev(0x80000001u), 0x80000001u);
    CHECK_INT(__brev(6), 0x60000000u);
    CHECK_INT(__umulhi(0x80000000u, 6), 3);
    CHECK_INT(__byte_perm(0x33221100u, 0x77665544u, 0x7520), 0x77552200u);
    CHECK_INT(__byte_perm(0x00008000u, 0, 0x9999), 0xffffffffu);
    CHECK_INT(__funnelshift_l(0x80000000u, 1, 1), 3);
    CHECK_INT(min(3u, 5), 3);
    CHECK_INT(max(-1ll, 4), 4);
    CHECK(max(2.0f, NAN) == 2.0f);
}

// bf16 nearest to x, ties to even, by trying both neighbours in double.
unsigned short nearest_bf16(float x) {
    auto bits = static_cast<uint32_t>(__float_as_uint(x));
    uint32_t low = bits >> 16, high = low + 1;
    double a = __uint_as_float(low << 16), b = __uint_as_float(high << 16), d = x;
    if (!std::isfinite(b)) // the neighbour that would follow the largest number
        b = std::copysign(std::ldexp(1.0, 128), b);
    double to_a = std::fabs(d - a), to_b = std::fabs(b - d);
    return static_cast<unsigned short>(to_a < to_b || (to_a == to_b && low % 2 == 0) ? low : high);
}

void bf16_rounds_to_nearest_even() {
    for (uint32_t i = 0; i < 400000; i++) {
        float x = __uint_as_float(i * 10737u);
        if (!std::isfinite(x))
            continue;
        unsigned short got = __bfloat16_as_ushort(__float2bfloat16_rn(x));
        if (got != nearest_bf16(x))
            CHECK_INT(got, nearest_bf16(x));
    }
    for (uint32_t upper = 0; upper < 0x7f80; upper++) // ties
        if (__bfloat16_as_ushort(__float2bfloat16(__uint_as_float(upper << 16 | 0x8000))) !=
            (upper % 2 ? upper + 1 : upper))
            CHECK_INT(upper, -1);
    CHECK_INT(__bfloat16_as_ushort(NAN), 0x7fff);
    __nv_bfloat162 pair = __floats2bfloat162_rn(1.0f, -2.0f);
    CHECK(__low2float(pair) == 1 && __high2float(pair) == -2);
    CHECK(__bfloat162float(__nv_bfloat16(1.0f) + __nv_bfloat16(0.00390625f)) == 1.0f);
}

} // namespace

int main() {
    TEST(every_thread_of_every_block_runs_once);
    TEST(threads_and_blocks_come_in_changing_orders);
    TEST(barriers_order_shared_memory);
    TEST(barriers_count_and_vote);
    TEST(shuffles_take_the_documented_lane);
    TEST(halves_of_a_warp_go_their_own_ways);
    TEST(votes_and_reductions_agree_in_all_lanes);
    TEST(atomics_lose_nothing);
    TEST(collectives_can_be_added);
    TEST(threads_have_storage_of_their_own);
    TEST(shared_memory_is_poisoned_for_every_block);
    TEST(conversions_round_as_documented);
    TEST(bits_are_counted_and_picked_as_documented);
    TEST(bf16_rounds_to_nearest_even);
    return test_report();
}
