"""What an annotation does not say: which sizes fit each other, and which values an argument may have.

Each rule is asked for what it draws by a :class:`drawn.Drawing`, under the name of an argument or the letter
of a size, and ``"name of operation"`` comes before ``"name"``.
"""

from functools import partial

import torch

from nonet.flash import Traffic
from nonet.matmulfree import pack_ternary
from nonet.position import Linear, RotaryConfig


def heads_of_keys(d):
    heads = d.size("H")
    return d.choose(*(n for n in range(1, heads + 1) if heads % n == 0)) if heads else 1


def sequences(d):
    """Rows of states: one a row, or one a sequence of a packed row."""
    return len(d.argument("cu_seqlens")) - 1 if d.packed and d.size("T") else d.size("B")


def finished(d):
    """Blocks that the last query may see, and sometimes one more."""
    past = d.argument("past")
    last = d.size("T") - 1 + (0 if past is None or not past.numel() else int(past.max()))
    return max(0, last // d.argument("block_size")) + d.choose(0, 1)


def keys_from_block(d):
    past, queries, block = d.argument("past"), d.size("T"), d.argument("block_size")
    return queries if past is None else queries + block - d.choose(0, 1)


def rising(d, shape):
    """Where the sequences of one row end, none of them empty."""
    total = d.size("T")
    inner = d.random.sample(range(1, total), d.random.randrange(min(4, total))) if total > 1 else []
    return torch.tensor([0, *sorted(inner), total])


def cut(letter, d, shape):
    """Where sequences end, some of them empty."""
    total = d.size(letter)
    inner = sorted(d.random.randint(0, total) for _ in range(shape[0] - 2))
    return torch.tensor([0, *inner, total][: shape[0]])


def up_to(letters, d, shape):
    """Whole numbers up to the first of some sizes that the operation has."""
    return d.whole(shape, 0, next(d.size(letter) for letter in letters if letter in d.sizes))


def off_ties(d, shape):
    """Tokens that no rounding of the last bit moves from one of 255 steps to the next."""
    steps = d.whole(shape, -126, 126).double()
    steps += 0.25 * d.whole(shape, -1, 1) * (steps.abs() < 63)
    steps[..., :1] = 127.0
    return steps * 2.0 ** d.choose(-3, 0, 5)


def positive(d, shape):
    return torch.sigmoid(d.normal(shape))


SIZES = {
    "B": lambda d: 1 if d.packed else d.choose(1, 1, 2, 3),
    "H": lambda d: d.choose(1, 2, 3, 4, 6),
    "G": heads_of_keys,
    "G of summarise": lambda d: d.choose(1, 2, 3),
    "G of lsh_buckets": lambda d: d.choose(1, d.size("H")),
    "D": lambda d: d.choose(1, 2, 4, 5, 8, 16),
    "N": lambda d: d.choose(1, 2, 3, 4, 5, 16),
    "K": lambda d: d.choose(1, 2, 3),
    "F": lambda d: d.choose(1, 2),
    "W": lambda d: d.choose(1, 2, 3, 4, 4, 6),
    "R": lambda d: d.argument("n_hashes") if "n_hashes" in d.hints else d.choose(1, 2, 3, 5),
    "L of linformer_attention": lambda d: d.size("S") + d.choose(0, 1, 5),
    "L of mamba_step": lambda d: max(0, d.size("W") - 1 + d.choose(0, 0, 1, 3)),
    "P of mamba_step": lambda d: d.size("R") + 2 * d.size("N"),
    "S of block_linformer_attention": keys_from_block,
    "M": finished,
    "c": lambda d: d.argument("block_size"),
    "n": sequences,
    "n of accept_greedy": lambda d: d.choose(0, 1, 2, 5),
    "half": lambda d: d.random.randint(0, d.size("D") // 2),
    "half of rotary_angles": lambda d: d.choose(1, 2, 5),
    "half of lsh_buckets": lambda d: d.choose(1, 2, 5),
    "ends": lambda d: d.choose(2, 3, 5),
}

# Whether an argument that may be None is given: as often as not, unless it needs another.
PRESENT = {
    "rows": lambda d: d.size("K") != d.size("B") or d.choose(True, False),
    "lower_bound": lambda d: d.argument("from_logits"),
    "cu_seqlens": lambda d: d.packed and d.size("T") > 0,
    "train_length": lambda d: d.argument("length") is not None,
}

# Tensors that are not normal numbers.
VALUES = {
    "delta": lambda d, shape: d.normal(shape).abs() * 0.3,
    "A": lambda d, shape: -d.normal(shape).exp(),
    "f of hgrn_scan": lambda d, shape: d.normal(shape) if d.argument("from_logits") else positive(d, shape),
    "lower_bound": positive,
    "alibi_slopes": positive,
    "slopes": positive,
    "scales": positive,
    "inv_freq": positive,
    "x of ternary_linear": off_ties,
    "norm_weight": lambda d, shape: 2.0 ** d.whole(shape, -1, 1).double(),
    "keep": lambda d, shape: d.normal(shape) > 0,
    "key_lengths": partial(up_to, "ST"),
    "key_starts": partial(up_to, "ST"),
    "query_lengths": partial(up_to, "T"),
    "past": lambda d, shape: d.whole(shape, 0, 20),
    "rows": lambda d, shape: d.whole(shape, -1, d.size("K") - 1),
    "buckets": lambda d, shape: d.whole(shape, 0, 5) + d.choose(0, 0, 2**24),
    "places": lambda d, shape: d.whole(shape, 0, 100),
    "draft": lambda d, shape: d.whole(shape, 0, d.size("V") - 1),
    "ids": lambda d, shape: torch.cat([d.whole([1], 0, 9), d.whole([d.choose(0, 9, 40)], -1, 9)]),
    "x of chunked": lambda d, shape: d.normal([d.choose(0, 1, 5), d.choose(1, 3, 7)]),
    "cu_seqlens": rising,
    "cu_seqlens_q": partial(cut, "P"),
    "cu_seqlens_k": partial(cut, "Q"),
}

# Floating tensors that may be of a wider dtype than the others.
WIDER = frozenset(
    {
        *("A", "A_log", "D", "alibi_slopes", "conv_bias", "conv_weight", "delta_bias", "dt_bias"),
        *("lower_bound", "scales", "ssm_state"),
    }
)

# Tensors that the largest is looked for in, where two alike would leave the choice open.
CHOSEN_BY = frozenset(("rotations", "scores"))

NUMBERS = {
    "scale": lambda d: d.choose(0.3, 1.0, -0.5, 0.0, 2),
    "window": lambda d: d.choose(1, 3, 10, 100),
    "softcap": lambda d: d.choose(0.5, 3, 30.0),
    "block_q": lambda d: d.choose(1, 3, 64),
    "block_k": lambda d: d.choose(1, 3, 64),
    "block_size": lambda d: d.choose(1, 2, 3, 8),
    "bucket_size": lambda d: d.choose(1, 2, 4, 9),
    "n_hashes": lambda d: d.choose(1, 2, 3),
    "n_buckets": lambda d: d.choose(1, 2, 6, 200),
    "attend": lambda d: d.choose("bucket", "bucket", "chunk", "loose"),
    "queries of lsh_attention": lambda d: d.random.randint(1, max(1, d.size("T"))),
    "activation": lambda d: "silu",
    "packed": lambda d: pack_ternary(d.normal([max(1, d.size("out")), max(1, d.size("in"))]).float()),
    "seed": lambda d: d.choose(0, 1, 12345),
    "eps": lambda d: d.choose(1e-6, 1e-3),
    "norm_eps": lambda d: d.choose(1e-5, 1),
    "attention_factor": lambda d: d.choose(1.0, 1.3),
    "n_heads": lambda d: d.choose(1, 2, 3, 8, 12, 100),
    "heads": lambda d: d.choose(1, 2, 3),
    "head_dim": lambda d: d.choose(4, 8, 16, 64),
    "width": lambda d: d.choose(2, 4, 16),
    "length": lambda d: d.choose(1, 7, 100),
    "train_length": lambda d: d.choose(1, 7, 100),
    "queries": lambda d: d.choose(1, 2, 9),
    "keys": lambda d: d.choose(1, 2, 9),
    "item": lambda d: d.choose(2, 4, 8),
    "size": lambda d: d.choose(1, 2, 100),
    "acceptance": lambda d: d.choose(0.0, 0.5, 1, 1.0),
    "block": lambda d: d.choose(0, 1, 7),
    "dim": lambda d: d.choose(0, 1, -1),
    "dtype": lambda d: d.choose(torch.float32, torch.float64),
    "device": lambda d: d.choose("cpu", torch.device("cpu")),
    "options": lambda d: d.choose(RotaryConfig(), RotaryConfig(base=50.0, partial=0.5, scaling=Linear(2.0))),
    "traffic": lambda d: Traffic(),
    "function": lambda d: torch.clone,
}
