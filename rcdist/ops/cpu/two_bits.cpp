// Products of int8 codes with ternary weights of two bits each, summed exactly in 32 bits; see int8.h.
//
// Four groups of a panel make one of packed bytes: group 4 q + j is bits 2 j and 2 j + 1 of each byte of quad q. Where
// few rows are multiplied, the time is that of reading the weights: they are unpacked in registers. For many rows a
// panel is unpacked once, into the cache.

#include "int8.h"

static const i64 QUAD = 4;  // groups in a packed byte
// With more, a panel is unpacked first.
static const i64 FEW_ROWS = 16;

#if defined(__AVX512VNNI__)
template <int J>
static inline sums_vector two_bits(sums_vector v) {
    return _mm512_and_si512(_mm512_srli_epi16(v, 2 * J), _mm512_set1_epi8(3));
}
#elif defined(__AVX2__)
template <int J>
static inline sums_vector two_bits(sums_vector v) {
    return _mm256_and_si256(_mm256_srli_epi16(v, 2 * J), _mm256_set1_epi8(3));
}
#else
template <int J>
static inline sums_vector two_bits(sums_vector v) {
    return (sums_vector)(((halves_vector)v >> (2 * J)) & 0x0303);
}
#endif

static inline i64 quads_of(i64 inputs) { return (groups_of(inputs) + QUAD - 1) / QUAD; }

template <int J, int COUNT>
static inline __attribute__((always_inline)) void add_group(
    sums_vector (&into)[COUNT][VECTORS], const sums_vector (&packed)[VECTORS], const std::int8_t* codes, i64 stride) {
    sums_vector weights[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) weights[v] = two_bits<J>(packed[v]);
#pragma GCC unroll 8
    for (int r = 0; r < COUNT; r++) {
        sums_vector code = spread(four_bytes(codes + r * stride + J * GROUP));
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) into[r][v] = add_products(into[r][v], weights[v], code);
    }
}

template <int COUNT>
static inline __attribute__((always_inline)) void add_quads(
    sums_vector (&into)[COUNT][VECTORS], const std::int8_t* codes, i64 stride, const std::uint8_t* panel, i64 first,
    i64 end) {
    for (i64 quad = first; quad < end; quad++) {
        sums_vector packed[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) packed[v] = load_sums(panel + (quad * PANEL + v * LANES) * GROUP);
        const std::int8_t* from = codes + quad * QUAD * GROUP;
        add_group<0, COUNT>(into, packed, from, stride);
        add_group<1, COUNT>(into, packed, from, stride);
        add_group<2, COUNT>(into, packed, from, stride);
        add_group<3, COUNT>(into, packed, from, stride);
    }
}

// sums[COUNT][PANEL] = COUNT rows of codes, `stride` apart, times one packed panel.
template <int COUNT>
static __attribute__((noinline)) void multiply_packed(
    const std::int8_t* codes, i64 stride, const std::uint8_t* panel, i64 quads, std::int32_t* sums) {
    sum_units<COUNT>(quads, GROUPS_IN_16_BITS / QUAD, sums, [=](auto& into, i64 first, i64 end) {
        add_quads<COUNT>(into, codes, stride, panel, first, end);
    });
}

// A byte per weight, as int8.h reads a panel.
static void unpack_panel(const std::uint8_t* panel, i64 quads, std::uint8_t* to) {
    for (i64 quad = 0; quad < quads; quad++)
        for (i64 v = 0; v < VECTORS; v++) {
            sums_vector packed = load_sums(panel + (quad * PANEL + v * LANES) * GROUP);
            std::uint8_t* group = to + (quad * QUAD * PANEL + v * LANES) * GROUP;
            store_sums(group, two_bits<0>(packed));
            store_sums(group + PANEL * GROUP, two_bits<1>(packed));
            store_sums(group + 2 * PANEL * GROUP, two_bits<2>(packed));
            store_sums(group + 3 * PANEL * GROUP, two_bits<3>(packed));
        }
}

