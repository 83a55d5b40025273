// The block topology: a permutation around small dense products, row by row in cache.

#include "common.h"

typedef float v16 __attribute__((vector_size(64), aligned(4)));

static const i64 TILE = 64;  // outputs that stay in registers: four vectors

static inline float load(const std::int8_t* p) { return float(*p); }

// sums[TILE] = in (picked) times inputs x TILE of the table, whose rows have `stride` elements.
static inline void full_tile(
    const float* in, const std::int32_t* pick, const float* table, i64 stride, i64 inputs, float* sums) {
    v16 a = {0}, b = {0}, c = {0}, d = {0};
    for (i64 i = 0; i < inputs; i++) {
        float value = pick ? in[pick[i]] : in[i];
        const v16* weights = (const v16*)(table + i * stride);
        a += value * weights[0];
        b += value * weights[1];
        c += value * weights[2];
        d += value * weights[3];
    }
    v16* out = (v16*)sums;
    out[0] = a, out[1] = b, out[2] = c, out[3] = d;
}

// out = row * column_out * P_out (table P_in (x * column_in)): P_in picks inputs, P_out outputs, by index; null: none.
// table: float, blocks x inputs x outputs of one block.
template <class S, class T>
static void block_product(
    const S* x, const float* row, const float* column_in, const float* column_out, const std::int32_t* pick_in,
    const std::int32_t* pick_out, const float* table, T* out, i64 rows, i64 blocks, i64 inputs, i64 outputs, int add,
    int threads) {
    i64 width_in = blocks * inputs, width_out = blocks * outputs;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> buffer(width_in + width_out);
        float *in = buffer.data(), *y = in + width_in;
#pragma omp for schedule(static)
        for (i64 m = 0; m < rows; m++) {
            const S* source = x + m * width_in;
            for (i64 i = 0; i < width_in; i++) in[i] = column_in ? load(source + i) * column_in[i] : load(source + i);
            for (i64 b = 0; b < blocks; b++)
                for (i64 first = 0; first < outputs; first += TILE) {
                    i64 count = outputs - first < TILE ? outputs - first : TILE;
                    const float* part = table + b * inputs * outputs + first;
                    const std::int32_t* pick = pick_in ? pick_in + b * inputs : nullptr;
                    const float* from = pick_in ? in : in + b * inputs;
                    float* sums = y + b * outputs + first;
                    if (count == TILE) {
                        full_tile(from, pick, part, outputs, inputs, sums);
                        continue;
                    }
                    for (i64 n = 0; n < count; n++) sums[n] = 0;
                    for (i64 i = 0; i < inputs; i++) {
                        float value = pick ? from[pick[i]] : from[i];
                        for (i64 n = 0; n < count; n++) sums[n] += value * part[i * outputs + n];
                    }
                }
            float scale = row ? row[m] : 1.0f;
            T* target = out + m * width_out;
            for (i64 n = 0; n < width_out; n++) {
                float value = y[pick_out ? pick_out[n] : n] * scale;
                if (column_out) value *= column_out[n];
                if (add) value += load(target + n);
                store(target + n, value);
            }
        }
    }
}

// is_codes: x is int8 and out has the dtype; else both have it.
extern "C" void rc_block(
    int dtype, int is_codes, const void* x, const float* row, const float* column_in, const float* column_out,
    const std::int32_t* pick_in, const std::int32_t* pick_out, const float* table, void* out, i64 rows, i64 blocks,
    i64 inputs, i64 outputs, int add, int threads) {
#define CALL(S)                                                                                                  \
    DISPATCH(dtype, T, block_product<S, T>(                                                                      \
        (const S*)x, row, column_in, column_out, pick_in, pick_out, table, (T*)out, rows, blocks, inputs, outputs, \
        add, threads))
    if (is_codes) {
        CALL(std::int8_t)
    } else if (dtype == 0) {
        CALL(float)
    } else {
        CALL(bf16)
    }
}
