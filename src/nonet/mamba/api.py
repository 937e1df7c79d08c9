r"""The operations of a Mamba block, on any device: a recurrence, a short convolution, and a whole step."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nonet.mamba import METHOD
from nonet.select import implementation
from nonet.shapes import check_choice, check_floating, check_packing, check_positive, check_shape


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
        ValueError: a shape, dtype or option is wrong, or ``impl`` cannot serve the call.

    Complexity: ``6 B C N T`` operations and ``B C N T`` exponentials; fastest on tensors whose
    channels lie next to each other. Source: Gu and Dao 2023 (2312.00752), algorithm 2 and
    equations 2 and 4, with B discretised as in the authors' code.
    """
    sizes: dict[str, int] = {}
    check_shape("u", u, "B C T", sizes)
    check_shape("delta", delta, "B C T", sizes)
    check_shape("A", A, "C N", sizes)
    check_shape("B", B, "B N T", sizes)
    check_shape("C", C, "B N T", sizes)
    _check_given("B C T", sizes, z=z)
    _check_given("C", sizes, D=D, delta_bias=delta_bias)
    check_positive(T=sizes["T"])
    rows = check_packing(cu_seqlens, sizes)
    _check_given(f"{rows} C N", sizes, initial_state=initial_state)
    check_floating(u=u, delta=delta, B=B, C=C, z=z)
    check_floating(A=A)
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
        ValueError: a shape, dtype or option is wrong, or ``impl`` cannot serve the call.

    Complexity: ``2 B C W T`` operations. Source: Gu and Dao 2023 (2312.00752), section 3.4; the
    interface is that of the authors' causal-conv1d package.
    """
    sizes: dict[str, int] = {}
    check_shape("x", x, "B C T", sizes)
    check_shape("weight", weight, "C W", sizes)
    check_positive(T=sizes["T"], W=sizes["W"])
    _check_given("C", sizes, bias=bias)
    rows = check_packing(cu_seqlens, sizes)
    _check_given(f"{rows} C {sizes['W'] - 1}", sizes, initial_state=initial_state)
    check_floating(x=x, initial_state=initial_state)
    check_floating(weight=weight)
    check_choice("activation", activation, (None, "silu"))
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
        ValueError: a shape, dtype or option is wrong, or ``impl`` cannot serve the call.

    Complexity: ``B (6 C E + 4 C R + 4 C N)`` operations for the projections and ``B C (6 N + 2 W)`` for
    the rest; every weight is read once. Source: Gu and Dao 2023 (2312.00752), section 3.4; Zuo et al.
    2024 (2410.05355) for the norms.
    """
    sizes: dict[str, int] = {}
    check_shape("x", x, "B E", sizes)
    check_shape("conv_state", conv_state, "B C L", sizes)
    check_shape("ssm_state", ssm_state, "B C N", sizes)
    check_shape("conv_weight", conv_weight, "C W", sizes)
    check_shape("dt_proj", dt_proj, "C R", sizes)
    double, parts = str(2 * sizes["C"]), str(sizes["R"] + 2 * sizes["N"])
    check_shape("in_proj", in_proj, f"{double} E", sizes)
    check_shape("x_proj", x_proj, f"{parts} C", sizes)
    check_shape("out_proj", out_proj, "E C", sizes)
    check_shape("A_log", A_log, "C N", sizes)
    _check_given(double, sizes, in_bias=in_bias)
    _check_given("C", sizes, conv_bias=conv_bias, dt_bias=dt_bias, D=D)
    _check_given("E", sizes, out_bias=out_bias)
    if sizes["L"] < sizes["W"] - 1:
        raise ValueError(f"conv_state must hold W - 1={sizes['W'] - 1} inputs at least; got L={sizes['L']}")
    check_floating(
        x=x,
        in_proj=in_proj,
        x_proj=x_proj,
        dt_proj=dt_proj,
        out_proj=out_proj,
        in_bias=in_bias,
        out_bias=out_bias,
    )
    for name, tensor in (
        ("conv_state", conv_state),
        ("ssm_state", ssm_state),
        ("conv_weight", conv_weight),
        ("A_log", A_log),
    ):
        check_floating(**{name: tensor})
    check_positive(norm_eps=norm_eps)
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
    given = (t for t in (*tensors, in_bias, out_bias) if t is not None)
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    run = implementation(METHOD.op("mamba_step"), impl, x, ("gradient",) if learns else ())
    return run(*tensors, in_bias=in_bias, out_bias=out_bias, norm_eps=norm_eps)


def _check_given(letters: str, sizes: dict[str, int], **tensors: Tensor | None) -> None:
    """Checks the optional arguments that are given: their shape, and that they are floating."""
    for name, tensor in tensors.items():
        if tensor is not None:
            check_shape(name, tensor, letters, sizes)
            check_floating(**{name: tensor})
