r"""The operations of a Mamba block, on any device: a recurrence, a short convolution, and a whole step."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from nonet.mamba import METHOD
from nonet.operators import learns
from nonet.select import implementation
from nonet.shapes import Tensors, check_choice, check_flag, check_packing, check_positive

_SCAN = Tensors(
    "C T N",
    u="B C T",
    delta="B C T",
    A="C N: float",
    B="B N T",
    C="B N T",
    D="C: float?",
    z="B C T?",
    delta_bias="C: float?",
    cu_seqlens="ends: whole?",
    initial_state="n C N: float?",
)
_CONV = Tensors(
    "C T W",
    x="B C T",
    weight="C W: float",
    bias="C: float?",
    cu_seqlens="ends: whole?",
    initial_state="n C W-1?",
)
_STEP = Tensors(
    "E C N R W",
    x="B E",
    conv_state="B C L: float",
    ssm_state="B C N: float",
    in_proj="2C E",
    conv_weight="C W: float",
    conv_bias="C: float?",
    x_proj="R+2N C",
    dt_proj="C R",
    dt_bias="C: float?",
    A_log="C N: float",
    D="C: float",
    out_proj="E C",
    in_bias="2C?",
    out_bias="E?",
)


def selective_scan(
    u: Float[Tensor, "B C T"],
    delta: Float[Tensor, "B C T"],
    A: Float[Tensor, "C N"],
    B: Float[Tensor, "B N T"],
    C: Float[Tensor, "B N T"],
    D: Float[Tensor, " C"] | None = None,
    z: Float[Tensor, "B C T"] | None = None,
    delta_bias: Float[Tensor, " C"] | None = None,
    delta_softplus: bool = False,
    initial_state: Float[Tensor, "n C N"] | None = None,
    return_last_state: bool = False,
    cu_seqlens: Int[Tensor, " ends"] | None = None,
    impl: str = "auto",
) -> Float[Tensor, "B C T"] | tuple[Float[Tensor, "B C T"], Float[Tensor, "n C N"]]:
    r"""Returns the output of a linear recurrence whose every step is chosen by its token.

    .. math::
        h_t = \exp(\Delta_t A)\, h_{t-1} + \Delta_t B_t u_t, \qquad
        y_t = (C_t \cdot h_t + D u_t)\, \mathrm{SiLU}(z_t)

    where :math:`\Delta` is ``delta``, plus ``delta_bias`` and through the softplus when asked.

    Args:
        u: inputs ``(B, C, T)``.
        delta: step sizes ``(B, C, T)``.
        A: rates ``(C, N)``; negative ones forget.
        B: what a token writes to the state, ``(B, N, T)``, shared by the channels.
        C: what a token reads from the state, ``(B, N, T)``, shared by the channels.
        D: weight of the input in the output, ``(C,)``.
        z: gate ``(B, C, T)``; the output is multiplied by its SiLU.
        delta_bias: added to ``delta``, ``(C,)``.
        delta_softplus: the step is ``log(1 + exp(delta + delta_bias))``.
        initial_state: the state before the first token ``(n, C, N)``, n = B; zero by default.
        return_last_state: also return the state behind the last token, to continue from.
        cu_seqlens: ``0, T_1, T_1 + T_2, ..., T`` in int32 or int64 ``(n + 1,)``: the row (B is 1)
            holds n sequences, one behind the other, each with a state of its own.
        impl: ``"cpu"``, ``"torch"``, ``"reference"`` or ``"auto"``.

    Returns:
        ``(B, C, T)`` in the dtype of u; with ``return_last_state`` also ``(n, C, N)``, in float32
        or in float64 when u is. All floating arguments get gradients. u, delta, B, C and z share a
        dtype; A, D, delta_bias and initial_state may be of a wider one.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape, dtype, device or option is wrong, or ``impl`` cannot serve the call.

    Complexity: ``6 B C N T`` operations and ``B C N T`` exponentials; fastest on tensors whose
    channels lie next to each other. Source: Gu and Dao 2023 (2312.00752), algorithm 2 and
    equations 2 and 4, with B discretised as in the authors' code.
    """
    sizes = _SCAN.check(u, delta, A, B, C, D, z, delta_bias, cu_seqlens, initial_state)
    check_packing(cu_seqlens, initial_state, sizes)
    check_flag(delta_softplus=delta_softplus, return_last_state=return_last_state)
    run = implementation(METHOD.op("selective_scan"), impl, u)
    out, last = run(
        u,
        delta,
        A,
        B,
        C,
        D=D,
        z=z,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        initial_state=initial_state,
        cu_seqlens=cu_seqlens,
    )
    return (out, last) if return_last_state else out


def causal_conv1d(
    x: Float[Tensor, "B C T"],
    weight: Float[Tensor, "C W"],
    bias: Float[Tensor, " C"] | None = None,
    activation: str | None = None,
    initial_state: Float[Tensor, "n C W-1"] | None = None,
    return_last_state: bool = False,
    cu_seqlens: Int[Tensor, " ends"] | None = None,
    impl: str = "auto",
) -> Float[Tensor, "B C T"] | tuple[Float[Tensor, "B C T"], Float[Tensor, "n C W-1"]]:
    r"""Returns a weighted sum of the last W inputs of each channel.

    .. math:: y_t = \sigma\Big(b + \sum_{w=0}^{W-1} \mathrm{weight}_w\, x_{t-W+1+w}\Big)

    Args:
        x: inputs ``(B, C, T)``.
        weight: ``(C, W)``; the last tap meets the newest input.
        bias: ``(C,)``.
        activation: None or ``"silu"``.
        initial_state: the W - 1 inputs before the first, oldest first ``(n, C, W - 1)``, n = B; zero
            by default.
        return_last_state: also return the last W - 1 inputs, to continue from.
        cu_seqlens: n sequences in one row, as in :func:`selective_scan`.
        impl: ``"cpu"``, ``"torch"``, ``"reference"`` or ``"auto"``.

    Returns:
        ``(B, C, T)`` and, with ``return_last_state``, ``(n, C, W - 1)``, both in the dtype of x.
        All floating arguments get gradients. initial_state has the dtype of x; weight and bias may
        be of a wider one.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape, dtype, device or option is wrong, or ``impl`` cannot serve the call.

    Complexity: ``2 B C W T`` operations. Source: Gu and Dao 2023 (2312.00752), section 3.4; the
    interface is that of the authors' causal-conv1d package.
    """
    sizes = _CONV.check(x, weight, bias, cu_seqlens, initial_state)
    check_packing(cu_seqlens, initial_state, sizes)
    check_choice("activation", activation, (None, "silu"))
    check_flag(return_last_state=return_last_state)
    run = implementation(METHOD.op("causal_conv1d"), impl, x)
    out, last = run(
        x, weight, bias=bias, activation=activation, initial_state=initial_state, cu_seqlens=cu_seqlens
    )
    return (out, last) if return_last_state else out


def mamba_step(
    x: Float[Tensor, "B E"],
    conv_state: Float[Tensor, "B C L"],
    ssm_state: Float[Tensor, "B C N"],
    in_proj: Float[Tensor, "2*C E"],
    conv_weight: Float[Tensor, "C W"],
    conv_bias: Float[Tensor, " C"] | None,
    x_proj: Float[Tensor, "P C"],
    dt_proj: Float[Tensor, "C R"],
    dt_bias: Float[Tensor, " C"] | None,
    A_log: Float[Tensor, "C N"],
    D: Float[Tensor, " C"],
    out_proj: Float[Tensor, "E C"],
    *,
    in_bias: Float[Tensor, " 2*C"] | None = None,
    out_bias: Float[Tensor, " E"] | None = None,
    norm_eps: float | None = None,
    impl: str = "auto",
) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B C L"], Float[Tensor, "B C N"]]:
    r"""Returns the output of a whole Mamba block for one token, and the states behind that token.

    .. math::
        [x', z] = W_{in} x + b_{in}, \quad u = \mathrm{SiLU}(\mathrm{conv}(x')), \quad
        [r, B, C] = W_x u, \quad \Delta = \mathrm{softplus}(W_{dt} r + b_{dt}), \\
        h' = \exp(-\Delta e^{A_{log}})\, h + \Delta B u, \quad
        \mathrm{out} = W_{out} \big((C \cdot h' + D u)\, \mathrm{SiLU}(z)\big) + b_{out}

    Args:
        x: one token of each row ``(B, E)``.
        conv_state: inputs of the convolution, oldest first ``(B, C, L)``; of these the last W - 1 count.
        ssm_state: h, the state of the recurrence ``(B, C, N)``.
        in_proj: ``(2C, E)``.
        conv_weight: ``(C, W)``; the last tap meets the newest input.
        conv_bias: ``(C,)`` or None.
        x_proj: ``(R + 2N, C)``.
        dt_proj: ``(C, R)``.
        dt_bias: ``(C,)`` or None.
        A_log: logarithms of the rates of forgetting ``(C, N)``.
        D: weight of the input in the output, ``(C,)``.
        out_proj: ``(E, C)``.
        in_bias: ``(2C,)``.
        out_bias: ``(E,)``.
        norm_eps: r, B and C are each divided by their root mean square first, with this epsilon, as in
            FalconMamba; None for no norm.
        impl: ``"cpu"``, ``"torch"``, ``"reference"`` or ``"auto"``.

    Returns:
        The output ``(B, E)`` in the dtype of x; the new conv_state, the old one moved by one place, in
        its dtype; the new ssm_state in float32, or in float64 when x is. The states that were given stay
        as they are. x, the four projections and their biases share a dtype; the others may be of a
        wider one. All floating arguments get gradients, except from ``"cpu"``.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape, dtype, device or option is wrong, or ``impl`` cannot serve the call.

    Complexity: ``B (6 C E + 4 C R + 4 C N)`` operations for the projections and ``B C (6 N + 2 W)`` for
    the rest; every weight is read once. Source: Gu and Dao 2023 (2312.00752), section 3.4; Zuo et al.
    2024 (2410.05355) for the norms.
    """
    tensors = (
        x,
        conv_state,
        ssm_state,
        in_proj,
        conv_weight,
        conv_bias,
        x_proj,
        dt_proj,
        dt_bias,
        A_log,
        D,
        out_proj,
    )
    sizes = _STEP.check(*tensors, in_bias, out_bias)
    if sizes["L"] < sizes["W"] - 1:
        raise ValueError(f"conv_state must hold W - 1={sizes['W'] - 1} inputs at least; got L={sizes['L']}")
    check_positive(norm_eps=norm_eps)
    learnt = ("gradient",) if learns(*tensors, in_bias, out_bias) else ()
    run = implementation(METHOD.op("mamba_step"), impl, x, learnt)
    return run(*tensors, in_bias=in_bias, out_bias=out_bias, norm_eps=norm_eps)
