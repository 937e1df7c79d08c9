# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # FlashAttention
#
# Attention compares every token with every other. For 4,096 tokens that is a table of 16.8 million
# scores, and a model has such a table for each head of each layer. On a GPU computing the scores is
# quick; what takes long is to carry the table to memory and back, several times. FlashAttention computes
# the same result, up to rounding, and never writes the table down.
#
# You need to know what attention computes, and a little PyTorch. Reading takes a quarter of an hour.

# %% tags=["front"]
from functools import partial
from statistics import median

import torch
from matplotlib.patches import Rectangle

from nonet import learn
from nonet.flash import flash_attention, reference, standard_bytes, tiled, tiled_attention, tiled_bytes

lab = learn.Lab()

# %% [markdown] tags=["front"]
# ## The idea
#
# A processor has a large memory that is slow and a small one that is fast. Cut the table of scores into
# tiles so small that a tile, and what it is made of, fits into the fast memory. Turn each tile into its
# share of the output at once, and forget it.
#
# One thing stands in the way. Softmax subtracts the largest score of a row from all scores of that row,
# so that no exponential overflows, and divides by the sum of the exponentials. Both need the *whole*
# row, and a tile sees only part of it. The way out is to keep two numbers a row: `m`, the largest score
# so far, and `l`, the sum of the exponentials so far. When a later tile brings a larger score, all that
# was collected is scaled down by one factor, and the row is right again.

# %% tags=["hide-input"]
look = learn.LOOKS["flash"]
figure, (stored, cut) = learn.canvas(7.2, 3.5, columns=2)
for axes, title in ((stored, "standard: the table is stored"), (cut, "FlashAttention: one tile at a time")):
    axes.set(title=title, xlim=(-1, 9.6), ylim=(9, -0.1), aspect="equal")
    axes.text(4, 8.7, "keys", ha="center"), axes.text(-0.7, 4, "queries", va="center", rotation=90)
    axes.axis("off")
    axes.add_patch(Rectangle((0, 0), 8, 8, fill=False, edgecolor=learn.LOOKS["baseline"].colour))
stored.add_patch(Rectangle((0, 0), 8, 8, color=learn.LOOKS["baseline"].colour, alpha=0.45))
for at in (2, 4, 6):
    cut.plot([0, 8], [at, at], color=learn.LOOKS["baseline"].colour, lw=0.7)
    cut.plot([at, at], [0, 8], color=learn.LOOKS["baseline"].colour, lw=0.7)
cut.add_patch(Rectangle((4, 2), 2, 2, color=look.colour))
cut.annotate("", (6.9, 3), (6.1, 3), arrowprops={"arrowstyle": "->", "color": look.colour, "lw": 2})
cut.add_patch(Rectangle((8.4, 2), 0.9, 2, color=look.colour, alpha=0.5))
cut.text(8.85, 1.6, "m, l", ha="center", color=look.colour, weight="bold")
learn.show(
    figure,
    "A full table of scores on the left; on the right a single tile, beside two numbers for each of its rows",
)

# %% [markdown] tags=["front"]
# ## The mathematics
#
# For one block of queries $Q_i$, tiles of keys $K_j$ and values $V_j$ pass by. $S$ is a tile of scores,
# $m$ the largest score of each row so far, $P$ the exponentials relative to it, $\ell$ their sum so far,
# and $O$ the output before the division. A prime marks the new value; at the start $m = -\infty$, and
# $\ell$ and $O$ are zero. $m$ and $\ell$ have one number a row, which each row uses for itself; rowmax
# and rowsum are the largest entry and the sum of each row. $i$ and $j$ count the blocks:
#
# $$S = \frac{Q_i K_j^\top}{\sqrt d}, \qquad m' = \max(m, \mathrm{rowmax}\, S), \qquad P = e^{S - m'}$$
#
# $$\ell' = e^{m - m'} \ell + \mathrm{rowsum}\, P, \qquad O' = e^{m - m'} O + P V_j$$
#
# After the last tile $O / \ell$ is the output. The backward pass keeps no score. Beside inputs and output
# it needs only $L = m + \log \ell$, one number a row: each tile is computed again, and $e^{S - L}$ are
# its weights of attention, already divided by the sum.
#
# | symbol | in the code | is |
# | --- | --- | --- |
# | $d$ | `D` | the width of a head |
# | $Q_i, K_j, V_j$ | `q_i`, `k_j`, `v_j` | a block of queries, and the keys and values of a tile |
# | $S, P$ | `s`, `p` | the scores of a tile, and their exponentials |
# | $m'$ | `m_new` | the largest score of the row, this tile included |
# | $m, \ell, O$ | `m_i`, `l_i`, `o_i` | what is kept of the row while tiles pass |
# | $e^{m - m'}$ | `fade` | what the new maximum does to all that came before |
# | $L$ | `lse` | the log-sum-exp of a row, kept for the backward pass |

