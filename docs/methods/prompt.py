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
# # Prompt learning
#
# You have a language model, a task, and ten labelled examples. The usual way is to put a new layer on
# the model and to train it. But the new layer knows nothing, and ten examples teach it little. The
# model, in contrast, has read a lot and knows the names of the labels as words. It only has to be asked.
# Prompt learning is about asking: in words (PET), or in vectors that are trained in place of words
# (prompt tuning, P-tuning, prefix tuning).
#
# You need to know what a language model predicts, and a little PyTorch. Reading takes twenty minutes.

# %% tags=["front"]
import copy
from statistics import mean

import torch
from matplotlib.patches import Rectangle
from transformers import LlamaConfig, LlamaForCausalLM

from nonet import learn
from nonet.prompt import (
    PET,
    Pattern,
    PrefixTuning,
    PromptTuning,
    Verbalizer,
    add_prompt,
    prefix,
    reference,
    remove_prompt,
    train_pet,
)
from nonet.prompt.claims import train_head, tune
from nonet.prompt.ensemble import accuracy

lab = learn.Lab()

# %% [markdown] tags=["front"]
# ## The idea
#
# *Asking in words.* Put the text into a sentence with a blank: "TEXT it is about ...". Then look at what
# the model would write there. A *verbalizer* says which word stands for which label, and the label whose
# word is most likely is the answer. No weight is new, so the model has an answer before it has seen any
# example. PET trains the model on the few examples there are, with exactly this question.
#
# *Asking in vectors.* A word in the question is a vector by the time the model sees it. Why should it be
# one of the words of the vocabulary? Prompt tuning puts some vectors in front of the text and trains
# them, and nothing else. P-tuning makes these vectors with a small network. Prefix tuning goes further
# and puts trained keys and values in front of every layer. The model stays frozen: one copy serves many
# tasks.

# %% tags=["hide-input"]
ours, grey = learn.LOOKS["prompt"].colour, learn.LOOKS["baseline"].colour
figure, axes = learn.canvas(7.2, 3.4)
axes.set(xlim=(-0.9, 16.5), ylim=(6.9, -1.2)), axes.axis("off")
for left, title in ((0, "in words"), (5.8, "vectors in front"), (11.6, "a prefix in every layer")):
    axes.text(left + 2.2, -0.7, title, ha="center", weight="bold")
    for row in range(4):
        for column in range(6):
            if left > 10 and row == 3 and column < 2:  # a prefix has no embeddings
                continue
            asked = (column > 3, column < 2)[left > 0] and (row == 3 or left > 10)
            box = {"color": ours, "alpha": 0.75} if asked else {"color": grey, "alpha": 0.2}
            axes.add_patch(Rectangle((left + 0.78 * column, 1.5 * row), 0.62, 1.1, **box))
axes.text(3.4, 6.1, "pattern", ha="center", va="top", color=ours, weight="bold")
for at in (6.5, 12.3):
    axes.text(at, 6.1, "trained", ha="center", va="top", color=ours, weight="bold")
axes.text(-0.5, 5.05, "embeddings", rotation=90, ha="center", va="center", fontsize=9)
axes.text(-0.5, 2.05, "layers", rotation=90, ha="center", va="center", fontsize=9)
learn.show(
    figure,
    "Three models: a pattern's words behind the text, vectors before it, keys and values in each layer",
)

# %% [markdown] tags=["front"]
# ## The mathematics
#
# Let $P(x)$ be the text $x$ in its pattern, $M(w \mid P(x))$ the probability that the model gives to the
# word $w$ in the blank, and $v(l)$ the words that stand for the label $l$. The score of a label, and its
# probability, are
#
# $$s(l \mid x) = \frac{1}{|v(l)|} \sum_{w \in v(l)} \log M(w \mid P(x))$$
#
# $$q(l \mid x) = \frac{e^{s(l \mid x)}}{\sum_{k} e^{s(k \mid x)}}$$
#
# There are $|v(l)|$ such words. The second sum runs over the labels $k$ and over no other words. Training
# lowers the loss $L_{\mathrm{CE}}$ of the right label and, so that the model does not forget, a little of
# $L_{\mathrm{LM}}$, the language model's own loss on unlabelled texts:
#
# $$L = (1 - \alpha) L_{\mathrm{CE}} + \alpha L_{\mathrm{LM}}$$
#
# Here $L_{\mathrm{CE}} = -\log q(l \mid x)$ for the right label $l$, and $\alpha$ is 0.0001. Without
# unlabelled texts $L$ is $L_{\mathrm{CE}}$. In PET's paper the model is a masked one, every label has one
# word of a single token, and the score is the raw logit; it differs from the log-probability by a constant
# that the softmax takes out. The mean over words is ours.
#
# Trained vectors are simpler. Prompt tuning puts $n$ rows $C$ in front of the text's embeddings $X$, and
# a prefix puts $n$ keys $K_C$ and values $V_C$ in front of every layer's own keys $K$ and values $V$. $Q$
# are the queries, $D$ is the width of a head, and $[\,;\,]$ puts one under the other:
#
# $$\mathrm{input} = [C; X]$$
#
# $$\mathrm{output} = \mathrm{softmax}\left( \frac{Q\, [K_C; K]^\top}{\sqrt{D}} \right) [V_C; V]$$
#
# | symbol | in the code | is |
# | --- | --- | --- |
# | $P(x)$, $v(l)$ | `Pattern`, `Verbalizer` | the question, and the words of each label |
# | $s(l \mid x)$ | `label_scores`, `PET.scores` | the score of each label |
# | $q(l \mid x)$ | `PET.scores(...).softmax(-1)` | the probability of each label |
# | $\alpha$ | `alpha` | the weight of the language model's loss |
# | $C$ | `soft_prompt.encoder()` | the trained vectors |
# | $K_C$, $V_C$ | `prefix` of `_join` | the trained keys, and the trained values |
# | $n$ | `length` | how many of them there are |

