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
# # Reformer
#
# Two things stand in the way of very long texts. Attention compares every token with every other, so
# twice the text takes four times as long. And training keeps what every layer computed, so twice the
# layers take twice the memory. Reformer answers the first by comparing only tokens that are likely to
# matter to each other, and the second by layers that can be undone instead of remembered.
#
# You need to know what attention computes, and a little PyTorch. Reading takes a quarter of an hour.

# %% tags=["front"]
from functools import partial
from statistics import median

import torch
from torch.nn.functional import scaled_dot_product_attention

from nonet import learn
from nonet.reformer import lsh_attention, lsh_buckets, lsh_rotations, reference, reversible
from nonet.slots import Memo

lab = learn.Lab()

# %% [markdown] tags=["front"]
# ## The idea
#
# Softmax is ruled by its largest scores. If all keys have the same length, these belong to the keys that
# point in nearly the same direction as the query, and often a few of them get most of the attention.
# Could those few be found without comparing with all?
#
# Throw all tokens into buckets by their direction: vectors at a small angle mostly land in the same
# bucket. This is called locality-sensitive hashing, LSH. A query then looks only into its own bucket.
# The cut between two buckets may part two good neighbours, so hash several times with other cuts.
#
# For the memory, keep two copies of the text's vectors and let each layer add to one copy what it reads
# from the other. What was added can be computed again and taken away, so nothing in between need be
# kept.

# %% tags=["hide-input"]
torch.manual_seed(2)
points = torch.nn.functional.normalize(torch.randn(1, 1, 28, 2), dim=-1)
buckets = lsh_buckets(points, lsh_rotations(2, heads=1, n_hashes=1, n_buckets=4, seed=1))
seen = reference.shown(buckets, window=28, causal=False, attend="bucket", real=None)[0, 0, 0]
order = buckets[0, 0, 0].argsort(stable=True)
looks = [learn.LOOKS[name] for name in ("reformer", "flash", "mamba", "linformer")]
figure, (circle, unsorted, ordered) = learn.canvas(8.4, 3.0, columns=3)
for bucket, look in enumerate(looks):
    x, y = points[0, 0][buckets[0, 0, 0] == bucket].mT
    circle.scatter(x, y, color=look.colour, marker=look.marker, s=34, label=f"bucket {bucket}")
