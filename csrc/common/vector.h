// A vector of floats as wide as the instruction set allows, by the compilers' vector extension: + - * and
// comparisons work lane by lane, and a * b + c becomes one fused operation where there is one.
#pragma once
#include <stdint.h>
#include <string.h>

#if defined(NONET_ISA_AVX512)
enum { LANES = 16 };
#elif defined(NONET_ISA_AVX2)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

#define INLINE static inline __attribute__((always_inline))
#define INLINED __attribute__((always_inline))
#define APART static __attribute__((noinline))  // large, and called seldom enough

namespace {

typedef float V __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));
typedef uint32_t U __attribute__((vector_size(4 * LANES)));
typedef uint16_t H __attribute__((vector_size(2 * LANES)));
// The same in memory, at any address.
typedef float VM __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t HM __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

struct bfloat16 {
    uint16_t bits;
};

INLINE V all(float x) { return V{} + x; }
INLINE V load(const float* p) { return *(const VM*)p; }
INLINE V load(const bfloat16* p) { return (V)(__builtin_convertvector((H) * (const HM*)p, U) << 16); }
INLINE void store(float* p, V x) { *(VM*)p = x; }

// Rounds to the nearest, ties to even; what is not a number stays so.
INLINE void store(bfloat16* p, V x) {
    U bits = (U)x;
    U rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    *(HM*)p = __builtin_convertvector(x != x ? U{} + 0x7fc0u : rounded, H);
}

INLINE void add_to(float* p, V x) { store(p, load(p) + x); }

INLINE float number(float x) { return x; }
INLINE float number(bfloat16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE void assign(float& to, float x) { to = x; }
INLINE void assign(bfloat16& to, float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    to.bits = x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Hides from the optimiser what a value is, so that it stays in a register as it stands.
INLINE void hide(V& x) {
#if defined(__x86_64__)
    __asm__ volatile("" : "+x"(x));
#elif defined(__aarch64__)
    __asm__ volatile("" : "+w"(x));
#else
    __asm__ volatile("" : "+m"(x));
#endif
}

INLINE V max(V a, V b) { return a > b ? a : b; }
INLINE V abs(V x) { return (V)((I)x & 0x7fffffff); }

INLINE bool any(I mask) {
    int32_t found = 0;
    for (int k = 0; k < LANES; ++k) found |= mask[k];
    return found != 0;
}

INLINE float sum(V x) {
    float lanes[LANES];
    store(lanes, x);
    for (int step = LANES / 2; step; step /= 2)
        for (int k = 0; k < step; ++k) lanes[k] += lanes[k + step];
    return lanes[0];
}

// The first `count` numbers, zero behind them.
template <class S>
INLINE V load_some(const S* p, int64_t count) {
    if (count >= LANES) return load(p);
    float lanes[LANES] = {};
    for (int64_t k = 0; k < count; ++k) lanes[k] = number(p[k]);
    return load(lanes);
}

template <class S>
INLINE void store_some(S* p, V x, int64_t count) {
    if (count >= LANES) return store(p, x);
    float lanes[LANES];
    store(lanes, x);
    for (int64_t k = 0; k < count; ++k) assign(p[k], lanes[k]);
}

// Calls body(LANES), compiled for whole vectors, where there are so many numbers left; else body(count).
template <class Body>
INLINE void whole_or_not(int64_t count, Body body) {
    if (count >= LANES)
        body(LANES);
    else
        body(count);
}

// The first or second halves of two vectors, lane by lane in turn.
INLINE V zip(V a, V b, bool second) {
    I order;
    for (int k = 0; k < LANES; ++k) order[k] = k / 2 + k % 2 * LANES + second * (LANES / 2);
    return __builtin_shuffle(a, b, order);
}

// Sums each of up to LANES vectors over its lanes; `count` has to be known when this is compiled. Lane i is
// sum(x[i]), to the bit.
INLINE V sum_each(const V* x, int count) {
    V rows[LANES];
#pragma GCC unroll 16
    for (int k = 0; k < LANES; ++k) rows[k] = k < count ? x[k] : V{};
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) {
#pragma GCC unroll 8
        for (int k = 0; k < half; ++k)
            rows[k] = zip(rows[k], rows[k + half], false) + zip(rows[k], rows[k + half], true);
    }
    return rows[0];
}

// Turns LANES vectors into their columns: each round of zips sorts by one more bit of the lane.
INLINE void transpose(V* rows) {
    V other[LANES];
#pragma GCC unroll 4
    for (int round = 1; round < LANES; round *= 2) {
#pragma GCC unroll 16
        for (int k = 0; k < LANES / 2; ++k) {
            other[2 * k] = zip(rows[k], rows[k + LANES / 2], false);
            other[2 * k + 1] = zip(rows[k], rows[k + LANES / 2], true);
        }
#pragma GCC unroll 16
        for (int k = 0; k < LANES; ++k) rows[k] = other[k];
    }
}

// A tile is LANES channels by some steps of time, step after step, zero in channels that are not there.
template <class S>
APART void load_tile(float* tile, const S* from, int64_t channel, int64_t time, int64_t channels, int64_t steps) {
    if (channel == 1) {
        for (int64_t t = 0; t < steps; ++t) {
            // The neighbours come next, and no prefetcher of the processor follows so many rows at once.
            __builtin_prefetch(from + t * time + LANES, 0, 2);
            store(tile + t * LANES, load_some(from + t * time, channels));
        }
    } else if (time == 1) {
        for (int64_t t = 0; t < steps; t += LANES) {
            V rows[LANES];
            for (int64_t k = 0; k < LANES; ++k) {
                __builtin_prefetch(from + (k + LANES) * channel + t, 0, 2);
                rows[k] = k < channels ? load_some(from + k * channel + t, steps - t) : V{};
            }
            transpose(rows);
            for (int64_t k = 0; k < LANES && t + k < steps; ++k) store(tile + (t + k) * LANES, rows[k]);
        }
    } else {
        for (int64_t k = 0; k < LANES; ++k)
            for (int64_t t = 0; t < steps; ++t)
                tile[t * LANES + k] = k < channels ? number(from[k * channel + t * time]) : 0.0f;
    }
}

template <class S>
APART void store_tile(const float* tile, S* to, int64_t channel, int64_t time, int64_t channels, int64_t steps) {
    if (channel == 1) {
        for (int64_t t = 0; t < steps; ++t) store_some(to + t * time, load(tile + t * LANES), channels);
    } else if (time == 1) {
        for (int64_t t = 0; t < steps; t += LANES) {
            V rows[LANES];
            for (int64_t k = 0; k < LANES; ++k) rows[k] = t + k < steps ? load(tile + (t + k) * LANES) : V{};
            transpose(rows);
            for (int64_t k = 0; k < channels; ++k) store_some(to + k * channel + t, rows[k], steps - t);
        }
    } else {
        for (int64_t k = 0; k < channels; ++k)
            for (int64_t t = 0; t < steps; ++t) assign(to[k * channel + t * time], tile[t * LANES + k]);
    }
}

}  // namespace
