"""The gated recurrence of MatMul-free models, and products with packed ternary weights."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from nonet.matmulfree import METHOD
from nonet.matmulfree.packed import PackedTernary
from nonet.select import implementation
from nonet.shapes import Tensors, check_flag, check_number, check_packing, check_positive

_SCAN = Tensors(
    "C T",
    i="B C T",
    f="B C T",
    lower_bound="C: float?",
    cu_seqlens="ends: whole?",
    initial_state="n C: float?",
)
_LINEAR = Tensors("in", x="... in", packed="out bytes: byte", bias="out?", norm_weight="in?")


def hgrn_scan(
    i: Float[Tensor, "B C T"],
    f: Float[Tensor, "B C T"],
    initial_state: Float[Tensor, "n C"] | None = None,
    return_last_state: bool = False,
    from_logits: bool = False,
    lower_bound: Float[Tensor, " C"] | None = None,
    cu_seqlens: Int[Tensor, " ends"] | None = None,
    impl: str = "auto",
) -> Float[Tensor, "B C T"] | tuple[Float[Tensor, "B C T"], Float[Tensor, "n C"]]:
    r"""Returns the states of a recurrence that forgets by ``f`` and takes in ``i``, channel by channel.

    .. math:: h_t = f_t \, h_{t-1} + i_t

    ``from_logits`` first makes gates of them, as a gated recurrent unit does, with l for ``lower_bound``:

    .. math:: f \leftarrow l + (1 - l) \, \sigma(f), \qquad i \leftarrow (1 - f) \, \mathrm{SiLU}(i)

    Args:
        i: what each step takes in, ``(B, C, T)``, T at least 1; any strides, fastest channels-last.
        f: what each step keeps, ``(B, C, T)``; any real number. As a logit, plus infinity keeps all and
            takes in nothing, which is what padding needs.
        initial_state: the state before the first step, ``(n, C)``, n = B; zeros by default.
        return_last_state: also return the state after the last step, from which a next call continues.
        from_logits: f is the logit of what is kept, and i what goes through the SiLU.
        lower_bound: the least that each channel keeps, ``(C,)``, from 0 to 1; needs ``from_logits``.
        cu_seqlens: ``0, T_1, T_1 + T_2, ..., T`` in int32 or int64 ``(n + 1,)``: the row (B is 1) holds
            n sequences, one behind the other, each with a state of its own.
        impl: ``"cpu"``, ``"torch"``, ``"reference"`` or ``"auto"``.

    Returns:
        All states ``(B, C, T)`` in the dtype of i; with ``return_last_state`` also ``(n, C)``, in float32
        or in float64 when i is. Everything is differentiable once. i and f share a dtype; initial_state and
        lower_bound may be of a wider one. All but ``"reference"`` compute in float32 or wider.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape, dtype, device or option is wrong, or ``impl`` cannot serve the call.

    Complexity: ``2 B C T`` operations; ``"torch"`` does ``5 B C T`` in about ``4 sqrt(T)`` steps, each over
    many places at once. Source: Zhu et al. 2024 (2406.02528), section 3.3.1; Qin et al. 2023 (2311.04823).
    """
    sizes = _SCAN.check(i, f, lower_bound, cu_seqlens, initial_state)
    check_packing(cu_seqlens, initial_state, sizes)
    check_flag(return_last_state=return_last_state, from_logits=from_logits)
    if lower_bound is not None and not from_logits:
        raise ValueError("lower_bound needs from_logits=True, since gates given as such have no bound")
    run = implementation(METHOD.op("hgrn_scan"), impl, i)
    out, last = run(
        i,
        f,
        initial_state=initial_state,
        from_logits=from_logits,
        lower_bound=lower_bound,
        cu_seqlens=cu_seqlens,
    )
    return (out, last) if return_last_state else out


def ternary_linear(
    x: Float[Tensor, "*batch in"],
    packed: PackedTernary,
    bias: Float[Tensor, " out"] | None = None,
    norm_weight: Float[Tensor, " in"] | None = None,
    impl: str = "auto",
    eps: float = 1e-6,
) -> Float[Tensor, "*batch out"]:
    r"""Returns a linear map by packed ternary weights of an input that is rounded to 8 bits.

    .. math:: s = 127 / \max(\max|x|, 10^{-5}), \qquad
        y = \mathrm{round}(s\,x) \, \tilde W^\top \cdot \gamma / s + b

    Args:
        x: ``(..., in)``; each token, that is each vector of ``in`` entries, has its own scale s.
        packed: the weight :math:`\gamma \tilde W`, ``(out, in)``, from :func:`nonet.matmulfree.pack_ternary`.
        bias: ``(out,)``, added at the end.
        norm_weight: ``(in,)``: x goes through an RMSNorm with this weight first. None for no norm.
        impl: ``"torch"``, ``"reference"`` or ``"auto"``.
        eps: epsilon of the norm.

    Returns:
        ``(..., out)`` in the dtype of x. The sum over ``in`` is one of integers and exact in ``"torch"`` up
        to a width of 131072. Differentiable with respect to x (straight through the rounding), bias and
        norm_weight; ``packed`` is a constant.

    Raises:
        TypeError: an argument is no tensor, or ``packed`` no :class:`PackedTernary`.
        ValueError: a shape, dtype, device or option is wrong, or ``impl`` cannot serve the call.

    Complexity: ``2 in out`` additions a token; ``"torch"`` unpacks the weights at every call. Source: Ma
    et al. 2024 (2402.17764), equations 1 to 3; Zhu et al. 2024 (2406.02528), algorithm 1.
    """
    if not isinstance(packed, PackedTernary):
        raise TypeError(f"packed must be a PackedTernary, as of pack_ternary; got {type(packed).__name__}")
    sizes = _LINEAR.check(x, packed.codes, bias, norm_weight)
    if sizes["in"] != packed.shape[1]:
        raise ValueError(f"x must have the shape (..., in={packed.shape[1]}); got {tuple(x.shape)}")
    check_number(eps=eps)
    check_positive(eps=eps)
    return implementation(METHOD.op("ternary_linear"), impl, x)(x, packed, bias, norm_weight, eps)
