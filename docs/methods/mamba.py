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
# # Mamba
#
# Attention looks back at every token there has been. That makes each new token more expensive than the
# last, and its memory of keys and values grows without end. A recurrence has the opposite trouble: it
# keeps a few numbers, at the same cost for ever, but it has to decide what to keep before it knows what
# will be asked. Mamba lets every token decide for itself how much of the past fades and how much of the
# token is written down.
#
# You need to know what a recurrence is, and a little PyTorch. Reading takes a quarter of an hour.

# %% tags=["front"]
from statistics import median

import torch

from nonet import learn
from nonet.mamba import Mamba, reference, selective_scan

lab = learn.Lab()

# %% [markdown] tags=["front"]
# ## The idea
#
# Think of a row of leaking tanks, each with its own leak. At every token the tanks leak for a while and
# then something is poured in. In older recurrences of this kind the time and the pouring are the same
# for every token, so they treat a comma like a name. In Mamba the token says how long the tanks leak:
# that time is its *step*. A long step empties the tanks of what was before and fills them with the
# token. A step of zero leaves everything as it is: the token is passed over. What is poured into which
# tank, and what is read out of which, is the token's choice too.
#
# So the memory never grows, and yet it can hold what matters for as long as it matters.

# %% [markdown]
# In the picture two tokens are marked. The steps were set by hand: long at these two, short at all
# others. Each curve is divided by its longest step, so that both fit.

# %% tags=["hide-input"]
look, other = learn.LOOKS["mamba"], learn.LOOKS["baseline"]
figure, axes = learn.canvas(7.2, 3.9, rows=2, sharex=True, height_ratios=(1, 2))
marked = [3, 19]
value = torch.randn(30, generator=torch.Generator().manual_seed(4)) * 0.6
value[3], value[19] = 1.0, -0.8
steps = torch.full((30,), 0.02)
steps[marked] = 3.0
same = torch.full((30,), 0.35)
one = {"A": -torch.ones(1, 1), "B": torch.ones(1, 1, 30), "C": torch.ones(1, 1, 30)}
for lengths, name, how in ((same, "every step alike", other), (steps, "the token chooses", look)):
    state = selective_scan(value[None, None], lengths[None, None], **one)[0, 0]
    state = state / lengths.max()
    axes[1].plot(state, label=name, color=how.colour, ls=how.dash, marker=how.marker, ms=4)
axes[0].bar(range(30), value, color=[look.colour if t in marked else other.colour for t in range(30)])
axes[0].set(ylabel="input", title="two tokens among noise, and one number of the state")
axes[1].set(xlabel="token", ylabel="state, scaled", ylim=(-2, 3))
axes[1].legend(loc="upper right", ncols=2)
learn.show(
    figure,
    "Bars of noise with two marked tokens; a state that jumps at these and stays, another that wobbles",
)

# %% [markdown] tags=["front"]
# ## The mathematics
#
# The input comes in many channels; in each of them a token is one number $u_t$. A channel has a state
# $h$ of $N$ numbers and its own $A$ of $N$ numbers; $B_t$ and $C_t$ have $N$ numbers, too, and serve all
# channels. $D$ is one number a channel. Products are taken number by number, and the dot sums them up.
# For the token at $t$:
#
# $$h_t = e^{\Delta_t A}\, h_{t-1} + \Delta_t\, B_t\, u_t, \qquad y_t = C_t \cdot h_t + D\, u_t$$
#
# In front of $B_t$ the paper has a longer factor; $\Delta_t$ alone is what the authors' code has. Numbers
# of equations in the code below are the paper's.
#
# The step, the writing and the reading are computed from the whole token $\mathbf u_t$, all its
# channels, which is what *selective* means:
#
# $$\Delta_t = \mathrm{softplus}(W_\Delta \mathbf u_t + b), \qquad B_t = W_B \mathbf u_t, \qquad
# C_t = W_C \mathbf u_t$$
#
# $W_\Delta$, $W_B$ and $W_C$ are learned matrices, and $b$ is a learned number for each channel.
# $\Delta_t$ has a number for each channel, too; softplus, $\log(1 + e^x)$, makes it positive. In the
# library's block $W_\Delta$ is the product of two narrow matrices. $A$ is negative and fixed once trained,
# so $e^{\Delta A}$ lies between 0 and 1: near 1 for a short step, near 0 for a long one. Only $h$ passes
# from token to token; all else is computed for the whole text at once.
#
# | symbol | in the code | is |
# | --- | --- | --- |
# | $u_t$, $y_t$ | `u`, `y` | input and output of a channel |
# | $h_t$ | `h` | the state, $N$ numbers a channel |
# | $\Delta_t$ | `dt` | the length of the step, for every token and channel |
# | $A$ | `A` | how fast each number of the state fades |
# | $B_t$, $C_t$ | `B`, `C` | what is written where, what is read from where; the same for all channels |
# | $W_\Delta$, $b$ | the first rows of `x_proj`, times `dt_proj`; `dt_bias` | what makes the step |
# | $W_B$, $W_C$ | the other rows of `x_proj` | what makes $B_t$ and $C_t$ |
# | $D$ | `D` | how much of the input goes past the state |

