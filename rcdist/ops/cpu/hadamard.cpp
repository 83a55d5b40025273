// The hadamard topology: sign flips, Walsh-Hadamard transform, permutation, sign flips, transform; row by row in cache.

#include <omp.h>

#include "common.h"

typedef float v16 __attribute__((vector_size(64), aligned(4)));
typedef int i16 __attribute__((vector_size(64)));

static inline v16 butterfly(v16 x, i16 partner, v16 sign) { return __builtin_shuffle(x, partner) + x * sign; }

// In place, unnormalised, over runs of `size` (a power of two, at least 8) channels.
static void transform(float* x, i64 width, i64 size) {
    i64 low = size < 16 ? size : 16;
    if (low == 16) {
        i16 partner[4];
        v16 sign[4];
        for (int stage = 0; stage < 4; stage++)
            for (int lane = 0; lane < 16; lane++) {
                partner[stage][lane] = lane ^ (1 << stage);
                sign[stage][lane] = lane & (1 << stage) ? -1.0f : 1.0f;
            }
        for (i64 i = 0; i < width; i += 16) {
            v16 v = *(v16*)(x + i);
            for (int stage = 0; stage < 4; stage++) v = butterfly(v, partner[stage], sign[stage]);
            *(v16*)(x + i) = v;
        }
    } else {
        for (i64 i = 0; i < width; i += low)
            for (i64 h = 1; h < low; h *= 2)
                for (i64 j = 0; j < low; j++)
                    if (!(j & h)) {
                        float a = x[i + j], b = x[i + j + h];
                        x[i + j] = a + b;
                        x[i + j + h] = a - b;
                    }
    }
    i64 h = low;
    // Two stages at a time: half the trips through the cache.
    for (; h * 4 <= size; h *= 4)
        for (i64 i = 0; i < width; i += 4 * h)
            for (i64 j = i; j < i + h; j++) {
                float a = x[j], b = x[j + h], c = x[j + 2 * h], d = x[j + 3 * h];
                float ab = a + b, amb = a - b, cd = c + d, cmd = c - d;
                x[j] = ab + cd;
                x[j + h] = amb + cmd;
                x[j + 2 * h] = ab - cd;
                x[j + 3 * h] = amb - cmd;
            }
    for (; h < size; h *= 2)
        for (i64 i = 0; i < width; i += 2 * h)
            for (i64 j = i; j < i + h; j++) {
                float a = x[j], b = x[j + h];
                x[j] = a + b;
                x[j + h] = a - b;
            }
}

static inline float load(const std::int8_t* p) { return float(*p); }

// out[m, :outputs] = row[m] * column * (stacked square transforms of x[m, :width]). column or row may be null: 1.
template <class S, class T>
static void expand(
    const S* x, i64 x_stride, const float* row, const float* column, const std::int8_t* signs,
    const std::int32_t* permutation, T* out, i64 out_stride, i64 rows, i64 width, i64 outputs, i64 size, int add,
    int threads) {
    i64 stacked = (outputs + width - 1) / width;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> buffer(2 * width);
        float *a = buffer.data(), *b = a + width;
#pragma omp for schedule(static)
        for (i64 m = 0; m < rows; m++)
            for (i64 s = 0; s < stacked; s++) {
                const std::int8_t* flip = signs + s * 2 * width;
                const std::int32_t* from = permutation + s * width;
                for (i64 i = 0; i < width; i++) a[i] = load(x + m * x_stride + i) * float(flip[i]);
                transform(a, width, size);
                for (i64 i = 0; i < width; i++) b[i] = a[from[i]] * float(flip[width + i]);
                transform(b, width, size);
                float scale = (row ? row[m] : 1.0f) / float(size);
                i64 count = outputs - s * width < width ? outputs - s * width : width;
                T* y = out + m * out_stride + s * width;
                const float* factor = column ? column + s * width : nullptr;
                for (i64 i = 0; i < count; i++) {
                    float value = b[i] * scale;
                    if (factor) value *= factor[i];
                    if (add) value += load(y + i);
                    store(y + i, value);
                }
            }
    }
}

// The transpose: out[m, :width] (+)= row[m] * column_out * sum over stacked of the transposed transforms of
// y[m, :outputs] * column_in.
template <class S, class T>
static void contract(
    const S* y, i64 y_stride, const float* row, const float* column_in, const float* column_out,
    const std::int8_t* signs, const std::int32_t* inverse, T* out, i64 out_stride, i64 rows, i64 width, i64 outputs,
    i64 size, int add, int threads) {
    i64 stacked = (outputs + width - 1) / width;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> buffer(3 * width);
        float *a = buffer.data(), *b = a + width, *sum = b + width;
#pragma omp for schedule(static)
        for (i64 m = 0; m < rows; m++) {
            for (i64 i = 0; i < width; i++) sum[i] = 0;
            for (i64 s = 0; s < stacked; s++) {
                const std::int8_t* flip = signs + s * 2 * width;
                const std::int32_t* from = inverse + s * width;
                i64 count = outputs - s * width < width ? outputs - s * width : width;
                const S* source = y + m * y_stride + s * width;
                const float* factor = column_in ? column_in + s * width : nullptr;
                for (i64 i = 0; i < count; i++) a[i] = factor ? load(source + i) * factor[i] : load(source + i);
                for (i64 i = count; i < width; i++) a[i] = 0;
                transform(a, width, size);
                for (i64 i = 0; i < width; i++) a[i] *= float(flip[width + i]);
                for (i64 i = 0; i < width; i++) b[i] = a[from[i]];
                transform(b, width, size);
                for (i64 i = 0; i < width; i++) sum[i] += b[i] * float(flip[i]);
            }
            float scale = (row ? row[m] : 1.0f) / float(size);
            T* x = out + m * out_stride;
            for (i64 i = 0; i < width; i++) {
                float value = sum[i] * scale;
                if (column_out) value *= column_out[i];
                if (add) value += load(x + i);
                store(x + i, value);
            }
        }
    }
}

// is_codes: x is int8 and out has the dtype; else both have it. is_transposed: contract, else expand.
extern "C" void rc_hadamard(
    int dtype, int is_codes, int is_transposed, const void* x, i64 x_stride, const float* row, const float* column_in,
    const float* column_out, const std::int8_t* signs, const std::int32_t* index, void* out, i64 out_stride, i64 rows,
    i64 width, i64 outputs, i64 size, int add, int threads) {
#define CALL(S)                                                                                                       \
    DISPATCH(dtype, T, if (is_transposed) contract<S, T>(                                                             \
        (const S*)x, x_stride, row, column_in, column_out, signs, index, (T*)out, out_stride, rows, width, outputs,    \
        size, add, threads); else expand<S, T>(                                                                        \
        (const S*)x, x_stride, row, column_out, signs, index, (T*)out, out_stride, rows, width, outputs, size, add,    \
        threads))
    if (is_codes) {
        CALL(std::int8_t)
    } else if (dtype == 0) {
        CALL(float)
    } else {
        CALL(bf16)
    }
}
