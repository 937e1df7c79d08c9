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
# # ALiBi and RoPE
#
# Attention by itself sees a bag of tokens: mix up the words of a sentence, and the score of any two
# stays what it was. So a model has to be told where each token stands; a mask that hides the future tells
# it only a little. How it is told decides something else, too: whether a model that learned from short
# texts can read long ones. The oldest way adds a vector for each place to the token there. It fails as
# soon as a text is longer than those of training: the vectors of later places were never learned from, or
# do not exist.
#
# ALiBi and RoPE tell *distances* instead, inside attention. For ALiBi that is enough to read on; RoPE
# needs some help, as the measurement shows. You need to know how scores of attention are made, and a
# little PyTorch. Reading takes a quarter of an hour.

# %% tags=["front"]
import math

import torch
from matplotlib.patches import Arc, Circle

from nonet import learn
from nonet.flash import flash_attention, tiled_attention
from nonet.position import (
    DynamicNTK,
    Linear,
    RotaryConfig,
    YaRN,
    alibi_bias,
    alibi_slopes,
    api,
    apply_rotary,
    reference,
    rotary_angles,
    rotary_frequencies,
)

lab = learn.Lab()

# %% [markdown] tags=["front"]
# ## The idea
#
# **ALiBi** makes far tokens quieter. From each score it takes away the distance of the two tokens, times
# a slope. Every head has a slope of its own: one hears hardly more than the last few words, another
# hears a whole page. Nothing is learned, and a distance that was never seen simply costs a little more.
#
# **RoPE** gives every token clocks. Two numbers of a query or key are the hand of a clock, and the hand
# turns by a fixed angle from each place to the next; there are fast clocks and slow ones. A score is a
# sum of products of hands, and such a product knows only how long two hands are and the angle *between*
# them. Move both tokens along by as many places as you like: both hands turn by the same angle, and the
# score stays.

# %% tags=["hide-input"]
look, other = learn.LOOKS["position"], learn.LOOKS["baseline"]
figure, (left, middle, right) = learn.canvas(7.6, 3.0, columns=3, width_ratios=[1.5, 1, 1])
distances = torch.arange(33)
for slope in alibi_slopes(8)[:6]:
    left.plot(distances, -slope * distances, color=look.colour, lw=1.6)
left.set(xlabel="distance, tokens", ylabel="added to the score", ylim=(-8.4, 0.4))
left.set_title("ALiBi: six heads of eight")
for axes, places in ((middle, (1, 3)), (right, (6, 8))):
    axes.add_patch(Circle((0, 0), 1, fill=False, edgecolor=other.colour))
    for place, colour, name in zip(places, (other.colour, look.colour), ("key", "query"), strict=True):
        x, y = math.sin(0.5 * place), math.cos(0.5 * place)
        axes.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "->", "color": colour, "lw": 2.2})
        axes.text(1.5 * x, 1.4 * y, f"{name}\n{place}", color=colour, ha="center", va="center")
    turn = [90 - math.degrees(0.5 * place) for place in places]
    axes.add_patch(Arc((0, 0), 0.8, 0.8, theta1=turn[1], theta2=turn[0], color=look.colour, lw=3))
    axes.set(xlim=(-1.9, 1.9), ylim=(-1.9, 1.9), aspect="equal")
    axes.axis("off")
middle.set_title("RoPE: places 1 and 3")
right.set_title("places 6 and 8")
learn.show(
    figure,
    "Left, straight lines that fall with the distance, one a head. Right, two clocks with two hands each: "
    "the hands have moved on, the angle between them is the same",
)

# %% [markdown] tags=["front"]
# ## The mathematics
#
# ALiBi changes the score of the query $q_i$ at place $i$ and the key $k_j$ at place $j$. $D$ is the width
# of a head. Of $H$ heads, where $H$ is a power of two, head $h$ from 1 to $H$ has the slope $m_h$:
#
# $$\frac{q_i \cdot k_j}{\sqrt D} - m_h\, |i - j|, \qquad m_h = 2^{-8h/H}$$
#
# Further down $m$ without an index is a place, not a slope; both letters are the papers'.
#
# RoPE changes queries and keys before they meet. The $d$ dims of a head that turn, usually all, are
# taken in pairs. Pair number $p$, counted from 0, with the numbers $(a, b)$, becomes at place $m$
#
# $$\begin{pmatrix}
# a \cos m\theta_p - b \sin m\theta_p \\ b \cos m\theta_p + a \sin m\theta_p
# \end{pmatrix}$$
#
# with $\theta_p = 10000^{-2p/d}$: the first pair turns by 1 radian a place, the last hardly at all.
#
# Written with complex numbers, with $\mathrm i^2 = -1$, this is
# $(a + \mathrm i b)\, e^{\mathrm i m \theta_p}$. A score is the sum over pairs of the real part of a
# query times the conjugate of a key, and for a query at $m$ and a key at $n$ this product holds
# $e^{\mathrm i (m - n) \theta_p}$: the distance, nothing else.
#
# To read texts that are $s$ times as long as the length $L$ of training, the clocks of a trained model are
# slowed. *Position interpolation* slows all of them, $\theta' = \theta / s$, so that no hand goes
# where it has never been. *NTK-aware* scaling and *YaRN* spare the fast ones. A clock that went round
# many times in training has been everywhere already, and it is what tells neighbours apart. NTK-aware
# scaling changes the base: $10000\, s^{d/(d-2)}$ in place of 10000, which slows the slowest clock $s$
# times and the fastest not at all. YaRN leaves clocks that go round 32 times or more within $L$, slows
# $s$ times those that do not go round once, and blends in between; it also makes all hands longer by the
# factor $0.1 \ln s + 1$.
#
# | symbol | in the code | is |
# | --- | --- | --- |
# | $m_h$ | `slopes`, of `alibi_slopes` | what a distance of one token costs in a head |
# | $m$, $n$ | `places` | where a token stands, for RoPE |
# | $\theta_p$ | `inv_freq`, of `rotary_frequencies` | how far a pair turns from one place to the next |
# | $\cos m\theta_p$, $\sin m\theta_p$ | `cos`, `sin`, of `rotary_angles` | the turn of a hand |
# | $s$, $L$ | `factor`, `original_length` | how many times as long, and the length of training |