# %% [markdown] tags=["front"]
# ## A simple implementation
#
# One token after the other, two equations a token. The first lines serve several texts in one row
# (`cu_seqlens`). Below the loop, `D` lets the input pass by the state, and `z`, a second projection of the
# token, is a gate: the output is multiplied by $\mathrm{SiLU}(z)$, which is $z$ times its sigmoid.

# %% tags=["front"]
learn.show_source(reference.selective_scan)

# %% [markdown]
# The whole block is `nonet.mamba.Mamba`. A projection makes the channels and `z`. A short convolution
# mixes the last four tokens of each channel, and a SiLU follows: that is $u$. From $u$ come $\Delta$, $B$
# and $C$; then the scan, and a projection back. The convolution:

# %%
learn.show_source(reference.causal_conv1d)

# %% [markdown] tags=["front"]
# ## The check
#
# What models call may err at most twice as much as the lines above do in float32, both against float64.
# So may a text that is read in two pieces, with the state handed over.

# %% tags=["front"]
torch.manual_seed(0)
u, delta = torch.randn(2, 6, 100), torch.rand(2, 6, 100)
A, B, C = -torch.rand(6, 16), torch.randn(2, 16, 100), torch.randn(2, 16, 100)
given = {"u": u, "delta": delta, "A": A, "B": B, "C": C}
learn.check_op(selective_scan, given)

cut = [x[..., :40] for x in (u, delta)], [x[..., :40] for x in (B, C)]
first, state = selective_scan(*cut[0], A, *cut[1], return_last_state=True)
rest = [x[..., 40:] for x in (u, delta)], [x[..., 40:] for x in (B, C)]
second = selective_scan(*rest[0], A, *rest[1], initial_state=state)
plain, exact = (
    selective_scan(**{name: x.to(dtype) for name, x in given.items()}, impl="reference")
    for dtype in (torch.float32, torch.float64)
)
learn.check("selective_scan in two pieces", torch.cat([first, second], -1), plain, exact)

# %% [markdown]
# Of its implementations the library takes the first in its order that can serve a call. On this machine:

# %%
learn.show_implementations("mamba")


# %% [markdown]
# ## Play
#
# One number is written at the first token, and then come tokens that do not matter. How much of it is
# left depends on the step that these take. Move the sliders in Jupyter: `step` is $\Delta$ of the later
# tokens, `rate` is $-A$. With a rate of 1, a network that wants to remember for a thousand tokens has to
# learn steps of a thousandth or less.


# %%
def left_over(step=0.02, rate=1.0):
    figure, axes = learn.canvas(7.2, 3.0)
    u = torch.zeros(1, 1, 200)
    delta = torch.full_like(u, step)
    u[..., 0], delta[..., 0] = 1, 1
    ones = torch.ones(1, 1, 200)
    y = selective_scan(u, delta, torch.full((1, 1), -rate), ones, ones)[0, 0]
    axes.plot(y, markevery=20, **learn.LOOKS["mamba"].line)
    axes.set(
        xlabel="tokens later", ylabel="what is left", ylim=(0, 1.05), title=f"steps of {step}, rate {rate}"
    )
    learn.show(figure, f"What is left of one token after others with a step of {step}, falling")


