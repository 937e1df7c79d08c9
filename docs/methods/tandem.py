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
# # Tandem transformers
#
# A large model writes slowly, because it reads all its weights from memory for every single token.
# Where memory is what it waits for, reading a few tokens that are already there takes little longer than
# reading one. So let a small model write a few tokens, let the large one read them in a single pass, and
# keep those that it would have written itself. The text is the large model's own. The better the small
# one guesses, the sooner it is finished. In a tandem the small model reads what the large one made of the
# text so far, so that it may guess better.
#
# You need to know how a causal transformer writes with its cache, and a little PyTorch. Reading takes a
# quarter of an hour.

# %% tags=["front"]
import copy
from functools import partial

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from nonet import learn
from nonet.tandem import (
    Tandem,
    TandemConfig,
    accept,
    expected_tokens,
    linear_rows,
    reference,
    speculative_generate,
)

lab = learn.Lab()

# %% [markdown] tags=["front"]
# ## The idea
#
# The large model is the *primary*, the small one the *secondary*. Text comes in blocks. The secondary
# writes a block token by token, and then the primary reads the whole block at once. For all blocks that
# the primary has read, the secondary attends to the primary's states, mapped to its own width; only
# within the block that it is writing does it have nothing but its own. So it need not understand the
# past by itself: it borrows what the primary understood.
#
# To keep the text the primary's, the primary judges each drafted token. It is accepted with a
# probability that corrects for the difference between the distributions of the two models. The first that
# is rejected is replaced by a token of those that the secondary proposes too rarely, and the drafts after
# it are thrown away. If all are accepted, the primary adds one more.

# %% tags=["hide-input"]
look, other = learn.LOOKS["tandem"], learn.LOOKS["baseline"]
figure, axes = learn.canvas(6.4, 3.9)
block, length = 4, 12
for i in range(length):
    start = i // block * block
    for j in range(i + 1):
        own = j >= start
        axes.scatter(
            j, i, s=150, marker="s", color=look.colour if own else other.colour, alpha=1 if own else 0.45
        )
axes.scatter([], [], s=150, marker="s", color=other.colour, alpha=0.45, label="the primary's states")
axes.scatter([], [], s=150, marker="s", color=look.colour, label="its own states")
axes.set(
    xlabel="tokens that are seen",
    ylabel="token that sees them",
    xlim=(-0.7, length + 4),
    ylim=(length - 0.4, -0.6),
)
axes.set(xticks=range(length), yticks=range(length), title="what the secondary sees, in blocks of four")
axes.grid(False)
axes.legend(loc="upper right")
learn.show(
    figure, "A triangle of seen tokens; the primary's below, the secondary's own in small triangles of four"
)

# %% [markdown] tags=["front"]
# ## The mathematics
#
# Tokens are counted from 0 and layers from the bottom. Blocks have $\gamma$ tokens, so token $i$ lies in
# the block that begins at $k = \lfloor i / \gamma \rfloor\, \gamma$. A *state* is the vector that a token
# has between two layers. The primary's state of token $m$ after $\ell(j)$ of its layers is
# $x^{(\ell(j))}_m$, and $F^{(j)}$, a learned matrix, maps it to the secondary's width. Layer $j + 1$ of
# the secondary, with $j = 0, 1, \dots$, turns its states $y^{(j)}$ into the next; $y^{(0)}$ are the
# embeddings. Behind the bar stands what its attention sees: the mapped states of all earlier blocks, and
# its own states from $k$ to $i$:
#
# $$\hat y^{(j)}_m = F^{(j)} x^{(\ell(j))}_m$$
#
# $$y^{(j+1)}_i = \mathrm{layer}^{(j+1)}\left(y^{(j)}_i \mid \hat y^{(j)}_{<k},\; y^{(j)}_{k..i}\right)$$
#
# When it writes, $q$ is the secondary's distribution of the next token and $p$ the primary's. A drafted
# token $t$ is accepted with probability
#
# $$\min\left(1, \frac{p(t)}{q(t)}\right)$$
#
# and in place of the first rejected one comes a sample of
#
# $$\frac{\max(0, p - q)}{\sum_t \max(0, p(t) - q(t))}$$
#
# Why this gives $p$: token $t$ is drafted and kept with probability
# $q(t) \min(1, p(t)/q(t)) = \min(p(t), q(t))$. What is missing up to $p(t)$ is $\max(0, p(t) - q(t))$.
# Summed over all $t$ that is the chance of a rejection, and the second formula hands it out.
#
# If each draft is accepted with probability $\alpha$, independently of the others, a round of $\gamma$
# drafts gives on average
#
# $$\frac{1 - \alpha^{\gamma + 1}}{1 - \alpha} \quad \text{tokens for one pass of the primary.}$$
#
# | symbol | in the code | is |
# | --- | --- | --- |
# | $\gamma$ | `block` | tokens of a block; in writing, those drafted in a round |
# | $k$ | `k` | where the block of a token begins |
# | $x$, $\hat y$, $y$ | `x`, `read`, `y` | the primary's states, these mapped, the secondary's own |
# | $\ell(j)$ | `depths` | how many layers of the primary the states have passed |
# | $F^{(j)}$ | `weights`, `Tandem.projections` | the map that layer $j + 1$ reads through |
# | $t$ | `draft` | a drafted token |
# | $p$, $q$ | `p`, `q` | the primary's and the secondary's distribution of the next token |
# | $\alpha$ | `acceptance` | the chance that a draft is accepted |

