// Vectors of 16 floats: loads and stores that convert, and a sigmoid for which AVX-512 has instructions.

#pragma once

#include "common.h"

#ifdef __AVX512DQ__
#include <immintrin.h>
#endif

static const i64 LANES = 16;

typedef float v16 __attribute__((vector_size(64), aligned(4)));
typedef std::int32_t i32x16 __attribute__((vector_size(64)));
typedef std::uint32_t u32x16 __attribute__((vector_size(64)));
typedef std::uint16_t u16x16 __attribute__((vector_size(32)));
typedef std::int8_t i8x16 __attribute__((vector_size(16)));

static inline float load(const std::int8_t* p) { return float(*p); }

static inline v16 load16(const float* p) { return *(const v16*)p; }
static inline v16 load16(const bf16* p) {
    u16x16 narrow;
    std::memcpy(&narrow, p, 32);
    return (v16)(__builtin_convertvector(narrow, u32x16) << 16);
}
static inline v16 load16(const std::int8_t* p) {
#ifdef __AVX512DQ__  // the compiler would take the bytes apart one by one
    return (v16)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#else
    i8x16 narrow;
    std::memcpy(&narrow, p, 16);
    return __builtin_convertvector(__builtin_convertvector(narrow, i32x16), v16);
#endif
}
static inline void store16(float* p, v16 value) { *(v16*)p = value; }
static inline void store16(bf16* p, v16 value) {
    u32x16 wide = (u32x16)value;
    u16x16 narrow = __builtin_convertvector((wide + 0x7fff + ((wide >> 16) & 1)) >> 16, u16x16);
    std::memcpy(p, &narrow, 32);
}

#ifdef __AVX512DQ__
// As the scalar one: 1 / (1 + 2^t), t at most 126 (the order of the operands keeps a NaN), and the reciprocal is
// refined from 14 to 28 bits, because a division takes as long as all the rest.
static inline v16 sigmoid(v16 x) {
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
    return (v16)_mm512_mul_ps(inverse, _mm512_fnmadd_ps(whole, inverse, _mm512_set1_ps(2.0f)));
}
#else
static inline v16 sigmoid(v16 x) {
    float lanes[LANES];
    std::memcpy(lanes, &x, sizeof lanes);
    for (i64 lane = 0; lane < LANES; lane++) lanes[lane] = sigmoid(lanes[lane]);
    return load16(lanes);
}
#endif