learn.play(left_over, step=[0.0, 0.001, 0.005, 0.02, 0.1, 0.5], rate=[0.25, 1.0, 4.0, 16.0])

# %% [markdown]
# ## A measurement
#
# First the scan itself, of 256 channels with 16 numbers each, against the loop above in PyTorch. Times
# are medians of a few calls. The loop is not timed at the longest length, since it takes too long.

# %%
rows = []
for length in (256, 1024, 4096):
    u, delta = torch.randn(1, 256, length), torch.rand(1, 256, length) * 0.1
    A, B, C = -torch.rand(256, 16), torch.randn(1, 16, length), torch.randn(1, 16, length)
    given = (u, delta, A, B, C)
    with torch.no_grad():
        ours = median(lab.seconds({"": lambda given=given: selective_scan(*given)}, 5)[""])
        if length <= 1024:
            loop = median(
                lab.seconds({"": lambda given=given: selective_scan(*given, impl="reference")}, 3)[""]
            )
            rows.append((f"{length:,}", f"{1e3 * ours:.2f}", f"{1e3 * loop:.1f}", f"{loop / ours:.0f}"))
        else:
            rows.append((f"{length:,}", f"{1e3 * ours:.2f}", "-", "-"))
learn.show_table(("tokens", "fast path, ms", "a loop, ms", "times as fast"), rows)
print(f"on {lab.threads}")

# %% [markdown]
# Then what one more token costs once a text is there. The block keeps its state, and nothing else:

# %%
block = Mamba(64).eval()
costs = []
for context in (16, 256, 4096):
    with torch.no_grad():
        _, state = block(torch.randn(1, context, 64), return_last_state=True)
        new = torch.randn(1, 64)
        seconds = median(lab.seconds({"": lambda state=state, new=new: block.step(new, state)}, 20)[""])
    costs.append((f"{context:,}", f"{1e6 * seconds:,.0f}", sum(x.numel() for x in state)))
learn.show_table(("tokens before", "µs for one more", "numbers kept"), costs)
assert len({kept for *_, kept in costs}) == 1

# %% [markdown]
# ## What the papers claim, and what was found
#
# The tasks are the paper's, but smaller, and so are the models. Speed is that of the machine on which
# the table was made.

# %%
learn.show_claims("mamba")

# %% [markdown]
# ## When not to use it
#
# What was not written down is gone. Where a text has to be copied word for word, or a key looked up
# among many, attention sees the very tokens and a state of fixed size does not. It reads from left to
# right only, so it is no encoder. What it saves in decoding grows with the length of the text. Without a
# kernel the scan is slower: look at the table of implementations above.
#
# ## Exercise
#
# A token is to be passed over: the state stays as it is, to the last bit. The step comes out of a
# softplus. What has to go into it, and what then is the token's own output? Check it with
# `selective_scan`.

# %% [markdown]
# <details><summary>Answer</summary>
#
# Minus infinity: softplus makes of it a step of zero, so that $e^{0 \cdot A} = 1$ and nothing is written.
# The output is still read from the state by the token's own $C_t$, and $D u_t$ is added where there is a
# $D$. This is how the library treats padding.
#
# </details>

# %% tags=["hide-cell"]
u, delta = torch.randn(1, 4, 3), torch.rand(1, 4, 3)
delta[..., 1] = -torch.inf
A, B, C = -torch.rand(4, 8), torch.randn(1, 8, 3), torch.randn(1, 8, 3)
two = [x[..., :2] for x in (u, delta)], [x[..., :2] for x in (B, C)]
one = [x[..., :1] for x in (u, delta)], [x[..., :1] for x in (B, C)]
options = {"delta_softplus": True, "return_last_state": True}
y, after_two = selective_scan(*two[0], A, *two[1], **options)
_, after_one = selective_scan(*one[0], A, *one[1], **options)
print(f"the state after the passed-over token is the one before it: {torch.equal(after_one, after_two)}")
assert torch.equal(after_one, after_two)
read = (after_one * C[:, None, :, 1]).sum(-1)
print(f"its output is read from that state: {(y[..., 1] - read).abs().max().item():.1e} apart")
assert torch.allclose(y[..., 1], read, atol=1e-6)
