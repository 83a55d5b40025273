// Exact products of int8 codes with one panel of ternary weights, in the vectors that the processor has.
//
// A panel holds PANEL outputs. Four inputs of an output lie side by side, then the same four of the next output, each
// as weight + 1, which is 0, 1 or 2: the instructions that multiply bytes take one factor unsigned. Every sum is then
// too large by the sum of the row's codes, which is taken off at the end.

#pragma once

#include <omp.h>

#include "common.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Inputs side by side.
static const i64 GROUP = 4;

// ROWS x VECTORS vectors of sums, VECTORS of weights and one of codes are what the registers hold.
#if defined(__AVX512VNNI__)
static const i64 ROWS = 8, VECTORS = 3;
typedef __m512i sums_vector;
static inline sums_vector load_sums(const void* p) { return _mm512_loadu_si512(p); }
static inline void store_sums(void* p, sums_vector v) { _mm512_storeu_si512(p, v); }
static inline sums_vector spread(std::int32_t four) { return _mm512_set1_epi32(four); }
static inline sums_vector add_products(sums_vector sums, sums_vector weights, sums_vector codes) {
    return _mm512_dpbusd_epi32(sums, weights, codes);
}
#elif defined(__AVX2__)
static const i64 ROWS = 3, VECTORS = 3;
typedef __m256i sums_vector;
static inline sums_vector load_sums(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
static inline void store_sums(void* p, sums_vector v) { _mm256_storeu_si256((__m256i*)p, v); }
static inline sums_vector spread(std::int32_t four) { return _mm256_set1_epi32(four); }
#if defined(__AVXVNNI__)
static inline sums_vector add_products(sums_vector sums, sums_vector weights, sums_vector codes) {
    return _mm256_dpbusd_avx_epi32(sums, weights, codes);
}
#else
#define SUMS_IN_16_BITS
static inline sums_vector add_products(sums_vector halves, sums_vector weights, sums_vector codes) {
    // Both in one: the compiler would put all products before all additions, and run out of registers.
    sums_vector products;
    asm("vpmaddubsw %2, %3, %1\n\tvpaddw %1, %0, %0" : "+x"(halves), "=&x"(products) : "x"(codes), "x"(weights));
    return halves;
}
static inline sums_vector widen(sums_vector sums, sums_vector halves) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(halves, _mm256_set1_epi16(1)));
}
#endif
#else
// Any other processor, in the compiler's own vectors of 16 bytes.
#define SUMS_IN_16_BITS
static const i64 ROWS = 4, VECTORS = 2;
typedef std::int32_t sums_vector __attribute__((vector_size(16)));
typedef std::int16_t halves_vector __attribute__((vector_size(16)));
static inline sums_vector load_sums(const void* p) {
    sums_vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
static inline void store_sums(void* p, sums_vector v) { std::memcpy(p, &v, sizeof v); }
static inline sums_vector spread(std::int32_t four) { return four + sums_vector{}; }
static inline sums_vector add_products(sums_vector sums, sums_vector weights, sums_vector codes) {
    halves_vector w = (halves_vector)weights, c = (halves_vector)codes;
    return (sums_vector)((halves_vector)sums + (w & 0xff) * ((c << 8) >> 8) + (w >> 8) * (c >> 8));
}
static inline sums_vector widen(sums_vector sums, sums_vector halves) {
    return sums + ((halves << 16) >> 16) + (halves >> 16);
}
#endif

#if defined(SUMS_IN_16_BITS)
// Two products of a code (at least -128) and a weight (at most 2) make one sum of 16 bits: 64 times -512 still fits.
static const i64 GROUPS_IN_16_BITS = 64;
#endif

static const i64 LANES = sizeof(sums_vector) / 4, PANEL = VECTORS * LANES;

static inline i64 groups_of(i64 inputs) { return (inputs + GROUP - 1) / GROUP; }
static inline i64 panels_of(i64 outputs) { return (outputs + PANEL - 1) / PANEL; }

static inline std::int32_t four_bytes(const void* p) {
    std::int32_t four;
    std::memcpy(&four, p, sizeof four);
    return four;
}

// into += the products of groups [first, end); inlined and unrolled, or the sums would not stay in registers.
template <int COUNT>
static inline __attribute__((always_inline)) void add_groups(
    sums_vector (&into)[COUNT][VECTORS], const std::int8_t* codes, i64 stride, const std::uint8_t* panel, i64 first,
    i64 end) {
    for (i64 group = first; group < end; group++) {
        sums_vector weights[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) weights[v] = load_sums(panel + (group * PANEL + v * LANES) * GROUP);
#pragma GCC unroll 8
        for (int r = 0; r < COUNT; r++) {
            sums_vector code = spread(four_bytes(codes + r * stride + group * GROUP));
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) into[r][v] = add_products(into[r][v], weights[v], code);
        }
    }
}