# %% [markdown] tags=["front"]
# ## A simple implementation
#
# First the oracle, which all else is held to: plain attention over the whole table. `s` holds all scores,
# and `seen` says which key a query may see. `lse` is the $L$ from above, so that `exp(s - lse)` is softmax.

# %% tags=["front"]
learn.show_source(reference._softmax_v)

# %% [markdown] tags=["front"]
# Now in tiles. The loop over tiles of keys is the five formulas above, in their order. `tiles.scores`
# gives $S$, with $-\infty$ where a query may not see a key; `tiles.meet` leaves out tiles in which no
# query sees a key; `_finite` puts 0 for the $-\infty$ of a row that has seen no key yet; and `traffic`
# counts what crosses between the two memories.

# %% tags=["front"]
learn.show_source(tiled.TiledAttention.forward)

# %% [markdown] tags=["front"]
# ## The check
#
# Tiles of any size give what the oracle gives, gradients included. In float64 the difference is rounding
# alone.

# %% tags=["front"]
torch.manual_seed(0)
q, k, v = (torch.randn(1, 2, 200, 32, dtype=torch.float64, requires_grad=True) for _ in range(3))
whole = flash_attention(q, k, v, causal=True, impl="reference")
for block in (16, 64, 200):
    tiles = tiled_attention(q, k, v, causal=True, block_q=block, block_k=block)
    grads = [torch.autograd.grad(out.square().sum(), (q, k, v), retain_graph=True) for out in (whole, tiles)]
    error = max(
        (whole - tiles).abs().max(), *((a - b).abs().max() for a, b in zip(*grads, strict=True))
    ).item()
    print(f"tiles of {block:3} x {block:<3}  largest difference, gradients included: {error:.1e}")
    assert error < 1e-12

# %% [markdown]
# What models call is neither of the two, but the first implementation in the library's order that can
# serve a call. `torch` is PyTorch's fused operator, itself a FlashAttention; what it cannot do, such as
# `softcap`, is left to the oracle. On this machine:

# %%
learn.show_implementations("flash")

# %% [markdown]
# In float32 it may err at most twice as much as the oracle does in float32, both against float64:

# %%
learn.check_op(flash_attention, {"q": q.float(), "k": k.float(), "v": v.float()}, causal=True)

# %% [markdown]
# ## Play
#
# How many bytes move depends on the size of the tiles, and so on the fast memory. Every block of queries
# reads all keys and values once, so larger blocks mean fewer readings. Here is what one head moves in
# the forward pass, at two bytes a number. Move the sliders in Jupyter: where does storing the table win?


# %%
def bytes_moved(length=1024, width=64):
    blocks = [8, 16, 32, 64, 128, 256, 512]
    moved = [tiled_bytes(length, width, block, block, item=2) / 1e6 for block in blocks]
    figure, axes = learn.canvas(7.2, 3.2)
    axes.plot(blocks, moved, label="tile by tile", **learn.LOOKS["flash"].line)
    standard = standard_bytes(length, width, item=2) / 1e6
    axes.plot(blocks, len(blocks) * [standard], label="table stored", **learn.LOOKS["baseline"].line)
    axes.set(xlabel="queries in a tile", ylabel="megabytes moved", xscale="log", yscale="log")
    axes.set(xticks=blocks, xticklabels=blocks, title=f"{length:,} tokens, head of width {width}")
    axes.legend()
    learn.show(figure, "Bytes moved against the size of a tile, falling; the stored table as a level line")


