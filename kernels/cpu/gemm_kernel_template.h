// The inner loop of matrix products for one level of vector instructions. Included by
// gemm_kernel.c, once per level and type, with NAME, TD_LANES_LEVEL, TARGET, MULTIPLY_ADD (of lanes
// of fp32 or of pairs), TILE_ROWS and TILE_LANES set; no include guard on purpose.

#define L(name)      TD_LANES_NAME(td_lanes_##name##_)
#define LANES        TD_LANES_NAME(td_lanes_)
#define KERNEL(name) TD_LANES_JOIN(name##_, NAME)

// One tile of c = from + a b, summed in registers; from may be NULL. rows and lanes are constants
// after inlining.
TARGET static inline __attribute__((always_inline)) void KERNEL(tile)(const td_gemm_tile *tile,
                                                                      int rows, int lanes) {
    LANES sum[TILE_ROWS][TILE_LANES];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < lanes; j++)
            sum[i][j] = L(set)(0.0f);
    const float *b = tile->b;
    int64_t strip = tile->strip, b_step = tile->step;
    for (int part = 0; part < 2; part++) {
        const float *a = tile->left[part].data;
        int64_t a_row = tile->left[part].row, a_step = tile->left[part].step;
        for (int64_t k = tile->left[part].k; k > 0; k--, a += a_step, b += b_step) {
            LANES right[TILE_LANES];
            for (int j = 0; j < lanes; j++)
                right[j] = L(load)(b + j * strip);
            for (int i = 0; i < rows; i++) {
                LANES value = L(set)(a[i * a_row]);
                for (int j = 0; j < lanes; j++)
                    sum[i][j] = MULTIPLY_ADD(value, right[j], sum[i][j]);
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

// A function for each shape of tile: side by side in one they would share its registers.
#define TILE(rows, lanes)                                                                          \
    __attribute__((noinline)) TARGET static void KERNEL(tile_##rows##x##lanes)(                    \
        const td_gemm_tile *tile) {                                                                \
        KERNEL(tile)(tile, rows, lanes);                                                           \
    }
EACH_TILE(TILE)
#undef TILE

#define TILE(rows, lanes) [rows - 1][lanes - 1] = KERNEL(tile_##rows##x##lanes),
static td_gemm_tile_function *const KERNEL(tiles)[TILE_ROWS][TILE_LANES] = {EACH_TILE(TILE)};
#undef TILE

static void KERNEL(multiply)(const td_gemm_block *block) {
    multiply(block, TILE_ROWS, TILE_LANES, KERNEL(tiles)[0]);
}

#undef L
#undef LANES
#undef KERNEL
#undef EACH_TILE
#undef NAME
#undef TD_LANES_LEVEL
#undef TARGET
#undef MULTIPLY_ADD
#undef TILE_ROWS
#undef TILE_LANES
