// The gated recurrence of MatMul-free models, h = f h + i, which is all memory traffic: inputs are read
// once, states written once, and the gates are made on the way.
//
// Where channels lie next to each other the tensors are walked row by row as they are, which is what memory
// is fastest at; other layouts go through tiles, by the same loops.
#pragma once
#include "../common/elementary.h"
#include "../common/tasks.h"

namespace {

enum { STRETCH = 32 };  // steps in a tile

// A step's gates. From logits: f = 1 - closed with closed = (1 - bound) sigmoid(-f), exact near one.
struct Gates {
    V closed, f, i;
};

INLINE Gates gates(V i, V f, V bound, bool logits) {
    if (!logits) return {V{}, f, i};
    V closed = (1.0f - bound) * sigmoid(-f);
    return {closed, 1.0f - closed, silu(i) * closed};
}

// Rows of numbers, some numbers apart from each other.
template <class S>
struct Rows {
    S* data;
    int64_t apart;

    S* row(int64_t t) const { return data + t * apart; }
};

template <class S>
INLINE Rows<S> rows_of(const View& view, const Sequence& q, int64_t channel) {
    return {place<S>(view, q.row, channel, q.start), view.stride[2]};
}

// The channels of a part: their number, and what is kept for each.
struct Channels {
    int64_t first, count;
    float *state, *bound, *gathered, *total;
};

INLINE void read_channels(float* to, const View& view, const Channels& mine, int64_t row, bool by_row) {
    const int64_t padded = rounded_up(mine.count, LANES);
    for (int64_t k = 0; k < padded; ++k)
        to[k] = !view.data || k >= mine.count ? 0.0f
                : by_row                      ? *place<float>(view, row, mine.first + k, 0)
                                              : *place<float>(view, mine.first + k, 0, 0);
}

template <class S, bool LOGITS>
INLINE void walk(const Channels& at, Rows<const S> i, Rows<const S> f, Rows<S> h, int64_t steps) {
    for (int64_t t = 0; t < steps; ++t) {
        const S *i_t = i.row(t), *f_t = f.row(t);
        S* h_t = h.row(t);
        for (int64_t c = 0; c < at.count; c += LANES)
            whole_or_not(at.count - c, [&](int64_t some) INLINED {
                Gates gate = gates(load_some(i_t + c, some), load_some(f_t + c, some), load(at.bound + c), LOGITS);
                V state = gate.f * load(at.state + c) + gate.i;
                store(at.state + c, state);
                store_some(h_t + c, state, some);
            });
    }
}

// Against time. `state` carries the gradient of the state, `h` holds the states after each step, and
// `initial` the state before the first unless that one lies in the row before.
template <class S, bool LOGITS>
INLINE void walk_back(const Channels& at, Rows<const S> i, Rows<const S> f, Rows<const S> h, const float* initial,
                      Rows<const S> dh, Rows<S> di, Rows<S> df, int64_t steps) {
    for (int64_t t = steps - 1; t >= 0; --t) {
        const S *i_t = i.row(t), *f_t = f.row(t), *dh_t = dh.row(t), *before_t = h.row(t - 1);
        S *di_t = di.row(t), *df_t = df.row(t);
        for (int64_t c = 0; c < at.count; c += LANES)
            whole_or_not(at.count - c, [&](int64_t some) INLINED {
                V before = t == 0 && initial ? load(initial + c) : load_some(before_t + c, some);
                V g = load(at.state + c) + load_some(dh_t + c, some), y = load_some(f_t + c, some);
                if (LOGITS) {
                    V x = load_some(i_t + c, some), open = sigmoid(x), shut = sigmoid(-y);
                    Gates gate = gates(x, y, load(at.bound + c), true);
                    V dclosed = g * (x * open - before);  // i carries `closed`, f is one minus it
                    add_to(at.gathered + c, -dclosed * shut);
                    store_some(df_t + c, -dclosed * gate.closed * (1.0f - shut), some);
                    store_some(di_t + c, g * gate.closed * open * (1.0f + x * (1.0f - open)), some);
                    store(at.state + c, g * gate.f);
                } else {
                    store_some(df_t + c, g * before, some);
                    store_some(di_t + c, g, some);
                    store(at.state + c, g * y);
                }
            });
    }
    // Sums over time are taken a stretch at a time: one long sum would lose what it adds.
    for (int64_t c = 0; LOGITS && c < at.count; c += LANES) {
        add_to(at.total + c, load(at.gathered + c));
        store(at.gathered + c, V{});
    }
}

template <class S, bool LOGITS>
int hgrn_part(const NonetHgrn& s, int64_t row, int64_t part) {
    const Sequence q = sequence(s.starts, row, s.length);
    const Blocks mine = blocks(s.channels, s.parts, part);
    const int64_t padded = (mine.end - mine.begin) * LANES;
    Memory memory(2 * padded);
    if (!memory.data) return NONET_NO_MEMORY;
    const int64_t first = mine.begin * LANES;
    const Channels all = {first, least(padded, s.channels - first), memory.data, memory.data + padded, nullptr, nullptr};
    read_channels(all.state, s.initial, all, row, true);
    read_channels(all.bound, s.lower_bound, all, row, false);
    if (s.i.stride[1] == 1 && s.f.stride[1] == 1 && s.h.stride[1] == 1)
        walk<S, LOGITS>(all, rows_of<const S>(s.i, q, first), rows_of<const S>(s.f, q, first),
                        rows_of<S>(s.h, q, first), q.length);
    else
        for (int64_t k = 0; k < padded; k += LANES) {
            const Channels few = {first + k, LANES, all.state + k, all.bound + k, nullptr, nullptr};
            const int64_t channels = least(LANES, all.count - k);
            for (int64_t t0 = 0; t0 < q.length; t0 += STRETCH) {
                alignas(64) float i[STRETCH * LANES], f[STRETCH * LANES];
                const int64_t steps = least(STRETCH, q.length - t0), t = q.start + t0;
                load_tile(i, place<S>(s.i, q.row, few.first, t), s.i.stride[1], s.i.stride[2], channels, steps);
                load_tile(f, place<S>(s.f, q.row, few.first, t), s.f.stride[1], s.f.stride[2], channels, steps);
                walk<float, LOGITS>(few, {i, LANES}, {f, LANES}, {i, LANES}, steps);
                store_tile(i, place<S>(s.h, q.row, few.first, t), s.h.stride[1], s.h.stride[2], channels, steps);
            }
        }
    for (int64_t k = 0; k < all.count; ++k) *place<float>(s.last, row, first + k, 0) = all.state[k];
    return NONET_OK;
}

template <class S, bool LOGITS>
int hgrn_part_backward(const NonetHgrn& s, int64_t row, int64_t part) {
    const Sequence q = sequence(s.starts, row, s.length);
    const Blocks mine = blocks(s.channels, s.parts, part);
    const int64_t padded = (mine.end - mine.begin) * LANES;
    Memory memory(5 * padded);
    if (!memory.data) return NONET_NO_MEMORY;
    const int64_t first = mine.begin * LANES;
    const Channels all = {first, least(padded, s.channels - first), memory.data, memory.data + padded,
                          memory.data + 2 * padded, memory.data + 3 * padded};
    float* initial = memory.data + 4 * padded;
    read_channels(all.state, s.dlast, all, row, true);
    read_channels(all.bound, s.lower_bound, all, row, false);
    read_channels(initial, s.initial, all, row, true);
    memset(all.gathered, 0, 2 * padded * sizeof(float));
    if (s.i.stride[1] == 1 && s.f.stride[1] == 1 && s.h.stride[1] == 1 && s.dh.stride[1] == 1 &&
        s.di.stride[1] == 1 && s.df.stride[1] == 1)
        for (int64_t chunk = (q.length - 1) / STRETCH; chunk >= 0; --chunk) {
            const int64_t t0 = chunk * STRETCH, steps = least(STRETCH, q.length - t0);
            const Sequence few = {q.row, q.start + t0, steps};
            walk_back<S, LOGITS>(all, rows_of<const S>(s.i, few, first), rows_of<const S>(s.f, few, first),
                                 rows_of<const S>(s.h, few, first), t0 ? nullptr : initial,
                                 rows_of<const S>(s.dh, few, first), rows_of<S>(s.di, few, first),
                                 rows_of<S>(s.df, few, first), steps);
        }
    else
        for (int64_t k = 0; k < padded; k += LANES) {
            const Channels few = {first + k, LANES, all.state + k, all.bound + k, all.gathered + k,
                                  all.total + k};
            const int64_t channels = least(LANES, all.count - k);
            for (int64_t chunk = (q.length - 1) / STRETCH; chunk >= 0; --chunk) {
                alignas(64) float i[STRETCH * LANES], f[STRETCH * LANES], dh[STRETCH * LANES];
                alignas(64) float h[(STRETCH + 1) * LANES];  // begins with the state before the chunk
                const int64_t t0 = chunk * STRETCH, steps = least(STRETCH, q.length - t0), t = q.start + t0;
                const int64_t before = t0 ? 1 : 0;
                load_tile(i, place<S>(s.i, q.row, few.first, t), s.i.stride[1], s.i.stride[2], channels, steps);
                load_tile(f, place<S>(s.f, q.row, few.first, t), s.f.stride[1], s.f.stride[2], channels, steps);
                load_tile(dh, place<S>(s.dh, q.row, few.first, t), s.dh.stride[1], s.dh.stride[2], channels, steps);
                load_tile(h + (1 - before) * LANES, place<S>(s.h, q.row, few.first, t - before), s.h.stride[1],
                          s.h.stride[2], channels, steps + before);
                walk_back<float, LOGITS>(few, {i, LANES}, {f, LANES}, {h + LANES, LANES},
                                         before ? nullptr : initial + k, {dh, LANES}, {i, LANES}, {f, LANES}, steps);
                store_tile(i, place<S>(s.di, q.row, few.first, t), s.di.stride[1], s.di.stride[2], channels, steps);
                store_tile(f, place<S>(s.df, q.row, few.first, t), s.df.stride[1], s.df.stride[2], channels, steps);
            }
        }
    for (int64_t k = 0; k < all.count; ++k) {
        if (s.dinitial.data) *place<float>(s.dinitial, row, first + k, 0) = all.state[k];
        if (s.dlower_bound) s.dlower_bound[row * s.channels + first + k] = all.total[k];
    }
    return NONET_OK;
}

template <class S>
int hgrn_as(const NonetHgrn* s) {
    if (s->logits) return every_part<NonetHgrn, hgrn_part<S, true>>(s, 10);
    return every_part<NonetHgrn, hgrn_part<S, false>>(s, 1);
}

template <class S>
int hgrn_backward_as(const NonetHgrn* s) {
    if (s->logits) return every_part<NonetHgrn, hgrn_part_backward<S, true>>(s, 20);
    return every_part<NonetHgrn, hgrn_part_backward<S, false>>(s, 2);
}

int hgrn_scan(const NonetHgrn* s) { return s->dtype == NONET_BFLOAT16 ? hgrn_as<bfloat16>(s) : hgrn_as<float>(s); }

int hgrn_scan_backward(const NonetHgrn* s) {
    return s->dtype == NONET_BFLOAT16 ? hgrn_backward_as<bfloat16>(s) : hgrn_backward_as<float>(s);
}

}  // namespace
