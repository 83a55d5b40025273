// What the kernels share: bfloat16, an exponential that vectorises, and RMSNorm with int8 rounding of one row.

#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

using i64 = std::int64_t;

struct bf16 {
    std::uint16_t bits;
};

static inline float load(const float* p) { return *p; }
static inline float load(const bf16* p) {
    std::uint32_t wide = std::uint32_t(p->bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}
static inline void store(float* p, float value) { *p = value; }
static inline void store(bf16* p, float value) {
    std::uint32_t wide;
    std::memcpy(&wide, &value, 4);
    p->bits = std::uint16_t((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);  // to nearest, ties to even
}

static inline std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
static inline float from_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// 2^r for |r| <= 1/2: minimax polynomial of degree 5, relative error 1e-7.
static const float EXP_0 = 1.0000000717f, EXP_1 = 6.9314696704e-1f, EXP_2 = 2.4022119717e-1f;
static const float EXP_3 = 5.5507133062e-2f, EXP_4 = 9.6755417358e-3f, EXP_5 = 1.3276462765e-3f;

// exp(x), relative error 1e-7 + |x| 6e-8; NaN stays NaN, |x| beyond 87 counts as 87.
static inline float fast_exp(float x) {
    x = x > 87.0f ? 87.0f : x;
    x = x < -87.0f ? -87.0f : x;
    float t = x * 1.44269504088896341f, n = __builtin_rintf(t), r = t - n;
    float p = ((((EXP_5 * r + EXP_4) * r + EXP_3) * r + EXP_2) * r + EXP_1) * r + EXP_0;
    return from_bits(bits_of(p) + (std::uint32_t(int(n)) << 23));
}
static inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

// 1 / rms of a row that is in the cache.
static inline float inverse_rms(const float* row, i64 width, float eps) {
    // Side by side, or each addition would wait for the one before.
    float sums[64] = {0}, sum = 0;
    i64 i = 0;
    for (; i + 64 <= width; i += 64)
        for (i64 j = 0; j < 64; j++) sums[j] += row[i + j] * row[i + j];
    for (; i < width; i++) sum += row[i] * row[i];
    for (i64 j = 0; j < 64; j++) sum += sums[j];
    return 1.0f / __builtin_sqrtf(sum / float(width) + eps);
}

// Round z = row * inverse * gain to int8 by its largest absolute value; row is overwritten with z. Returns the scale.
static inline float quantise_row(float* row, const float* gain, float inverse, std::int8_t* codes, i64 width) {
    std::uint32_t largest = 0;  // of non-negative floats the bits are ordered as the values, and NaN is above all
    for (i64 i = 0; i < width; i++) {
        float z = row[i] * inverse * gain[i];
        row[i] = z;
        std::uint32_t magnitude = bits_of(z) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    float most = from_bits(largest);
    most = most < 1e-5f ? 1e-5f : most;
    float factor = 127.0f / most;
    for (i64 i = 0; i < width; i++) codes[i] = std::int8_t(int(__builtin_rintf(row[i] * factor)));
    return most / 127.0f;
}

// Gradient of z = x * inverse * gain, x with 1 / rms `inverse`: dz -> dx in place of dz; dgain accumulates.
static inline void norm_backward_row(
    float* dz, const float* x, const float* gain, float inverse, float* dgain, i64 width) {
    float along = 0;
    for (i64 i = 0; i < width; i++) {
        float unit = x[i] * inverse;
        dgain[i] += dz[i] * unit;
        dz[i] *= gain[i];
        along += dz[i] * unit;
    }
    along /= float(width);
    for (i64 i = 0; i < width; i++) dz[i] = (dz[i] - x[i] * inverse * along) * inverse;
}

template <class T>
static inline void load_row(float* row, const T* source, i64 width) {
    for (i64 i = 0; i < width; i++) row[i] = load(source + i);
}

// Call a template for the dtype 0 float32, 1 bfloat16.
#define DISPATCH(dtype, T, ...)  \
    if ((dtype) == 0) {          \
        using T = float;         \
        __VA_ARGS__;             \
    } else {                     \
        using T = bf16;          \
        __VA_ARGS__;             \
    }
