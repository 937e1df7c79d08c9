// One token through a whole Mamba block. A matrix is read once for up to ROWS tokens of a batch, which is
// what the time goes into; the convolution and the recurrence ride along with the matrices around them.
//
// S is the storage of tokens and matrices, P that of the other parameters.
//
// Every stage cuts its outputs among the threads: in_proj and convolution by channel, x_proj by output,
// dt_proj and recurrence by channel, out_proj by output.
#pragma once
#include "../common/elementary.h"
#include "../common/product.h"

namespace {

struct Step {
    const NonetStep* args;
    float *x, *u, *z, *mixed, *y;  // (row, width), (row, channel) twice, (row, rank + 2 states), (row, channel)
};

template <class P>
INLINE float optional(const View& view, int64_t i) {
    return view.data ? number(*place<P>(view, i, 0, 0)) : 0.0f;
}

template <class S, class P>
void project_in(const Step& step, int64_t begin, int64_t end) {
    const NonetStep& s = *step.args;
    View gate = s.in_proj, gate_bias = s.in_bias;
    gate.data = place<S>(gate, s.channels, 0, 0);
    if (gate_bias.data) gate_bias.data = place<S>(gate_bias, s.channels, 0, 0);
    multiply<S, S>(step.u, s.channels, s.in_proj, s.in_bias, step.x, s.width, s.width, s.rows, begin, end);
    multiply<S, S>(step.z, s.channels, gate, gate_bias, step.x, s.width, s.width, s.rows, begin, end);
    for (int64_t r = 0; r < s.rows; ++r)
        for (int64_t c0 = begin; c0 < end; c0 += LANES) {
            const int64_t channels = least(LANES, end - c0);
            float sums[LANES] = {};
            for (int64_t k = 0; k < channels; ++k) {
                const int64_t c = c0 + k;
                const float newest = step.u[r * s.channels + c];
                const P* weight = place<P>(s.conv_weight, c, 0, 0);
                sums[k] = optional<P>(s.conv_bias, c) + number(weight[(s.taps - 1) * s.conv_weight.stride[1]]) * newest;
                for (int64_t j = 0; j < s.memory; ++j) {
                    const S old = *place<S>(s.conv, r, c, j);
                    const int64_t w = j - s.memory + s.taps - 1;
                    if (w >= 0) sums[k] += number(weight[w * s.conv_weight.stride[1]]) * number(old);
                    if (j) *place<S>(s.new_conv, r, c, j - 1) = old;
                }
                if (s.memory) assign(*place<S>(s.new_conv, r, c, s.memory - 1), newest);
            }
            V y = load(sums);
            store_some(step.u + r * s.channels + c0, silu(y), channels);
        }
}

template <class S>
void project_mixed(const Step& step, int64_t begin, int64_t end) {
    const NonetStep& s = *step.args;
    multiply<S, S>(step.mixed, s.rank + 2 * s.states, s.x_proj, View{}, step.u, s.channels, s.channels, s.rows, begin,
                end);
}

template <class S, class P>
void recur(const Step& step, int64_t begin, int64_t end) {
    const NonetStep& s = *step.args;
    const int64_t mixed = s.rank + 2 * s.states;
    multiply<S, P>(step.y, s.channels, s.dt_proj, s.dt_bias, step.mixed, mixed, s.rank, s.rows, begin, end);
    for (int64_t r = 0; r < s.rows; ++r) {
        const float *b = step.mixed + r * mixed + s.rank, *c = b + s.states;
        for (int64_t c0 = begin; c0 < end; c0 += LANES) {
            const int64_t channels = least(LANES, end - c0), at = r * s.channels + c0;
            float dts[LANES], outs[LANES] = {};
            store(dts, softplus(load_some(step.y + at, channels)));
            for (int64_t k = 0; k < channels; ++k) {
                const float dt = dts[k], x = dt * step.u[at + k];
                const P* rates = place<P>(s.a_log, c0 + k, 0, 0);
                const float* old = place<float>(s.ssm, r, c0 + k, 0);
                float* state = place<float>(s.new_ssm, r, c0 + k, 0);
                V y = {};
                for (int64_t n = 0; n < s.states; n += LANES) {
                    const int64_t count = least(LANES, s.states - n);
                    V rate = exp(load_some(rates + n, count)) * -LOG2E;
                    V h = exp2(all(dt), rate) * load_some(old + n, count) + x * load_some(b + n, count);
                    store_some(state + n, h, count);
                    y += h * load_some(c + n, count);
                }
                outs[k] = sum(y) + optional<P>(s.d, c0 + k) * step.u[at + k];
            }
            V gate = load_some(step.z + at, channels);
            store_some(step.y + at, load(outs) * silu(gate), channels);
        }
    }
}

template <class S>
void project_out(const Step& step, int64_t begin, int64_t end) {
    const NonetStep& s = *step.args;
    multiply<S, S>(step.x, s.width, s.out_proj, s.out_bias, step.y, s.channels, s.channels, s.rows, begin, end);
    for (int64_t r = 0; r < s.rows; ++r)
        for (int64_t o = begin; o < end; ++o) assign(*place<S>(s.out, r, o, 0), step.x[r * s.width + o]);
}

INLINE void normalise(float* x, int64_t size, double eps) {
    double squares = 0.0;
    for (int64_t k = 0; k < size; ++k) squares += (double)x[k] * x[k];
    const float scale = (float)(1.0 / __builtin_sqrt(squares / (double)size + eps));
    for (int64_t k = 0; k < size; ++k) x[k] *= scale;
}

template <class S, class P>
int step_as(const NonetStep* args) {
    const NonetStep& s = *args;
    const int64_t mixed = s.rank + 2 * s.states;
    Step step = {args, s.work, nullptr, nullptr, nullptr, nullptr};
    step.u = step.x + s.rows * s.width;
    step.z = step.u + s.rows * s.channels;
    step.y = step.z + s.rows * s.channels;
    step.mixed = step.y + s.rows * s.channels;
    for (int64_t r = 0; r < s.rows; ++r)
        for (int64_t k = 0; k < s.width; ++k) step.x[r * s.width + k] = number(*place<S>(s.x, r, k, 0));
    int code = share<Step, project_in<S, P>>(step, s.channels, 64);
    if (code == NONET_OK) code = share<Step, project_mixed<S>>(step, mixed, 8);
    if (s.norm_eps >= 0)
        for (int64_t r = 0; r < s.rows; ++r) {
            float* row = step.mixed + r * mixed;
            normalise(row, s.rank, s.norm_eps);
            normalise(row + s.rank, s.states, s.norm_eps);
            normalise(row + s.rank + s.states, s.states, s.norm_eps);
        }
    if (code == NONET_OK) code = share<Step, recur<S, P>>(step, s.channels, 64);
    return code == NONET_OK ? share<Step, project_out<S>>(step, s.width, 32) : code;
}

int mamba_step(const NonetStep* s) {
    if (s->dtype != NONET_BFLOAT16) return step_as<float, float>(s);
    return s->wide ? step_as<bfloat16, float>(s) : step_as<bfloat16, bfloat16>(s);
}

}  // namespace
