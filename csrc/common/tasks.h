// How the work of a call is cut into tasks: a row each, or a share of a row's channels.
#pragma once
#include <stdlib.h>

#include "table.h"
#include "vector.h"

namespace {

// A sequence among the rows of the tensors: a whole row, or a stretch of a packed one.
struct Sequence {
    int64_t row, start, length;
};

INLINE Sequence sequence(const int64_t* starts, int64_t row, int64_t length) {
    if (starts) return {0, starts[row], starts[row + 1] - starts[row]};
    return {row, 0, length};
}

// The blocks of LANES channels that a part of a row takes.
struct Blocks {
    int64_t begin, end;
};

INLINE Blocks blocks(int64_t channels, int64_t parts, int64_t part) {
    int64_t count = (channels + LANES - 1) / LANES;
    return {part * count / parts, (part + 1) * count / parts};
}

INLINE int64_t rounded_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class S>
INLINE S* place(const View& view, int64_t i, int64_t j, int64_t k) {
    return (S*)view.data + i * view.stride[0] + j * view.stride[1] + k * view.stride[2];
}

// A vector of adjacent or strided numbers, zero behind the last; zero everywhere without data.
INLINE V load_strided(const View& view, int64_t from, int64_t count) {
    float lanes[LANES] = {};
    if (view.data)
        for (int64_t k = 0; k < least(count, LANES); ++k)
            lanes[k] = ((const float*)view.data)[(from + k) * view.stride[0]];
    return load(lanes);
}

// Memory of a task, aligned to vectors.
struct Memory {
    float* data;
    explicit Memory(int64_t floats) : data((float*)aligned_alloc(64, rounded_up(floats * 4, 64))) {}
    ~Memory() { free(data); }
    Memory(const Memory&) = delete;
};

// Runs stage(job, begin, end) over [0, count) in pieces of `piece`, on as many threads as there are.
template <class Job, void (*stage)(const Job&, int64_t, int64_t)>
INLINE int share(const Job& job, int64_t count, int64_t piece) {
    struct Context {
        const Job* job;
        int64_t count, piece;
    } context = {&job, count, piece};
    return nonet_parallel(
        (count + piece - 1) / piece,
        [](int64_t begin, int64_t end, void* pointer) {
            const Context& context = *(const Context*)pointer;
            stage(*context.job, begin * context.piece, least(end * context.piece, context.count));
        },
        &context);
}

// Waking the other threads pays off from about so many multiply-adds on.
const int64_t WORTH_SHARING = 1 << 16;

INLINE bool valid(const int64_t* starts, int64_t rows, int64_t length) {
    if (!starts) return true;
    bool rising = starts[0] == 0 && starts[rows] == length;
    for (int64_t row = 0; row < rows; ++row) rising = rising && starts[row] < starts[row + 1];
    return rising;
}

// Runs body(args, row, part) for every row and part; `work` multiply-adds a number of the inputs.
template <class Args, int (*body)(const Args&, int64_t, int64_t)>
int every_part(const Args* args, int64_t work) {
    const int64_t tokens = args->starts ? args->length : args->rows * args->length;
    if (!valid(args->starts, args->rows, args->length)) return NONET_BAD_ARGUMENT;
    struct Context {
        const Args* args;
        int code;
    } context = {args, NONET_OK};
    NonetTask task = [](int64_t begin, int64_t end, void* pointer) {
        Context& context = *(Context*)pointer;
        for (int64_t i = begin; i < end; ++i) {
            int code = body(*context.args, i / context.args->parts, i % context.args->parts);
            if (code != NONET_OK) __atomic_store_n(&context.code, code, __ATOMIC_RELAXED);
        }
    };
    const int64_t count = args->rows * args->parts;
    if (tokens * args->channels * work >= WORTH_SHARING) {
        const int code = nonet_parallel(count, task, &context);
        if (code != NONET_OK) return code;
    } else
        task(0, count, &context);
    return context.code;
}

}  // namespace
