// A tile of a product in bf16 for one way to multiply pairs. Included by gemm_bf16.c, once per
// level, with TD_LANES_LEVEL (how sums are kept), TARGET, PAIRS (a vector of 16 words), LOAD_PAIRS,
// SET_PAIR, DOT, NAME, TILE_ROWS and TILE_LANES set; no include guard on purpose.

#define L(name)      TD_LANES_NAME(td_lanes_##name##_)
#define LANES        TD_LANES_NAME(td_lanes_)
#define KERNEL(name) TD_LANES_JOIN(name##_, NAME)

// c = from + a b, summed in registers; from may be NULL. rows and lanes are constants after
// inlining.
TARGET static inline __attribute__((always_inline)) void KERNEL(tile)(const pair_tile *tile,
                                                                      int rows, int lanes) {
    LANES sum[TILE_ROWS][TILE_LANES];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < lanes; j++)
            sum[i][j] = L(set)(0.0f);
    const uint32_t *b = tile->b;
    int64_t strip = tile->strip;
    for (int part = 0; part < 2; part++) {
        const uint32_t *a = tile->left[part].words;
        int64_t a_row = tile->left[part].row, a_step = tile->left[part].step;
        for (int64_t k = tile->left[part].count; k > 0; k--, a += a_step, b += TD_GEMM_STRIP) {
            PAIRS right[TILE_LANES];
            for (int j = 0; j < lanes; j++)
                right[j] = LOAD_PAIRS(b + j * strip);
            for (int i = 0; i < rows; i++) {
                PAIRS left = SET_PAIR(a[i * a_row]);
                for (int j = 0; j < lanes; j++)
                    sum[i][j] = DOT(sum[i][j], left, right[j]);
            }
        }
    }
    for (int i = 0; tile->from && i < rows; i++)
        for (int j = 0; j < lanes; j++)
            sum[i][j] = L(add)(L(load)(tile->from + i * tile->from_row + j * TD_LANES), sum[i][j]);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < lanes; j++)
            L(store)(tile->c + i * tile->c_row + j * TD_LANES, sum[i][j]);
}

#define TILE(rows, lanes)                                                                          \
    __attribute__((noinline)) TARGET static void KERNEL(tile_##rows##x##lanes)(                    \
        const pair_tile *tile) {                                                                   \
        KERNEL(tile)(tile, rows, lanes);                                                           \
    }
EACH_TILE(TILE)
#undef TILE

#define TILE(rows, lanes) [rows - 1][lanes - 1] = KERNEL(tile_##rows##x##lanes),
static pair_tile_function *const KERNEL(tiles)[TILE_ROWS][TILE_LANES] = {EACH_TILE(TILE)};
#undef TILE

static const pair_kernels KERNEL(kernels) = {TILE_ROWS, TILE_LANES, KERNEL(tiles)[0]};

#undef L
#undef LANES
#undef KERNEL
#undef TD_LANES_LEVEL
#undef TARGET
#undef PAIRS
#undef LOAD_PAIRS
#undef SET_PAIR
#undef DOT
#undef NAME
#undef EACH_TILE
#undef TILE_ROWS
#undef TILE_LANES
