// The matrix product of attention for one level of vector instructions and one kind of operands.
// Included by attention_kernels.c with LANES, L(), PRODUCT(), OPERAND..., TILE_ROWS and TILE_LANES
// set; no include guard on purpose. A tile has at most TILE_SUMS vectors of sums, if not all.

#ifndef TILE_SUMS
#define TILE_SUMS (TILE_ROWS * TILE_LANES)
#endif

// One tile of c in registers. rows and lanes are constants after inlining.
PRODUCT_INLINE void PRODUCT(tile)(const td_attention_product *p, int rows, int lanes, int64_t row,
                                  int64_t col) {
    LANES sum[TILE_ROWS][TILE_LANES];
    float *c = p->c + row * p->ldc + col;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < lanes; j++)
            sum[i][j] = p->accumulate ? L(load)(c + i * p->ldc + j * TD_LANES) : L(set)(0.0f);
    const float *a = p->a + row * p->a_row, *b = p->b + col;
    int64_t a_row = p->a_row, a_step = p->a_step, ldb = p->ldb;
    for (int64_t step = 0; step < p->k; step++, a += a_step, b += ldb) {
        OPERAND right[TILE_LANES];
        for (int j = 0; j < lanes; j++)
            right[j] = OPERAND_LOAD(b + j * TD_LANES);
        for (int i = 0; i < rows; i++) {
            OPERAND left = OPERAND_SET(a[i * a_row]);
            for (int j = 0; j < lanes; j++)
                sum[i][j] = MULTIPLY_ADD(left, right[j], sum[i][j]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < lanes; j++)
            L(store)(c + i * p->ldc + j * TD_LANES, sum[i][j]);
}

PRODUCT_INLINE void PRODUCT(columns)(const td_attention_product *p, int lanes, int64_t col) {
    const int most = TILE_SUMS / lanes < TILE_ROWS ? TILE_SUMS / lanes : TILE_ROWS;
    int64_t row = 0;
    for (; row + most <= p->m; row += most)
        PRODUCT(tile)(p, most, lanes, row, col);
    if (most > 4 && row + 4 <= p->m) {
        PRODUCT(tile)(p, most < 4 ? most : 4, lanes, row, col);
        row += 4;
    }
    if (most > 2 && row + 2 <= p->m) {
        PRODUCT(tile)(p, 2, lanes, row, col);
        row += 2;
    }
    for (; row < p->m; row++)
        PRODUCT(tile)(p, 1, lanes, row, col);
}

PRODUCT_TARGET static void PRODUCT(multiply)(const td_attention_product *product) {
    td_attention_product p = *product;
    int64_t col = 0;
    for (; col + TILE_LANES * TD_LANES <= p.n; col += TILE_LANES * TD_LANES)
        PRODUCT(columns)(&p, TILE_LANES, col);
    for (; TILE_LANES > 2 && col + 2 * TD_LANES <= p.n; col += 2 * TD_LANES)
        PRODUCT(columns)(&p, TILE_LANES > 2 ? 2 : 1, col);
    for (; col < p.n; col += TD_LANES)
        PRODUCT(columns)(&p, 1, col);
}

#undef PRODUCT
#undef PRODUCT_INLINE
#undef PRODUCT_TARGET
#undef OPERAND
#undef OPERAND_LOAD
#undef OPERAND_SET
#undef MULTIPLY_ADD
#undef TILE_ROWS
#undef TILE_LANES
#undef TILE_SUMS
