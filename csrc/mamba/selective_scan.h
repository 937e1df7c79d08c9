// The selective scan of Mamba, a chunk of time and LANES channels at once.
//
// For a few states at a time the chunk is walked with the states in registers; inputs, steps and outputs of
// the chunk wait in a small tile, so that any layout and storage meets the same inner loop. The backward
// pass walks the chunks from the last to the first: from the saved state before a chunk it computes the
// states within again, then runs the recurrence of their gradients against time.
#pragma once
#include "../common/elementary.h"
#include "../common/tasks.h"

namespace {

enum { CHUNK = NONET_CHUNK, GROUP = 4, TILE = CHUNK * LANES };

// Where the parts of a row's work lie.
struct Layout {
    int64_t states, groups, channels;  // rounded up: states to GROUP, channels to 16

    explicit Layout(const NonetScan& s)
        : states(rounded_up(s.states, GROUP)), groups(states / GROUP), channels(rounded_up(s.channels, 16)) {}
};

INLINE float* front(const NonetScan& s, const Layout& l, int64_t row, int64_t chunk) {
    int64_t start = s.starts ? s.starts[row] : row * s.length;
    // A row has one state more than chunks.
    int64_t first = s.train ? start / CHUNK + 2 * row + chunk : row;
    return s.fronts + first * l.states * l.channels;
}

// B or C of a chunk as [group][time][GROUP], so that a group reads them in order.
template <class S>
INLINE void load_writes(float* to, const View& view, const Sequence& q, int64_t t0, int64_t steps,
                        int64_t states, int64_t groups) {
    for (int64_t t = 0; t < steps; ++t) {
        const S* from = place<S>(view, q.row, 0, q.start + t0 + t);
        for (int64_t n = 0; n < groups * GROUP; ++n)
            to[(n / GROUP * CHUNK + t) * GROUP + n % GROUP] = n < states ? number(from[n * view.stride[1]]) : 0.0f;
    }
}

// The rates of a block, times log2(e), as [state][LANES].
INLINE void load_rates(float* to, const NonetScan& s, const Layout& l, int64_t c0) {
    for (int64_t n = 0; n < l.states; ++n)
        for (int64_t k = 0; k < LANES; ++k)
            to[n * LANES + k] =
                n < s.states && c0 + k < s.channels ? *place<float>(s.a, c0 + k, n, 0) * LOG2E : 0.0f;
}

// The states of a block, those of one index in a vector and the vectors `apart` floats from each other.
INLINE void load_states(float* to, int64_t apart, const View& view, const NonetScan& s, int64_t row, int64_t c0) {
    for (int64_t n = 0; n < rounded_up(s.states, GROUP); ++n)
        for (int64_t k = 0; k < LANES; ++k)
            to[n * apart + k] =
                view.data && n < s.states && c0 + k < s.channels ? *place<float>(view, row, c0 + k, n) : 0.0f;
}

INLINE void store_states(const float* from, int64_t apart, const View& view, const NonetScan& s, int64_t row,
                         int64_t c0) {
    for (int64_t k = 0; k < least(LANES, s.channels - c0); ++k)
        for (int64_t n = 0; n < s.states; ++n) *place<float>(view, row, c0 + k, n) = from[n * apart + k];
}

// The inputs of a block and chunk, and what is made of them.
struct Tiles {
    float u[TILE], dt[TILE], y[TILE];
    V largest;  // |dt|
};

template <class S>
INLINE void read(Tiles& tile, const NonetScan& s, const Sequence& q, int64_t c0, int64_t t0, int64_t steps) {
    int64_t channels = least(LANES, s.channels - c0), t = q.start + t0;
    load_tile(tile.u, place<S>(s.u, q.row, c0, t), s.u.stride[1], s.u.stride[2], channels, steps);
    load_tile(tile.dt, place<S>(s.delta, q.row, c0, t), s.delta.stride[1], s.delta.stride[2], channels, steps);
    V bias = load_strided(s.delta_bias, c0, channels);
    V largest = {};
    for (int64_t i = 0; i < steps * LANES; i += LANES) {
        V dt = load(tile.dt + i) + bias;
        if (s.softplus) dt = softplus(dt);
        store(tile.dt + i, dt);
        store(tile.y + i, V{});
        // What is not a number counts as large.
        largest = abs(dt) <= largest ? largest : abs(dt);
    }
    tile.largest = largest;
}

// Whether every exponent of a group of states is small enough for exp2_small.
INLINE bool all_small(const Tiles& tile, const V* rate) {
    V largest = {};
    for (int j = 0; j < GROUP; ++j) largest = max(largest, abs(rate[j]));
    return !any(!(tile.largest * largest <= 125.0f));
}

template <bool SMALL>
INLINE V decay(V dt, V rate) {
    return SMALL ? exp2_small(dt, rate) : exp2(dt, rate);
}

// Runs a group of states through a chunk: y += C h, and h becomes the state behind it.
template <bool SMALL>
INLINE void advance(Tiles& tile, const V* rate, const float* b, const float* c, float* state, int64_t apart,
                    int64_t steps) {
    V h[GROUP];
    for (int j = 0; j < GROUP; ++j) h[j] = load(state + j * apart);
    for (int64_t t = 0; t < steps; ++t, b += GROUP, c += GROUP) {
        V dt = load(tile.dt + t * LANES), x = dt * load(tile.u + t * LANES), y = load(tile.y + t * LANES);
#pragma GCC unroll 4
        for (int j = 0; j < GROUP; ++j) {
            h[j] = decay<SMALL>(dt, rate[j]) * h[j] + x * b[j];
            y += h[j] * c[j];
        }
        store(tile.y + t * LANES, y);
    }
    for (int j = 0; j < GROUP; ++j) store(state + j * apart, h[j]);
}

template <class S>
int scan_part(const NonetScan& s, int64_t row, int64_t part) {
    const Layout l(s);
    const Sequence q = sequence(s.starts, row, s.length);
    const Blocks mine = blocks(s.channels, s.parts, part);
    Memory memory(2 * CHUNK * l.states + (mine.end - mine.begin) * l.states * LANES);
    if (!memory.data) return NONET_NO_MEMORY;
    float *b = memory.data, *c = b + CHUNK * l.states, *rates = c + CHUNK * l.states;
    for (int64_t block = mine.begin; block < mine.end; ++block) {
        load_rates(rates + (block - mine.begin) * l.states * LANES, s, l, block * LANES);
        load_states(front(s, l, row, 0) + block * LANES, l.channels, s.initial, s, row, block * LANES);
    }
    const int64_t chunks = (q.length + CHUNK - 1) / CHUNK;
    for (int64_t k = 0; k < chunks; ++k) {
        const int64_t t0 = k * CHUNK, steps = least(CHUNK, q.length - t0);
        load_writes<S>(b, s.b, q, t0, steps, s.states, l.groups);
        load_writes<S>(c, s.c, q, t0, steps, s.states, l.groups);
        for (int64_t block = mine.begin; block < mine.end; ++block) {
            const int64_t c0 = block * LANES, channels = least(LANES, s.channels - c0);
            alignas(64) Tiles tile;
            read<S>(tile, s, q, c0, t0, steps);
            float* state = front(s, l, row, k) + c0;
            if (s.train) {
                // The saved state stays; the last one lies behind those of the chunks.
                float* next = front(s, l, row, k + 1) + c0;
                for (int64_t n = 0; n < l.states; ++n) store(next + n * l.channels, load(state + n * l.channels));
                state = next;
            }
            for (int64_t g = 0; g < l.groups; ++g) {
                V rate[GROUP];
                for (int j = 0; j < GROUP; ++j)
                    rate[j] = load(rates + ((block - mine.begin) * l.states + g * GROUP + j) * LANES);
                const int64_t at = g * CHUNK * GROUP;
                (all_small(tile, rate) ? advance<true> : advance<false>)(
                    tile, rate, b + at, c + at, state + g * GROUP * l.channels, l.channels, steps);
            }
            const V skip = load_strided(s.d, c0, channels);
            alignas(64) float z[TILE];
            if (s.z.data)
                load_tile(z, place<S>(s.z, q.row, c0, q.start + t0), s.z.stride[1], s.z.stride[2], channels, steps);
            for (int64_t i = 0; i < steps * LANES; i += LANES) {
                // The skip comes last: it may be far larger than the states' part, whose sum it would blur.
                V y = load(tile.y + i) + skip * load(tile.u + i);
                store(tile.y + i, s.z.data ? y * silu(load(z + i)) : y);
            }
            store_tile(tile.y, place<S>(s.out, q.row, c0, q.start + t0), s.out.stride[1], s.out.stride[2], channels,
                       steps);
            if (k + 1 == chunks) store_states(state, l.channels, s.last, s, row, c0);
        }
    }
    return NONET_OK;
}

// What the backward pass of a block and chunk needs beside its inputs.
struct Gradients {
    float dy[TILE], du[TILE], ddt[TILE];                             // of y before the gate, of dt u, of dt
    float decays[CHUNK * GROUP * LANES], states[CHUNK * GROUP * LANES];  // after each step
};

// Computes a group's decays and states again, and y with them.
template <bool SMALL>
INLINE void replay(Tiles& tile, Gradients& grad, const V* rate, const float* b, const float* c, const float* state,
                   int64_t apart, int64_t steps) {
    V h[GROUP];
    for (int j = 0; j < GROUP; ++j) h[j] = load(state + j * apart);
    float *decays = grad.decays, *states = grad.states;
    for (int64_t t = 0; t < steps; ++t, b += GROUP, c += GROUP, decays += GROUP * LANES, states += GROUP * LANES) {
        V dt = load(tile.dt + t * LANES), x = dt * load(tile.u + t * LANES), y = load(tile.y + t * LANES);
#pragma GCC unroll 4
        for (int j = 0; j < GROUP; ++j) {
            V e = decay<SMALL>(dt, rate[j]);
            h[j] = e * h[j] + x * b[j];
            y += h[j] * c[j];
            store(decays + j * LANES, e);
            store(states + j * LANES, h[j]);
        }
        store(tile.y + t * LANES, y);
    }
}

// Walks a group of states back through a chunk. `carry` is the gradient of the state behind the chunk, and
// becomes that of the state before it; db and dc gather a sum over channels, still lane by lane.
INLINE void retreat(const Tiles& tile, Gradients& grad, const V* rate, const float* b, const float* c,
                    const float* state, float* carry, float* da, int64_t apart, float* db, float* dc,
                    int64_t steps) {
    V g[GROUP], sum[GROUP], before[GROUP];
    for (int j = 0; j < GROUP; ++j) {
        g[j] = load(carry + j * LANES);
        sum[j] = V{};
    }
    for (int64_t t = steps - 1; t >= 0; --t) {
        const float *states = grad.states + t * GROUP * LANES, *decays = grad.decays + t * GROUP * LANES;
        for (int j = 0; j < GROUP; ++j) before[j] = load(t ? states + (j - GROUP) * LANES : state + j * apart);
        V dy = load(grad.dy + t * LANES), dt = load(tile.dt + t * LANES), x = dt * load(tile.u + t * LANES);
        V du = load(grad.du + t * LANES), ddt = load(grad.ddt + t * LANES);
        float *db_t = db + t * GROUP * LANES, *dc_t = dc + t * GROUP * LANES;
#pragma GCC unroll 4
        for (int j = 0; j < GROUP; ++j) {
            g[j] += dy * c[t * GROUP + j];
            store(dc_t + j * LANES, load(dc_t + j * LANES) + dy * load(states + j * LANES));
            store(db_t + j * LANES, load(db_t + j * LANES) + g[j] * x);
            du += g[j] * b[t * GROUP + j];
            g[j] *= load(decays + j * LANES);
            V w = g[j] * before[j];  // the gradient of dt A, the logarithm of the decay
            ddt += w * rate[j];
            sum[j] += w * dt;
        }
        store(grad.du + t * LANES, du);
        store(grad.ddt + t * LANES, ddt);
    }
    for (int j = 0; j < GROUP; ++j) {
        store(carry + j * LANES, g[j]);
        add_to(da + j * apart, sum[j]);
    }
}

// Sums the lanes of a chunk's db or dc into (time, state).
INLINE void add_lanes(float* to, const float* lanes, int64_t steps, int64_t states) {
    for (int64_t t = 0; t < steps; ++t)
        for (int64_t n = 0; n < states; ++n)
            to[t * states + n] = sum(load(lanes + ((n / GROUP * CHUNK + t) * GROUP + n % GROUP) * LANES));
}

template <class S>
int scan_part_backward(const NonetScan& s, int64_t row, int64_t part) {
    const Layout l(s);
    const Sequence q = sequence(s.starts, row, s.length);
    const Blocks mine = blocks(s.channels, s.parts, part);
    const int64_t block_states = l.states * LANES, sums = CHUNK * block_states;
    Memory memory(2 * CHUNK * l.states + (mine.end - mine.begin) * 2 * block_states + 2 * sums);
    if (!memory.data) return NONET_NO_MEMORY;
    float *b = memory.data, *c = b + CHUNK * l.states, *db = c + CHUNK * l.states, *dc = db + sums;
    float *rates = dc + sums, *carries = rates + (mine.end - mine.begin) * block_states;
    for (int64_t block = mine.begin; block < mine.end; ++block) {
        const int64_t c0 = block * LANES;
        load_rates(rates + (block - mine.begin) * block_states, s, l, c0);
        load_states(carries + (block - mine.begin) * block_states, LANES, s.dlast, s, row, c0);
    }
    // Packed sequences share the tensors of one row.
    const int64_t first = ((part * (s.starts ? 1 : s.rows) + q.row) * s.length + q.start) * s.states;
    const int64_t chunks = (q.length + CHUNK - 1) / CHUNK;
    for (int64_t k = chunks - 1; k >= 0; --k) {
        const int64_t t0 = k * CHUNK, steps = least(CHUNK, q.length - t0);
        load_writes<S>(b, s.b, q, t0, steps, s.states, l.groups);
        load_writes<S>(c, s.c, q, t0, steps, s.states, l.groups);
        memset(db, 0, 2 * sums * sizeof(float));
        for (int64_t block = mine.begin; block < mine.end; ++block) {
            const int64_t c0 = block * LANES, channels = least(LANES, s.channels - c0), t = q.start + t0;
            alignas(64) Tiles tile;
            alignas(64) Gradients grad;
            alignas(64) float z[TILE], dout[TILE];
            read<S>(tile, s, q, c0, t0, steps);
            load_tile(dout, place<S>(s.dout, q.row, c0, t), s.dout.stride[1], s.dout.stride[2], channels, steps);
            if (s.z.data)
                load_tile(z, place<S>(s.z, q.row, c0, t), s.z.stride[1], s.z.stride[2], channels, steps);
            for (int64_t i = 0; i < steps * LANES; i += LANES) {
                V gate = s.z.data ? silu(load(z + i)) : all(1.0f);
                store(grad.dy + i, load(dout + i) * gate);
                store(grad.du + i, V{});
                store(grad.ddt + i, V{});
            }
            const float* state = front(s, l, row, k) + c0;
            float* da = s.da + row * l.states * l.channels + c0;
            for (int64_t g = 0; g < l.groups; ++g) {
                const int64_t at = (block - mine.begin) * block_states + g * GROUP * LANES;
                const int64_t of = g * CHUNK * GROUP, n = g * GROUP * l.channels;
                V rate[GROUP];
                for (int j = 0; j < GROUP; ++j) rate[j] = load(rates + at + j * LANES);
                (all_small(tile, rate) ? replay<true> : replay<false>)(tile, grad, rate, b + of, c + of, state + n,
                                                                      l.channels, steps);
                retreat(tile, grad, rate, b + of, c + of, state + n, carries + at, da + n, l.channels,
                        db + of * LANES, dc + of * LANES, steps);
            }
            V bias = load_strided(s.delta_bias, c0, channels), skip = load_strided(s.d, c0, channels);
            V dskip = {}, dbias = {};
            float* raw = grad.decays;
            load_tile(raw, place<S>(s.delta, q.row, c0, t), s.delta.stride[1], s.delta.stride[2], channels, steps);
            for (int64_t i = 0; i < steps * LANES; i += LANES) {
                V u = load(tile.u + i), dy = load(grad.dy + i), du = load(grad.du + i), dt = load(tile.dt + i);
                // The rates carry a factor log2(e), which their gradient must not.
                V ddelta = load(grad.ddt + i) * LN2 + du * u;
                if (s.softplus) ddelta *= sigmoid(load(raw + i) + bias);
                dskip += dy * u;
                dbias += ddelta;
                store(grad.du + i, du * dt + dy * skip);
                store(grad.ddt + i, ddelta);
                if (s.z.data) {
                    V gate = load(z + i), open = sigmoid(gate), y = load(tile.y + i) + skip * u;
                    store(z + i, load(dout + i) * y * open * (1.0f + gate * (1.0f - open)));
                }
            }
            add_to(s.dd + row * l.channels + c0, dskip);
            add_to(s.dbias + row * l.channels + c0, dbias);
            store_tile(grad.du, place<S>(s.du, q.row, c0, t), s.du.stride[1], s.du.stride[2], channels, steps);
            store_tile(grad.ddt, place<S>(s.ddelta, q.row, c0, t), s.ddelta.stride[1], s.ddelta.stride[2], channels,
                       steps);
            if (s.z.data)
                store_tile(z, place<S>(s.dz, q.row, c0, t), s.dz.stride[1], s.dz.stride[2], channels, steps);
        }
        add_lanes(s.db + first + t0 * s.states, db, steps, s.states);
        add_lanes(s.dc + first + t0 * s.states, dc, steps, s.states);
    }
    if (s.dinitial.data)
        for (int64_t block = mine.begin; block < mine.end; ++block)
            store_states(carries + (block - mine.begin) * block_states, LANES, s.dinitial, s, row, block * LANES);
    return NONET_OK;
}

int selective_scan(const NonetScan* s) {
    if (s->dtype == NONET_BFLOAT16) return every_part<NonetScan, scan_part<bfloat16>>(s, s->states);
    return every_part<NonetScan, scan_part<float>>(s, s->states);
}

int selective_scan_backward(const NonetScan* s) {
    if (s->dtype == NONET_BFLOAT16) return every_part<NonetScan, scan_part_backward<bfloat16>>(s, s->states);
    return every_part<NonetScan, scan_part_backward<float>>(s, s->states);
}

}  // namespace
