// Around the products: ternary weights, scaled results, float tokens, and the gradient of per-channel gains.

#include <omp.h>

#include "common.h"

// Sum of |w| in double, by thread and then over threads in order.
template <class T>
static double sum_magnitudes(const T* weight, i64 size, int threads) {
    std::vector<double> sums(threads, 0.0);
#pragma omp parallel num_threads(threads)
    {
        double total = 0;
#pragma omp for schedule(static)
        for (i64 block = 0; block < (size + 4095) / 4096; block++) {
            i64 end = (block + 1) * 4096 < size ? (block + 1) * 4096 : size;
            float sum = 0;
            for (i64 i = block * 4096; i < end; i++) sum += __builtin_fabsf(load(weight + i));
            total += sum;
        }
        sums[omp_get_thread_num()] = total;
    }
    double total = 0;
    for (double sum : sums) total += sum;
    return total;
}

// codes = clip(round(w / beta), -1, 1); values = codes * beta in the dtype T, for the gradient of the tokens.
template <class T>
static void quantise_weight(const T* weight, std::int8_t* codes, T* values, float* beta, i64 size, int threads) {
    float mean = float(sum_magnitudes(weight, size, threads) / double(size));
    *beta = mean < 1e-5f ? 1e-5f : mean;
    float scale = *beta;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 block = 0; block < (size + 4095) / 4096; block++) {
        i64 end = (block + 1) * 4096 < size ? (block + 1) * 4096 : size;
        for (i64 i = block * 4096; i < end; i++) {
            float code = __builtin_rintf(load(weight + i) / scale);
            code = code > 1.0f ? 1.0f : code;
            code = code < -1.0f ? -1.0f : code;
            codes[i] = std::int8_t(int(code));
            if (values) store(values + i, code * scale);
        }
    }
}

// out[m, n] = sums[m, n] * row[m] * column[n]; out has rows of `stride` elements.
template <class T>
static void scale_sums(
    const std::int32_t* sums, const float* row, const float* column, T* out, i64 stride, i64 rows, i64 width,
    int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 m = 0; m < rows; m++)
        for (i64 n = 0; n < width; n++) store(out + m * stride + n, float(sums[m * width + n]) * row[m] * column[n]);
}

// out[r, k] = codes[r, k] * row[r]: tokens by their scales, or a frozen matrix by scale * gain.
template <class T>
static void scale_rows(const std::int8_t* codes, const float* row, T* out, i64 rows, i64 width, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 m = 0; m < rows; m++)
        for (i64 k = 0; k < width; k++) store(out + m * width + k, float(codes[m * width + k]) * row[m]);
}

// sums[thread, n] += a[m, n] * b[m, n] over rows.
template <class T>
static void dot_columns(
    const T* a, i64 a_stride, const T* b, i64 b_stride, float* sums, i64 rows, i64 width, int threads) {
#pragma omp parallel num_threads(threads)
    {
        float* own = sums + omp_get_thread_num() * width;
#pragma omp for schedule(static)
        for (i64 m = 0; m < rows; m++)
            for (i64 n = 0; n < width; n++) own[n] += load(a + m * a_stride + n) * load(b + m * b_stride + n);
    }
}

extern "C" void rc_quantise_weight(
    int dtype, const void* weight, std::int8_t* codes, void* values, float* beta, i64 size, int threads) {
    DISPATCH(dtype, T, quantise_weight<T>((const T*)weight, codes, (T*)values, beta, size, threads))
}

extern "C" void rc_scale_sums(
    int dtype, const std::int32_t* sums, const float* row, const float* column, void* out, i64 stride, i64 rows,
    i64 width, int threads) {
    DISPATCH(dtype, T, scale_sums<T>(sums, row, column, (T*)out, stride, rows, width, threads))
}

extern "C" void rc_scale_rows(
    int dtype, const std::int8_t* codes, const float* row, void* out, i64 rows, i64 width, int threads) {
    DISPATCH(dtype, T, scale_rows<T>(codes, row, (T*)out, rows, width, threads))
}

extern "C" void rc_dot_columns(
    int dtype, const void* a, i64 a_stride, const void* b, i64 b_stride, float* sums, i64 rows, i64 width,
    int threads) {
    DISPATCH(dtype, T, dot_columns<T>((const T*)a, a_stride, (const T*)b, b_stride, sums, rows, width, threads))
}
