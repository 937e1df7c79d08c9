// The short causal convolution of Mamba: every channel's last few inputs, weighted, then SiLU.
//
// A tile holds a chunk of LANES channels together with the inputs just before it. Where channels lie next to
// each other, outputs whose inputs are all in the tensor are made row by row without tiles. The backward pass
// walks the chunks from the last to the first and hands the gradients that reach over a border to the next.
#pragma once
#include "../common/elementary.h"
#include "../common/tasks.h"

namespace {

enum { STRIP = 32 };  // steps in a tile

// The inputs from `before` steps ahead of t0 to t0 + steps; those before the sequence are the initial state.
template <class S>
INLINE void load_inputs(float* tile, const NonetConv& s, const Sequence& q, int64_t row, int64_t c0, int64_t t0,
                        int64_t steps) {
    const int64_t before = s.width - 1, channels = least(LANES, s.channels - c0);
    int64_t outside = t0 < before ? before - t0 : 0;  // rows of the tile that lie before the sequence
    for (int64_t i = 0; i < outside; ++i)
        for (int64_t k = 0; k < LANES; ++k)
            tile[i * LANES + k] = s.initial.data && k < channels
                                      ? number(*place<S>(s.initial, row, c0 + k, t0 + i))
                                      : 0.0f;
    load_tile(tile + outside * LANES, place<S>(s.x, q.row, c0, q.start + t0 - before + outside), s.x.stride[1],
              s.x.stride[2], channels, steps + before - outside);
}

INLINE void load_taps(float* taps, const NonetConv& s, int64_t c0) {
    for (int64_t w = 0; w < s.width; ++w)
        for (int64_t k = 0; k < LANES; ++k)
            taps[w * LANES + k] = c0 + k < s.channels ? *place<float>(s.weight, c0 + k, w, 0) : 0.0f;
}

// bias + sum over taps of tap * input, where the inputs of a step are `apart` numbers from each other.
template <class S>
INLINE V convolve(const S* x, int64_t apart, const float* taps, V bias, int64_t width, int64_t channels) {
    V y = bias;
    for (int64_t w = 0; w < width; ++w) y += load_some(x + w * apart, channels) * load(taps + w * LANES);
    return y;
}

// A few steps at a time, so that the taps of a block are read once for all of them.
template <class S, int WIDTH>
INLINE void convolve_rows(const NonetConv& s, const Sequence& q, const Blocks& mine, const float* taps) {
    const int64_t width = WIDTH ? WIDTH : s.width, apart = s.x.stride[2], FEW = 8;
    for (int64_t t = width - 1; t < q.length; t += FEW) {
        const int64_t steps = least(FEW, q.length - t);
        const S* x = place<S>(s.x, q.row, 0, q.start + t - width + 1);
        S* out = place<S>(s.out, q.row, 0, q.start + t);
        const float* at = taps;
        for (int64_t c = mine.begin * LANES; c < mine.end * LANES; c += LANES, at += (width + 1) * LANES)
            whole_or_not(s.channels - c, [&](int64_t some) INLINED {
                float own[(WIDTH ? WIDTH : 1) * LANES];  // which the compiler keeps in registers
                if (WIDTH) memcpy(own, at, sizeof own);
                const V bias = load(at + width * LANES);
                for (int64_t k = 0; k < steps; ++k) {
                    V y = convolve(x + k * apart + c, apart, WIDTH ? own : at, bias, width, some);
                    store_some(out + k * s.out.stride[2] + c, s.silu ? silu(y) : y, some);
                }
            });
    }
}

template <class S>
int conv_part(const NonetConv& s, int64_t row, int64_t part) {
    const Sequence q = sequence(s.starts, row, s.length);
    const Blocks mine = blocks(s.channels, s.parts, part);
    const int64_t before = s.width - 1, block_taps = (s.width + 1) * LANES;  // the taps, then the bias
    Memory memory((STRIP + before) * LANES + (mine.end - mine.begin) * block_taps);
    if (!memory.data) return NONET_NO_MEMORY;
    float *x = memory.data, *taps = x + (STRIP + before) * LANES;
    for (int64_t block = mine.begin; block < mine.end; ++block) {
        float* at = taps + (block - mine.begin) * block_taps;
        load_taps(at, s, block * LANES);
        store(at + s.width * LANES, load_strided(s.bias, block * LANES, s.channels - block * LANES));
    }
    const bool by_rows = s.x.stride[1] == 1 && s.out.stride[1] == 1;
    if (by_rows) (s.width == 4 ? convolve_rows<S, 4> : convolve_rows<S, 0>)(s, q, mine, taps);
    const int64_t end = by_rows ? least(before, q.length) : q.length;
    for (int64_t t0 = 0; t0 < end; t0 += STRIP) {
        const int64_t steps = least(STRIP, end - t0);
        for (int64_t block = mine.begin; block < mine.end; ++block) {
            const int64_t c0 = block * LANES, channels = least(LANES, s.channels - c0);
            const float* at = taps + (block - mine.begin) * block_taps;
            load_inputs<S>(x, s, q, row, c0, t0, steps);
            // A step's output may take the place of its oldest input, which no later step reads.
            for (int64_t t = 0; t < steps; ++t) {
                V y = convolve(x + t * LANES, LANES, at, load(at + s.width * LANES), s.width, LANES);
                store(x + t * LANES, s.silu ? silu(y) : y);
            }
            store_tile(x, place<S>(s.out, q.row, c0, q.start + t0), s.out.stride[1], s.out.stride[2], channels,
                       steps);
        }
    }
    for (int64_t c = mine.begin * LANES; c < least(mine.end * LANES, s.channels); ++c)
        for (int64_t j = 0; j < before; ++j) {
            S* to = place<S>(s.last, row, c, j);
            const int64_t t = q.length - before + j;
            if (t >= 0)
                *to = *place<S>(s.x, q.row, c, q.start + t);
            else if (s.initial.data)
                *to = *place<S>(s.initial, row, c, t + before);
            else
                assign(*to, 0.0f);
        }
    return NONET_OK;
}

template <class S>
int conv_part_backward(const NonetConv& s, int64_t row, int64_t part) {
    const Sequence q = sequence(s.starts, row, s.length);
    const Blocks mine = blocks(s.channels, s.parts, part);
    const int64_t before = s.width - 1, taps_size = s.width * LANES, halo = before * LANES;
    const int64_t rows = (STRIP + before) * LANES, many = mine.end - mine.begin;
    Memory memory(2 * rows + many * (taps_size * 2 + LANES + halo));
    if (!memory.data) return NONET_NO_MEMORY;
    // g holds gradients before the activation: those of the chunk, then the first of the chunk behind it.
    float *x = memory.data, *g = x + rows, *taps = g + rows, *dtaps = taps + many * taps_size;
    float *dbias = dtaps + many * taps_size, *behind = dbias + many * LANES;
    memset(dtaps, 0, (many * (taps_size + LANES + halo)) * sizeof(float));
    for (int64_t block = mine.begin; block < mine.end; ++block)
        load_taps(taps + (block - mine.begin) * taps_size, s, block * LANES);
    for (int64_t k = (q.length - 1) / STRIP; k >= 0; --k) {
        const int64_t t0 = k * STRIP, steps = least(STRIP, q.length - t0);
        for (int64_t block = mine.begin; block < mine.end; ++block) {
            const int64_t c0 = block * LANES, channels = least(LANES, s.channels - c0), at = block - mine.begin;
            const float* w_taps = taps + at * taps_size;
            const V bias = load_strided(s.bias, c0, channels);
            load_inputs<S>(x, s, q, row, c0, t0, steps);
            load_tile(g, place<S>(s.dout, q.row, c0, q.start + t0), s.dout.stride[1], s.dout.stride[2], channels,
                      steps);
            memcpy(g + steps * LANES, behind + at * halo, halo * sizeof(float));
            // Sums over time are taken a chunk at a time: one long sum would lose what it adds.
            V db = {};
            for (int64_t t = 0; t < steps; ++t) {
                V dy = load(g + t * LANES);
                if (s.silu) {
                    V y = convolve(x + t * LANES, LANES, w_taps, bias, s.width, LANES), open = sigmoid(y);
                    dy *= open * (1.0f + y * (1.0f - open));
                    store(g + t * LANES, dy);
                }
                db += dy;
            }
            add_to(dbias + at * LANES, db);
            for (int64_t w = 0; w < s.width; ++w) {
                float* to = dtaps + at * taps_size + w * LANES;
                V dw = {};
                for (int64_t t = 0; t < steps; ++t) dw += load(g + t * LANES) * load(x + (t + w) * LANES);
                add_to(to, dw);
            }
            // The gradient of the input at t comes from the steps t to t + before. The inputs are used up.
            const int64_t from = k ? 0 : -before;  // in front of the first chunk lies the initial state
            for (int64_t t = from; t < steps; ++t) {
                V dx = {};
                for (int64_t w = 0; w < s.width; ++w)
                    if (t + before - w >= 0) dx += load(g + (t + before - w) * LANES) * load(w_taps + w * LANES);
                const int64_t j = t0 + t - q.length + before;  // its place in the last state
                if (j >= 0 && s.dlast.data)
                    for (int64_t c = 0; c < channels; ++c) dx[c] += number(*place<S>(s.dlast, row, c0 + c, j));
                store(x + (t - from) * LANES, dx);
            }
            memcpy(behind + at * halo, g, halo * sizeof(float));
            if (s.dinitial.data && k == 0)
                store_tile(x, place<S>(s.dinitial, row, c0, 0), s.dinitial.stride[1], s.dinitial.stride[2], channels,
                           before);
            store_tile(x - from * LANES, place<S>(s.dx, q.row, c0, q.start + t0), s.dx.stride[1], s.dx.stride[2],
                       channels, steps);
        }
    }
    for (int64_t c = mine.begin * LANES; c < least(mine.end * LANES, s.channels); ++c) {
        const int64_t at = c / LANES - mine.begin, k = c % LANES;
        for (int64_t w = 0; w < s.width; ++w)
            s.dweight[(row * s.channels + c) * s.width + w] = dtaps[at * taps_size + w * LANES + k];
        s.dbias[row * s.channels + c] = dbias[at * LANES + k];
    }
    return NONET_OK;
}

int causal_conv1d(const NonetConv* s) {
    if (s->dtype == NONET_BFLOAT16) return every_part<NonetConv, conv_part<bfloat16>>(s, s->width + 4 * s->silu);
    return every_part<NonetConv, conv_part<float>>(s, s->width + 4 * s->silu);
}

int causal_conv1d_backward(const NonetConv* s) {
    if (s->dtype == NONET_BFLOAT16) return every_part<NonetConv, conv_part_backward<bfloat16>>(s, s->width + 4 * s->silu);
    return every_part<NonetConv, conv_part_backward<float>>(s, s->width + 4 * s->silu);
}

}  // namespace
