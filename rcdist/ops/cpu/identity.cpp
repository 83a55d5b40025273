// The identity topology: tokens that are repeated, or whose repetitions are summed.

#include "vector.h"

template <class T>
static inline void put(T* out, float value, bool add) {
    store(out, add ? load(out) + value : value);
}

// out = row * column_out * A (x * column_in), where A repeats `inputs` channels up to `outputs`, or sums what repeats.
template <class S, class T>
static void identity_product(
    const S* x, const float* row, const float* column_in, const float* column_out, T* out, i64 rows, i64 inputs,
    i64 outputs, bool add, int threads) {
    i64 width = inputs < outputs ? inputs : outputs;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> scratch(width);
        float* y = scratch.data();
#pragma omp for schedule(static)
        for (i64 m = 0; m < rows; m++) {
            const S* from = x + m * inputs;
            T* to = out + m * outputs;
            float by = row ? row[m] : 1.0f;
            for (i64 i = 0; i < width; i++) y[i] = load(from + i) * by * (column_in ? column_in[i] : 1.0f);
            for (i64 start = width; start < inputs; start += width) {
                i64 count = inputs - start < width ? inputs - start : width;
                for (i64 i = 0; i < count; i++)
                    y[i] += load(from + start + i) * by * (column_in ? column_in[start + i] : 1.0f);
            }
            for (i64 start = 0; start < outputs; start += width) {
                i64 count = outputs - start < width ? outputs - start : width;
                for (i64 i = 0; i < count; i++)
                    put(to + start + i, y[i] * (column_out ? column_out[start + i] : 1.0f), add);
            }
        }
    }
}

// is_codes: x is int8 and out has the dtype; else both have it.
extern "C" void rc_identity(
    int dtype, int is_codes, const void* x, const float* row, const float* column_in, const float* column_out, void* out,
    i64 rows, i64 inputs, i64 outputs, int add, int threads) {
    DISPATCH_SOURCE(is_codes, dtype, S, T, identity_product<S, T>(
        (const S*)x, row, column_in, column_out, (T*)out, rows, inputs, outputs, add, threads))
}
