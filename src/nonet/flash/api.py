r"""Exact attention with the semantics of the FlashAttention package, on any device."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from nonet.flash import METHOD
from nonet.select import implementation
from nonet.shapes import (
    Tensors,
    check_ends,
    check_flag,
    check_heads,
    check_number,
    check_positive,
    check_values,
    check_whole,
)

_ATTENTION = Tensors(
    "H D",
    q="B H T D",
    k="B G S D",
    v="B G S D",
    alibi_slopes="[B] H: float?",
    key_lengths="B: whole?",
    key_starts="B: whole?",
    query_lengths="B: whole?",
)
_VARLEN = Tensors(
    "H D ends",
    q="P H D",
    k="Q G D",
    v="Q G D",
    alibi_slopes="H: float?",
    cu_seqlens_q="ends: whole",
    cu_seqlens_k="ends: whole",
)


def flash_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B G S D"],
    v: Float[Tensor, "B G S D"],
    *,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    alibi_slopes: Float[Tensor, "*B H"] | None = None,
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
        key_lengths: keys that row b has, 0 to S; those after them are not seen, and queries align to its end.
        key_starts: the first key of row b that is seen, for padding on the left.
        query_lengths: queries that row b has, T by default: the last of these stands at the last key. Those
            after it are padding and see no key. In a text padded on the right it equals ``key_lengths``.
        return_lse: also return the natural log-sum-exp of each row's scores.
        impl: ``"torch"``, ``"reference"`` or ``"auto"``.

    Returns:
        ``(B, H, T, D)`` in the dtype of q; with ``return_lse`` also ``(B, H, T)``. A row that sees
        no key is zero, and its log-sum-exp is minus infinity. Padding is never read: keys and values that no
        query sees, and queries that see no key, may hold anything, NaN included. NaN in a value that some
        query sees may reach every query of its row and head.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape, dtype, device or option is wrong, or ``impl`` cannot serve the call.

    Complexity: ``4 B H T S D`` operations, half when causal. Source: Dao et al. 2022 (2205.14135),
    algorithm 1; Dao 2023 (2307.08691), section 3.1.
    """
    sizes = _ATTENTION.check(q, k, v, alibi_slopes, key_lengths, key_starts, query_lengths)
    check_heads(sizes)
    check_values(0, sizes["S"], key_lengths=key_lengths)
    check_values(0, key_starts=key_starts)  # beyond the keys where all of a row's are still to come
    check_values(0, sizes["T"], query_lengths=query_lengths)
    scale = sizes["D"] ** -0.5 if scale is None else scale
    _check_options(causal, scale, window, softcap, return_lse)
    run = implementation(METHOD.op("flash_attention"), impl, q, _used(softcap=softcap, return_lse=return_lse))
    return run(
        q,
        k,
        v,
        causal=causal,
        scale=scale,
        window=window,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        key_lengths=key_lengths,
        key_starts=key_starts,
        query_lengths=query_lengths,
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
    alibi_slopes: Float[Tensor, " H"] | None = None,
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
        TypeError: an argument is no tensor.
        ValueError: a shape, dtype, device or option is wrong, or ``impl`` cannot serve the call.

    Complexity: the sum over the sequences of :func:`flash_attention`'s. Source: the FlashAttention
    package's packed interface.
    """
    sizes = _VARLEN.check(q, k, v, alibi_slopes, cu_seqlens_q, cu_seqlens_k)
    check_heads(sizes)
    check_ends("cu_seqlens_q", cu_seqlens_q, "P", sizes["P"], empty=True)
    check_ends("cu_seqlens_k", cu_seqlens_k, "Q", sizes["Q"], empty=True)
    scale = sizes["D"] ** -0.5 if scale is None else scale
    _check_options(causal, scale, window, softcap, return_lse)
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
        scale=scale,
        window=window,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        return_lse=return_lse,
    )


def _check_options(
    causal: bool, scale: float, window: int | None, softcap: float | None, return_lse: bool
) -> None:
    check_flag(causal=causal, return_lse=return_lse)
    check_number(scale=scale)
    if window is not None:
        check_whole(window=window)
    check_positive(softcap=softcap)


def _used(**options: object) -> list[str]:
    return [name for name, value in options.items() if value is not None and value is not False]