# %% [markdown] tags=["front"]
# ## A simple implementation
#
# The score of the labels for one text, as the formula says. A word may be several tokens; their
# logarithms are added up. `causal` is true for a model that reads from left to right: there, a word is
# predicted at the place before it.

# %% tags=["front"]
learn.show_source(reference.label_scores)

# %% [markdown] tags=["front"]
# A prompt of vectors is so simple that there is little to show. The heart of a prefix is this: in each
# layer its keys, and likewise its values, go in front of the layer's own, the same ones for every text.
# The mask gets columns for them, and the places of tokens begin behind them.

# %% tags=["front"]
learn.show_source(prefix._join)

# %% [markdown] tags=["front"]
# ## The check
#
# First a language model that knows something. It reads a made-up language of a hundred-odd words. Its
# texts have topics, and half of them go on, for example with "it is about violin". Names of topics are
# words like all others; no text is labelled. Then the fast `PET`, which takes many texts at once and pads
# them, has to agree with the lines above, which take one at a time: it may err at most twice as much as
# they do, against float64.

# %% tags=["front"]
texts = lab.topics()
tokenizer = texts.tokenizer()
model = lab.language_model(vocab_size=texts.vocab_size)
lab.train(model, texts.reading(32 * 150), batch=32, learning_rate=8e-3)
names = texts.labels
words = Verbalizer({name: name for name in names})
pet = PET(model, tokenizer, Pattern("{text} it is about {blank}"), words)
test = texts.labelled(300, seed=999)
print(test[0][0], "...")
print(f"without any example {100 * accuracy(pet, *test):.0f} % are right; by chance {100 / len(names):.0f} %")

# %% tags=["front"]
some = [" ".join(test[0][i].split()[: 4 + 4 * i]) for i in range(3)]  # of unequal length


def one_by_one(model):
    asked = (tokenizer, pet.pattern, words)
    return torch.stack([reference.label_scores(model, *asked, text, causal=True) for text in some])


with torch.no_grad():
    fast, plain, exact = pet.scores(some), one_by_one(model), one_by_one(copy.deepcopy(model).double())
learn.check("scores of many at once", fast, plain, exact)

# %% [markdown]
# A prompt of vectors must be the plain model run on the joined embeddings. And it runs on whatever the
# model runs on:

# %%
ids = torch.tensor([tokenizer(test[0][0])["input_ids"]])
prompted = add_prompt(copy.deepcopy(model), PromptTuning(5), tokenizer)
embed = model.get_input_embeddings()
joined = torch.cat([prompted.soft_prompt.encoder()[None], embed(ids)], dim=1)
with torch.no_grad():
    given, plain = prompted(input_ids=ids).logits, model(inputs_embeds=joined).logits[:, 5:]
    exact = copy.deepcopy(model).double()(inputs_embeds=joined.double()).logits[:, 5:]
learn.check("logits behind a prompt", given, plain, exact)
learn.show_implementations("prompt")

# %% [markdown]
# A prefix that is made of a text must do what the text itself does in front, up to twice the error of plain
# float32 and two roundings of the largest logit:

# %%
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
bare = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=texts.vocab_size)).eval()
config = PrefixTuning(3, start="text", text="it is about")
prefixed = add_prompt(copy.deepcopy(bare), config, tokenizer)
whole = torch.cat([torch.tensor([tokenizer(config.text)["input_ids"]]), ids], dim=1)
with torch.no_grad():
    given, plain = prefixed(input_ids=ids).logits, bare(input_ids=whole).logits[:, 3:]
    exact = copy.deepcopy(bare).double()(input_ids=whole).logits[:, 3:]
learn.check("logits behind a prefix", given, plain, exact, scale=exact.abs().max().item())

# %% [markdown]
# ## Play
#
# What does the model say to one text, asked in several ways? Move the sliders in Jupyter: how much does
# the answer depend on the question, and on how many words of the text there are?


