// What every instruction set provides; filled in isa.cpp, chosen in library.cpp.
#pragma once
#include "nonet.h"

struct Table {
    int (*selective_scan)(const NonetScan*);
    int (*selective_scan_backward)(const NonetScan*);
    int (*causal_conv1d)(const NonetConv*);
    int (*causal_conv1d_backward)(const NonetConv*);
    int (*hgrn_scan)(const NonetHgrn*);
    int (*hgrn_scan_backward)(const NonetHgrn*);
    int (*mamba_step)(const NonetStep*);
    int (*linear_rows)(const NonetLinear*);
    double (*spin_multiply_add)(int64_t);
    double (*spin_exponential)(int64_t);
};

extern const Table nonet_portable;
#if defined(NONET_X86)
extern const Table nonet_avx2;
extern const Table nonet_avx512;
#endif

// Runs task(begin, end, context) over [0, count) on the threads of the host; returns a code.
int nonet_parallel(int64_t count, NonetTask task, void* context);
