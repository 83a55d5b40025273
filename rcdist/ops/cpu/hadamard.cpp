// The hadamard topology: sign flips, Walsh-Hadamard transform, sign flips, transform; LANES tokens at a time.

#include "tile.h"

// STAGES stages of butterflies over channels that are `distance` apart: read once, written once.
template <int STAGES, class Get>
static inline void butterflies(vector* x, i64 width, i64 distance, Get get) {
    const int RADIX = 1 << STAGES;
    for (i64 i = 0; i < width; i += RADIX * distance)
        for (i64 j = i; j < i + distance; j++) {
            vector v[RADIX];
            for (int k = 0; k < RADIX; k++) v[k] = get(j + k * distance);
            for (int step = 1; step < RADIX; step *= 2)
                for (int k = 0; k < RADIX; k++)
                    if (!(k & step)) {
                        vector a = v[k], b = v[k + step];
                        v[k] = a + b;
                        v[k + step] = a - b;
                    }
            for (int k = 0; k < RADIX; k++) x[j + k * distance] = v[k];
        }
}

// x = the unnormalised transform of get(0 .. width) over runs of `size` (a power of two, at least 8) channels.
template <class Get>
static inline void transform(vector* x, i64 width, i64 size, Get get) {
    butterflies<3>(x, width, 1, get);
    auto own = [x](i64 i) { return x[i]; };
    i64 distance = 8;
    for (; distance * 8 <= size; distance *= 8) butterflies<3>(x, width, distance, own);
    if (distance * 4 <= size) butterflies<2>(x, width, distance, own);
    else if (distance * 2 <= size) butterflies<1>(x, width, distance, own);
}

// The sign flips of each of the stacked transforms: the first half may be the same for all.
struct Flips {
    std::vector<float> first, second;
    i64 width;
    bool shared;
    const std::int32_t* index;  // null: channels stay where they are between the transforms
    const float* first_of(i64 s) const { return first.data() + (shared ? 0 : s * width); }
    const float* second_of(i64 s) const { return second.data() + s * width; }
    const std::int32_t* from(i64 s) const { return index + (shared ? 0 : s * width); }
};

struct Shape {
    i64 rows, width, outputs, size, stacked;
    i64 count(i64 s) const { return outputs - s * width < width ? outputs - s * width : width; }
    i64 tokens(i64 m) const { return rows - m < LANES ? rows - m : LANES; }
};

// out[m, :outputs] (+)= row[m] * column * (stacked square transforms of x[m, :width]). column or row may be null: 1.
template <class S, class T>
static void expand(
    const S* x, i64 x_stride, const float* row, const float* column, const Flips& flips, T* out, i64 out_stride,
    Shape shape, bool add, int threads) {
    i64 width = shape.width;
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles(3 * width);
        vector *in = tiles.first, *a = in + width, *b = a + width;
#pragma omp for schedule(static)
        for (i64 m = 0; m < shape.rows; m += LANES) {
            i64 tokens = shape.tokens(m);
            vector scales = row_scales(row ? row + m : nullptr, tokens, 1.0f / float(shape.size));
            load_tile(x + m * x_stride, x_stride, tokens, nullptr, width, in);
            for (i64 s = 0; s < shape.stacked; s++) {
                const float *first = flips.first_of(s), *second = flips.second_of(s);
                if (s == 0 || !flips.shared)
                    transform(a, width, shape.size, [=](i64 i) { return in[i] * first[i]; });
                if (flips.index) {
                    const std::int32_t* from = flips.from(s);
                    transform(b, width, shape.size, [=](i64 i) { return a[from[i]] * second[i]; });
                } else {
                    transform(b, width, shape.size, [=](i64 i) { return a[i] * second[i]; });
                }
                store_tile<T>(
                    [=](i64 i) { return b[i]; }, scales, column ? column + s * width : nullptr,
                    out + m * out_stride + s * width, out_stride, tokens, shape.count(s), add);
            }
        }
    }
}