# %% [markdown] tags=["front"]
# ## A simple implementation
#
# The tandem, token by token. `layer_states` runs a model by hand: each layer sees what `read` gives it
# for earlier blocks, and its own states for the rest. `_layer`, not shown here, is one layer of Llama for
# one token. `first` matters in writing only, where the prompt is a block of its own:

# %% tags=["front"]
learn.show_source(reference.layer_states, reference.tandem_logits)

# %% [markdown] tags=["front"]
# And the rule that keeps the text the primary's own:

# %% tags=["front"]
learn.show_source(accept.accept_sampled)

# %% [markdown] tags=["front"]
# ## The check
#
# In training all blocks are computed at once, with a mask. In float32 that may err at most twice as much as
# the simple implementation does, give or take two roundings of the largest logit, against float64. And
# text that a tandem writes greedily has to be the primary's, token for token, even if the secondary knows
# nothing.


# %% tags=["front"]
def llama(layers, width, seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 257, "initializer_range": 0.06}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, bos_token_id=None, eos_token_id=None)).eval()


def exact(model):  # in float64; Llama's own norms would go on computing in float32
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, norm in list(module.named_children()):
            if isinstance(norm, LlamaRMSNorm):  # not trained: its weights are ones
                setattr(module, name, torch.nn.RMSNorm(len(norm.weight), norm.variance_epsilon))
    return model.double()


tandem = Tandem(llama(3, 64, 0), llama(2, 32, 1), TandemConfig(block=3))
ids = torch.randint(257, (1, 11), generator=torch.Generator().manual_seed(0))
models, maps = (tandem.primary, tandem.secondary), [projection.weight for projection in tandem.projections]
depths = tandem.projections.depths
with torch.no_grad():
    fast = tandem(ids).logits[0]
    plain = reference.tandem_logits(*models, ids[0], 3, maps, depths)
    gold = reference.tandem_logits(*map(exact, models), ids[0], 3, [w.double() for w in maps], depths)
    text = tandem.generate(ids, max_new_tokens=12, block=3)
    alone = speculative_generate(tandem.primary, None, ids, max_new_tokens=12)
learn.check("all blocks at once", fast, plain, gold, scale=gold.abs().max().item())
print(f"written in tandem and by the primary alone, the same text: {torch.equal(text, alone)}")
assert torch.equal(text, alone)

# %% [markdown]
# A pass over a block is cheap only if it reads each weight once for all tokens. `linear_rows` does that;
# `stream_weights(primary)` puts it into a model. The models of this chapter run without it.

# %%
learn.show_implementations("tandem")
x, weight = torch.randn(5, 64), torch.randn(96, 64)
plain, gold = (linear_rows(x.to(t), weight.to(t), impl="reference") for t in (torch.float32, torch.float64))
learn.check("linear_rows", linear_rows(x, weight), plain, gold)


# %% [markdown]
# ## Play
#
# How long should a block be? Every draft costs a pass of the secondary, and what comes behind a rejected
# one is wasted. The primary's pass over a block is taken to cost as much as one over a single token.
# Move the sliders in Jupyter: `acceptance` is the chance of each draft, `cost` what a pass of the
# secondary takes as a part of the primary's. Where does no block help at all, however short?