# %%
def answers(text=0, words_read=12, ending="it is about"):
    asked = PET(model, tokenizer, Pattern("{text} " + ending + " {blank}"), words)
    read = " ".join(test[0][text].split()[:words_read])
    q = asked.scores([read]).softmax(-1)[0].tolist()
    figure, axes = learn.canvas(7.2, 2.6)
    axes.barh(names, q, color=[ours if name == test[1][text] else grey for name in names])
    axes.set(xlabel="probability q of the label", xlim=(0, 1), title=f"... {read[-30:]} {ending} ...")
    axes.grid(axis="y", visible=False), axes.invert_yaxis()
    learn.show(figure, "Four bars, one a topic; the coloured one is the text's own topic")


learn.play(
    answers,
    text=list(range(12)),
    words_read=[1, 2, 4, 6, 8, 10, 12],
    ending=["it is about", "they speak of", "a story of", "the"],
)

# %% [markdown]
# ## A measurement
#
# Here, now: ten labelled examples, and then fifty, train the model through its pattern, and a new head
# together with a copy of the model. Both take the same number of steps, each at a learning rate of its
# own, and train all weights.

# %%
rows, found = [], {}
for count in (10, 50):
    few = texts.labelled(count, seed=1)
    asked = PET(copy.deepcopy(model), tokenizer, pet.pattern, words)
    train_pet(asked, *few, steps=40, learning_rate=3e-4)
    head = train_head(copy.deepcopy(model), tokenizer, names, few, test, steps=40, learning_rate=1e-3, seed=0)
    found[count] = accuracy(asked, *test), head
    rows.append([count, *(f"{100 * share:.0f}" for share in found[count])])
learn.show_table(("labelled examples", "PET, % right", "new head, % right"), rows)
ahead = mean(asked - head for asked, head in found.values())
print(f"On average PET is {100 * ahead:+.0f} points ahead.")
assert ahead > 0

# %% [markdown]
# With vectors in front of the text, the frozen model is to learn something that it does not know: to
# call the topics `house`, `time`, `year` and `woman`, words that it has met in every kind of text. That
# takes more than a few examples.

# %%
learning = texts.labelled(2000, seed=2)
ways, rates = {"20 vectors": 20, "all weights": 0}, {"20 vectors": 0.03, "all weights": 1e-3}
right = {
    way: tune(model, tokenizer, names, learning, test, length, steps=120, learning_rate=rates[way], seed=0)
    for way, length in ways.items()
}
width = model.config.hidden_size
trained = {way: length * width or model.num_parameters() for way, length in ways.items()}
rows = [[way, f"{trained[way]:,}", f"{100 * share:.0f}"] for way, share in right.items()]
learn.show_table(("trained", "numbers", "% right"), rows)
print(f"Twenty vectors are {trained['20 vectors'] / trained['all weights']:.1%} of the numbers.")
assert 1 / len(names) < right["20 vectors"] < right["all weights"]

# %% [markdown]
# The vectors do better than chance, and fall short of training the whole model. The authors of prompt
# tuning find this with small models too, and that the gap closes at billions of weights.
#
# ## What the papers claim, and what was found
#
# The papers work with far larger models. Here most claims are tested with a tiny model and a made-up
# language, so only the order of things can be, not the papers' figures; one uses a pretrained model and
# real texts. The made-up language is kind to PET and to a new head alike: its topics are easy to tell
# apart.

# %%
learn.show_claims("prompt")

# %% [markdown]
# ## When not to use it
#
# PET needs labels that have names which the model knows. With many labelled examples a new head is
# simpler, and may be as good: on AG's News PET's paper finds the two equal at 1,000. And with a few
# examples you cannot tell which of many patterns is best. The paper takes several and averages their
# scores.
#
# Vectors in front of the text make every sequence longer, and cannot be added to the weights as LoRA's
# factors can. On small models they fall short of training all weights. They learn slowly, and ask for a
# learning rate some ten or a hundred times that of the weights.
#
# ## Exercise
#
# A model has 30 layers, width 576, and 3 heads of width 64 for keys and values. How many numbers does a
# prompt of 20 vectors train, and how many a prefix of 20?

# %% [markdown]
# <details><summary>Answer</summary>
#
# The prompt is 20 vectors of the width: $20 \cdot 576 = 11{,}520$ numbers. The prefix has a key and a
# value for each of 20 places, 30 layers and 3 heads: $20 \cdot 30 \cdot 2 \cdot 3 \cdot 64 = 230{,}400$.
#
# </details>

# %% tags=["hide-cell"]
sizes = {"hidden_size": 576, "intermediate_size": 64, "vocab_size": 100, "num_hidden_layers": 30}
asked = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=9, num_key_value_heads=3))
counts = []
for config in (PromptTuning(20), PrefixTuning(20)):
    counts.append(add_prompt(asked, config).num_parameters(only_trainable=True))
    print(f"{type(config).__name__}: {counts[-1]:,}")
    remove_prompt(asked)
assert counts == [20 * 576, 20 * 30 * 2 * 3 * 64]
