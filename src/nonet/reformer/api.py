r"""Attention among tokens that hash alike, and the hash."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nonet.reformer import METHOD
from nonet.select import implementation
from nonet.shapes import (
    Tensors,
    check_choice,
    check_flag,
    check_number,
    check_positive,
    check_values,
    check_whole,
    zeroed,
)

_ONE_HASH = 128  # buckets that one hash tells apart; more are pairs of hashes
_MOST = (
    2**29
)  # buckets times tokens of a bucket, so that whole numbers of 32 bits hold places among all buckets
_ATTENTION = Tensors(
    "H T D",
    qk="B H T D",
    v="B H T D",
    buckets="B H R T: whole?",
    alibi_slopes="[B] H: float?",
    key_starts="B: whole?",
    key_lengths="B: whole?",
)
_HASH = Tensors("D R F half", qk="B H T D: float", rotations="G R F D half: float")


def lsh_attention(
    qk: Float[Tensor, "B H T D"],
    v: Float[Tensor, "B H T D"],
    *,
    n_hashes: int,
    bucket_size: int,
    causal: bool = True,
    seed: int = 0,
    n_buckets: int | None = None,
    buckets: Int[Tensor, "B H R T"] | None = None,
    attend: str = "bucket",
    scale: float = 1.0,
    alibi_slopes: Float[Tensor, "*B H"] | None = None,
    key_starts: Int[Tensor, " B"] | None = None,
    key_lengths: Int[Tensor, " B"] | None = None,
    queries: int | None = None,
    impl: str = "auto",
) -> Float[Tensor, "B H rows D"]:
    r"""Returns attention in which a query looks only among the tokens that hash alike.

    .. math:: o_i = \sum_{j \in P_i} \mathrm{softmax}_j(s\, q_i \cdot q_j / |q_j| - m_h |i - j|)\, v_j,
        \qquad P_i = \bigcup_r P_i^r

    Queries and keys are one tensor. A token is in its own ``P_i`` only when nothing else is. Which keys
    round r shows to query i, ``P_i^r``, is what ``attend`` says, with ``W = 2 bucket_size``:

    - ``"bucket"``: those of its bucket, of which causally the last W up to i, otherwise those whose rank
      in the bucket differs by less than W. A later token changes nothing, so that decoding from a
      cache gives what one call gives. The paper bounds the window by chunks of the sorted order instead.
    - ``"chunk"``: the paper's window. The order by (bucket, position) is cut into chunks of W; seen are
      those of its bucket in its own chunk and in the one before (the first has none before).
      A later token can move the boundaries of chunks.
    - ``"loose"``: the window of common code: its own chunk and the one before whatever their bucket, and
      a key that several rounds show counts several times. Boundaries move as with ``"chunk"``.

    Args:
        qk: queries, which are the keys once they have length one, ``(B, H, T, D)``.
        v: values ``(B, H, T, D)``.
        n_hashes: rounds R of hashing.
        bucket_size: tokens that a bucket holds on average; half of the window.
        causal: a query sees no later key.
        seed: of the random rotations.
        n_buckets: buckets of a round, as in :func:`lsh_rotations`, and at most ``2 ** 29 / bucket_size``;
            about ``T / bucket_size`` by default.
        buckets: ``(B, H, R, T)``, what :func:`lsh_buckets` returned, to attend by the same choice again;
            numbers from 0 to below ``2 ** 29 / bucket_size``.
        attend: ``"bucket"``, ``"chunk"`` or ``"loose"``.
        scale: factor on scores. A key has length one, so that there is no ``D ** -0.5``.
        alibi_slopes: ``(H,)`` or ``(B, H)``, constants; subtracts slope times distance from the scores.
        key_starts: the first token of row b that is no padding.
        key_lengths: the tokens of row b up to the last that is no padding.
        queries: only the last so many rows are wanted, as in decoding from a cache; all by default.
        impl: ``"torch"``, ``"reference"`` or ``"auto"``.

    Returns:
        ``(B, H, T, D)`` in the dtype of qk, or the last ``queries`` rows of it. Padding is never read,
        whatever it holds, is in no bucket of real tokens, and its own rows are zero.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape, dtype, device or option is wrong, or ``impl`` cannot serve the call.

    Complexity: ``B H R T`` times ``3 W / 2`` scores ("bucket"; ``5 W / 2`` when not causal) or ``2 W`` of 4 D
    operations each, and R sorts; one graph for ``torch.compile`` where ``buckets`` are given. Source: Kitaev
    et al. 2020 (2001.04451), section 2 and appendix A.
    """
    sizes = _ATTENTION.check(qk, v, buckets, alibi_slopes, key_starts, key_lengths)
    length = sizes["T"]
    check_whole(n_hashes=n_hashes, bucket_size=bucket_size)
    if n_buckets is not None:
        check_whole(n_buckets=n_buckets)
    check_choice("attend", attend, ("bucket", "chunk", "loose"))
    check_flag(causal=causal)
    check_number(scale=scale)
    check_values(0, length, key_starts=key_starts, key_lengths=key_lengths)
    bucket_size = min(bucket_size, length)  # a larger window shows no more
    window = 2 * bucket_size
    queries = length if queries is None else queries
    check_whole(1, length, queries=queries)
    real = _real(key_starts, key_lengths, sizes)
    if real is not None:
        qk, v = (zeroed(x, ~real[:, None, :, None]) for x in (qk, v))
    if buckets is None:
        rotations = lsh_rotations(
            sizes["D"],
            heads=sizes["H"],
            n_hashes=n_hashes,
            n_buckets=n_buckets or length / bucket_size,
            seed=seed,
        )
        most = (2 * rotations.shape[-1]) ** rotations.shape[2]
        if most * bucket_size > _MOST:
            raise ValueError(f"n_buckets must be at most 2**29 / bucket_size; got {n_buckets}")
        buckets = lsh_buckets(qk, rotations.to(qk.device))
    else:
        if sizes["R"] != n_hashes:
            raise ValueError(f"buckets must hold n_hashes={n_hashes} rounds; got R={sizes['R']}")
        check_values(0, (_MOST - 1) // bucket_size, buckets=buckets)
        buckets = buckets.int()
    if real is not None:
        buckets = buckets.masked_fill(~real[:, None, None], 2 * _MOST // window)
    run = implementation(METHOD.op("lsh_attention"), impl, qk)
    with torch.autocast(qk.device.type, enabled=False):
        out = run(
            qk,
            v,
            buckets,
            window=window,
            causal=causal,
            attend=attend,
            scale=scale,
            alibi_slopes=None if alibi_slopes is None else alibi_slopes.detach(),
            real=real,
            queries=queries,
        )
    return out if real is None else out.masked_fill(~real[:, None, -queries:, None], 0.0)


def lsh_rotations(
    head_dim: int, *, heads: int, n_hashes: int, n_buckets: float, seed: int
) -> Float[Tensor, "H R F D half"]:
    """Returns the random matrices that :func:`lsh_buckets` hashes with, the same on every machine.

    Args:
        head_dim: width D of a head.
        heads: H; each head has its own.
        n_hashes: rounds R, each with its own.
        n_buckets: about how many buckets a round has: rounded to an even number and, above 128, to the
            square of one, for which a round is F = 2 hashes of so many buckets each.
        seed: of the normal numbers.

    Returns:
        ``(H, R, F, D, n / 2)`` in float32, of ``n ** F`` buckets.

    Raises:
        ValueError: a number is not above zero, ``n_buckets`` is above 2**29, or ``seed`` is no whole number.

    Source: section 2 of the paper; Andoni et al. 2015 (1509.02897).
    """
    check_whole(head_dim=head_dim, heads=heads, n_hashes=n_hashes)
    check_whole(-(2**63), 2**64 - 1, seed=seed)
    check_number(n_buckets=n_buckets)
    check_positive(n_buckets=n_buckets)
    if n_buckets > _MOST:
        raise ValueError(f"n_buckets must be at most {_MOST}; got {n_buckets}")
    factors = 1 if n_buckets <= _ONE_HASH else 2
    half = max(1, round(n_buckets ** (1 / factors) / 2))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(heads, n_hashes, factors, head_dim, half, generator=generator, device="cpu")


@torch.no_grad()
def lsh_buckets(
    qk: Float[Tensor, "B H T D"], rotations: Float[Tensor, "G R F D half"]
) -> Int[Tensor, "B H R T"]:
    r"""Returns the bucket of each token in each round: vectors at a small angle fall into the same.

    .. math:: h(x) = \arg\max\,[x R; -x R]

    With F = 2 factors the bucket is the pair of two such hashes, as one number.

    Args:
        qk: vectors ``(B, H, T, D)``; only their directions matter.
        rotations: ``(H or 1, R, F, D, n / 2)`` from :func:`lsh_rotations`.

    Returns:
        ``(B, H, R, T)``, int32, from 0 to below ``n ** F``. Hashes are computed in float32 at least.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape, dtype or device is wrong, or there are 2**31 buckets or more.

    Complexity: ``B H T R F D n`` operations. Source: section 2 of the paper.
    """
    sizes = _HASH.check(qk, rotations)
    if sizes["G"] not in (1, sizes["H"]):
        raise ValueError(f"rotations must have 1 head or H={sizes['H']}; got {sizes['G']}")
    if (2 * sizes["half"]) ** sizes["F"] >= 2**31:
        raise ValueError(f"rotations must have below 2**31 buckets; got {2 * sizes['half']} ** {sizes['F']}")
    with torch.autocast("cpu" if qk.is_meta else qk.device.type, enabled=False):
        x = qk.to(torch.promote_types(qk.dtype, torch.float32))
        turned = x @ rotations.to(x.dtype).permute(0, 3, 1, 2, 4).flatten(2)
    turned = turned.unflatten(-1, rotations.shape[1:3] + rotations.shape[-1:])  # (B, H, T, R, F, n / 2)
    hashes = torch.cat([turned, -turned], dim=-1).argmax(-1)
    n = 2 * sizes["half"]
    numbers = n ** torch.arange(sizes["F"], device=qk.device)
    return (hashes * numbers).sum(-1).transpose(-1, -2).int()


def _real(starts: Tensor | None, lengths: Tensor | None, sizes: dict[str, int]) -> Tensor | None:
    """Returns the (B, T) mask of tokens that are no padding, or None when all are real."""
    real = None
    for bound in (starts, lengths):
        if bound is not None:
            place = torch.arange(sizes["T"], device=bound.device)
            inside = place >= bound[:, None] if bound is starts else place < bound[:, None]
            real = inside if real is None else real & inside
    return real
