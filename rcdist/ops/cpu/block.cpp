// The block topology: a permutation around small dense products, LANES tokens at a time.

#include "tile.h"

static const i64 TILE = LANES;  // outputs that stay in registers, of which there are twice as many

// sums[COUNT] = in (picked) times inputs x COUNT of the table, whose rows have `stride` elements.
template <int COUNT>
static inline void tile_product(
    const vector* in, const std::int32_t* pick, const float* table, i64 stride, i64 inputs, vector* sums) {
    vector part[COUNT] = {};
    for (i64 i = 0; i < inputs; i++) {
        vector value = pick ? in[pick[i]] : in[i];
        for (int n = 0; n < COUNT; n++) part[n] += value * table[i * stride + n];
    }
    for (int n = 0; n < COUNT; n++) sums[n] = part[n];
}

// out = row * column_out * P_out (table P_in (x * column_in)): P_in picks inputs, P_out outputs, by index; null: none.
// table: float, blocks x inputs x outputs of one block.
template <class S, class T>
static void block_product(
    const S* x, const float* row, const float* column_in, const float* column_out, const std::int32_t* pick_in,
    const std::int32_t* pick_out, const float* table, T* out, i64 rows, i64 blocks, i64 inputs, i64 outputs, bool add,
    int threads) {
    i64 width_in = blocks * inputs, width_out = blocks * outputs;
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles(width_in + width_out);
        vector *in = tiles.first, *y = in + width_in;
#pragma omp for schedule(static)
        for (i64 m = 0; m < rows; m += LANES) {
            i64 tokens = rows - m < LANES ? rows - m : LANES;
            load_tile(x + m * width_in, width_in, tokens, column_in, width_in, in);
            for (i64 b = 0; b < blocks; b++) {
                const std::int32_t* pick = pick_in ? pick_in + b * inputs : nullptr;
                const vector* from = pick_in ? in : in + b * inputs;
                const float* part = table + b * inputs * outputs;
                i64 n = 0;
                for (; n + TILE <= outputs; n += TILE)
                    tile_product<TILE>(from, pick, part + n, outputs, inputs, y + b * outputs + n);
                for (; n < outputs; n++) tile_product<1>(from, pick, part + n, outputs, inputs, y + b * outputs + n);
            }
            store_tile<T>(
                [=](i64 n) { return y[pick_out ? pick_out[n] : n]; },
                row_scales(row ? row + m : nullptr, tokens, 1.0f), column_out, out + m * width_out, width_out, tokens,
                width_out, add);
        }
    }
}

// is_codes: x is int8 and out has the dtype; else both have it.
extern "C" void rc_block(
    int dtype, int is_codes, const void* x, const float* row, const float* column_in, const float* column_out,
    const std::int32_t* pick_in, const std::int32_t* pick_out, const float* table, void* out, i64 rows, i64 blocks,
    i64 inputs, i64 outputs, int add, int threads) {
    DISPATCH_SOURCE(is_codes, dtype, S, T, block_product<S, T>(
        (const S*)x, row, column_in, column_out, pick_in, pick_out, table, (T*)out, rows, blocks, inputs, outputs,
        add, threads))
}
