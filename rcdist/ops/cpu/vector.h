// Vectors of floats, as long as the processor's: loads and stores that convert, and a sigmoid for each kind.

#pragma once

#include "common.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Channels of one vector: what fits a register, or the compiler would take shuffles apart element by element.
#if defined(__AVX512DQ__)
#define RC_LANES 16
#else
#define RC_LANES 8
#endif
static const i64 LANES = RC_LANES;

typedef float vector __attribute__((vector_size(RC_LANES * 4), aligned(4)));
typedef std::int32_t ints __attribute__((vector_size(RC_LANES * 4)));
typedef std::uint32_t words __attribute__((vector_size(RC_LANES * 4)));
typedef std::uint16_t halves __attribute__((vector_size(RC_LANES * 2)));
typedef std::int8_t bytes __attribute__((vector_size(RC_LANES)));

static inline float load(const std::int8_t* p) { return float(*p); }

// Call a template for the type S that is read, int8 codes or the dtype, and the dtype T that is written.
#define DISPATCH_SOURCE(is_codes, dtype, S, T, ...)       \
    if (is_codes) {                                       \
        using S = std::int8_t;                            \
        DISPATCH(dtype, T, __VA_ARGS__)                   \
    } else {                                              \
        DISPATCH(dtype, T, using S = T; __VA_ARGS__)      \
    }

static inline vector load_vector(const float* p) { return *(const vector*)p; }
static inline vector load_vector(const bf16* p) {
    halves narrow;
    std::memcpy(&narrow, p, sizeof narrow);
    return (vector)(__builtin_convertvector(narrow, words) << 16);
}
static inline vector load_vector(const std::int8_t* p) {
    // The compiler would take the bytes apart one by one.
#if defined(__AVX512DQ__)
    return (vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
    return (vector)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    bytes narrow;
    std::memcpy(&narrow, p, sizeof narrow);
    return __builtin_convertvector(__builtin_convertvector(narrow, ints), vector);
#endif
}
static inline void store_vector(float* p, vector value) { *(vector*)p = value; }
static inline void store_vector(bf16* p, vector value) {
    words wide = (words)value;
    halves narrow = __builtin_convertvector((wide + 0x7fff + ((wide >> 16) & 1)) >> 16, halves);
    std::memcpy(p, &narrow, sizeof narrow);
}

#if defined(__AVX512DQ__)
// As the scalar one: 1 / (1 + 2^t), t at most 126 (the order of the operands keeps a NaN), and the reciprocal is
// refined from 14 to 28 bits, because a division takes as long as all the rest.
static inline vector sigmoid(vector x) {
    __m512 t = _mm512_mul_ps((__m512)x, _mm512_set1_ps(-1.44269504088896341f));
    t = _mm512_min_ps(_mm512_set1_ps(126.0f), t);
    __m512 n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm512_sub_ps(t, n);
    __m512 p = _mm512_set1_ps(EXP_5);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_0));
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 whole = _mm512_add_ps(_mm512_scalef_ps(p, n), one), inverse = _mm512_rcp14_ps(whole);
    return (vector)_mm512_mul_ps(inverse, _mm512_fnmadd_ps(whole, inverse, _mm512_set1_ps(2.0f)));
}
#elif defined(__AVX2__) && defined(__FMA__)
// The same with what there is: t is bounded on both sides, and a division, whose result is the same everywhere.
static inline vector sigmoid(vector x) {
    __m256 t = _mm256_mul_ps((__m256)x, _mm256_set1_ps(-1.44269504088896341f));
    t = _mm256_max_ps(_mm256_set1_ps(-126.0f), _mm256_min_ps(_mm256_set1_ps(126.0f), t));
    __m256 n = _mm256_round_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm256_sub_ps(t, n);
    __m256 p = _mm256_set1_ps(EXP_5);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_2));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_1));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_0));
    __m256i power = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    p = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), power));
    const __m256 one = _mm256_set1_ps(1.0f);
    return (vector)_mm256_div_ps(one, _mm256_add_ps(p, one));
}
#else
static inline vector sigmoid(vector x) {
    float lanes[LANES];
    std::memcpy(lanes, &x, sizeof lanes);
    for (i64 lane = 0; lane < LANES; lane++) lanes[lane] = sigmoid(lanes[lane]);
    return load_vector(lanes);
}
#endif
