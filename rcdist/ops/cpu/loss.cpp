// Cross-entropy of a few rows of logits that exist as integer sums only; the gradient takes their place.

#include <omp.h>

#include "common.h"

// logits = sums * row * beta; nats[m] = weight[m] * (log sum exp - logit of the target); gradient may be null.
template <class T>
static void cross_entropy(
    const std::int32_t* sums, const float* row, float beta, const i64* targets, const float* weights, double* nats,
    T* gradient, i64 rows, i64 width, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> buffer(width);
        float* logits = buffer.data();
#pragma omp for schedule(static)
        for (i64 m = 0; m < rows; m++) {
            const std::int32_t* source = sums + m * width;
            float scale = row[m] * beta;
            std::int32_t most = source[0];
            for (i64 n = 0; n < width; n++) most = source[n] > most ? source[n] : most;
            float largest = float(most) * scale, total = 0;
            for (i64 n = 0; n < width; n++) {
                logits[n] = fast_exp(float(source[n]) * scale - largest);
                total += logits[n];
            }
            i64 target = targets[m];
            nats[m] = double(weights[m])
                * (__builtin_log(double(total)) + double(largest) - double(source[target]) * double(scale));
            if (gradient) {
                float factor = weights[m] / total;
                T* out = gradient + m * width;
                float at_target = logits[target] * factor - weights[m];
                for (i64 n = 0; n < width; n++) store(out + n, logits[n] * factor);
                store(out + target, at_target);
            }
        }
    }
}

extern "C" void rc_cross_entropy(
    int dtype, const std::int32_t* sums, const float* row, float beta, const i64* targets, const float* weights,
    double* nats, void* gradient, i64 rows, i64 width, int threads) {
    DISPATCH(dtype, T, cross_entropy<T>(
        sums, row, beta, targets, weights, nats, (T*)gradient, rows, width, threads))
}
