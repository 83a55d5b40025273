// Residual add, RMSNorm and int8 rounding in one pass over each row, and its gradient.

#include <omp.h>

#include "common.h"

// x_new = x + delta (delta may be null: x_new is x and is not written); codes and scale of RMSNorm(x_new) * gain.
template <class T>
static void add_norm_quantise(
    const T* x, const T* delta, T* x_new, const float* gain, float eps, std::int8_t* codes, float* scale,
    float* inverse, i64 rows, i64 width, int threads) {
#pragma omp parallel num_threads(threads) if (rows > 1)
    {
        std::vector<float> buffer(width);
        float* row = buffer.data();
#pragma omp for schedule(static)
        for (i64 m = 0; m < rows; m++) {
            load_row(row, x + m * width, width);
            if (delta) {
                T* out = x_new + m * width;
                for (i64 i = 0; i < width; i++) {
                    store(out + i, row[i] + load(delta + m * width + i));
                    row[i] = load(out + i);
                }
            }
            inverse[m] = inverse_rms(row, width, eps);
            scale[m] = quantise_row(row, gain, inverse[m], codes + m * width, width);
        }
    }
}

// dx = dx_new + the norm's gradient of dz; dx_new may be null. dgain: one row per thread, zeros before.
template <class T>
static void add_norm_backward(
    const T* x, const float* gain, const float* inverse, const T* dz, const T* dx_new, T* dx, float* dgain, i64 rows,
    i64 width, int threads) {
#pragma omp parallel num_threads(threads) if (rows > 1)
    {
        std::vector<float> buffer(2 * width);
        float* sums = dgain + omp_get_thread_num() * width;
        float *row = buffer.data(), *dz_row = row + width;
#pragma omp for schedule(static)
        for (i64 m = 0; m < rows; m++) {
            load_row(row, x + m * width, width);
            load_row(dz_row, dz + m * width, width);
            norm_backward_row(dz_row, row, gain, inverse[m], sums, width);
            T* out = dx + m * width;
            if (dx_new)
                for (i64 i = 0; i < width; i++) store(out + i, dz_row[i] + load(dx_new + m * width + i));
            else
                for (i64 i = 0; i < width; i++) store(out + i, dz_row[i]);
        }
    }
}

extern "C" void rc_add_norm_quantise(
    int dtype, const void* x, const void* delta, void* x_new, const float* gain, float eps, std::int8_t* codes,
    float* scale, float* inverse, i64 rows, i64 width, int threads) {
    DISPATCH(dtype, T, add_norm_quantise<T>(
        (const T*)x, (const T*)delta, (T*)x_new, gain, eps, codes, scale, inverse, rows, width, threads))
}

extern "C" void rc_add_norm_backward(
    int dtype, const void* x, const float* gain, const float* inverse, const void* dz, const void* dx_new, void* dx,
    float* dgain, i64 rows, i64 width, int threads) {
    DISPATCH(dtype, T, add_norm_backward<T>(
        (const T*)x, gain, inverse, (const T*)dz, (const T*)dx_new, (T*)dx, dgain, rows, width, threads))
}