template <class Finish>
static void product(
    const std::int8_t* codes, const std::uint8_t* packed, i64 rows, i64 outputs, i64 inputs, int threads,
    Finish finish) {
    const i64 panels = panels_of(outputs), quads = quads_of(inputs), stride = quads * QUAD * GROUP;
    std::vector<std::int8_t> copy;
    codes = padded_codes(codes, rows, inputs, stride, copy);
#pragma omp parallel num_threads(threads)
    {
        std::int32_t sums[ROWS * PANEL];
        std::vector<std::uint8_t> unpacked(rows > FEW_ROWS ? stride * PANEL : 0);
#pragma omp for schedule(static)
        for (i64 p = 0; p < panels; p++) {
            const std::uint8_t* panel = packed + p * quads * PANEL * GROUP;
            const i64 first = p * PANEL, count = outputs - first < PANEL ? outputs - first : PANEL;
            if (rows > FEW_ROWS) {
                unpack_panel(panel, quads, unpacked.data());
                multiply_rows(codes, stride, unpacked.data(), 0, rows, first, count, sums, finish);
                continue;
            }
            std::int32_t* into = sums;
            for_rows(
                codes, stride, 0, rows, first, count, into,
                [=](auto each, const std::int8_t* from) {
                    multiply_packed<each.count>(from, stride, panel, quads, into);
                },
                finish);
        }
    }
}

extern "C" i64 rc_two_bit_bytes(i64 outputs, i64 inputs) {
    return panels_of(outputs) * quads_of(inputs) * PANEL * GROUP;
}

// packed: panels_of(outputs) x quads_of(inputs) x PANEL x GROUP bytes; what pads it is weight 0.
extern "C" void rc_pack_two_bits(
    int, const std::int8_t* ternary, std::uint8_t* packed, i64 outputs, i64 inputs, int threads) {
    const i64 quads = quads_of(inputs), width = QUAD * GROUP;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 p = 0; p < panels_of(outputs); p++)
        for (i64 lane = 0; lane < PANEL; lane++)
            for (i64 quad = 0; quad < quads; quad++)
                for (i64 b = 0; b < GROUP; b++) {
                    unsigned byte = 0;
                    for (i64 j = 0; j < QUAD; j++) {
                        const i64 n = p * PANEL + lane, k = quad * width + j * GROUP + b;
                        int weight = n < outputs && k < inputs ? ternary[n * inputs + k] : 0;
                        byte |= unsigned(weight + 1) << (2 * j);
                    }
                    packed[((p * quads + quad) * PANEL + lane) * GROUP + b] = std::uint8_t(byte);
                }
}

extern "C" void rc_unpack_two_bits(
    int, const std::uint8_t* packed, std::int8_t* ternary, i64 outputs, i64 inputs, int threads) {
    const i64 quads = quads_of(inputs);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 n = 0; n < outputs; n++)
        for (i64 k = 0; k < inputs; k++) {
            const i64 group = k / GROUP, at = (n / PANEL * quads + group / QUAD) * PANEL + n % PANEL;
            ternary[n * inputs + k] = std::int8_t((packed[at * GROUP + k % GROUP] >> (2 * (group % QUAD)) & 3) - 1);
        }
}

// out[m, n] = (the sum over k of codes[m, k] * weight[n, k]) * row[m] * column[n].
extern "C" void rc_two_bit_product(
    int dtype, const std::int8_t* codes, const std::uint8_t* packed, const float* row, const float* column, void* out,
    i64 rows, i64 outputs, i64 inputs, int threads) {
    std::vector<std::int32_t> excess = sum_codes(codes, rows, inputs, threads);
    DISPATCH(
        dtype, T,
        product(
            codes, packed, rows, outputs, inputs, threads,
            scaled_into((T*)out, excess.data(), row, column, outputs));)
}