circle.set(title="directions in buckets", aspect="equal", xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
circle.legend(loc="center", handletextpad=0.2, fontsize=9)
circle.axis("off")
for axes, place, title in ((unsorted, torch.arange(28), "in the text's order"), (ordered, order, "sorted")):
    i, j = seen[place][:, place].nonzero().mT
    colours = [looks[buckets[0, 0, 0, place[int(n)]]].colour for n in i]
    axes.scatter(j, i, c=colours, marker="s", s=11, linewidths=0)
    axes.set(title=title, xlabel="keys", ylabel="queries", aspect="equal", xlim=(-1, 28), ylim=(28, -1))
    axes.set(xticks=[], yticks=[]), axes.grid(visible=False)
learn.show(
    figure,
    "Points on a circle in four buckets; the pairs that share a bucket lie scattered over the table of "
    "scores, and in blocks along its diagonal once tokens are sorted by bucket",
)

# %% [markdown]
# Every dot of the two tables is a score that has to be computed; the white is work saved. Sorting brings
# the dots together into blocks, which a computer multiplies quickly.

# %% [markdown] tags=["front"]
# ## The mathematics
#
# Queries and keys are made by one projection, and a key is its query at length one. The bucket of a
# vector is the direction it comes nearest to among $b / 2$ random ones and their opposites, the columns
# of a random matrix $R$ and of $-R$. So there are $b$ buckets:
#
# $$k_j = \frac{q_j}{|q_j|}, \qquad h(x) = \mathrm{argmax}\,[x R;\; -x R]$$
#
# A query sees the union over all rounds of the tokens that share its bucket and are near it in the order
# of that round, which is by bucket and then by position. It sees itself only when there is nothing else,
# that is, $P_i = \{i\}$ where the union is empty:
#
# $$P_i = \bigcup_r \{ j \ne i : h_r(q_i) = h_r(q_j),\; j \text{ near } i \text{ in round } r \}$$
#
# $$o_i = \sum_{j \in P_i} \frac{e^{q_i \cdot k_j}}{\sum_{n \in P_i} e^{q_i \cdot k_n}}\, v_j$$
#
# Here $o_i$ is the output of token $i$. A key has length one, so no $\sqrt d$ divides the scores. When the
# text is read from left to right, only $j \le i$ counts. In the paper the sorted order is cut
# into chunks, and near is what lies in the same chunk or in the one before. Here near is a fixed number
# of places, since a token that comes later would shift the chunks.
#
# A reversible layer turns a pair of streams into another, and back:
#
# $$Y_1 = X_1 + F(X_2), \qquad Y_2 = X_2 + G(Y_1)$$
#
# $$X_2 = Y_2 - G(Y_1), \qquad X_1 = Y_1 - F(X_2)$$
#
# | symbol | in the code | is |
# | --- | --- | --- |
# | $q, v$ | `qk`, `v` | queries, which are the keys too, and values |
# | $R$ | `rotations` | random directions, another matrix for every round and head |
# | $b$ | `n_buckets` | buckets of a round; above 128 a bucket is a pair of two hashes |
# | $h(x)$ | `buckets` | the bucket of each token, by round |
# | $r$ | up to `n_hashes` | a round of hashing |
# | near | `window` | fewer than so many places apart in the bucket: twice `bucket_size` |
# | $F, G$ | `f`, `g` | attention and feed-forward, each with its norm |

# %% [markdown] tags=["front"]
# ## A simple implementation
#
# The oracle writes down the whole table of scores and strikes out what no round shows. It saves nothing;
# it says what is to be computed. `n` counts the rounds that show a key; clamped to one, its logarithm is
# zero where a key is seen and minus infinity where it is not. `attend="bucket"` is the form above,
# `"chunk"` the paper's, and `"loose"` that of common code, which looks into other buckets too. `real` is
# false where a text is padded. The score of a token with itself is set to -100,000, so that it counts
# only where nothing else is seen. `scale` is 1 here, `alibi_slopes` (none here) takes a slope times the
# distance from each score, and `queries` says how many of the last rows are wanted. In comments on
# shapes `R` is the number of rounds, and `F` is PyTorch's `functional`, not the branch $F$.

# %% tags=["front"]
learn.show_source(reference.lsh_attention, reference.shown)

# %% [markdown]
# The fast path sorts tokens by bucket and cuts the sorted order into chunks of half a window. Each chunk
# is compared with itself and the two before it; where the future may be seen, also with the two behind
# it.

# %% [markdown] tags=["front"]
# The backward pass of reversible layers walks from the last layer to the first. It runs each branch
# again, takes its output away from the stream, and so arrives at what the layer had been given.

# %% tags=["front"]
learn.show_source(reversible._Reversible.backward)

# %% [markdown] tags=["front"]
# ## The check
#
# The sorted path may err at most twice as much as the oracle does in float32, both against float64,
# gradients included. Buckets are given, since rounding could put a token into another. And with windows
# as long as the text, more and more rounds come close to attention over all earlier tokens; the distance
# is given in percent of the size of what full attention says.

# %% tags=["front"]
torch.manual_seed(0)
qk, v = torch.randn(2, 1, 2, 200, 16)
buckets = lsh_buckets(qk, lsh_rotations(16, heads=2, n_hashes=3, n_buckets=200 / 16, seed=0))
learn.check_op(lsh_attention, {"qk": qk, "v": v}, n_hashes=3, bucket_size=16, buckets=buckets)

with torch.no_grad():
    keys = torch.nn.functional.normalize(qk, dim=-1)
    earlier = torch.ones(200, 200, dtype=torch.bool).tril(-1)
    earlier[0, 0] = True  # the first token has nothing but itself
    full = scaled_dot_product_attention(qk, keys, v, attn_mask=earlier, scale=1.0)
    rounds = (1, 4, 16, 64)
    far = [lsh_attention(qk, v, n_hashes=n, bucket_size=200, n_buckets=8) - full for n in rounds]
far = [(error.square().mean() / full.square().mean()).sqrt().item() for error in far]
print(
    "off full attention:", ", ".join(f"{n} rounds {100 * x:.0f} %" for n, x in zip(rounds, far, strict=True))
)
assert far == sorted(far, reverse=True)
assert far[-1] < 0.2

# %%
learn.show_implementations("reformer")

# %% [markdown]
# ## Play
#
# How likely is it that two vectors share a bucket at least once? It falls with the angle between them,
# rises with rounds, and falls with buckets. Ideal would be a cliff: all near ones found, no far one
# looked at. Move the sliders in Jupyter: what do more rounds cost you at ninety degrees, where a pair
# that is found is work wasted?


# %%
angles = torch.linspace(0, torch.pi, 25)


def found(rounds=4, buckets=16, width=32):
    x, y = torch.linalg.qr(torch.randn(400, width, 2)).Q.unbind(-1)  # 400 pairs at right angles
    turned = angles.cos()[:, None, None] * x + angles.sin()[:, None, None] * y
    cuts = lsh_rotations(width, heads=1, n_hashes=rounds, n_buckets=buckets, seed=0)
    into = lsh_buckets(torch.cat([x[None], turned])[:, None], cuts)
    alike = (into[1:] == into[:1])[:, 0].float()  # (angles, rounds, pairs)
    figure, axes = learn.canvas(7.2, 3.2)
    for look, name, share in (("reformer", rounds, alike.amax(1)), ("baseline", 1, alike.mean(1))):
        axes.plot(angles.rad2deg(), 100 * share.mean(-1), label=name, **learn.LOOKS[look].line)
    axes.set(xlabel="angle between the vectors, degrees", ylabel="found, %", title=f"{buckets} buckets")
    axes.legend(title="rounds")
    learn.show(figure, "The share of pairs in one bucket, falling with the angle; higher for more rounds")


learn.play(found, rounds=[1, 2, 4, 8, 16], buckets=[2, 4, 8, 16, 32, 64], width=[4, 8, 16, 32, 64])

# %% [markdown]
# ## A measurement
#
# First time. Here, now: a forward pass over 2 heads of 64, with buckets of 32, against PyTorch's fused
# attention, which is exact and quick. Times are medians of calls that are made in turns.

# %%
ways = ("exact, fused", "1 round", "2 rounds", "4 rounds")
rows = []
for length in (1024, 2048, 4096, 8192):
    qk, v = torch.randn(2, 1, 2, length, 64)
    calls = {ways[0]: partial(scaled_dot_product_attention, qk, qk, v, is_causal=True)}
    for way in ways[1:]:
        calls[way] = partial(lsh_attention, qk, v, n_hashes=int(way.split()[0]), bucket_size=32)
    with torch.no_grad():
        times = {way: 1e3 * median(one) for way, one in lab.seconds(calls, repeats=3).items()}
    rows.append([f"{length:,}", *(f"{times[way]:.1f}" for way in ways)])
learn.show_table(("tokens", *(f"{way}, ms" for way in ways)), rows)
print(f"At {length:,} tokens, on {lab.threads}, times as fast as exact attention: ", end="")
print(", ".join(f"{way} {times[ways[0]] / times[way]:.1f}" for way in ways[1:]))

# %% [markdown]
# By the count of operations, twice the tokens are four times the work for the exact way and twice the
# work for the hashed way; the times above follow that only roughly. And a round has its price from the
# first token on: from which length it pays depends on rounds and machine.
#
# Now memory. Small models with hashed attention, a pass forward and one back, by depth: once with layers
# undone, once with the same two streams stored for PyTorch to differentiate. In the `Memo` a branch
# notes its buckets.


# %%
def stored(x, pairs, parameters):
    first = second = x
    for f, g in pairs:
        first = first + f(second, Memo())
        second = second + g(first, Memo())
    return (first + second) / 2


ids = torch.randint(257, (2, 512))
peaks = {"undone": [], "stored": []}
for way, depth in ((way, depth) for way in peaks for depth in (2, 4, 8)):
    model = lab.language_model(num_hidden_layers=depth, pattern="R", residual="reversible")
    model.model.residual = stored if way == "stored" else model.model.residual
    model(input_ids=ids[:, :64], labels=ids[:, :64]).loss.backward()  # what is set up once is not counted
    peaks[way].append(lab.peak(lambda model=model: model(input_ids=ids, labels=ids).loss.backward()) / 2**20)
figure, axes = learn.canvas(7.2, 3.0)
axes.plot((2, 4, 8), peaks["undone"], label="layers undone", **learn.LOOKS["reformer"].line)
axes.plot((2, 4, 8), peaks["stored"], label="activations stored", **learn.LOOKS["baseline"].line)
axes.set(xlabel="layers", ylabel="peak memory, MiB", ylim=(0, None), xticks=(2, 4, 8))
axes.legend()
learn.show(figure, "Peak memory by number of layers: rising steeply when stored, far less when undone")
print(f"8 layers: {peaks['undone'][-1]:.0f} MiB undone, {peaks['stored'][-1]:.0f} MiB stored")
assert peaks["undone"][-1] < peaks["stored"][-1]

# %% [markdown]
# The peak still rises with depth, by far less than when all is stored. Gradients of the parameters are
# part of that, and the allocator need not hand back every piece of memory. The verdict in the table below
# rests only on what is kept for the backward pass. Each layer keeps the buckets of its tokens, since
# rounding could otherwise put a token into another bucket when the layer is run again; and the state of
# the random numbers, so that dropout falls the same way again.
#
# ## What the papers claim, and what was found
#
# The paper trains a model to say a long word twice with one kind of attention, and evaluates it with
# another. That, memory and time can be tested small; its long runs on text and images cannot.

# %%
learn.show_claims("reformer")

# %% [markdown]
# ## When not to use it
#
# On short texts, or with many rounds: sorting costs more than it saves, and exact attention in a fused
# kernel is hard to beat; the tables above say from which length hashing pays on their machines. Where
# every token must be found for certain: hashing misses some, and each further round costs as much as the
# first. In place of the full attention of a model that was trained with it: queries and keys are one
# here, and such a model has two. For quick decoding: every step compares its buckets with those of all
# earlier tokens. Reversible layers are worth their second forward pass only where memory, not time, is
# short.
#
# ## Exercise
#
# Two vectors share a bucket with probability $p = 0.5$ in one round. How many rounds does it take until
# the chance to miss each other in all of them is below one in a hundred?

# %% [markdown]
# <details><summary>Answer</summary>
#
# Rounds are independent, so $m$ rounds miss with probability $(1 - p)^m$. With $p = 0.5$ six rounds miss
# one time in 64 and seven one time in 128: seven rounds. The cell below counts it with real hashes: it
# measures $p$ at one angle in one round, and compares what the formula makes of it with what is found.
#
# </details>

# %% tags=["hide-cell"]
x, y = torch.linalg.qr(torch.randn(5000, 32, 2)).Q.unbind(-1)
near = 0.85 * x + (1 - 0.85**2) ** 0.5 * y
hashes = lsh_buckets(
    torch.stack([x, near])[:, None], lsh_rotations(32, heads=1, n_hashes=280, n_buckets=8, seed=0)
)
alike = (hashes[0, 0] == hashes[1, 0]).view(40, 7, -1)  # 40 times 7 rounds
p = alike.float().mean().item()
missed = (~alike).all(1).float().mean().item()
print(f"p = {p:.2f}; seven rounds miss {100 * missed:.2f} %, by the formula {100 * (1 - p) ** 7:.2f} %")
assert 0.7 < missed / (1 - p) ** 7 < 1.4
