// The product of a matrix with a few vectors. What the time goes into is reading the matrix, so each row of it
// meets up to ROWS vectors at once, and the other vectors while it is still in a cache.
//
// A tile is OUTS rows of the matrix by the vectors. Each of its sums is taken lane by lane, run by run, and then
// over the lanes, in an order that depends neither on the tile nor on how many vectors there are: what comes
// out for a vector is the same to the bit, alone or among others.
#pragma once
#include "tasks.h"

namespace {

// Sums of a tile: about as many as there are registers.
#if defined(NONET_ISA_AVX512)
enum { ROWS = 8, OUTS = 4 };
#else
enum { ROWS = 6, OUTS = 2 };
#endif
enum { PANEL = 16 };  // rows of the matrix that stay in a cache for the next vectors
enum { LINE = 64 };   // bytes that come from memory together
enum { RUN = 64 };    // vectors of a row that are summed before they join its total, which rounds less

// Dots COUNT vectors, which lie `apart` floats from each other, with SOME rows of a matrix: to[r * SOME + o].
// Fills `to` up to a multiple of LANES.
template <class S, int COUNT, int SOME>
APART void dots(float* to, const S* matrix, int64_t stride, const float* x, int64_t apart, int64_t size) {
    V totals[COUNT * SOME] = {};
    for (int64_t k = 0; k < size;) {
        const int64_t end = least(k + RUN * LANES, size);
        V sums[COUNT * SOME] = {};
        for (; k + LANES <= end; k += LANES) {
            V w[SOME];
#pragma GCC unroll 4
            for (int o = 0; o < SOME; ++o) {
                const S* row = matrix + o * stride + k;
                w[o] = load(row);
                // The tile behind the next one: prefetchers of processors lose their way among several rows.
                if (SOME > 1 && k * sizeof(S) % LINE == 0) __builtin_prefetch(row + 2 * SOME * stride, 0, 2);
            }
#pragma GCC unroll 8
            for (int r = 0; r < COUNT; ++r) {
                V v = load(x + r * apart + k);
                hide(v);  // compilers would load it again for each row of the matrix
#pragma GCC unroll 4
                for (int o = 0; o < SOME; ++o) sums[r * SOME + o] += w[o] * v;
            }
        }
        if (k < end) {
            V w[SOME];
#pragma GCC unroll 4
            for (int o = 0; o < SOME; ++o) w[o] = load_some(matrix + o * stride + k, end - k);
#pragma GCC unroll 8
            for (int r = 0; r < COUNT; ++r) {
                V v = load_some(x + r * apart + k, end - k);
#pragma GCC unroll 4
                for (int o = 0; o < SOME; ++o) sums[r * SOME + o] += w[o] * v;
            }
            k = end;
        }
#pragma GCC unroll 32
        for (int i = 0; i < COUNT * SOME; ++i) totals[i] += sums[i];
    }
#pragma GCC unroll 8
    for (int i = 0; i < COUNT * SOME; i += LANES) store(to + i, sum_each(totals + i, COUNT * SOME - i));
}

// The same for a number of vectors that is known when it runs, COUNT at most.
template <class S, int SOME, int COUNT = ROWS>
INLINE void dots_of(int64_t count, float* to, const S* matrix, int64_t stride, const float* x, int64_t apart,
                    int64_t size) {
    if (count == COUNT)
        dots<S, COUNT, SOME>(to, matrix, stride, x, apart, size);
    else if constexpr (COUNT > 1)
        dots_of<S, SOME, COUNT - 1>(count, to, matrix, stride, x, apart, size);
}

// out[row][o] = bias[o] + matrix[o] . x[row] for o in [begin, end)
template <class S, class P, class Y>
void multiply(Y* out, int64_t out_apart, const View& matrix, const View& bias, const float* x, int64_t apart,
              int64_t size, int64_t rows, int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; panel += PANEL)
        for (int64_t r = 0; r < rows; r += ROWS) {
            const int64_t count = least(ROWS, rows - r), last = least(panel + PANEL, end);
            for (int64_t o = panel, some; o < last; o += some) {
                float found[ROWS * OUTS + LANES];
                const S* row = place<S>(matrix, o, 0, 0);
                // With one or two vectors a matrix of floats comes faster row after row.
                some = last - o < OUTS || (sizeof(S) == 4 && count <= 2) ? 1 : OUTS;
                if (some == OUTS)
                    dots_of<S, OUTS>(count, found, row, matrix.stride[0], x + r * apart, apart, size);
                else
                    dots_of<S, 1>(count, found, row, matrix.stride[0], x + r * apart, apart, size);
                for (int64_t j = 0; j < some; ++j) {
                    const float b = bias.data ? number(*place<P>(bias, o + j, 0, 0)) : 0.0f;
                    for (int64_t i = 0; i < count; ++i)
                        assign(out[(r + i) * out_apart + o + j], found[i * some + j] + b);
                }
            }
        }
}

}  // namespace