# %%
def speedup(acceptance=0.7, cost=0.1):
    blocks = range(0, 13)
    rates = [expected_tokens(acceptance, n) / (1 + n * cost) for n in blocks]
    figure, axes = learn.canvas(7.2, 3.0)
    axes.plot(blocks, rates, **learn.LOOKS["tandem"].line)
    axes.axhline(1, color=learn.LOOKS["baseline"].colour, ls=":")
    axes.set(xlabel="tokens drafted in a round", ylabel="times as fast as the primary", xticks=blocks)
    axes.set_title(f"{acceptance:.0%} of drafts accepted, a draft costs {cost:g} of a pass")
    learn.show(figure, "Speed against the length of a block")


learn.play(speedup, acceptance=[0.3, 0.5, 0.6, 0.7, 0.8, 0.9], cost=[0.02, 0.05, 0.1, 0.2, 0.4])

# %% [markdown]
# ## A measurement
#
# A small pair, trained here on Python's own source: a primary of three layers, then a secondary of two
# layers and half the width, once in a tandem and once on its own. The primary stays as it is while the
# secondaries and their maps are trained. Both see the same text for as many steps. With this seed, reading
# the primary lowers the loss:

# %%
words = lab.text()
primary = llama(3, 64, 0)
lab.train(primary, lab.windows(words, 64, 16 * 150), batch=16, learning_rate=8e-3)
blocks = {"tandem": 2, "on its own": 64}  # a block as long as the window sees nothing of the primary
pairs, losses = {}, {}
for name, block in blocks.items():
    pairs[name] = Tandem(primary, llama(2, 32, 1), TandemConfig(block=block))
    lab.train(pairs[name], lab.windows(words, 64, 16 * 100), batch=16, learning_rate=8e-3)
    unseen = lab.held_out(words, 64, 32)
    with torch.no_grad():
        losses[name] = words.bits_per_byte(pairs[name](unseen, labels=unseen).loss.item())
print({name: f"{loss:.2f} bits a byte" for name, loss in losses.items()})
assert losses["tandem"] < losses["on its own"]

# %% [markdown]
# Now both draft for the primary, four tokens a round, and text is sampled. It follows the primary's
# distribution either way; what differs is how many passes of the primary it takes. Expect little
# difference, and not always in the tandem's favour: both models are tiny, and the paper's are far larger.
# The share accepted is that of the first draft of each round, an estimate of $\alpha$.

# %%
draft, pair = pairs["on its own"].secondary, pairs["tandem"]
options = {"max_new_tokens": 32, "block": 4, "do_sample": True, "return_stats": True}
ways = {
    "tandem": partial(pair.generate, **options),
    "on its own": partial(speculative_generate, primary, draft, **options),
}
rows = []
for name, way in ways.items():
    random = torch.Generator().manual_seed(0)
    stats = [way(ids[None], generator=random)[1] for ids in lab.held_out(words, 32, 10)]
    accepted = sum(s.accepted_at[0] for s in stats) / sum(s.drafted_at[0] for s in stats)
    tokens = sum(s.tokens for s in stats) / sum(s.primary_calls for s in stats)
    rows.append((name, f"{accepted:.0%}", f"{tokens:.2f}"))
learn.show_table(("the draft", "first drafts accepted", "tokens a pass of the primary"), rows)

# %% [markdown]
# ## What the papers claim, and what was found
#
# That verified text is the primary's own can be shown at any size. That reading the primary helps was
# shown by the paper with far larger models; the verdicts say whether it does with small ones.

# %%
learn.show_claims("tandem")

# %% [markdown]
# ## When not to use it
#
# Drafting pays only where a pass over a few tokens costs the primary little more than a pass over one:
# with small batches, and where weights come slowly from memory. On a large batch, or where the processor
# is busy as it is, each wasted draft is wasted work. And the secondary has to be trained, on text like
# the text that will be written: without that hardly anything is accepted, and the pair is slower than
# the primary alone.
#
# ## Exercise
#
# With 60 % of drafts accepted and a secondary that costs nothing, how many tokens does a pass of the
# primary give in blocks of two? And what is the limit for ever longer blocks? Use the formula, then
# `expected_tokens`.

# %% [markdown]
# <details><summary>Answer</summary>
#
# $1 + 0.6 + 0.36 = 1.96$ in blocks of two, and never more than $1 / (1 - 0.6) = 2.5$: behind the first
# rejection all else is thrown away.
#
# </details>

# %% tags=["hide-cell"]
print(
    f"{expected_tokens(0.6, 2):.2f} in blocks of two, {expected_tokens(0.6, 100):.2f} in blocks of a hundred"
)
assert abs(expected_tokens(0.6, 2) - 1.96) < 1e-9
