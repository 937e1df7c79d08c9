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
# # MatMul-free transformers
#
# Most of the arithmetic of a language model is products of matrices, and most of its memory holds the
# numbers in them. Two ideas do without such products. Let every weight be -1, 0 or 1, so that a product
# is nothing but additions and subtractions. And let tokens be mixed by a recurrence whose gates look at
# one token at a time, so that the past is only ever multiplied number by number.
#
# You need to know what a linear layer and attention do, and a little PyTorch. Reading takes a quarter of
# an hour.

# %% tags=["front"]
from statistics import median

import torch

from nonet import learn
from nonet.matmulfree import BitLinear, hgrn_scan, pack_ternary, packed, reference, ternary_linear

lab = learn.Lab()

# %% [markdown] tags=["front"]
# ## The idea
#
# Take a trained layer and look at its weights: a bell around zero. Divide by the mean magnitude and
# round to the nearest of -1, 0 and 1. What is left of a weight is whether its input is added, subtracted
# or left out, and one number for the whole matrix says by how much. A layer that knows this from its
# first step on learns to live with it: it keeps the real weights while it is trained, computes with the
# rounded ones, and lets the gradient pass the rounding as if it were not there.
#
# Attention multiplies tokens with tokens. In its place stands a memory of a fixed size. At every step a
# gate $f$ between 0 and 1 says what part of each cell is kept, and the rest is filled with something
# new. The gates depend on the token alone, so they can be computed for all tokens at once; only the
# memory is updated token by token.

# %% [markdown]
# The weights in the picture are drawn from a normal distribution; the gates were set by hand.

# %% tags=["hide-input"]
look, other = learn.LOOKS["matmulfree"], learn.LOOKS["baseline"]
torch.manual_seed(0)
weights = torch.randn(20_000) * 0.02
unit = weights.abs().mean().item()
figure, (bell, memory) = learn.canvas(7.2, 3.2, columns=2)
bell.hist(weights.numpy(), bins=80, color=other.colour, alpha=0.6)
for edge in (-0.5 * unit, 0.5 * unit):
    bell.axvline(edge, color=look.colour, ls="--", lw=1.5)
for place, word in ((-2.2, "-1"), (0, "0"), (2.2, "+1")):
    bell.text(place * unit, 940, word, ha="center", color=look.colour, weight="bold", size=13)
