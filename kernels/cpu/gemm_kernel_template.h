// The inner loop of matrix products for one level of vector instructions. Included by
// gemm_kernel.c, once per level, with TD_LANES_LEVEL, TILE_ROWS and TILE_LANES set; no include
// guard on purpose.

#define L(name)      TD_LANES_NAME(td_lanes_##name##_)
#define LANES        TD_LANES_NAME(td_lanes_)
#define KERNEL(name) TD_LANES_JOIN(name##_, TD_LANES_LEVEL)

// Sixteen columns of a row of c, of which `live` are there.
TD_LANES_INLINE void KERNEL(finish)(const td_gemm_block *block, LANES sum, int64_t row, int64_t col,
                                    int64_t live) {
    float *c = block->c + row * block->ldc + col, edge[TD_LANES] = {0};
    const float *from = block->bias ? block->bias + col : c;
    int adds = block->bias || block->accumulate;
    if (live >= TD_LANES) {
        L(store)(c, adds ? L(add)(L(load)(from), sum) : sum);
        return;
    }
    if (adds)
        memcpy(edge, from, (size_t)live * sizeof *edge);
    L(store)(edge, adds ? L(add)(L(load)(edge), sum) : sum);
    memcpy(c, edge, (size_t)live * sizeof *edge);
}

// One tile of c, summed in registers. rows and lanes are constants after inlining.
TD_LANES_INLINE void KERNEL(tile)(const td_gemm_block *block, int rows, int lanes, int64_t row,
                                  int64_t col) {
    LANES sum[TILE_ROWS][TILE_LANES];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < lanes; j++)
            sum[i][j] = L(set)(0.0f);
    int64_t strip = block->strip;
    const float *b = block->right + col / TD_LANES * strip;
    for (int part = 0; part < 2; part++) {
        int64_t k = block->left[part].k, a_row = block->left[part].row;
        int64_t a_step = block->left[part].step;
        const float *a = block->left[part].data + row * a_row;
        for (int64_t step = 0; step < k; step++, a += a_step, b += TD_LANES) {
            LANES right[TILE_LANES];
            for (int j = 0; j < lanes; j++)
                right[j] = L(load)(b + j * strip);
            for (int i = 0; i < rows; i++) {
                LANES left = L(set)(a[i * a_row]);
                for (int j = 0; j < lanes; j++)
                    sum[i][j] = L(fma)(left, right[j], sum[i][j]);
            }
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < lanes; j++)
            KERNEL(finish)
            (block, sum[i][j], row + i, col + j * TD_LANES, block->n - col - j * TD_LANES);
}

// Four strips are two and two rather than three and one, which is too few sums to keep busy.
TD_LANES_INLINE void KERNEL(rows)(const td_gemm_block *block, int rows, int64_t row) {
    int64_t col = 0, n = block->n;
    for (; col + (TILE_LANES + 1) * TD_LANES < n; col += TILE_LANES * TD_LANES)
        KERNEL(tile)(block, rows, TILE_LANES, row, col);
    int64_t left = (n - col + TD_LANES - 1) / TD_LANES;
    if (TILE_LANES > 2 && left == 3) {
        KERNEL(tile)(block, rows, TILE_LANES < 3 ? TILE_LANES : 3, row, col);
        col += 3 * TD_LANES;
    }
    for (; TILE_LANES > 1 && col + TD_LANES < n; col += 2 * TD_LANES)
        KERNEL(tile)(block, rows, TILE_LANES < 2 ? TILE_LANES : 2, row, col);
    for (; col < n; col += TD_LANES)
        KERNEL(tile)(block, rows, 1, row, col);
}

TD_LANES_TARGET static void KERNEL(multiply)(const td_gemm_block *given) {
    td_gemm_block block = *given;
    int64_t row = 0;
    for (; row + TILE_ROWS <= block.m; row += TILE_ROWS)
        KERNEL(rows)(&block, TILE_ROWS, row);
    if (TILE_ROWS > 4 && row + 4 <= block.m) {
        KERNEL(rows)(&block, TILE_ROWS < 4 ? TILE_ROWS : 4, row);
        row += 4;
    }
    if (TILE_ROWS > 2 && row + 2 <= block.m) {
        KERNEL(rows)(&block, 2, row);
        row += 2;
    }
    for (; row < block.m; row++)
        KERNEL(rows)(&block, 1, row);
}

#undef L
#undef LANES
#undef KERNEL
#undef TD_LANES_LEVEL
#undef TILE_ROWS
#undef TILE_LANES
