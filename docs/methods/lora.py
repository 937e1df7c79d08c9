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
# # LoRA
#
# A trained model is to learn a new task. Training all of its weights with Adam needs four times their
# memory: the weights, their gradients, and the two averages that Adam keeps. And what comes out is a
# second model, as large as the first, for every task. LoRA freezes the weights and trains a small change
# to each weight matrix. Afterwards the change can be added to the weights, and the model is as fast as
# before.
#
# You need to know what a linear layer computes, and a little PyTorch. Reading takes a quarter of an
# hour.

# %% tags=["front"]
import copy
from dataclasses import replace

import torch
from matplotlib.patches import Rectangle

from nonet import learn
from nonet.lora import LoraConfig, add_lora, lora_linear, merge_lora, reference, to_peft, unmerge_lora
from nonet.lora.claims import underscores

lab = learn.Lab()

# %% [markdown] tags=["front"]
# ## The idea
#
# Training changes a weight matrix $W$ by some other matrix of the same size. The bet of LoRA is that for
# a new task this change is simple: it need only look at a few directions of the input, and answer in a
# few directions of the output. A matrix that does so is the product of two thin ones. The first, $A$,
# reads a handful of numbers off the input; the second, $B$, writes the change with them.
#
# So the thin ones are all that is trained. $B$ starts as zero, so that training starts from exactly the
# model that there was. $A$ starts at random: were both zero, neither would get a gradient.

# %% tags=["hide-input"]
look, grey = learn.LOOKS["lora"].colour, learn.LOOKS["baseline"].colour
figure, axes = learn.canvas(7.2, 3.0)
axes.set(xlim=(-0.6, 14.6), ylim=(6.4, -1.2), aspect="equal"), axes.axis("off")
axes.add_patch(Rectangle((0, 0), 5, 5, color=grey, alpha=0.2))
axes.text(2.5, 2.5, "W\nfrozen", ha="center", va="center")
axes.text(6, 2.5, "+", ha="center", va="center", fontsize=18)
axes.add_patch(Rectangle((7, 0), 0.7, 5, color=look, alpha=0.8))
axes.text(7.35, -0.6, "B, starts as zero", ha="center", color=look, weight="bold")
axes.add_patch(Rectangle((8.4, 2.1), 5, 0.7, color=look, alpha=0.8))
axes.text(10.9, 1.5, "A, starts at random", ha="center", color=look, weight="bold")
axes.text(7.35, 5.7, "R wide", ha="center"), axes.text(10.9, 3.5, "R high", ha="center")
axes.text(2.5, 5.7, "in", ha="center"), axes.text(-0.4, 2.5, "out", ha="center", va="center", rotation=90)
learn.show(figure, "A large frozen square, plus the product of a thin upright and a thin lying rectangle")

# %% [markdown] tags=["front"]
# ## The mathematics
#
# A linear layer turns the input $x$ into $W x$. With LoRA it gives
#
# $$y = W x + s\, B A x, \qquad s = \frac{\alpha}{R}$$
#
# $W$ has `out` rows and `in` columns and is not trained. $A$ has $R$ rows and `in` columns, $B$ has
# `out` rows and $R$ columns. $R$ is the rank, and $\alpha$ a number that the paper chooses once and then
# leaves alone: dividing by $R$ is to spare a new search for the learning rate at every rank. In place of
# `in` times `out` numbers
#
# $$R\, (\mathrm{in} + \mathrm{out})$$
#
# are trained. Because $W x + s\, B A x = (W + s\, B A)\, x$, the change can be added to $W$ when
# training is over.
#
# | symbol | in the code | is |
# | --- | --- | --- |
# | $x$, $y$ | `x`, what is returned | input and output of the layer |
# | $W$ | `weight` | the frozen weight `(out, in)` |
# | $A$, $B$ | `a`, `b` | the trained factors `(R, in)` and `(out, R)` |
# | $R$, $\alpha$ | `rank`, `alpha` | the rank, and the number that $s$ is made of |
# | $s$ | `scale` | $\alpha / R$, what the term is multiplied by |

