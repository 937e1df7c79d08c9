// A linear layer on a few rows, at the speed at which its weight comes from memory.
//
// S is the storage of the weight, Y that of the rows. Threads share the outputs.
#pragma once
#include "../common/product.h"

namespace {

struct Linear {
    const NonetLinear* args;
    const float* x;
};

template <class S, class Y>
void linear_outputs(const Linear& linear, int64_t begin, int64_t end) {
    const NonetLinear& l = *linear.args;
    const View weight = {l.weight, {l.stride, 1, 0}}, bias = {l.bias, {1, 0, 0}};
    multiply<S, float>((Y*)l.out, l.outputs, weight, bias, linear.x, l.inputs, l.inputs, l.rows, begin, end);
}

template <class S, class Y>
int linear_as(const Linear& linear) {
    const NonetLinear& l = *linear.args;
    if (l.rows * l.inputs * l.outputs >= WORTH_SHARING)
        return share<Linear, linear_outputs<S, Y>>(linear, l.outputs, PANEL);
    linear_outputs<S, Y>(linear, 0, l.outputs);
    return NONET_OK;
}

int linear_rows(const NonetLinear* args) {
    const NonetLinear& l = *args;
    const bool narrow = l.weight_dtype == NONET_BFLOAT16;
    if (l.dtype != NONET_BFLOAT16) {
        const Linear linear = {args, (const float*)l.x};
        return narrow ? linear_as<bfloat16, float>(linear) : linear_as<float, float>(linear);
    }
    Memory x(l.rows * l.inputs);
    if (!x.data) return NONET_NO_MEMORY;
    for (int64_t k = 0; k < l.rows * l.inputs; ++k) x.data[k] = number(((const bfloat16*)l.x)[k]);
    const Linear linear = {args, x.data};
    return narrow ? linear_as<bfloat16, bfloat16>(linear) : linear_as<float, bfloat16>(linear);
}

}  // namespace
