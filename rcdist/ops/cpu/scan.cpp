// The MLGRU recurrence with sigmoid, lower bound, SiLU and document reset inside, forward and backward.

#include "vector.h"

// The next state of a channel, or of LANES. The share that is new is computed itself, not as 1 - f: it may be tiny.
template <class V>
static inline V advance(V share, V candidate, V state) {
    return state + share * (candidate * sigmoid(candidate) - state);
}

// Channels of one task, which is a stretch of channels of one sequence: as long as every thread has work, because
// memory is read in rows.
static i64 stretch(i64 batch, i64 width, int threads) {
    i64 sequences = batch > 0 ? batch : 1, parts = (threads + sequences - 1) / sequences, count = (width + parts - 1) / parts;
    return (count + 63) / 64 * 64;
}

// pf, pc: pre-activations, rows of `stride` elements; pf null: f = constant. h: rows of `width` elements.
template <class T>
static void scan_forward(
    const T* pf, const T* pc, i64 stride, float constant, const float* gamma, const float* h0,
    const std::uint8_t* starts, T* h, float* last, i64 batch, i64 time, i64 width, int threads) {
    i64 channels = stretch(batch, width, threads), tasks = (width + channels - 1) / channels;
    const float fixed = 1.0f - constant;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (i64 b = 0; b < batch; b++)
        for (i64 task = 0; task < tasks; task++) {
            i64 first = task * channels, count = width - first < channels ? width - first : channels;
            std::vector<float> states(count);
            float* state = states.data();
            for (i64 i = 0; i < count; i++) state[i] = h0 ? h0[b * width + first + i] : 0.0f;
            for (i64 t = 0; t < time; t++) {
                i64 m = b * time + t;
                if (starts && starts[m])
                    for (i64 i = 0; i < count; i++) state[i] = 0.0f;
                const T* c_row = pc + m * stride + first;
                T* h_row = h + m * width + first;
                const T* f_row = pf ? pf + m * stride + first : nullptr;
                i64 i = 0;
                for (; i + LANES <= count; i += LANES) {
                    vector share = fixed + vector{0};
                    if (pf) share = (1.0f - load_vector(gamma + first + i)) * sigmoid(-load_vector(f_row + i));
                    vector now = advance(share, load_vector(c_row + i), load_vector(state + i));
                    store_vector(state + i, now);
                    store_vector(h_row + i, now);
                }
                for (; i < count; i++) {
                    float share = pf ? (1.0f - gamma[first + i]) * sigmoid(-load(f_row + i)) : fixed;
                    state[i] = advance(share, load(c_row + i), state[i]);
                    store(h_row + i, state[i]);
                }
            }
            for (i64 i = 0; i < count; i++) last[b * width + first + i] = state[i];
        }
}

// dpf, dpc: rows of `dstride` elements. dgamma: one row per sequence, written. dh0 may be null.
template <class T>
static void scan_backward(
    const T* pf, const T* pc, i64 stride, float constant, const float* gamma, const float* h0,
    const std::uint8_t* starts, const T* h, const T* dh, const float* dlast, T* dpf, T* dpc, i64 dstride,
    float* dgamma, float* dh0, i64 batch, i64 time, i64 width, int threads) {
    i64 channels = stretch(batch, width, threads), tasks = (width + channels - 1) / channels;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (i64 b = 0; b < batch; b++)
        for (i64 task = 0; task < tasks; task++) {
            i64 first = task * channels, count = width - first < channels ? width - first : channels;
            std::vector<float> buffer(3 * count);
            float *carry = buffer.data(), *bound = carry + count, *before = bound + count;
            for (i64 i = 0; i < count; i++) carry[i] = dlast ? dlast[b * width + first + i] : 0.0f;
            for (i64 t = time - 1; t >= 0; t--) {
                i64 m = b * time + t;
                bool is_start = starts && starts[m];
                if (is_start || (t == 0 && !h0))
                    for (i64 i = 0; i < count; i++) before[i] = 0.0f;
                else if (t == 0)
                    for (i64 i = 0; i < count; i++) before[i] = h0[b * width + first + i];
                else
                    load_row(before, h + (m - 1) * width + first, count);
                const T *c_row = pc + m * stride + first, *dh_row = dh ? dh + m * width + first : nullptr;
                T* dc_row = dpc + m * dstride + first;
                if (dh_row)
                    for (i64 i = 0; i < count; i++) carry[i] += load(dh_row + i);
                float keep = is_start ? 0.0f : 1.0f;
                if (pf) {
                    const T* f_row = pf + m * stride + first;
                    T* df_row = dpf + m * dstride + first;
                    for (i64 i = 0; i < count; i++) {
                        float low = gamma[first + i], s = sigmoid(load(f_row + i)), f = low + (1.0f - low) * s;
                        float p = load(c_row + i), a = sigmoid(p), c = p * a;
                        float df = (before[i] - c) * carry[i];
                        bound[i] += df * (1.0f - s);
                        store(df_row + i, df * (1.0f - low) * s * (1.0f - s));
                        store(dc_row + i, carry[i] * (1.0f - f) * a * (1.0f + p * (1.0f - a)));
                        carry[i] *= f * keep;
                    }
                } else {
                    for (i64 i = 0; i < count; i++) {
                        float p = load(c_row + i), a = sigmoid(p);
                        store(dc_row + i, carry[i] * (1.0f - constant) * a * (1.0f + p * (1.0f - a)));
                        carry[i] *= constant * keep;
                    }
                }
            }
            for (i64 i = 0; i < count; i++) {
                dgamma[b * width + first + i] = bound[i];
                if (dh0) dh0[b * width + first + i] = carry[i];
            }
        }
}

extern "C" void rc_scan_forward(
    int dtype, const void* pf, const void* pc, i64 stride, float constant, const float* gamma, const float* h0,
    const std::uint8_t* starts, void* h, float* last, i64 batch, i64 time, i64 width, int threads) {
    DISPATCH(dtype, T, scan_forward<T>(
        (const T*)pf, (const T*)pc, stride, constant, gamma, h0, starts, (T*)h, last, batch, time, width, threads))
}

extern "C" void rc_scan_backward(
    int dtype, const void* pf, const void* pc, i64 stride, float constant, const float* gamma, const float* h0,
    const std::uint8_t* starts, const void* h, const void* dh, const float* dlast, void* dpf, void* dpc, i64 dstride,
    float* dgamma, float* dh0, i64 batch, i64 time, i64 width, int threads) {
    DISPATCH(dtype, T, scan_backward<T>(
        (const T*)pf, (const T*)pc, stride, constant, gamma, h0, starts, (const T*)h, (const T*)dh, dlast, (T*)dpf,
        (T*)dpc, dstride, dgamma, dh0, batch, time, width, threads))
}