#if !defined(SUMS_IN_16_BITS)
static const i64 GROUPS_IN_16_BITS = 0;  // sums have 32 bits from the start
#endif

// sums[COUNT][PANEL] = what `add(into, first, end)` adds up over all units, at most so many at a time in 16 bits.
template <int COUNT, class Add>
static inline __attribute__((always_inline)) void sum_units(
    i64 units, [[maybe_unused]] i64 at_once, std::int32_t* sums, Add add) {
    sums_vector total[COUNT][VECTORS] = {};
#if defined(SUMS_IN_16_BITS)
    for (i64 first = 0; first < units; first += at_once) {
        sums_vector halves[COUNT][VECTORS] = {};
        add(halves, first, first + at_once < units ? first + at_once : units);
#pragma GCC unroll 8
        for (int r = 0; r < COUNT; r++)
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) total[r][v] = widen(total[r][v], halves[r][v]);
    }
#else
    add(total, 0, units);
#endif
#pragma GCC unroll 8
    for (int r = 0; r < COUNT; r++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) store_sums(sums + r * PANEL + v * LANES, total[r][v]);
}

// sums[COUNT][PANEL] = COUNT rows of codes, `stride` apart, times one panel.
template <int COUNT>
static __attribute__((noinline)) void multiply(
    const std::int8_t* codes, i64 stride, const std::uint8_t* panel, i64 groups, std::int32_t* sums) {
    sum_units<COUNT>(groups, GROUPS_IN_16_BITS, sums, [=](auto& into, i64 first, i64 end) {
        add_groups<COUNT>(into, codes, stride, panel, first, end);
    });
}

// Rows whose codes stay in the cache while panel after panel multiplies them.
static const i64 CHUNK = 10 * ROWS;

// A finish that writes out[m, n] = (sum - excess[m]) * row[m] * column[n]; out has rows of `outputs` elements.
template <class T>
static inline auto scaled_into(
    T* out, const std::int32_t* excess, const float* row, const float* column, i64 outputs) {
    return [=](i64 m, i64 first, i64 count, const std::int32_t* sums) {
        T* to = out + m * outputs + first;
        for (i64 n = 0; n < count; n++) store(to + n, float(sums[n] - excess[m]) * row[m] * column[first + n]);
    };
}

// Codes of rows that are `stride` apart, a whole number of groups; `copy` keeps them where they had to be padded.
static inline const std::int8_t* padded_codes(
    const std::int8_t* codes, i64 rows, i64 inputs, i64 stride, std::vector<std::int8_t>& copy) {
    if (stride == inputs) return codes;
    copy.assign(rows * stride, 0);  // seldom: groups are read whole
    for (i64 m = 0; m < rows; m++) std::memcpy(copy.data() + m * stride, codes + m * inputs, inputs);
    return copy.data();
}

// One of the numbers of rows that a product of a panel is compiled for.
template <int COUNT>
struct rows_at_once {
    static const int count = COUNT;
};

// multiply(rows_at_once, codes): sums[count][PANEL] = so many rows times one panel. finish(m, n, count, sums): take
// `count` exact sums of row m from output n on. Rows [start, end), as many at once as there are left.
template <class Multiply, class Finish>
static inline __attribute__((always_inline)) void for_rows(
    const std::int8_t* codes, i64 stride, i64 start, i64 end, i64 first, i64 count, std::int32_t* sums, Multiply multiply,
    Finish finish) {
    for (i64 m = start; m < end;) {
        const std::int8_t* from = codes + m * stride;
        i64 done = end - m >= ROWS ? ROWS : end - m >= 2 ? 2 : 1;
        if (done == ROWS) multiply(rows_at_once<ROWS>(), from);
        else if (done == 2) multiply(rows_at_once<2>(), from);
        else multiply(rows_at_once<1>(), from);
        for (i64 r = 0; r < done; r++) finish(m + r, first, count, sums + r * PANEL);
        m += done;
    }
}

// Rows [start, end) times one panel of a byte a weight.
template <class Finish>
static inline void multiply_rows(
    const std::int8_t* codes, i64 stride, const std::uint8_t* panel, i64 start, i64 end, i64 first, i64 count,
    std::int32_t* sums, Finish finish) {
    for_rows(
        codes, stride, start, end, first, count, sums,
        [=](auto rows, const std::int8_t* from) { multiply<rows.count>(from, stride, panel, stride / GROUP, sums); },
        finish);
}

// What every sum of a row is too large by.
static std::vector<std::int32_t> sum_codes(const std::int8_t* codes, i64 rows, i64 inputs, int threads) {
    std::vector<std::int32_t> sums(rows);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 m = 0; m < rows; m++) {
        std::int32_t sum = 0;
        for (i64 k = 0; k < inputs; k++) sum += codes[m * inputs + k];
        sums[m] = sum;
    }
    return sums;
}