// The transpose: out[m, :width] (+)= row[m] * column_out * sum over stacked of the transposed transforms of
// y[m, :outputs] * column_in.
template <class S, class T>
static void contract(
    const S* y, i64 y_stride, const float* row, const float* column_in, const float* column_out, const Flips& flips,
    T* out, i64 out_stride, Shape shape, bool add, int threads) {
    i64 width = shape.width;
    const vector zero = {0};
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles(3 * width);
        vector *a = tiles.first, *b = a + width, *sum = b + width;
        // out = first * transform of `moved` by the inverse permutation.
        auto second_half = [&](vector* result, const vector* moved, i64 s) {
            if (flips.index) {
                const std::int32_t* from = flips.from(s);
                transform(result, width, shape.size, [=](i64 i) { return moved[from[i]]; });
            } else {
                transform(result, width, shape.size, [=](i64 i) { return moved[i]; });
            }
        };
#pragma omp for schedule(static)
        for (i64 m = 0; m < shape.rows; m += LANES) {
            i64 tokens = shape.tokens(m);
            vector scales = row_scales(row ? row + m : nullptr, tokens, 1.0f / float(shape.size));
            for (i64 s = 0; s < shape.stacked; s++) {
                const float *first = flips.first_of(s), *second = flips.second_of(s);
                i64 count = shape.count(s);
                load_tile(
                    y + m * y_stride + s * width, y_stride, tokens, column_in ? column_in + s * width : nullptr, count,
                    b);
                for (i64 i = count; i < width; i++) b[i] = zero;
                transform(a, width, shape.size, [=](i64 i) { return b[i]; });
                if (!flips.shared) {
                    for (i64 i = 0; i < width; i++) a[i] *= second[i];
                    second_half(b, a, s);
                }
                const vector* from = flips.shared ? a : b;
                const float* factor = flips.shared ? second : first;
                if (s == 0)
                    for (i64 i = 0; i < width; i++) sum[i] = from[i] * factor[i];
                else
                    for (i64 i = 0; i < width; i++) sum[i] += from[i] * factor[i];
            }
            T* target = out + m * out_stride;
            if (flips.shared) {
                const float* first = flips.first_of(0);
                second_half(b, sum, 0);
                store_tile<T>(
                    [=](i64 i) { return b[i] * first[i]; }, scales, column_out, target, out_stride, tokens, width, add);
            } else {
                store_tile<T>(
                    [=](i64 i) { return sum[i]; }, scales, column_out, target, out_stride, tokens, width, add);
            }
        }
    }
}

// Few tokens, as in generation: a vector holds channels of one token, and no lane is idle. Stages come in the order of
// `transform`, so that sums are rounded alike.

// The stages between the vectors of a block that lies in registers.
static inline void butterflies_between(vector* r) {
    for (int step = 1; step < LANES; step *= 2)
        for (int k = 0; k < LANES; k++)
            if (!(k & step)) {
                vector a = r[k], b = r[k + step];
                r[k] = a + b;
                r[k + step] = a - b;
            }
}

// x = its transform over runs of `size` channels, at least LANES x LANES, in place.
static void transform_token(float* x, i64 width, i64 size) {
    for (i64 block = 0; block < width; block += LANES * LANES) {
        vector r[LANES];
        for (i64 j = 0; j < LANES; j++) r[j] = load_vector(x + block + j * LANES);
        transpose(r);
        butterflies_between(r);
        transpose(r);
        butterflies_between(r);
        for (i64 j = 0; j < LANES; j++) store_vector(x + block + j * LANES, r[j]);
    }
    for (i64 half = LANES * LANES; half < size; half *= 2)
        for (i64 run = 0; run < width; run += 2 * half)
            for (i64 j = run; j < run + half; j += LANES) {
                vector a = load_vector(x + j), b = load_vector(x + j + half);
                store_vector(x + j, a + b);
                store_vector(x + j + half, a - b);
            }
}

// b = a, moved by the permutation if there is one.
static inline void move(const float* a, const std::int32_t* index, float* b, i64 width) {
    if (!index) std::memcpy(b, a, width * sizeof(float));
    else
        for (i64 i = 0; i < width; i++) b[i] = a[index[i]];
}

template <class T>
static inline void store_token(
    const float* b, float scale, const float* column, T* out, i64 count, bool add) {
    for (i64 i = 0; i < count; i++) {
        float value = b[i] * scale * (column ? column[i] : 1.0f);
        store(out + i, add ? value + load(out + i) : value);
    }
}