bell.set(title="a weight becomes one of three", xlabel="weight", ylabel="number of weights", ylim=(0, 1050))
bell.set_xticks([-0.05, 0, 0.05])
kept = torch.tensor([0.95, 0.9, 0.1, 0.95, 0.97, 0.9, 0.3, 0.95, 0.95, 0.95])
new = torch.tensor([0.0, 1.0, -1.0, 0.4, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
state = hgrn_scan(((1 - kept) * new)[None, None], kept[None, None])[0, 0]
memory.bar(range(10), kept, color=look.colour, alpha=0.35, label="gate: what is kept")
memory.plot(state, color=look.colour, marker=look.marker, label="one cell of the memory")
memory.set(title="a gate a step, and a memory", xlabel="token", ylim=(-1.05, 1.95), xticks=range(10))
memory.legend(loc="upper right", fontsize=9)
learn.show(
    figure, "Left, a bell of weights cut at two lines into -1, 0 and 1; right, gates and a memory cell"
)

# %% [markdown] tags=["front"]
# ## The mathematics
#
# A ternary layer rounds both its weights and its input. With a matrix $W$ and a token $x$, which has
# been through an RMSNorm (divided by its root mean square, and each entry times a learned weight):
#
# $$\gamma = \mathrm{mean}|W|, \qquad
# \tilde W = \mathrm{clip}\left(\mathrm{round}(W / \gamma), -1, 1\right)$$
#
# $$s = \frac{127}{\max|x|}, \qquad y = \mathrm{round}(s\, x)\, \tilde W^\top \cdot \frac{\gamma}{s}$$
#
# The sum over a row of $\tilde W$ has only additions and subtractions of whole numbers. (The code keeps
# $\gamma$ and $\max|x|$ at $10^{-5}$ at least, so that nothing is divided by zero.)
#
# The token mixer, called MLGRU, makes an output $y_t$ of each token $x_t$, the one at place $t$. $W_f$
# (the gate), $W_i$ (what is new), $W_g$ (what is let out) and $W_o$ (the output) stand for four ternary
# layers as above, norm and rounding included. A memory $h$ is updated number by number. With the sigmoid
# $\sigma$ and $\mathrm{SiLU}(a) = a\, \sigma(a)$:
#
# $$f_t = \sigma(W_f x_t), \qquad h_t = f_t\, h_{t-1} + (1 - f_t)\, \mathrm{SiLU}(W_i x_t)$$
#
# $$y_t = W_o\left(\mathrm{RMSNorm}(W_g x_t)\; \mathrm{SiLU}(h_t)\right)$$
#
# The last line is that of the authors' code. The paper's text has $\sigma(W_g x_t)\, h_t$ in its
# brackets; `MLGRU(E, form="paper")`, for a model of width `E`, computes that.
#
# | symbol | in the code | is |
# | --- | --- | --- |
# | $W$, $x$ | `weight`, `x_n` | the real weights, and the token after its norm |
# | $\tilde W$, $\gamma$ | `PackedTernary.unpack()`, `.scale` | the matrix of -1, 0 and 1, and its unit |
# | $s$ | `s` in `_times` | the scale of a token, so that its largest entry becomes 127 |
# | $1 / \gamma$ | `s` in `bit_linear` | the scale of the matrix |
# | $W_f$, $W_i$, $W_g$, $W_o$ | `f_proj`, `i_proj`, `g_proj`, `o_proj` of `MLGRU` | its ternary layers |
# | $f_t$ | `f` | the part that each cell keeps |
# | $(1 - f_t)\,\mathrm{SiLU}(\cdot)$ | `i` | what each cell takes in |
# | $h_t$ | what `hgrn_scan` returns | the memory after token $t$ |

# %% [markdown] tags=["front"]
# ## A simple implementation
#
# The ternary layer, as it is trained. `_straight_through` returns the rounded value and hands the
# gradient to what was there before rounding.

# %% tags=["front"]
learn.show_source(reference.bit_linear, reference._times, reference._straight_through)

# %% [markdown] tags=["front"]
# And the recurrence, one step after the other. `cu_seqlens` is for several texts in one row, `from_logits`
# makes the gates from the projections, and `lower_bound` is the least that a gate keeps. The whole mixer,
# with the projections, is `nonet.matmulfree.MLGRU`.

# %% tags=["front"]
learn.show_source(reference.hgrn_scan)

# %% [markdown]
# Once training is over, the weights are rounded for good, as below, and `pack_ternary` puts four of them
# into a byte:

# %%
learn.show_source(packed.absmean_ternary)

# %% [markdown] tags=["front"]
# ## The check
#
# The packed layer gives the same bits as the layer it was packed from, since its sums are sums of whole
# numbers. And what is fast may err at most twice as much as the lines above do in float32, both against
# float64: the layer, the recurrence, and the recurrence in two calls between which the state is handed
# over.

# %% tags=["front"]
torch.manual_seed(0)
layer, x = BitLinear(96, 64), torch.randn(5, 96)
w = pack_ternary(layer.weight)
y = ternary_linear(x, w, layer.bias, layer.norm_weight)
print(f"packed and trained layer give the same bits: {torch.equal(y, layer(x))}")
assert torch.equal(y, layer(x))
assert set(w.unpack().unique().tolist()) == {-1.0, 0.0, 1.0}
exact = reference.bit_linear(x.double(), layer.weight.double(), None, layer.norm_weight, layer.eps)
plain = reference.bit_linear(x, layer.weight, None, layer.norm_weight, layer.eps)
learn.check("ternary layer", y, plain, exact)

f, i = torch.rand(2, 8, 300), torch.randn(2, 8, 300)
learn.check_op(hgrn_scan, {"i": i, "f": f})
first, state = hgrn_scan(i[..., :100], f[..., :100], return_last_state=True)
second = hgrn_scan(i[..., 100:], f[..., 100:], initial_state=state)
plain, exact = (hgrn_scan(i.to(t), f.to(t), impl="reference") for t in (torch.float32, torch.float64))
learn.check("hgrn_scan in two parts", torch.cat([first, second], -1), plain, exact)

# %% [markdown]
# Of its implementations the library takes the first in its order that can serve a call. On this machine:

# %%
learn.show_implementations("matmulfree")


# %% [markdown]
# ## Play
#
# A gate decides how long a memory lasts: after $n$ steps, $f^n$ of what was written is left. Move the
# slider in Jupyter. For which gate is half of it left after 100 tokens? In the model the gates of deeper
# layers have a learned lower bound, so that they remember longer.


# %%
def remembered(gate=0.97, steps=200):
    figure, axes = learn.canvas(7.2, 3.0)
    once = torch.zeros(1, 1, steps)
    once[..., 0] = 1
    left = hgrn_scan(once, torch.full_like(once, gate))[0, 0]
    line = learn.LOOKS["matmulfree"].line | {"markevery": steps // 10}
    axes.plot(left, label=f"gate {gate}", **line)
    axes.axhline(0.5, color=learn.LOOKS["baseline"].colour, ls=":", label="half")
    axes.set(xlabel="tokens later", ylabel="part that is left", ylim=(0, 1.05))
    axes.legend()
    learn.show(figure, f"What is left of one input under a gate of {gate}, falling with every token")


learn.play(remembered, gate=[0.5, 0.8, 0.9, 0.97, 0.99, 0.993, 0.999], steps=[50, 200, 500])

# %% [markdown]
# ## A measurement
#
# What do packed weights save, and what do they cost? A layer of 1,024 by 1,024 for one token, as in
# decoding: memory is counted, time is taken here and now. The product runs in PyTorch, which unpacks the
# weights first; additions become faster than products only in kernels made for them.

# %%
width = 1024
dense, token = torch.randn(width, width), torch.randn(1, width)
w = pack_ternary(dense)
with torch.no_grad():
    times = lab.seconds({"dense": lambda: token @ dense.T, "packed": lambda: ternary_linear(token, w)}, 15)
rows = [
    (name, f"{size / 1024:,.0f}", f"{8 * size / width**2:.2f}", f"{1e6 * median(times[name]):,.0f}")
    for name, size in (("dense", dense.nbytes), ("packed", w.nbytes))
]
learn.show_table(("weights", "KiB", "bits a weight", "µs a token"), rows)
print(
    f"{dense.nbytes / w.nbytes:.1f} times smaller than in float32, half that against float16; {lab.threads}."
)
assert dense.nbytes / w.nbytes > 15.9

# %% [markdown]
# The recurrence, against a loop over time in PyTorch, and what it remembers after texts of two lengths:

# %%
f, i = torch.rand(1, 256, 2048), torch.randn(1, 256, 2048)
calls = {"ours": lambda: hgrn_scan(i, f), "a loop": lambda: hgrn_scan(i, f, impl="reference")}
times = {name: median(found) for name, found in lab.seconds(calls, 5).items()}
print(f"2,048 tokens, 256 channels: {1e3 * times['ours']:.2f} ms, a loop {1e3 * times['a loop']:.1f} ms")
kept = [hgrn_scan(i[..., :n], f[..., :n], return_last_state=True)[1].numel() for n in (128, 2048)]
print(f"what the next token needs to know: {kept[0]} numbers after 128 tokens, {kept[1]} after 2,048")
assert kept[0] == kept[1]

# %% [markdown]
# ## What the papers claim, and what was found
#
# The paper trains models of up to 2.7 billion parameters. What can be tested here is which learning rate
# small ternary and dense models want, how large packed weights are, how long a token takes with them, and
# whether the recurrence gives the same at once and token by token.

# %%
learn.show_claims("matmulfree")

# %% [markdown]
# ## When not to use it
#
# Do not round a trained dense model and use it as it is: its weights were never trained for that. A
# ternary model is trained from the start, with products as dense as ever; how its best learning rate
# compares is in the table above. Only inference is cheap, and only where kernels or hardware add faster
# than they multiply. The memory has a fixed size. A token from far back that has to be found again
# exactly may be gone: attention can look it up, a gated memory must have kept it.
#
# ## Exercise
#
# Two bits a weight can tell four values apart, and three are used. How many ternary weights fit into a
# byte at most? What would that save?

# %% [markdown]
# <details><summary>Answer</summary>
#
# Five: there are $3^5 = 243$ ways to choose five of them, and a byte has 256. That is 1.6 bits a weight
# in place of 2, a fifth less, at the price of divisions by three when they are read.
#
# </details>

# %% tags=["hide-cell"]
ways = 3**5
print(
    f"{ways} of 256 codes; {8 / 5} bits a weight; the least possible is {torch.tensor(3.0).log2().item():.3f}"
)
assert ways <= 256
