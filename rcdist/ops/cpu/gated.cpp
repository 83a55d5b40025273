// Gate two vectors, RMSNorm, int8 rounding, in one pass over each row: the readout of the MLGRU and the GLU.

#include <omp.h>

#include "vector.h"

// One factor of u, for a channel or for LANES of them: SiLU(a) b, or a inverse gain SiLU(b).
template <class V>
static inline V glu(V a, V b) {
    return a * sigmoid(a) * b;
}
template <class V>
static inline V readout(V a, V b, V gain, float inverse) {
    return a * inverse * gain * (b * sigmoid(b));
}

// is_glu: u = SiLU(a) b.  Otherwise: u = (RMSNorm(a) * a_gain) SiLU(b).  Then codes and scale of RMSNorm(u) * u_gain.
template <class T, bool is_glu>
static void gated_forward(
    const T* a, i64 a_stride, const T* b, i64 b_stride, const float* a_gain, const float* u_gain, float eps,
    std::int8_t* codes, float* scale, float* a_inverse, float* u_inverse, i64 rows, i64 width, int threads) {
#pragma omp parallel num_threads(threads) if (rows > 1)
    {
        std::vector<float> buffer(width);
        float* row = buffer.data();
#pragma omp for schedule(static)
        for (i64 m = 0; m < rows; m++) {
            const T *a_row = a + m * a_stride, *b_row = b + m * b_stride;
            i64 i = 0;
            if (is_glu) {
                for (; i + LANES <= width; i += LANES) store_vector(row + i, glu(load_vector(a_row + i), load_vector(b_row + i)));
                for (; i < width; i++) row[i] = glu(load(a_row + i), load(b_row + i));
            } else {
                load_row(row, a_row, width);
                float inverse = a_inverse[m] = inverse_rms(row, width, eps);
                for (; i + LANES <= width; i += LANES)
                    store_vector(row + i, readout(load_vector(row + i), load_vector(b_row + i), load_vector(a_gain + i), inverse));
                for (; i < width; i++) row[i] = readout(row[i], load(b_row + i), a_gain[i], inverse);
            }
            u_inverse[m] = inverse_rms(row, width, eps);
            scale[m] = quantise_row(row, u_gain, u_inverse[m], codes + m * width, width);
        }
    }
}

// da_gain, du_gain: one row per thread, zeros before; summed by the caller, so that the order is always the same.
template <class T, bool is_glu>
static void gated_backward(
    const T* a, i64 a_stride, const T* b, i64 b_stride, const float* a_gain, const float* u_gain,
    const float* a_inverse, const float* u_inverse, const T* dz, T* da, i64 da_stride, T* db, i64 db_stride,
    float* da_gain, float* du_gain, i64 rows, i64 width, int threads) {
#pragma omp parallel num_threads(threads) if (rows > 1)
    {
        std::vector<float> buffer(5 * width);
        float *a_sums = da_gain + omp_get_thread_num() * width, *u_sums = du_gain + omp_get_thread_num() * width;
        float *u = buffer.data(), *du = u + width, *left = du + width, *right = left + width, *slope = right + width;
#pragma omp for schedule(static)
        for (i64 m = 0; m < rows; m++) {
            const T *a_row = a + m * a_stride, *b_row = b + m * b_stride;
            T *da_row = da + m * da_stride, *db_row = db + m * db_stride;
            load_row(du, dz + m * width, width);
            // left = the factor made of a, right = the factor made of b, slope = d SiLU.
            if (is_glu) {
                for (i64 i = 0; i < width; i++) {
                    float p = load(a_row + i), s = sigmoid(p);
                    left[i] = p * s;
                    slope[i] = s * (1.0f + p * (1.0f - s));
                    right[i] = load(b_row + i);
                    u[i] = left[i] * right[i];
                }
                norm_backward_row(du, u, u_gain, u_inverse[m], u_sums, width);
                for (i64 i = 0; i < width; i++) {
                    store(da_row + i, du[i] * right[i] * slope[i]);
                    store(db_row + i, du[i] * left[i]);
                }
            } else {
                float inverse = a_inverse[m];
                for (i64 i = 0; i < width; i++) {
                    float p = load(b_row + i), s = sigmoid(p);
                    right[i] = p * s;
                    slope[i] = s * (1.0f + p * (1.0f - s));
                    left[i] = load(a_row + i);
                    u[i] = left[i] * inverse * a_gain[i] * right[i];
                }
                norm_backward_row(du, u, u_gain, u_inverse[m], u_sums, width);
                for (i64 i = 0; i < width; i++) {
                    store(db_row + i, du[i] * left[i] * inverse * a_gain[i] * slope[i]);
                    du[i] *= right[i];
                }
                norm_backward_row(du, left, a_gain, inverse, a_sums, width);
                for (i64 i = 0; i < width; i++) store(da_row + i, du[i]);
            }
        }
    }
}

extern "C" void rc_gated_forward(
    int dtype, int is_glu, const void* a, i64 a_stride, const void* b, i64 b_stride, const float* a_gain,
    const float* u_gain, float eps, std::int8_t* codes, float* scale, float* a_inverse, float* u_inverse, i64 rows,
    i64 width, int threads) {
    DISPATCH(dtype, T, (is_glu ? gated_forward<T, true> : gated_forward<T, false>)(
        (const T*)a, a_stride, (const T*)b, b_stride, a_gain, u_gain, eps, codes, scale, a_inverse, u_inverse, rows,
        width, threads))
}

extern "C" void rc_gated_backward(
    int dtype, int is_glu, const void* a, i64 a_stride, const void* b, i64 b_stride, const float* a_gain,
    const float* u_gain, const float* a_inverse, const float* u_inverse, const void* dz, void* da, i64 da_stride,
    void* db, i64 db_stride, float* da_gain, float* du_gain, i64 rows, i64 width, int threads) {
    DISPATCH(dtype, T, (is_glu ? gated_backward<T, true> : gated_backward<T, false>)(
        (const T*)a, a_stride, (const T*)b, b_stride, a_gain, u_gain, a_inverse, u_inverse, (const T*)dz, (T*)da,
        da_stride, (T*)db, db_stride, da_gain, du_gain, rows, width, threads))
}
