"""Bytes and operations that a workload cannot do without, as formulas and as numbers."""

from __future__ import annotations

from typing import Any

from nonet.bench.workloads import Workload

# In the letters of the sizes; s is the bytes of a large tensor's number, r those of a number in a row of
# linear_rows, P the numbers in a model's weights.
# Bytes: every argument is read once and every result written once. An operation is an addition or a
# multiplication; a multiply-add is two.
_SCAN = {
    "bytes": "s*(4*B*C*T + 2*B*N*T) + 4*C*(N + 2)",  # u, delta, z, y; B, C; A, D, delta_bias
    "operations": "6*B*C*N*T",
    "exponentials": "B*C*T*(N + 2)",  # decays, softplus, SiLU
}
_FORMULAS: dict[tuple[str, str], dict[str, str]] = {
    ("selective_scan", "forward"): _SCAN,
    ("selective_scan", "training forward"): _SCAN,
    ("selective_scan", "forward+backward"): {
        "bytes": "s*(11*B*C*T + 6*B*N*T) + 12*C*(N + 2)",  # and dy; u, delta, z, B, C again; gradients
        "operations": "24*B*C*N*T",  # 6 forward, 4 to have the states again, 14 for the gradients
        "exponentials": "2*B*C*T*(N + 2)",
    },
    ("causal_conv1d", "forward"): {
        "bytes": "2*s*B*C*T + 4*C*(W + 1)",
        "operations": "2*B*C*T*W",
        "exponentials": "B*C*T",
    },
    ("causal_conv1d", "forward+backward"): {
        "bytes": "5*s*B*C*T + 12*C*(W + 1)",  # x, y; dy, x again, dx
        "operations": "8*B*C*T*W",  # forward, that again for SiLU's slope, dx, dweight
        "exponentials": "2*B*C*T",
    },
    ("hgrn_scan", "forward"): {"bytes": "3*s*B*C*T", "operations": "2*B*C*T"},  # i, f; h
    ("hgrn_scan", "forward+backward"): {"bytes": "8*s*B*C*T", "operations": "5*B*C*T"},  # dh, f, h; di, df
    ("mamba", "training step"): {"operations": "6*B*P*T"},
    ("mamba", "prefill"): {"operations": "2*B*P*T"},
    ("mamba", "decode"): {"bytes": "s*P", "operations": "2*B*P"},
    ("lora", "training step"): {"operations": "4*B*P*T"},  # no weight has a gradient but the few new ones
    ("lora", "training forward"): {"operations": "2*B*T*(P - E*V)"},
    ("lora", "forward"): {"operations": "2*B*P*T"},
    ("linear_rows", "forward"): {"bytes": "s*I*O + r*R*(I + O)", "operations": "2*R*I*O"},
}


def cost(workload: Workload, **letters: int) -> dict[str, dict[str, Any]]:
    """Returns ``bytes``, ``operations`` and ``exponentials``, each with ``formula`` and ``count``.

    Args:
        workload: what is measured; what nobody has counted for it is left out.
        letters: those of the formulas that its sizes do not hold.
    """
    s, r = (2 if dtype == "bfloat16" else 4 for dtype in (workload.dtype, workload.rows))
    known = {**workload.sizes, **letters, "s": s, "r": r}
    formulas = _FORMULAS[workload.kernel, workload.what]
    return {kind: {"formula": f, "count": eval(f, {}, known)} for kind, f in formulas.items()}
