// Tiles: one vector per channel, holding that channel of LANES tokens: a permutation is only an index.

#pragma once

#include "vector.h"

// Scratch vectors of one thread, on whole cache lines.
struct Tiles {
    explicit Tiles(i64 vectors) : memory(vectors * LANES + 16) {
        first = (vector*)((std::uintptr_t(memory.data()) + 63) / 64 * 64);
    }
    std::vector<float> memory;
    vector* first;
};

template <int STEP>
static inline void exchange(vector* r) {
    ints low, high;
    for (int lane = 0; lane < LANES; lane++) {
        low[lane] = lane & STEP ? LANES + lane - STEP : lane;
        high[lane] = lane & STEP ? LANES + lane : lane + STEP;
    }
    for (int i = 0; i < LANES; i++)
        if (!(i & STEP)) {
            vector a = r[i], b = r[i + STEP];
            r[i] = __builtin_shuffle(a, b, low);
            r[i + STEP] = __builtin_shuffle(a, b, high);
        }
}
static inline void transpose(vector* r) {
    exchange<1>(r);
    exchange<2>(r);
    exchange<4>(r);
    if constexpr (LANES == 16) exchange<8>(r);
}

// tile[i] = channel i of `tokens` rows of x, times factor[i] if there is one; lanes without a token are 0.
template <class S>
static inline void load_tile(
    const S* x, i64 stride, i64 tokens, const float* factor, i64 width, vector* tile) {
    const vector zero = {0};
    i64 i = 0;
    for (; i + LANES <= width; i += LANES) {
        vector r[LANES];
        for (i64 m = 0; m < LANES; m++) r[m] = m < tokens ? load_vector(x + m * stride + i) : zero;
        transpose(r);
        for (i64 j = 0; j < LANES; j++) tile[i + j] = factor ? r[j] * factor[i + j] : r[j];
    }
    for (; i < width; i++) {
        vector r = zero;
        for (i64 m = 0; m < tokens; m++) r[m] = load(x + m * stride + i) * (factor ? factor[i] : 1.0f);
        tile[i] = r;
    }
}

// out[m, i] (+)= get(i)[m] * rows[m] * factor[i]; factor may be null: 1.
template <class T, class Get>
static inline void store_tile(
    Get get, vector rows, const float* factor, T* out, i64 stride, i64 tokens, i64 width, bool add) {
    i64 i = 0;
    for (; i + LANES <= width; i += LANES) {
        vector r[LANES];
        for (i64 j = 0; j < LANES; j++) r[j] = factor ? get(i + j) * rows * factor[i + j] : get(i + j) * rows;
        transpose(r);
        for (i64 m = 0; m < tokens; m++) {
            T* p = out + m * stride + i;
            store_vector(p, add ? r[m] + load_vector(p) : r[m]);
        }
    }
    for (; i < width; i++) {
        vector r = get(i) * rows * (factor ? factor[i] : 1.0f);
        for (i64 m = 0; m < tokens; m++) {
            T* p = out + m * stride + i;
            store(p, add ? r[m] + load(p) : r[m]);
        }
    }
}

// The scales of LANES rows times one number; null: that number.
static inline vector row_scales(const float* row, i64 tokens, float factor) {
    vector scales = {0};
    for (i64 m = 0; m < tokens; m++) scales[m] = (row ? row[m] : 1.0f) * factor;
    return scales;
}