learn.play(bytes_moved, length=[256, 512, 1024, 2048, 4096, 8192], width=[32, 64, 128, 256])

# %% [markdown]
# ## A measurement
#
# Bytes are not seconds. So here, now: a forward pass over 4 heads of width 64, by the fast path and by
# the oracle, which stores the table and is written to be read, at growing lengths. Times are medians of
# calls made in turns; memory is the peak above what was in use before.

# %%
rows, names = [], {"fast path": "auto", "table stored": "reference"}
for length in (512, 1024, 2048):
    given = [torch.randn(1, 4, length, 64) for _ in range(3)]
    ways = {name: partial(flash_attention, *given, impl=impl) for name, impl in names.items()}
    with torch.no_grad():
        times = {name: 1e3 * median(found) for name, found in lab.seconds(ways, repeats=5).items()}
        memory = {name: lab.peak(way) / 2**20 for name, way in ways.items()}
    rows.append([f"{length:,}", *(f"{times[n]:.1f}" for n in ways), *(f"{memory[n]:.1f}" for n in ways)])
learn.show_table(("tokens", "fast path, ms", "table stored, ms", "fast path, MiB", "table stored, MiB"), rows)
faster = times["table stored"] / times["fast path"]
print(f"On {lab.threads}, at {length:,} tokens the fast path is {faster:.1f} times as fast.")
assert memory["fast path"] < memory["table stored"]

# %% [markdown]
# Bytes can be counted, too. The readable version counts what it moves, and for one head the counter and
# the formula agree to the byte:

# %%
traffic = tiled.Traffic()
one = (torch.randn(1, 1, 1024, 64, dtype=torch.float16) for _ in range(3))
tiled_attention(*one, block_q=128, block_k=128, traffic=traffic)
formula = tiled_bytes(1024, 64, 128, 128, item=2)
print(f"counted {traffic.total:,} bytes, formula {formula:,}; stored {standard_bytes(1024, 64, item=2):,}")
assert traffic.total == formula

# %% [markdown]
# ## What the papers claim, and what was found
#
# The papers measure GPUs. Memory, bytes and rounding can be tested anywhere; speed only for the machine
# at hand.

# %%
learn.show_claims("flash")

# %% [markdown]
# ## When not to use it
#
# The result is exact, so there is no quality to lose. But the arithmetic still grows with the square of
# the length: twice the text takes attention four times as long. And with a window, ALiBi or padding,
# PyTorch's operator is given a mask as large as the table, which costs the memory that was saved;
# `tiled_attention` needs no such mask, and leaves out tiles outside the window. For very long texts look
# at the recurrent mixers (Mamba, MatMul-free) or at the approximations (Reformer, Linformer). On short
# texts the table is small and little is won.
#
# ## Exercise
#
# The first picture shows square tiles. Which is cheaper in the forward pass: tiles of 256 queries by 64
# keys, or of 64 queries by 256 keys? Guess first, then ask `tiled_bytes`.

# %% [markdown]
# <details><summary>Answer</summary>
#
# `tiled_bytes(1024, 64, 256, 64)` moves four times fewer keys and values than `tiled_bytes(1024, 64, 64,
# 256)`: the queries of a block decide how often keys and values are read, and the keys of a tile only
# how much is read at a time. That is so because the loop over queries is the outer one, as in
# FlashAttention-2. In the first FlashAttention it was the inner one, and queries and outputs went back
# and forth for every block of keys.
#
# </details>

# %% tags=["hide-cell"]
tall, wide = tiled_bytes(1024, 64, 256, 64), tiled_bytes(1024, 64, 64, 256)
print(f"256 queries by 64 keys: {tall:,} bytes; 64 by 256: {wide:,}")
assert tall < wide
