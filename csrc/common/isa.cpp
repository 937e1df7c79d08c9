// Every kernel, compiled once for each instruction set. Whatever is included here lives in an anonymous
// namespace: a shared function would be kept once by the linker, for everyone, in the widest instructions.
#include "../mamba/causal_conv1d.h"
#include "../mamba/mamba_step.h"
#include "../mamba/selective_scan.h"
#include "../matmulfree/hgrn_scan.h"
#include "../tandem/linear_rows.h"
#include "spin.h"
#include "table.h"

#if defined(NONET_ISA_AVX512)
#define NONET_TABLE nonet_avx512
#elif defined(NONET_ISA_AVX2)
#define NONET_TABLE nonet_avx2
#else
#define NONET_TABLE nonet_portable
#endif

const Table NONET_TABLE = {
    selective_scan,     selective_scan_backward, causal_conv1d, causal_conv1d_backward, hgrn_scan,
    hgrn_scan_backward, mamba_step,              linear_rows,   spin_multiply_add,      spin_exponential,
};
