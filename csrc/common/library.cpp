// The entry points: check the struct, choose the instruction set, share out the work.
#include "table.h"

#if !defined(_WIN32)
#include <pthread.h>
#include <sys/mman.h>
#endif

namespace {

const Table* const tables[NONET_ISAS] = {
    &nonet_portable,
#if defined(NONET_X86)
    &nonet_avx2,
    &nonet_avx512,
#endif
};

int64_t available() {
    int64_t found = 1 << NONET_PORTABLE;
#if defined(NONET_X86)
    // These ask the operating system too, whether it saves the wide registers.
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found |= 1 << NONET_AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        found |= 1 << NONET_AVX512;
#endif
    return found;
}

int64_t best() {
    int64_t found = available();
    int64_t isa = NONET_ISAS - 1;
    while (!(found >> isa & 1)) --isa;
    return isa;
}

int64_t chosen = best();
NonetPool pool = nullptr;

#if !defined(_WIN32)
// The threads of a pool do not survive a fork: the child works alone.
void after_fork() { pool = nullptr; }
const int registered = pthread_atfork(nullptr, nullptr, after_fork);
#endif

const Table& kernels() { return *tables[chosen]; }

// Whether sizes are such that a kernel stays inside of its tensors. Python checks them too, by the name of the
// argument; this costs nothing, and whoever calls from elsewhere gets a code and no crash.
bool stored(int64_t dtype) { return dtype == NONET_FLOAT32 || dtype == NONET_BFLOAT16; }

template <class Args>
bool shared(const Args& s) {  // rows and channels, cut into tasks
    return stored(s.dtype) && s.rows >= 0 && s.channels >= 0 && s.length >= 0 && s.parts >= (s.channels > 0);
}

bool sound(const NonetScan& s) { return shared(s) && s.states >= 0 && (s.rows == 0 || s.fronts); }
bool sound(const NonetConv& s) { return shared(s) && s.width >= 1; }
bool sound(const NonetHgrn& s) { return shared(s); }
bool sound(const NonetStep& s) {
    return stored(s.dtype) && s.rows >= 0 && s.width >= 0 && s.channels >= 0 && s.states >= 0 && s.rank >= 0 &&
           s.taps >= 1 && s.memory >= s.taps - 1 && (s.rows == 0 || s.work);
}
bool sound(const NonetLinear& s) {
    return stored(s.dtype) && stored(s.weight_dtype) && s.inputs >= 0 && s.outputs >= 0 && s.rows >= 0;
}

template <class Args>
int run(int (*kernel)(const Args*), const Args* args) {
    if (args->size != sizeof(Args)) return NONET_BAD_STRUCT;
    return sound(*args) ? kernel(args) : NONET_BAD_ARGUMENT;
}

}  // namespace

int nonet_parallel(int64_t count, NonetTask task, void* context) {
    if (count > 1 && pool) return pool(0, count, 1, task, context) == 0 ? NONET_OK : NONET_POOL_FAILED;
    task(0, count, context);
    return NONET_OK;
}

int64_t nonet_abi(void) { return NONET_ABI; }
void nonet_set_pool(NonetPool given) { pool = given; }
int64_t nonet_isas(void) { return available(); }
int64_t nonet_isa(void) { return chosen; }

int nonet_set_isa(int64_t isa) {
    if (isa < 0 || isa >= NONET_ISAS || !(available() >> isa & 1)) return NONET_BAD_ARGUMENT;
    chosen = isa;
    return NONET_OK;
}

int nonet_selective_scan(const NonetScan* args) { return run(kernels().selective_scan, args); }
int nonet_selective_scan_backward(const NonetScan* args) { return run(kernels().selective_scan_backward, args); }
int nonet_causal_conv1d(const NonetConv* args) { return run(kernels().causal_conv1d, args); }
int nonet_causal_conv1d_backward(const NonetConv* args) { return run(kernels().causal_conv1d_backward, args); }
int nonet_hgrn_scan(const NonetHgrn* args) { return run(kernels().hgrn_scan, args); }
int nonet_hgrn_scan_backward(const NonetHgrn* args) { return run(kernels().hgrn_scan_backward, args); }
int nonet_mamba_step(const NonetStep* args) { return run(kernels().mamba_step, args); }
int nonet_linear_rows(const NonetLinear* args) { return run(kernels().linear_rows, args); }

void nonet_expect(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    // Whole pages of the usual size: the system takes the large ones that lie within.
    const uintptr_t page = 4096, begin = ((uintptr_t)data + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)data + (uintptr_t)bytes) / page * page;
    if (begin < end) madvise((void*)begin, end - begin, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

double nonet_spin_multiply_add(int64_t rounds) { return kernels().spin_multiply_add(rounds); }
double nonet_spin_exponential(int64_t rounds) { return kernels().spin_exponential(rounds); }