# %% [markdown] tags=["front"]
# ## A simple implementation
#
# The formula, with the layer's bias added where it has one. The last axis of `x` holds the numbers of one
# input. `keep` is a mask for dropout, which acts on the input of $A$ only. With $p$ the chance to be
# dropped, dropout's factor $1 / (1 - p)$ is part of `scale`.

# %% tags=["front"]
learn.show_source(reference.lora_linear)

# %% [markdown] tags=["front"]
# ## The check
#
# First the operation: what layers call may err at most twice as much as the lines above do in float32,
# both against float64, gradients included. Then a whole model: with the term beside the weights and with
# the term added to them it says the same, and taking it out again gives back the old weights to the bit.
# `add_lora` gives factors to every linear layer but the output embedding; the `targets` of `LoraConfig`
# can name others. The paper's main runs take queries and values only.

# %% tags=["front"]
torch.manual_seed(0)
shapes = {"x": (2, 9, 48), "weight": (64, 48), "bias": (64,), "a": (4, 48), "b": (64, 4)}
learn.check_op(lora_linear, {name: torch.randn(shape) for name, shape in shapes.items()}, 0.5)

# %% tags=["front"]
model = add_lora(lab.language_model(), LoraConfig(rank=4))
for name, parameter in model.named_parameters():
    if name.endswith(".b"):  # as if it had been trained: B is zero at first
        torch.nn.init.normal_(parameter, std=0.05)
ids = torch.randint(256, (2, 40))
before = {name: p.clone() for name, p in model.named_parameters()}
with torch.no_grad():
    beside = model(input_ids=ids).logits
    merged = merge_lora(model)(input_ids=ids).logits
print(f"largest difference of the logits: {(beside - merged).abs().max().item():.1e}")
assert torch.allclose(beside, merged, atol=1e-4)
unmerge_lora(model)
assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())

# %% [markdown]
# This is what runs on this machine:

# %%
learn.show_implementations("lora")

# %% [markdown]
# ## Play
#
# How much is trained depends on the rank and on how wide the model is. Both axes double from step to
# step. Move the sliders in Jupyter: at which rank is nothing saved any more?


# %%
def numbers_trained(width=4096, times_wider=1):
    ranks = [2**i for i in range(13)]
    figure, axes = learn.canvas(7.2, 3.2)
    out = times_wider * width
    axes.plot(ranks, [r * (width + out) for r in ranks], label="LoRA", **learn.LOOKS["lora"].line)
    axes.axhline(width * out, label="the weight itself", color=grey, ls=learn.LOOKS["baseline"].dash)
    axes.set_xscale("log", base=2), axes.set_yscale("log")
    axes.set(xlabel="rank", ylabel="numbers trained", title=f"a weight of {out:,} x {width:,}")
    axes.legend()
    learn.show(figure, "Numbers trained against the rank, rising; the weight's own as a level line")


learn.play(numbers_trained, width=[256, 576, 1024, 4096, 12288], times_wider=[1, 2, 4])

# %% [markdown]
# ## A measurement
#
# A small model reads source code, byte by byte. Then it gets the same kind of text written in another
# way: every blank has become an underscore. It is adapted three times, with the same steps on the same
# text. Here `alpha` is not left alone but twice the rank, so that $s$ is 2 at both ranks. Factors get a
# higher learning rate than weights do. The loss is in nats a byte, and less is better.

# %%
text = lab.text()
base = lab.language_model()
lab.train(base, lab.windows(text, 64, 16 * 150), batch=16, learning_rate=6e-3)
changed = replace(text, train=underscores(text.train[: 2**20]), validation=underscores(text.validation))

# %%
before = lab.nats(base, changed, 64, 64).mean().item()
rows, after, adapted = [["not adapted", "0", "0", f"{before:.2f}"]], {}, {}
for way, rank in (("rank 1", 1), ("rank 8", 8), ("all weights", None)):
    model = copy.deepcopy(base)
    if rank:
        add_lora(model, LoraConfig(rank=rank, alpha=2 * rank))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    items = lab.windows(changed, 64, 16 * 40, seed=1)
    lab.train(model, items, batch=16, learning_rate=1e-2 if rank else 2e-3)
    after[way], adapted[way] = lab.nats(model, changed, 64, 64).mean().item(), model
    kept = to_peft(model)[1].values() if rank else model.parameters()
    rows.append([way, f"{trained:,}", f"{sum(t.nbytes for t in kept) / 1024:,.0f}", f"{after[way]:.2f}"])
