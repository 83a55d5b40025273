// The ring topology: each output is a scaled input, or the sum of a few, LANES tokens at a time.

#include "tile.h"

// out = row * column_out * sums over t of (x * column_in)[index[t * width + n] + t * width]; an input past the last is 0.
template <class S, class T>
static void ring_product(
    const S* x, const float* row, const float* column_in, const float* column_out, const std::int32_t* index, T* out,
    i64 rows, i64 inputs, i64 outputs, i64 width, i64 terms, bool add, int threads) {
    i64 padded = terms * width < inputs ? inputs : terms * width;
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles(padded);
        vector* in = tiles.first;
        const vector zero = {0};
        for (i64 i = inputs; i < padded; i++) in[i] = zero;
#pragma omp for schedule(static)
        for (i64 m = 0; m < rows; m += LANES) {
            i64 tokens = rows - m < LANES ? rows - m : LANES;
            load_tile(x + m * inputs, inputs, tokens, column_in, inputs, in);
            vector by = row_scales(row ? row + m : nullptr, tokens, 1.0f);
            auto store = [=](auto get) { store_tile<T>(get, by, column_out, out + m * outputs, outputs, tokens, outputs, add); };
            if (terms == 1) {
                store([=](i64 n) { return in[index[n]]; });
            } else {
                store([=](i64 n) {
                    vector sum = in[index[n]];
                    for (i64 t = 1; t < terms; t++) sum += in[index[t * width + n] + t * width];
                    return sum;
                });
            }
        }
    }
}

// is_codes: x is int8 and out has the dtype; else both have it.
extern "C" void rc_ring(
    int dtype, int is_codes, const void* x, const float* row, const float* column_in, const float* column_out,
    const std::int32_t* index, void* out, i64 rows, i64 inputs, i64 outputs, i64 width, i64 terms, int add,
    int threads) {
#define CALL(S)                                                                                                \
    DISPATCH(dtype, T, ring_product<S, T>(                                                                     \
        (const S*)x, row, column_in, column_out, index, (T*)out, rows, inputs, outputs, width, terms, add, threads))
    if (is_codes) {
        CALL(std::int8_t)
    } else if (dtype == 0) {
        CALL(float)
    } else {
        CALL(bf16)
    }
}
