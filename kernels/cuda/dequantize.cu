// NF4, fp32 and bf16 matrices as fp32 or bf16. The bits are those of bitsandbytes and of the CPU
// backend: one product per weight in fp32, nowhere contracted into a fused multiply-add, and one
// rounding to bf16 where the matrix says so or the output is bf16.
//
// What moves per weight, NF4 to bf16: 0.5 bytes of codes, 1/16 of a plain fp32 scale (1/64 + 1/4096
// when the scales are quantized themselves) and 2 bytes out, 2.56 in all. A GPU with B bytes/s of
// memory bandwidth cannot do more than B / 2.56 weights/s; to fp32 it is B / 4.56. A weight costs
// its lane a shift, a mask, a look-up, a product and half a packed conversion. By data sheets (on
// paper, not measured) that takes a third of an sm_90's issue slots and look-ups in the time that
// its memory needs for 2.56 bytes: the bandwidth decides.
#include "kernels/cuda/dequantize.cuh"

namespace {

constexpr unsigned WARPS = 8;
constexpr unsigned LANES = 32;
constexpr unsigned THREADS = WARPS * LANES;
constexpr unsigned CODES = 16;
// Weights of one warp: a block of 64 and its scale per lane.
constexpr int TILE = LANES * TD_NF4_BLOCK;
constexpr int TILE_WORDS = TILE / 8; // 32-bit words of codes

struct nf4_source {
    const uint8_t *codes;
    const float *absmax;
    const uint8_t *absmax_codes;
    const float *nested_absmax, *nested_map;
    float nested_offset;
};

// The table has a copy of every code per lane, each in the lane's own bank: lanes look up whatever
// codes they have without conflicts. A table in registers, read by shuffles, would take as many
// slots of the same pipe; selects would take 15 instructions per weight; constant memory serves one
// address at a time.
struct nf4_shared {
    float table[CODES * LANES];
    uint32_t words[WARPS][TILE_WORDS];
    float scales[WARPS][LANES];
};

__device__ __forceinline__ float block_scale(const nf4_source &source, int64_t block) {
    if (source.absmax)
        return source.absmax[block];
    float nested = source.nested_absmax[block / TD_NF4_NESTED_BLOCK];
    float scale = source.nested_map[source.absmax_codes[block]];
    return __fadd_rn(__fmul_rn(scale, nested), source.nested_offset);
}

// Unrolled, so that the codes are immediates.
__device__ __forceinline__ void fill_table(float *table, unsigned lane, unsigned warp) {
    constexpr float nf4_code[CODES] = {TD_NF4_CODES};
#pragma unroll
    for (unsigned code = 0; code < CODES; code++)
        if (code % WARPS == warp)
            table[code * LANES + lane] = nf4_code[code];
}

// One weight; ROUND: to a bf16 number whatever the type of the output.
template <int ROUND>
__device__ __forceinline__ float decode(const float *table, uint32_t code, unsigned lane,
                                        float scale) {
    float value = __fmul_rn(table[code * LANES + lane], scale);
    return ROUND ? td_to_float(td_from_float<bf16>(value)) : value;
}

// Outputs are addressed in this type: from a pointer to elements the compiler makes four stores.
struct alignas(16) sixteen_bytes {
    uint32_t word[4];
};

__device__ __forceinline__ void store16(sixteen_bytes *out, const float (&value)[4]) {
    sixteen_bytes packed;
#pragma unroll
    for (int i = 0; i < 4; i++)
        packed.word[i] = __float_as_uint(value[i]);
    *out = packed;
}

__device__ __forceinline__ void store16(sixteen_bytes *out, const float (&value)[8]) {
    sixteen_bytes packed;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        __nv_bfloat162 pair = __floats2bfloat162_rn(value[2 * i], value[2 * i + 1]);
        memcpy(&packed.word[i], &pair, sizeof pair);
    }
    *out = packed;
}

// The codes come in by 16-byte loads, 64 per lane, and pass through shared memory, so that
// neighbouring lanes then hold neighbouring weights and each 16-byte store of the warp fills 512
// bytes in a row. Every scale is fetched once, by the lane of its block.
__device__ __forceinline__ void stage_tile(const nf4_source &source, int64_t first, unsigned lane,
                                           uint32_t *words, float *scales) {
    const uint4 *from = reinterpret_cast<const uint4 *>(source.codes + first / 2);
    uint4 *to = reinterpret_cast<uint4 *>(words);
    uint4 low = from[lane], high = from[LANES + lane];
    scales[lane] = block_scale(source, first / TD_NF4_BLOCK + lane);
    to[lane] = low;
    to[LANES + lane] = high;
    __syncwarp();
}

// A whole tile; `first` is its first weight in the matrix, a multiple of 64.
template <typename T, int ROUND>
__device__ __forceinline__ void decode_tile(const nf4_source &source, int64_t first, unsigned lane,
                                            unsigned warp, nf4_shared *shared, T *out) {
    constexpr unsigned each = 16 / sizeof(T); // weights of one store
    const uint32_t *words = shared->words[warp];
    const float *scales = shared->scales[warp];
    sixteen_bytes *to = reinterpret_cast<sixteen_bytes *>(out);
    stage_tile(source, first, lane, shared->words[warp], shared->scales[warp]);
#pragma unroll
    for (unsigned step = 0; step < TILE / (LANES * each); step++) {
        unsigned store = LANES * step + lane, at = store * each;
        uint32_t codes = words[at / 8] >> (4 * (at % 8));
        float scale = scales[at / TD_NF4_BLOCK], value[each];
#pragma unroll
        for (unsigned i = 0; i < each; i++) // the first of two codes is in the high half of a byte
            value[i] =
                decode<ROUND>(shared->table, codes >> (4 * (i ^ 1)) & (CODES - 1), lane, scale);
        store16(to + store, value);
    }
}

