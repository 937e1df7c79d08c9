// Exponentials and what is made of them, to about one rounding. Polynomials are minimax fits of our own.
#pragma once
#include "vector.h"

namespace {

const float LOG2E = 1.44269504088896341f;
const float LN2 = 0.693147180559945309f;
const float MAGIC = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, held in the low bits

// Each of these keeps what is no number: the comparison with it is false.
INLINE V capped(V x, float limit) { return limit < x ? all(limit) : x; }
INLINE V floored(V x, float limit) { return limit > x ? all(limit) : x; }

// 2^f for f in [-1/2, 1/2]; relative error 2e-9 before rounding, and exact at 0: a decay close to one is
// applied thousands of times, and a bias would add up.
INLINE V exp2_fraction(V f) {
    V p = 0.00015353362f * f + 0.0013398875f;
    p = p * f + 0.00961843692f;
    p = p * f + 0.0555033237f;
    p = p * f + 0.240226477f;
    p = p * f + 0.693147182f;
    return p * f + 1.0f;
}

// 2^(x a) where |x a| <= 125. The product is never rounded where multiply-adds are fused.
INLINE V exp2_small(V x, V a) {
    V shifted = x * a + MAGIC;
    V whole = shifted - MAGIC;
    return (V)((I)exp2_fraction(x * a - whole) + ((I)shifted << 23));
}

const float LARGE = 252.0f;  // exponents beyond it change nothing any more

INLINE V limited(V y) { return capped(floored(y, -LARGE), LARGE); }

// p 2^n, with n in the low bits of `shifted`. The scale may lie outside what one float can hold, so half of
// it goes on first: the result overflows to infinity and underflows to zero as it should.
INLINE V scaled(V p, V shifted) {
    I n = (I)shifted - (I)all(MAGIC);
    I half = n >> 1;
    return p * (V)((half + 127) << 23) * (V)((n - half + 127) << 23);
}

// 2^(x a) for any x a.
INLINE V exp2(V x, V a) {
    V y = x * a, shifted = limited(y) + MAGIC;
    return scaled(exp2_fraction(abs(y) > LARGE ? V{} : x * a - (shifted - MAGIC)), shifted);
}

// x log2(e) - whole.
INLINE V fraction(V x, V whole) {
#if defined(__FMA__) || defined(__aarch64__)
    return x * LOG2E - whole;
#else
    // The product would be rounded. So the whole part is taken off x, in two pieces of which one is exact.
    return ((x - whole * 0.693359375f) + whole * 2.12194440e-4f) * LOG2E;
#endif
}

// e^x for any x.
INLINE V exp(V x) {
    V y = x * LOG2E, shifted = limited(y) + MAGIC;
    return scaled(exp2_fraction(abs(y) > LARGE ? V{} : fraction(x, shifted - MAGIC)), shifted);
}

const float FARTHEST = 87.0f;  // e^-FARTHEST is about the least normal number

// e^x for x from -FARTHEST to FARTHEST.
INLINE V exp_near(V x) {
    V shifted = x * LOG2E + MAGIC;
    return (V)((I)exp2_fraction(fraction(x, shifted - MAGIC)) + ((I)shifted << 23));
}

// Exactly zero far below, so that a large negative number times it is nothing.
INLINE V sigmoid(V x) {
    V open = 1.0f / (1.0f + exp_near(capped(floored(-x, -FARTHEST), FARTHEST)));
    return x < -FARTHEST ? V{} : open;
}

// No number at minus infinity, as in torch.
INLINE V silu(V x) { return x * sigmoid(x); }

// log(1 + e) for e in [0, 1]; relative error 3e-8 before rounding.
INLINE V log1p_unit(V e) {
    V p = 0.00523268105f * e - 0.0295051839f;
    p = p * e + 0.0782258585f;
    p = p * e - 0.136632368f;
    p = p * e + 0.191060022f;
    p = p * e - 0.248429805f;
    p = p * e + 0.333190978f;
    p = p * e - 0.499994934f;
    p = p * e + 0.99999994f;
    return p * e;
}

// log(1 + e^x), exactly zero far below.
INLINE V softplus(V x) {
    V size = abs(x), soft = log1p_unit(exp_near(floored(-size, -FARTHEST)));
    return (x > 0.0f ? x : V{}) + (size > FARTHEST ? V{} : soft);
}

}  // namespace