// As `expand` with a shared first half, a token at a time; no threads: it takes less time than to start them.
template <class S, class T>
static void expand_tokens(
    const S* x, i64 x_stride, const float* row, const float* column, const std::int8_t* first,
    const std::int8_t* second, i64 second_stride, const std::int32_t* index, T* out, i64 out_stride, Shape shape,
    bool add) {
    const i64 width = shape.width;
    std::vector<float> memory(2 * width);
    float *a = memory.data(), *b = a + width;
    for (i64 m = 0; m < shape.rows; m++) {
        const float scale = (row ? row[m] : 1.0f) * (1.0f / float(shape.size));
        for (i64 i = 0; i < width; i++) a[i] = load(x + m * x_stride + i) * float(first[i]);
        transform_token(a, width, shape.size);
        for (i64 s = 0; s < shape.stacked; s++) {
            const std::int8_t* flips = second + s * second_stride;
            move(a, index, b, width);
            for (i64 i = 0; i < width; i++) b[i] *= float(flips[i]);
            transform_token(b, width, shape.size);
            store_token(
                b, scale, column ? column + s * width : nullptr, out + m * out_stride + s * width, shape.count(s), add);
        }
    }
}

// As `contract` with a shared first half.
template <class S, class T>
static void contract_tokens(
    const S* y, i64 y_stride, const float* row, const float* column_in, const float* column_out,
    const std::int8_t* first, const std::int8_t* second, i64 second_stride, const std::int32_t* index, T* out,
    i64 out_stride, Shape shape, bool add) {
    const i64 width = shape.width;
    std::vector<float> memory(2 * width);
    float *a = memory.data(), *sum = a + width;
    for (i64 m = 0; m < shape.rows; m++) {
        for (i64 s = 0; s < shape.stacked; s++) {
            const S* from = y + m * y_stride + s * width;
            const float* factor = column_in ? column_in + s * width : nullptr;
            const std::int8_t* flips = second + s * second_stride;
            const i64 count = shape.count(s);
            for (i64 i = 0; i < count; i++) a[i] = load(from + i) * (factor ? factor[i] : 1.0f);
            for (i64 i = count; i < width; i++) a[i] = 0;
            transform_token(a, width, shape.size);
            for (i64 i = 0; i < width; i++) sum[i] = (s ? sum[i] : 0.0f) + a[i] * float(flips[i]);
        }
        move(sum, index, a, width);
        transform_token(a, width, shape.size);
        for (i64 i = 0; i < width; i++) a[i] *= float(first[i]);
        store_token(a, (row ? row[m] : 1.0f) * (1.0f / float(shape.size)), column_out, out + m * out_stride, width, add);
    }
}

static const i64 FEW_TOKENS = LANES / 4;

// first: stacked or, if shared, 1 x width; second: stacked x width; strides between rows of them. index: where a
// channel comes from between the transforms, or null. is_codes: x is int8 and out has the dtype; else both have it.
extern "C" void rc_hadamard(
    int dtype, int is_codes, int is_transposed, const void* x, i64 x_stride, const float* row, const float* column_in,
    const float* column_out, const std::int8_t* first, i64 first_stride, const std::int8_t* second, i64 second_stride,
    int shared, const std::int32_t* index, void* out, i64 out_stride, i64 rows, i64 width, i64 outputs, i64 size,
    int add, int threads) {
    Shape shape = {rows, width, outputs, size, (outputs + width - 1) / width};
    if (shared && rows <= FEW_TOKENS && size >= LANES * LANES) {
        DISPATCH_SOURCE(is_codes, dtype, S, T,
            if (is_transposed) contract_tokens<S, T>(
                (const S*)x, x_stride, row, column_in, column_out, first, second, second_stride, index, (T*)out,
                out_stride, shape, add);
            else expand_tokens<S, T>(
                (const S*)x, x_stride, row, column_out, first, second, second_stride, index, (T*)out, out_stride,
                shape, add))
        return;
    }
    Flips flips = {{}, {}, width, bool(shared), index};
    for (i64 s = 0; s < shape.stacked; s++) {
        if (s == 0 || !shared) flips.first.insert(flips.first.end(), first + s * first_stride, first + s * first_stride + width);
        flips.second.insert(flips.second.end(), second + s * second_stride, second + s * second_stride + width);
    }
    DISPATCH_SOURCE(is_codes, dtype, S, T,
        if (is_transposed) contract<S, T>(
            (const S*)x, x_stride, row, column_in, column_out, flips, (T*)out, out_stride, shape, add, threads);
        else expand<S, T>((const S*)x, x_stride, row, column_out, flips, (T*)out, out_stride, shape, add, threads))
}