# %% [markdown] tags=["front"]
# ## A simple implementation
#
# All of RoPE is one rotation of pairs. A pair is two neighbours, as in the paper, or the same place of
# two halves, as in Llama; the two differ only in the order of the dims.

# %% tags=["front"]
learn.show_source(reference.apply_rotary)

# %% [markdown] tags=["front"]
# ALiBi is a table that is added to the scores; `alibi_slopes` gives the $m_h$ of the formula.

# %% tags=["front"]
learn.show_source(api.alibi_bias)

# %% [markdown] tags=["front"]
# ## The check
#
# RoPE has no other path than the one above, so it is held against complex numbers. And scores have to
# stay when all places move. Here they move by a thousand, in float64.

# %% tags=["front"]
torch.manual_seed(0)
q, k = (torch.randn(1, 2, 50, 32, dtype=torch.float64) for _ in range(2))
inv_freq, _ = rotary_frequencies(32, dtype=torch.float64)


def turned(x, first):
    return apply_rotary(x, *rotary_angles(inv_freq, torch.arange(first, first + 50)[None]))


hands = torch.complex(q[..., :16], q[..., 16:])  # the same place of two halves
hands = hands * torch.exp(1j * torch.arange(50)[:, None] * inv_freq)
complex_error = (turned(q, 0) - torch.cat([hands.real, hands.imag], dim=-1)).abs().max().item()
scores, moved = (turned(q, first) @ turned(k, first).mT for first in (0, 1000))
shift_error = (scores - moved).abs().max().item()
print(f"rotation against complex numbers: {complex_error:.1e}")
print(f"scores before and after all places moved by 1,000: {shift_error:.1e}")
assert complex_error < 1e-12
assert shift_error < 1e-9

# %% [markdown] tags=["front"]
# A model hands attention the slopes, not the table. A kernel can then make the table tile by tile and
# never hold it whole, as `nonet.flash.tiled_attention` does; PyTorch's operator still gets it whole. Both
# may err at most twice as much as attention with the table does in float32, against float64.

# %% tags=["front"]
v, slopes = torch.randn(1, 2, 50, 32, dtype=torch.float64), alibi_slopes(2)
future = torch.ones(50, 50, dtype=torch.bool).triu(1)
single = [x.float() for x in (q, k, v)]


def with_table(q, k, v):
    scores = q @ k.mT / math.sqrt(32) + alibi_bias(slopes.to(q), 50, 50)
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ v


plain, exact = with_table(*single), with_table(*(x.double() for x in single))
for way in (flash_attention, tiled_attention):
    fast = way(*single, causal=True, alibi_slopes=slopes)
    learn.check(way.__name__, fast, plain, exact)

# %%
learn.show_implementations("position")

# %% [markdown]
# ## Play
#
# Every clock of a head, from the slowest on the left to the fastest, by how many times it goes round
# within the length of training. The lines show the fraction of its own speed that each scaling leaves it,
# for texts `factor` times as long. Position interpolation treats all alike. Where do the others begin to
# slow? Move `length`: the longer the texts of training were, the more of the clocks have been
# everywhere.


# %%
names = {"YaRN": "position", "NTK-aware": "flash", "position interpolation": "baseline"}


