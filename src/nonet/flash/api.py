r"""Exact attention with the semantics of the FlashAttention package, on any device."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from nonet.flash import METHOD
from nonet.select import implementation
from nonet.shapes import check_floating, check_positive, check_shape, check_slopes, divides


def flash_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B G S D"],
    v: Float[Tensor, "B G S D"],
    *,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    key_lengths: Int[Tensor, " B"] | None = None,
    key_starts: Int[Tensor, " B"] | None = None,
    query_lengths: Int[Tensor, " B"] | None = None,
    return_lse: bool = False,
    impl: str = "auto",
) -> Float[Tensor, "B H T D"] | tuple[Float[Tensor, "B H T D"], Float[Tensor, "B H T"]]:
    r"""Returns exact attention, row by row a weighted mean of values.

    .. math:: o_i = \sum_j \mathrm{softmax}_j(\mathrm{cap}(s\, q_i \cdot k_j) - m_h |i - j|)\, v_j

    Args:
        q: queries ``(B, H, T, D)``.
        k: keys ``(B, G, S, D)``; G divides H, and query head h reads key head ``h // (H // G)``.
        v: values ``(B, G, S, D)``.
        causal: a query sees no later key. The last query stands at the last key (bottom right).
        scale: factor on scores, ``D ** -0.5`` by default.
        window: keys at a distance below ``window`` are seen: when causal, that many, itself included.
        softcap: bounds scaled scores to ``softcap * tanh(score / softcap)``, before bias and mask.
        alibi_slopes: ``(H,)`` or ``(B, H)``; subtracts slope times distance from the capped scores.
        key_lengths: keys that row b has; those behind are not seen, and queries align to its end.
        key_starts: the first key of row b that is seen, for padding on the left.
        query_lengths: queries that row b has, T by default: the last of these stands at the last key, and
            those behind it are padding. In a text padded on the right it is the same as ``key_lengths``.
        return_lse: also return the natural log-sum-exp of each row's scores.
        impl: ``"torch"``, ``"reference"`` or ``"auto"``.

    Returns:
        ``(B, H, T, D)`` in the dtype of q; with ``return_lse`` also ``(B, H, T)``. A row that sees
        no key is zero, and its log-sum-exp is minus infinity.

    Raises:
        ValueError: a shape, dtype or option is wrong, or ``impl`` cannot serve the call.

    Complexity: ``4 B H T S D`` operations, half when causal. Source: Dao et al. 2022 (2205.14135),
    algorithm 1; Dao 2023 (2307.08691), section 3.1.
    """
    sizes: dict[str, int] = {}
    check_shape("q", q, "B H T D", sizes)
    check_shape("k", k, "B G S D", sizes)
    check_shape("v", v, "B G S D", sizes)
    check_floating(q=q, k=k, v=v)
    divides("key heads G", sizes["G"], "query heads H", sizes["H"])
    check_positive(window=window, softcap=softcap)
    check_slopes(alibi_slopes, sizes)
    bounds = {"key_lengths": key_lengths, "key_starts": key_starts, "query_lengths": query_lengths}
    for name, bound in bounds.items():
        if bound is not None:
            check_shape(name, bound, "B", sizes)
    run = implementation(METHOD.op("flash_attention"), impl, q, _used(softcap=softcap, return_lse=return_lse))
    return run(
        q,
        k,
        v,
        causal=causal,
        scale=sizes["D"] ** -0.5 if scale is None else scale,
        window=window,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        **bounds,
        return_lse=return_lse,
    )


def flash_attention_varlen(
    q: Float[Tensor, "P H D"],
    k: Float[Tensor, "Q G D"],
    v: Float[Tensor, "Q G D"],
    cu_seqlens_q: Int[Tensor, " ends"],
    cu_seqlens_k: Int[Tensor, " ends"],
    *,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    return_lse: bool = False,
    impl: str = "auto",
) -> Float[Tensor, "P H D"] | tuple[Float[Tensor, "P H D"], Float[Tensor, "P H"]]:
    """Returns exact attention within each of several sequences packed one behind the other.

    Args:
        q: queries of all sequences ``(P, H, D)``.
        k: keys of all sequences ``(Q, G, D)``.
        v: values of all sequences ``(Q, G, D)``.
        cu_seqlens_q: ``0, T_0, T_0 + T_1, ...``: where the queries of each sequence begin and end.
        cu_seqlens_k: the same for keys.
        causal: as in :func:`flash_attention`, within each sequence.
        scale: as in :func:`flash_attention`.
        window: as in :func:`flash_attention`.
        softcap: as in :func:`flash_attention`.
        alibi_slopes: ``(H,)``, as in :func:`flash_attention`.
        return_lse: also return the log-sum-exp, ``(P, H)``.
        impl: ``"torch"``, ``"reference"`` or ``"auto"``.

    Returns:
        ``(P, H, D)``, and ``(P, H)`` when asked.

    Raises:
        ValueError: a shape, dtype or option is wrong, or ``impl`` cannot serve the call.

    Complexity: the sum over the sequences of :func:`flash_attention`'s. Source: the FlashAttention
    package's packed interface.
    """
    sizes: dict[str, int] = {}
    check_shape("q", q, "P H D", sizes)
    check_shape("k", k, "Q G D", sizes)
    check_shape("v", v, "Q G D", sizes)
    check_floating(q=q, k=k, v=v)
    divides("key heads G", sizes["G"], "query heads H", sizes["H"])
    check_positive(window=window, softcap=softcap)
    if alibi_slopes is not None:
        check_shape("alibi_slopes", alibi_slopes, "H", sizes)
    check_shape("cu_seqlens_q", cu_seqlens_q, "ends", sizes)
    check_shape("cu_seqlens_k", cu_seqlens_k, "ends", sizes)
    for name, ends, total in (
        ("cu_seqlens_q", cu_seqlens_q, sizes["P"]),
        ("cu_seqlens_k", cu_seqlens_k, sizes["Q"]),
    ):
        if int(ends[0]) != 0 or int(ends[-1]) != total or bool((ends.diff() < 0).any()):
            raise ValueError(f"{name} must rise from 0 to {total}; got {ends.tolist()}")
    run = implementation(
        METHOD.op("flash_attention_varlen"), impl, q, _used(softcap=softcap, return_lse=return_lse)
    )
    return run(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        causal=causal,
        scale=sizes["D"] ** -0.5 if scale is None else scale,
        window=window,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        return_lse=return_lse,
    )


def _used(**options: object) -> list[str]:
    return [name for name, value in options.items() if value is not None and value is not False]
