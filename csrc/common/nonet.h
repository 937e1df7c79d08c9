// The C interface of the kernels: plain structs, pointers and sizes, so that one binary serves every
// version of Python and torch. src/nonet/native.py mirrors every struct; a change here raises NONET_ABI.
#pragma once
#include <stdint.h>

#define NONET_ABI 2

#if defined(_WIN32)
#define NONET_API extern "C" __declspec(dllexport)
#else
#define NONET_API extern "C" __attribute__((visibility("default")))
#endif

enum { NONET_OK = 0, NONET_BAD_STRUCT = 1, NONET_BAD_ARGUMENT = 2, NONET_NO_MEMORY = 3, NONET_POOL_FAILED = 4 };

// Storage of the large tensors of a call. States and sums are always float32.
enum { NONET_FLOAT32 = 0, NONET_BFLOAT16 = 1 };

enum { NONET_PORTABLE = 0, NONET_AVX2 = 1, NONET_AVX512 = 2, NONET_ISAS = 3 };

// Tokens between two saved states of the selective scan.
enum { NONET_CHUNK = 32 };

// A tensor of up to three axes. Strides count elements. Absent tensors have no data.
typedef struct {
    void* data;
    int64_t stride[3];
} View;

// Rows are sequences: those of a batch, each T tokens long, or, with `starts` (rows + 1 places), those
// packed one after the other into a single row of the tensors.
typedef struct {
    int64_t size;  // sizeof this struct, so that a caller of another version is noticed
    int64_t dtype, rows, channels, states, length, parts;  // parts: tasks that share the channels of a row
    int64_t softplus, train;
    const int64_t* starts;
    View u, delta, z, out;        // (row, channel, time)
    View b, c;                    // (row, state, time)
    View a;                       // (channel, state), float32
    View d, delta_bias;           // (channel), float32
    View initial, last;           // (row, channel, state), float32
    float* fronts;                // states before each chunk when training, else one a row
    // Backward only.
    View dout, du, ddelta, dz;    // (row, channel, time)
    View dlast, dinitial;         // (row, channel, state), float32
    float *db, *dc;               // (part, row, time, state), float32
    float *da, *dd, *dbias;       // (row, states', channels'), (row, channels'), rounded up as fronts are
} NonetScan;

typedef struct {
    int64_t size;
    int64_t dtype, rows, channels, width, length, silu, parts;
    const int64_t* starts;
    View x, out;                  // (row, channel, time)
    View weight, bias;            // (channel, tap), (channel), float32
    View initial, last;           // (row, channel, tap), dtype
    View dout, dx, dlast, dinitial;
    float *dweight, *dbias;       // (row, channel, tap), (row, channel)
} NonetConv;

typedef struct {
    int64_t size;
    int64_t dtype, rows, channels, length, logits, parts;
    const int64_t* starts;
    View i, f, h;                 // (row, channel, time)
    View lower_bound;             // (channel), float32
    View initial, last;           // (row, channel), float32
    View dh, di, df;              // (row, channel, time)
    View dlast, dinitial;         // (row, channel), float32
    float* dlower_bound;          // (row, channel)
} NonetHgrn;

// One token through a Mamba block. Tokens and matrices are of `dtype`, matrices with rows of adjacent
// numbers; the parameters of the convolution and the recurrence are float32 if `wide`, else of dtype too.
typedef struct {
    int64_t size;
    int64_t dtype, wide, rows, width, channels, states, rank, taps, memory;  // memory: tokens that conv holds
    double norm_eps;              // below zero: no norm
    View x, out;                  // (row, width)
    View conv, new_conv;          // (row, channel, memory)
    View ssm, new_ssm;            // (row, channel, state), float32, states adjacent
    View in_proj, in_bias, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, a_log, d, out_proj, out_bias;
    float* work;                  // rows * (3 channels + rank + 2 states + width)
} NonetStep;

// A linear layer on some rows. Sums are float32.
typedef struct {
    int64_t size;
    int64_t dtype, weight_dtype, inputs, outputs;  // dtype: of x and out
    int64_t stride;               // numbers from a row of the weight to the next
    void* weight;                 // (output, input), inputs adjacent
    // What differs from call to call.
    int64_t rows;
    void *x, *out;                // (row, input), (row, output), without gaps
    float* bias;                  // (output)
} NonetLinear;

// The pool of the host: runs task(begin, end, context) over parts of [0, count); returns zero when all are done.
typedef void (*NonetTask)(int64_t begin, int64_t end, void* context);
typedef int32_t (*NonetPool)(int64_t begin, int64_t end, int64_t grain, NonetTask task, void* context);

NONET_API int64_t nonet_abi(void);
NONET_API void nonet_set_pool(NonetPool pool);      // null: everything runs on the calling thread
NONET_API int64_t nonet_isas(void);                 // bit k: this machine runs isa k
NONET_API int nonet_set_isa(int64_t isa);           // NONET_BAD_ARGUMENT where the machine lacks it
NONET_API int64_t nonet_isa(void);

NONET_API int nonet_selective_scan(const NonetScan* args);
NONET_API int nonet_selective_scan_backward(const NonetScan* args);
NONET_API int nonet_causal_conv1d(const NonetConv* args);
NONET_API int nonet_causal_conv1d_backward(const NonetConv* args);
NONET_API int nonet_hgrn_scan(const NonetHgrn* args);
NONET_API int nonet_hgrn_scan_backward(const NonetHgrn* args);
NONET_API int nonet_mamba_step(const NonetStep* args);
NONET_API int nonet_linear_rows(const NonetLinear* args);

// Asks for large pages under fresh memory that is about to be filled. A hint: nothing depends on it.
NONET_API void nonet_expect(void* data, int64_t bytes);

// Runs `rounds` of a loop that nothing but this unit of the processor limits, on the calling thread, and
// returns what was done: multiply-adds count two operations; exponentials are those of the kernels.
NONET_API double nonet_spin_multiply_add(int64_t rounds);
NONET_API double nonet_spin_exponential(int64_t rounds);