def slowed(factor=4, length=2048):
    scalings = YaRN(factor, length), DynamicNTK(1, length), Linear(factor)  # NTK finds s from what is read
    plain, _ = rotary_frequencies(128)
    figure, axes = learn.canvas(7.2, 3.2)
    for scaling, (name, method) in zip(scalings, names.items(), strict=True):
        theta, _ = rotary_frequencies(128, RotaryConfig(scaling=scaling), length=factor * length)
        line = {**learn.LOOKS[method].line, "marker": ""}
        axes.plot(length * plain / (2 * math.pi), theta / plain, label=name, **line)
    axes.set(xlabel="turns within the length of training", xscale="log", ylabel="fraction of its own speed")
    axes.set(ylim=(0, 1.08), title=f"trained on {length:,} tokens, to read {factor} times as many")
    axes.legend()
    learn.show(figure, "Speed of each clock after scaling: level, or falling from fast clocks to slow ones")


learn.play(slowed, factor=[2, 4, 8, 16], length=[128, 512, 2048, 8192])

# %% [markdown]
# ## A measurement
#
# Three small models, made here, that differ in nothing but how places are told: by sinusoids that are
# added to the tokens (the way of the first transformer), by RoPE and by ALiBi. They learn from 64 bytes
# of Python's own source at a time. Then they read up to 16 times as many, always the same text, cut
# into windows of that length. One more line, *rope, slowed*, is the model with RoPE again, its clocks
# slowed by NTK-aware scaling as far as each length asks; it was not trained any further.

# %%
words, length = lab.text(), 64
ids = lab.held_out(words, 16 * length, 6)
lengths = [length * times for times in (1, 2, 4, 8, 16)]
items = lab.windows(words, length, 16 * 120)


def reads(model, n):
    piece = ids.view(-1, n)
    with torch.no_grad():
        return model(input_ids=piece, labels=piece, use_cache=False).loss.item()


models = {}
for name in ("sinusoidal", "rope", "alibi"):
    models[name] = lab.language_model(position=name, max_position_embeddings=length)
    lab.train(models[name], items, batch=16, learning_rate=8e-3)
scaling = {"kind": "dynamic", "factor": 1.0, "original_length": length}
models["rope, slowed"] = lab.language_model(position="rope", options={"rope": {"scaling": scaling}}).eval()
models["rope, slowed"].load_state_dict(models["rope"].state_dict())
losses = {name: [reads(model, n) for n in lengths] for name, model in models.items()}

# %% tags=["hide-input"]
figure, axes = learn.canvas(7.2, 3.4)
lines = {"rope": "position", "rope, slowed": "mamba", "alibi": "flash", "sinusoidal": "baseline"}
for name, method in lines.items():
    axes.plot(lengths, losses[name], label=name, **learn.LOOKS[method].line)
axes.set(xlabel="bytes of context", ylabel="loss, nats a byte", xscale="log")
axes.set_xticks(lengths, lengths), axes.set_xticks([], minor=True)
axes.legend()
learn.show(figure, "Loss against the length of context, a line for each way to tell places")

# %%
learn.show_table(
    ("places by", *(f"{n:,} bytes" for n in lengths)),
    [(name, *(f"{loss:.2f}" for loss in losses[name])) for name in lines],
)
assert losses["alibi"][-1] < 1.02 * losses["alibi"][0]
assert losses["rope"][-1] > 1.02 * losses["rope"][0]
assert losses["sinusoidal"][-1] > 1.02 * losses["sinusoidal"][0]

# %% [markdown]
# A line that stays level does not mean that a model *uses* the longer text. ALiBi's heads hardly hear
# what is far away, so it costs them nothing, and gains them little.
#
# ## What the papers claim, and what was found
#
# Loss beyond the length of training can be measured in two ways. Windows that do not overlap score
# every token, also those near a window's start, which have little to look back on; longer windows have
# fewer of those, and so look better. A window that slides scores only its last tokens. The measurement
# above is of the first kind, so a level line there is less than it seems.

# %%
learn.show_claims("position")

# %% [markdown]
# ## When not to use it
#
# Plain RoPE fails beyond the length of training, as you just saw. Scale it, best with some further
# training at the new length. And do not use ALiBi where a task hangs on one far token: a name, a number,
# a passage to be quoted. Even the flattest of eight heads takes 1 from a score for every 256 tokens, and
# each 1 leaves little more than a third of the weight that the same score has nearby. Recurrent mixers
# (Mamba, MatMul-free) know order by themselves and need neither.
#
# ## Exercise
#
# A model with ALiBi has eight heads. At which distance does the steepest head take 8 from a score, and
# at which the flattest? Work it out from the formula, then ask `alibi_bias`.

# %% [markdown]
# <details><summary>Answer</summary>
#
# The slopes are $1/2, 1/4, \dots, 1/256$. The steepest takes 8 at a distance of $8 \cdot 2 = 16$ tokens,
# the flattest at $8 \cdot 256 = 2048$. Each head hears twice as far as the one before.
#
# </details>

# %% tags=["hide-cell"]
last = alibi_bias(alibi_slopes(8), 1, 2049)[:, 0].flip(-1)  # of one query, by distance
for name, head in (("steepest", 0), ("flattest", 7)):
    print(f"the {name} head takes 8 at a distance of {(last[head] <= -8).int().argmax().item():,}")
assert last[0, 16] == last[7, 2048] == -8