// Weight by weight, at any address and length.
template <typename T, int ROUND>
__device__ __forceinline__ void decode_part(const nf4_source &source, int64_t first, int64_t n,
                                            unsigned lane, const float *table, T *out) {
    for (int64_t i = lane; i < n && i < TILE; i += LANES) {
        int64_t at = first + i;
        uint32_t byte = source.codes[at / 2];
        uint32_t code = at % 2 ? byte & (CODES - 1) : byte >> 4;
        float scale = block_scale(source, at / TD_NF4_BLOCK);
        out[i] = td_from_float<T>(decode<ROUND>(table, code, lane, scale));
    }
}

// Weights [begin, begin + n), a tile per warp. `wide`: begin and the addresses allow whole tiles.
template <typename T, int ROUND>
__global__ void __launch_bounds__(THREADS)
    nf4_kernel(nf4_source source, int64_t begin, int64_t n, int wide, T *out) {
    nf4_shared *shared = td_cuda_shared<nf4_shared>();
    unsigned lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    fill_table(shared->table, lane, warp);
    __syncthreads();
    int64_t offset = (static_cast<int64_t>(blockIdx.x) * WARPS + warp) * TILE;
    if (offset >= n)
        return;
    if (wide && offset + TILE <= n)
        decode_tile<T, ROUND>(source, begin + offset, lane, warp, shared, out + offset);
    else
        decode_part<T, ROUND>(source, begin + offset, n - offset, lane, shared->table,
                              out + offset);
}

// For 16-byte accesses.
int are_aligned(const void *a, const void *b) {
    return (reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) % 16 == 0;
}

template <typename T, int ROUND>
td_status decode_nf4(const td_op_context *context, const char *op, const td_matrix *matrix,
                     int64_t begin, int64_t n, T *out) {
    nf4_source source = {static_cast<const uint8_t *>(matrix->data),
                         matrix->absmax,
                         matrix->absmax_codes,
                         matrix->nested_absmax,
                         matrix->nested_map,
                         matrix->nested_offset};
    int wide = begin % TD_NF4_BLOCK == 0 && are_aligned(source.codes, out);
    return td_cuda_launch(context, op, nf4_kernel<T, ROUND>, td_cuda_blocks(n, WARPS * TILE),
                          THREADS, sizeof(nf4_shared), source, begin, n, wide, out);
}

template <typename T> struct alignas(4 * sizeof(T)) four { T value[4]; };

// Four elements per thread, so that neighbouring lanes load and store neighbouring bytes whichever
// of the types is the wider one.
template <typename From, typename To>
__global__ void __launch_bounds__(THREADS)
    convert_kernel(const From *from, int64_t n, int wide, To *to) {
    int64_t first = (static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x) * 4;
    if (wide && first + 4 <= n) {
        four<From> in = *reinterpret_cast<const four<From> *>(from + first);
        four<To> out;
#pragma unroll
        for (int i = 0; i < 4; i++)
            out.value[i] = td_from_float<To>(td_to_float(in.value[i]));
        *reinterpret_cast<four<To> *>(to + first) = out;
        return;
    }
    for (int64_t i = first; i < first + 4 && i < n; i++)
        to[i] = td_from_float<To>(td_to_float(from[i]));
}

template <typename From, typename To>
td_status convert(const td_op_context *context, const char *op, const From *from, int64_t n,
                  To *to) {
    int wide = are_aligned(from, to);
    return td_cuda_launch(context, op, convert_kernel<From, To>, td_cuda_blocks(n, THREADS * 4),
                          THREADS, 0, from, n, wide, to);
}

template <typename From>
td_status copy_or_convert(const td_op_context *context, const char *op, const From *from, int64_t n,
                          td_dtype type, void *out) {
    if (type == (sizeof(From) == sizeof(float) ? TD_F32 : TD_BF16))
        return context->device->table->copy(context->stream, out, from,
                                            static_cast<size_t>(n) * sizeof(From));
    if (type == TD_BF16)
        return convert(context, op, from, n, static_cast<bf16 *>(out));
    return convert(context, op, from, n, static_cast<float *>(out));
}

} // namespace

td_status td_cuda_dequantize_span(const td_op_context *context, const char *op,
                                  const td_matrix *matrix, int64_t begin, int64_t n, td_dtype type,
                                  void *out) {
    switch (matrix->format) {
    case TD_MATRIX_F32:
        return copy_or_convert(context, op, static_cast<const float *>(matrix->data) + begin, n,
                               type, out);
    case TD_MATRIX_BF16:
        return copy_or_convert(context, op, static_cast<const bf16 *>(matrix->data) + begin, n,
                               type, out);
    case TD_MATRIX_NF4:
        break;
    }
    if (type == TD_BF16) // which rounds anyway
        return decode_nf4<bf16, 0>(context, op, matrix, begin, n, static_cast<bf16 *>(out));
    if (matrix->compute == TD_BF16)
        return decode_nf4<float, 1>(context, op, matrix, begin, n, static_cast<float *>(out));
    return decode_nf4<float, 0>(context, op, matrix, begin, n, static_cast<float *>(out));
}

td_status td_cuda_round_to_bf16(const td_op_context *context, const char *op, const float *from,
                                int64_t n, void *to) {
    return convert(context, op, from, n, static_cast<bf16 *>(to));
}

td_status td_cuda_dequantize(const td_op_context *context, const td_dequantize_args *args) {
    int64_t cols = args->matrix->cols;
    return td_cuda_dequantize_span(context, "dequantize", args->matrix, args->row_begin * cols,
                                   args->row_count * cols,
                                   args->out_is_act ? context->ops->activation : TD_F32, args->out);
}
