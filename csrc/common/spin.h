// Loops that only one unit of the processor limits: what the kernels' speed is measured against.
#pragma once
#include "elementary.h"

namespace {

enum { CHAINS = 8 };  // independent, so that no operation waits for the one before

// Repeats `once` on values that stay in registers, which an array of them would not.
template <class Once>
INLINE double spin(int64_t rounds, Once once) {
    V a = all(0.1f), b = all(0.2f), c = all(0.3f), d = all(0.4f), e = all(0.5f), f = all(0.6f), g = all(0.7f),
      h = all(0.8f);
    for (int64_t i = 0; i < rounds; ++i) {
        a = once(a), b = once(b), c = once(c), d = once(d), e = once(e), f = once(f), g = once(g), h = once(h);
        hide(a), hide(b), hide(c), hide(d), hide(e), hide(f), hide(g), hide(h);
    }
    return (double)CHAINS * LANES * (double)rounds;
}

double spin_multiply_add(int64_t rounds) {
    V factor = all(0.999f), term = all(0.001f);
    hide(factor);
    hide(term);
    return 2.0 * spin(rounds, [=](V x) __attribute__((always_inline)) { return x * factor + term; });
}

double spin_exponential(int64_t rounds) {
    V rate = all(-1.3f);
    hide(rate);
    return spin(rounds, [=](V x) __attribute__((always_inline)) { return exp2_small(x, rate); });
}

}  // namespace
