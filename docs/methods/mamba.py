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
# So the memory never grows, and yet it can hold what matters for as long as it matters. In the picture
# two tokens are marked. The steps were set by hand: long at these two, short at all others.

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
# $h$ of $N$ numbers, and $A$, $B_t$ and $C_t$ have $N$ numbers, too. Products are taken number by
# number, and the dot sums them up. For the token at $t$:
#
# $$h_t = e^{\Delta_t A}\, h_{t-1} + \Delta_t\, B_t\, u_t, \qquad y_t = C_t \cdot h_t + D\, u_t$$
#
# The step, the writing and the reading are computed from the whole token $\mathbf u_t$, all its
# channels, which is what *selective* means:
#
# $$\Delta_t = \mathrm{softplus}(W_\Delta \mathbf u_t + b), \qquad B_t = W_B \mathbf u_t, \qquad
# C_t = W_C \mathbf u_t$$
#
# $\Delta_t$ has a number for each channel; softplus, $\log(1 + e^x)$, makes it positive. In the block
# $W_\Delta$ is the product of two narrow matrices. $A$ is negative and fixed once trained, so
# $e^{\Delta A}$ lies between 0 and 1: near 1 for a short step, near 0 for a long one. Of other tokens a
# step needs nothing but $h$, so all else is computed for the whole text at once.
#
# | symbol | in the code | is |
# | --- | --- | --- |
# | $u_t$, $y_t$ | `u`, `y` | input and output of a channel |
# | $h_t$ | `h` | the state, $N$ numbers a channel |
# | $\Delta_t$ | `dt` | the length of the step, for every token and channel |
# | $A$ | `A` | how fast each number of the state fades |
# | $B_t$, $C_t$ | `B`, `C` | what is written where, what is read from where; the same for all channels |
# | $D$ | `D` | how much of the input goes past the state |

# %% [markdown] tags=["front"]
# ## A simple implementation
#
# One token after the other, two equations a token. Below the loop, `D` lets the input pass by the state,
# and `z`, a second projection of the token, is a gate: the output is multiplied by $\mathrm{SiLU}(z)$,
# which is $z$ times its sigmoid.

# %% tags=["front"]
learn.show_source(reference.selective_scan)

# %% [markdown]
# The whole block is `nonet.mamba.Mamba`. A projection makes its input and `z`; a short convolution lets
# a token know the three before it when it decides; then come the scan and a projection back. The
# convolution:

# %%
learn.show_source(reference.causal_conv1d)

# %% [markdown] tags=["front"]
# ## The check
#
# The fast path computes the same numbers, up to rounding. And a text that is read in two pieces, with
# the state handed over, gives what it gives when it is read whole.

# %% tags=["front"]
torch.manual_seed(0)
u, delta = torch.randn(2, 6, 100), torch.rand(2, 6, 100)
A, B, C = -torch.rand(6, 16), torch.randn(2, 16, 100), torch.randn(2, 16, 100)
fast = selective_scan(u, delta, A, B, C)
exact = selective_scan(*(x.double() for x in (u, delta, A, B, C)), impl="reference")
plain = selective_scan(u, delta, A, B, C, impl="reference")
error, usual = ((x - exact).abs().max().item() for x in (fast, plain))
print(f"against the oracle in float64: {error:.1e}, where plain PyTorch in float32 errs by {usual:.1e}")
assert error < 4 * usual

cut = [x[..., :40] for x in (u, delta)], [x[..., :40] for x in (B, C)]
first, state = selective_scan(*cut[0], A, *cut[1], return_last_state=True)
rest = [x[..., 40:] for x in (u, delta)], [x[..., 40:] for x in (B, C)]
second = selective_scan(*rest[0], A, *rest[1], initial_state=state)
print(f"in two pieces: {(torch.cat([first, second], -1) - fast).abs().max().item():.1e} apart from the whole")
assert torch.allclose(torch.cat([first, second], -1), fast)

# %% [markdown]
# What models call is the fastest implementation that this machine has:

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
# are medians of a few calls.

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
# ## What the paper claims, and what was found

# %%
learn.show_claims("mamba")

# %% [markdown]
# ## When not to use it
#
# What was not written down is gone. Where a text has to be copied word for word, or a key looked up
# among many, attention sees the very tokens and a state of fixed size does not. On short texts attention
# is as fast or faster; Mamba pays where texts are so long that attention begins to hurt. Without a
# kernel the scan is slower: look at the table of implementations above.
#
# ## Exercise
#
# A token should be passed over: the state is to stay as it is, to the last bit. Which step does it need,
# and what then is its own output? Check it with `selective_scan`.

# %% [markdown]
# <details><summary>Answer</summary>
#
# A step of zero: $e^{0 \cdot A} = 1$, and nothing is written. The output is still read from the state by
# the token's own $C_t$, and $D u_t$ is added where there is a $D$. This is how the library treats
# padding.
#
# </details>

# %%
u, delta = torch.randn(1, 4, 3), torch.rand(1, 4, 3)
delta[..., 1] = 0
A, B, C = -torch.rand(4, 8), torch.randn(1, 8, 3), torch.randn(1, 8, 3)
two = [x[..., :2] for x in (u, delta)], [x[..., :2] for x in (B, C)]
one = [x[..., :1] for x in (u, delta)], [x[..., :1] for x in (B, C)]
_, after_two = selective_scan(*two[0], A, *two[1], return_last_state=True)
_, after_one = selective_scan(*one[0], A, *one[1], return_last_state=True)
print(f"the state after the passed-over token is the one before it: {torch.equal(after_one, after_two)}")
assert torch.equal(after_one, after_two)
