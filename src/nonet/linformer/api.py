r"""Attention on summaries: Linformer as published, and a block-causal form of it that is our own."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nonet.linformer import METHOD
from nonet.linformer.rows import shift
from nonet.select import implementation
from nonet.shapes import (
    Tensors,
    check_heads,
    check_number,
    check_values,
    check_whole,
    lengths_to_mask,
    zeroed,
)

_WHOLE = Tensors(
    "H D K",
    q="B H T D",
    k="B G S D",
    v="B G S D",
    e="[G] K L",
    f="[G] K L",
    key_lengths="B: whole?",
    key_starts="B: whole?",
)
_BLOCKS = Tensors(
    "H T D K",
    q="B H T D",
    k="B G S D",
    v="B G S D",
    slot_k="B G M K D",
    slot_v="B G M K D",
    past="B: whole?",
    alibi_slopes="[B] H: float?",
)
_SUMMARY = Tensors(x="B G S D", e="[G] K c")


def linformer_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B G S D"],
    v: Float[Tensor, "B G S D"],
    e: Float[Tensor, "*G K L"],
    f: Float[Tensor, "*G K L"],
    *,
    scale: float | None = None,
    key_lengths: Int[Tensor, " B"] | None = None,
    key_starts: Int[Tensor, " B"] | None = None,
    impl: str = "auto",
) -> Float[Tensor, "B H T D"]:
    r"""Returns attention to K slots, each a learned sum over all keys; every token sees every other.

    .. math:: o_i = \sum_{n=1}^{K} \mathrm{softmax}_n(s\, q_i \cdot (E k)_n)\, (F v)_n

    Args:
        q: queries ``(B, H, T, D)``.
        k: keys ``(B, G, S, D)``; G divides H, and query head h reads key head ``h // (H // G)``.
        v: values ``(B, G, S, D)``.
        e: projects keys: ``(K, L)`` for all heads or ``(G, K, L)``. A text of S < L tokens uses the first
            S columns.
        f: projects values, in the shape of ``e``.
        scale: factor on scores, ``D ** -0.5`` by default.
        key_lengths: keys that row b has, from 0 to S; those behind it are taken as zero, whatever they hold.
        key_starts: the first key of row b, for padding on the left; it meets the first column of ``e``.
        impl: ``"torch"``, ``"reference"`` or ``"auto"``.

    Returns:
        ``(B, H, T, D)`` in the dtype of q.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape, dtype, device or option is wrong, S is above L, or ``impl`` cannot serve.

    Complexity: ``4 B D K (G S + H T)`` operations. Source: Wang et al. 2020 (2006.04768), equation 7.
    """
    sizes = _WHOLE.check(q, k, v, e, f, key_lengths, key_starts)
    check_heads(sizes)
    if sizes["S"] > sizes["L"]:
        raise ValueError(f"e projects at most L={sizes['L']} keys; got S={sizes['S']}")
    check_values(0, sizes["S"], key_lengths=key_lengths, key_starts=key_starts)
    scale = sizes["D"] ** -0.5 if scale is None else scale
    check_number(scale=scale)
    run = implementation(METHOD.op("linformer_attention"), impl, q)
    return run(
        q,
        _real(k, key_starts, key_lengths),
        _real(v, key_starts, key_lengths),
        e,
        f,
        scale=scale,
    )


def block_linformer_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B G S D"],
    v: Float[Tensor, "B G S D"],
    slot_k: Float[Tensor, "B G M K D"],
    slot_v: Float[Tensor, "B G M K D"],
    *,
    block_size: int,
    past: Int[Tensor, " B"] | None = None,
    scale: float | None = None,
    alibi_slopes: Float[Tensor, "*B H"] | None = None,
    impl: str = "auto",
) -> Float[Tensor, "B H T D"]:
    r"""Returns causal attention to the slots of finished blocks and to the tokens of a query's own block.

    This form is our own: the paper's cannot be causal, since each of its slots sums over the whole text.
    Here time is cut into blocks of c tokens, and only a block that lies wholly in the past is summarised.

    .. math:: o_i = \sum_{n \in N_i} p_{in} v_n, \quad p_i = \mathrm{softmax}(s\, q_i \cdot k_n - m_h d_{in})

    where :math:`N_i` holds the K slots of every block before :math:`\lfloor i / c \rfloor`, and the tokens of
    that block up to i; the distance :math:`d_{in}` to a slot is that to place ``c // 2`` of its block.

    Args:
        q: queries ``(B, H, T, D)``.
        k: keys ``(B, G, S, D)``, from the first place of the first query's block on, up to the last query.
        v: values ``(B, G, S, D)``.
        slot_k: keys of blocks ``(B, G, M, K, D)`` from the text's first block on, as :func:`summarise`
            makes them; a block that ends after the last query is not read, whatever it holds.
        slot_v: values of blocks, in the shape of ``slot_k``.
        block_size: tokens c of a block.
        past: tokens of row b before its first query; None when the text begins with it, and then S = T.
        scale: factor on scores, ``D ** -0.5`` by default.
        alibi_slopes: ``(H,)`` or ``(B, H)``; subtracts slope times distance from the scores.
        impl: ``"torch"``, ``"reference"`` or ``"auto"``.

    Returns:
        ``(B, H, T, D)`` in the dtype of q.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape, dtype, device or option is wrong, keys or blocks are missing, or ``impl`` cannot
            serve the call.

    Complexity: about ``4 B H T D (K T / 2c + c / 2)`` operations, for long texts ``K / c`` times those of
    exact causal attention. Source: none, it is our own; the README says why.
    """
    sizes = _BLOCKS.check(q, k, v, slot_k, slot_v, past, alibi_slopes)
    check_heads(sizes)
    check_whole(block_size=block_size)
    scale = sizes["D"] ** -0.5 if scale is None else scale
    check_number(scale=scale)
    _check_past(past, block_size, sizes)
    run = implementation(METHOD.op("block_linformer_attention"), impl, q)
    return run(
        q,
        k,
        v,
        slot_k,
        slot_v,
        block_size=block_size,
        past=past,
        scale=scale,
        alibi_slopes=alibi_slopes,
    )


def summarise(
    x: Float[Tensor, "B G S D"], e: Float[Tensor, "*G K c"], block_size: int
) -> Float[Tensor, "B G M K D"]:
    r"""Returns K learned sums over each finished block: slot n of block m is :math:`\sum_j E_{nj} x_{mc+j}`.

    Args:
        x: keys or values ``(B, G, S, D)``.
        e: ``(K, c)`` for all heads or ``(G, K, c)``.
        block_size: tokens c of a block.

    Returns:
        ``(B, G, S // c, K, D)``; tokens behind the last finished block are left out.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape, dtype, device or ``block_size`` is wrong.

    Complexity: ``2 B G S D K`` operations.
    """
    sizes = _SUMMARY.check(x, e)
    check_whole(block_size=block_size)
    if sizes["c"] != block_size:
        raise ValueError(f"e must have block_size={block_size} columns; got the shape {tuple(e.shape)}")
    blocks = sizes["S"] // block_size
    finished = x[:, :, : blocks * block_size].unflatten(2, (blocks, block_size))
    return (e if e.dim() == 2 else e[:, None]) @ finished


def _check_past(past: Tensor | None, block_size: int, sizes: dict[str, int]) -> None:
    """Checks that there are the keys and blocks that queries after so many tokens see."""
    queries, keys, blocks = sizes["T"], sizes["S"], sizes["M"]
    if past is None:
        if keys != queries:
            raise ValueError(f"k must hold as many keys as there are queries, T={queries}; got {keys}")
    elif not past.is_cpu or not past.numel() or torch.compiler.is_compiling():
        return
    before = [0] if past is None else past.tolist()
    if min(before) < 0:
        raise ValueError(f"past must be 0 or more; got {min(before)}")
    if keys < (needed := queries + max(n % block_size for n in before)):
        raise ValueError(f"k must hold {needed} keys, from the first query's block on; got {keys}")
    if blocks < (needed := (queries - 1 + max(before)) // block_size):
        raise ValueError(f"slot_k must hold {needed} blocks for {queries} queries; got {blocks}")


def _real(x: Tensor, starts: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Returns the real tokens of each row from its first place on, and zeros behind them."""
    if starts is None and lengths is None:
        return x
    size = x.shape[2]
    count = torch.full((len(x),), size, device=x.device) if lengths is None else lengths
    if starts is not None:
        x, count = shift(x, starts), count - starts
    return zeroed(x, ~lengths_to_mask(count, size)[:, None, :, None])