learn.show_table(("adapted by", "numbers trained", "to keep, KiB", "nats a byte"), rows)
shares = {way: (before - loss) / (before - after["all weights"]) for way, loss in after.items()}
print(", ".join(f"{way} gains {100 * share:.0f} %" for way, share in shares.items() if way != "all weights"))
assert max(after.values()) < before
assert shares["rank 1"] > 0.6

# %% [markdown]
# Is the change really simple? Here are the weights that were trained *without* LoRA. The singular values
# of a change say how large it is in each of its directions. The curve adds up their squares, largest
# first. If the first few held everything, it would be at one at once. A random matrix of the same size
# shows what a change without any pattern does.


# %%
def held_by(matrix):
    squares = torch.linalg.svdvals(matrix).square()
    return [0.0, *(squares.cumsum(0) / squares.sum()).tolist()]


full = dict(adapted["all weights"].named_parameters())
name = "model.layers.0.mixer.q_proj.weight"
with torch.no_grad():
    change = held_by(full[name] - base.get_parameter(name))
chance = held_by(torch.randn_like(full[name]))
figure, axes = learn.canvas(7.2, 3.2)
axes.plot(range(len(change)), change, label="what training changed", color=look)
axes.plot(range(len(chance)), chance, label="chance", color=grey, ls=learn.LOOKS["baseline"].dash)
axes.set(xlabel="rank", ylabel="share of the change", title="queries of the first layer")
axes.legend()
learn.show(figure, "Two rising curves; the change that was trained lies well above the one of chance")
print(
    f"4 of {len(change) - 1} directions hold {100 * change[4]:.0f} % of the change, "
    f"by chance {100 * chance[4]:.0f} %"
)
assert change[4] > max(0.5, 1.5 * chance[4])

# %% [markdown]
# In this matrix the change is far from random: few directions hold most of it. But it has a long tail,
# and no small rank holds all. What counts is the loss: in the table above factors of rank one, which are
# trained as such and not cut out of this change, bring most of the gain.
#
# ## What the papers claim, and what was found
#
# The paper adapts models of up to 175 billion weights. What can be counted is counted with their sizes;
# what has to be trained is trained small. Rank one is tested on a near shift, the one above, and on a
# far one: the text in capital letters, of which the model has seen few.

# %%
learn.show_claims("lora")

# %% [markdown]
# ## When not to use it
#
# When the task is far from what the model knows and there is much to learn from, training all weights
# can learn more. When memory is not short and there is one task only, the simpler way is to train the
# model. LoRA needs far less memory for gradients and the optimizer's averages, and its files are small.
# It needs as much as before for activations, which for long texts are most of the memory, and the
# forward pass through the frozen model costs what it did. Unmerged, it makes every layer that has
# factors slower, by how much the table above says; merged, it serves one task at a time.
#
# ## Exercise
#
# A weight is `n` by `n`. From which rank on does LoRA train as many numbers as the weight has? And if
# `out` is four times `in`?

# %% [markdown]
# <details><summary>Answer</summary>
#
# $R (n + n) = n^2$ gives $R = n / 2$. In general the rank is `in` times `out` over `in` plus `out`, so
# with `in` = $n$ and `out` = $4 n$ it is $4 n / 5$. From there on the two factors together hold no fewer
# numbers than the weight itself.
#
# </details>

# %% tags=["hide-cell"]
for out, wide in ((64, 64), (256, 64)):
    layer = torch.nn.Sequential(torch.nn.Linear(wide, out, bias=False))
    even = out * wide / (out + wide)
    add_lora(layer, LoraConfig(rank=int(even)))
    trained = sum(p.numel() for p in layer.parameters() if p.requires_grad)
    print(f"{out} x {wide}: even at rank {even:g}; rank {int(even)} trains {trained:,} of {out * wide:,}")
    assert trained <= out * wide < trained + out + wide
