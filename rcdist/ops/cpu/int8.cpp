// Products of int8 codes with ternary weights of a byte each, summed exactly in 32 bits; see int8.h.

#include "int8.h"

// 1 to each byte, without carries: -1, 0, 1 to 0, 1, 2.
static inline std::uint32_t plus_one(std::uint32_t four) {
    return ((four & 0x7f7f7f7fu) + 0x01010101u) ^ (four & 0x80808080u);
}

// packed: panels_of(outputs) x groups_of(inputs) x PANEL x GROUP bytes; what pads it is weight 0.
static void pack(const std::int8_t* ternary, std::uint8_t* packed, i64 outputs, i64 inputs, int threads) {
    const i64 whole = inputs / GROUP, rest = inputs % GROUP, groups = groups_of(inputs);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 p = 0; p < panels_of(outputs); p++)
        for (i64 lane = 0; lane < PANEL; lane++) {
            const i64 n = p * PANEL + lane;
            const std::int8_t* from = ternary + n * inputs;
            std::uint32_t* to = (std::uint32_t*)packed + p * groups * PANEL + lane;
            if (n >= outputs) {
                for (i64 group = 0; group < groups; group++) to[group * PANEL] = plus_one(0);
                continue;
            }
            for (i64 group = 0; group < whole; group++) to[group * PANEL] = plus_one(four_bytes(from + group * GROUP));
            if (rest) {
                std::uint32_t four = 0;
                std::memcpy(&four, from + whole * GROUP, rest);
                to[whole * PANEL] = plus_one(four);
            }
        }
}

template <class Finish>
static void product(
    const std::int8_t* codes, const std::uint8_t* packed, i64 rows, i64 outputs, i64 inputs, int threads,
    Finish finish) {
    const i64 panels = panels_of(outputs), stride = groups_of(inputs) * GROUP;
    std::vector<std::int8_t> copy;
    codes = padded_codes(codes, rows, inputs, stride, copy);
#pragma omp parallel num_threads(threads)
    {
        std::int32_t sums[ROWS * PANEL];
#pragma omp for schedule(static) collapse(2)
        for (i64 chunk = 0; chunk < rows; chunk += CHUNK)
            for (i64 p = 0; p < panels; p++) {
                i64 end = chunk + CHUNK < rows ? chunk + CHUNK : rows, first = p * PANEL;
                i64 count = outputs - first < PANEL ? outputs - first : PANEL;
                multiply_rows(codes, stride, packed + p * stride * PANEL, chunk, end, first, count, sums, finish);
            }
    }
}

extern "C" i64 rc_packed_bytes(i64 outputs, i64 inputs) {
    return panels_of(outputs) * groups_of(inputs) * PANEL * GROUP;
}

extern "C" void rc_pack_ternary(
    int, const std::int8_t* ternary, std::uint8_t* packed, i64 outputs, i64 inputs, int threads) {
    pack(ternary, packed, outputs, inputs, threads);
}

// out[m, n] = the sum over k of codes[m, k] * weight[n, k].
extern "C" void rc_int8_sums(
    int, const std::int8_t* codes, const std::uint8_t* packed, std::int32_t* out, i64 rows, i64 outputs, i64 inputs,
    int threads) {
    std::vector<std::int32_t> excess = sum_codes(codes, rows, inputs, threads);
    product(codes, packed, rows, outputs, inputs, threads, [&](i64 m, i64 first, i64 count, const std::int32_t* sums) {
        for (i64 n = 0; n < count; n++) out[m * outputs + first + n] = sums[n] - excess[m];
    });
}

// out[m, n] = that sum * row[m] * column[n].
extern "C" void rc_int8_product(
    int dtype, const std::int8_t* codes, const std::uint8_t* packed, const float* row, const float* column, void* out,
    i64 rows, i64 outputs, i64 inputs, int threads) {
    std::vector<std::int32_t> excess = sum_codes(codes, rows, inputs, threads);
    DISPATCH(
        dtype, T,
        product(
            codes, packed, rows, outputs, inputs, threads,
            scaled_into((T*)out, excess.data(), row, column, outputs));)
}
