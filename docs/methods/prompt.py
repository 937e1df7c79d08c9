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
# model, in contrast, has read a lot and knows many of the words that the labels are called by. It only
# has to be asked. Prompt learning is about asking: in words (PET), or in vectors that are trained in
# place of words (prompt tuning, P-tuning, prefix tuning).
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
# one of a few thousand words? Prompt tuning puts some vectors in front of the text and trains them, and
# nothing else. P-tuning makes these vectors with a small network. Prefix tuning goes further and puts
# trained keys and values in front of every layer. The model stays frozen: one copy serves many tasks.

# %% tags=["hide-input"]
ours, grey = learn.LOOKS["prompt"].colour, learn.LOOKS["baseline"].colour
figure, axes = learn.canvas(7.2, 3.4)
axes.set(xlim=(-0.9, 16.5), ylim=(6.9, -1.2)), axes.axis("off")
for left, title in ((0, "in words"), (5.8, "vectors in front"), (11.6, "a prefix in every layer")):
    axes.text(left + 2.2, -0.7, title, ha="center", weight="bold")
    for row in range(4):
        for column in range(6):
            asked = (column > 3, column < 2)[left > 0] and (row == 3 or left > 10)
            asked = asked and not (left > 10 and row == 3)
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
# The second sum runs over the labels $k$ and over no other words. Trained is the loss of the right
# label, and a little of the language model's own loss on texts without labels, so that it does not
# forget:
#
# $$L = (1 - \alpha) L_{\mathrm{CE}} + \alpha L_{\mathrm{LM}}$$
#
# Here $L_{\mathrm{CE}} = -\log q(l \mid x)$ for the right label $l$. In the paper every label has one
# word, a single token, and $\alpha$ is 0.0001. Without texts that have no label the second loss is left
# out.
#
# Trained vectors are simpler. Prompt tuning puts $n$ rows $C$ in front of the text's embeddings $X$, and
# a prefix puts $n$ keys $K_C$ and values $V_C$ in front of those of every layer. $Q$ are the queries,
# $D$ is the width of a head, and $[\,;\,]$ puts one under the other:
#
# $$\mathrm{input} = [C; X]$$
#
# $$\mathrm{output} = \mathrm{softmax}\left( \frac{Q\, [K_C; K]^\top}{\sqrt{D}} \right) [V_C; V]$$
#
# | symbol | in the code | is |
# | --- | --- | --- |
# | $P(x)$, $v(l)$ | `Pattern`, `Verbalizer` | the question, and the words of each label |
# | $s(l \mid x)$ | `label_scores`, `PET.scores` | the score of each label |
# | $\alpha$ | `alpha` | the weight of the language model's loss |
# | $C$ | `soft_prompt` | the trained vectors |
# | $n$ | `length` | how many of them there are |

# %% [markdown] tags=["front"]
# ## A simple implementation
#
# The score of the labels for one text, as the formula says. A word may be several tokens; their
# logarithms are added up. `causal` is true for a model that reads from left to right: there, a word is
# predicted at the place before it.

# %% tags=["front"]
learn.show_source(reference.label_scores)

# %% [markdown]
# A prompt of vectors is so simple that there is little to show. This is all that a prefix does in a
# layer: its keys, and likewise its values, go in front of the layer's own, the same ones for every text.

# %%
learn.show_source(prefix._join)

# %% [markdown] tags=["front"]
# ## The check
#
# First a language model that knows something. It reads a made-up language of some hundred words. Its
# texts have topics, and now and then the text goes on, for example "it is about violin". Names of topics
# are words like all others; no text is labelled. Then the fast `PET`, which takes many texts at once and
# pads them, has to agree with the lines above, which take one at a time.

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
one_by_one = torch.stack(
    [reference.label_scores(model, tokenizer, pet.pattern, words, text, causal=True) for text in some]
)
error = (pet.scores(some) - one_by_one).abs().max().item()
print(f"largest difference of the scores: {error:.1e}")
assert error < 1e-4

# %% [markdown]
# A prompt of vectors must be the plain model run on the joined embeddings. And it runs on whatever the
# model runs on:

# %%
ids = torch.tensor([tokenizer(test[0][0])["input_ids"]])
prompted = add_prompt(copy.deepcopy(model), PromptTuning(5), tokenizer)
embed = model.get_input_embeddings()
joined = torch.cat([prompted.soft_prompt.encoder()[None], embed(ids)], dim=1)
with torch.no_grad():
    by_hand = model(inputs_embeds=joined).logits[:, 5:]
    given = prompted(input_ids=ids).logits
print(f"largest difference: {(by_hand - given).abs().max().item():.1e}")
assert torch.allclose(by_hand, given, atol=1e-4)
learn.show_implementations("prompt")

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
# Here, now: ten labelled examples, and fifty. Once they train the model through its pattern, and once a
# new head on the same model, with the same number of steps, each at a learning rate that suits it. Both
# models are trained whole.

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
ways = {"20 vectors": 20, "all weights": 0}
right = {
    way: tune(model, tokenizer, names, learning, test, prompt=length, steps=120, seed=0)
    for way, length in ways.items()
}
width = model.config.hidden_size
trained = {way: length * width or model.num_parameters() for way, length in ways.items()}
rows = [[way, f"{trained[way]:,}", f"{100 * share:.0f}"] for way, share in right.items()]
learn.show_table(("trained", "numbers", "% right"), rows)
assert right["20 vectors"] < right["all weights"]

# %% [markdown]
# With about a hundredth of the numbers, twenty vectors get a good part of the way, and they fall short
# of training the whole model. That is how it goes with small models. The authors find that the gap
# closes at billions of weights: a large model can do so much that a few vectors are enough to ask for
# it.
#
# ## What the paper claims, and what was found
#
# The papers work with far larger models, trained on real text. Here the model and its language are tiny,
# so only the order of things can be tested, not the papers' figures. The made-up language is kind to both
# sides of the first claim: topics are easy to tell apart, for a new head too.

# %%
learn.show_claims("prompt")

# %% [markdown]
# ## When not to use it
#
# PET needs labels that have names which the model knows. With many labelled examples a new head is simpler,
# and may be as good: on AG's News the paper finds the two equal at 1,000. And with a few examples you
# cannot tell which of many patterns is best. The paper takes several and averages their scores.
#
# Vectors in front of the text make every sequence longer, and cannot be added to the weights as LoRA's
# factors can. On small models they stay behind. They learn slowly, and ask for a learning rate some ten
# or a hundred times that of the weights.
#
# ## Exercise
#
# A model has 30 layers, width 576, and 3 heads of width 64 for keys and values. How many numbers does a
# prompt of 20 vectors train, and how many a prefix of 20?

# %% [markdown]
# <details><summary>Answer</summary>
#
# The prompt is 20 vectors of the width: $20 \cdot 576 = 11{,}520$ numbers. The prefix has a key and a
# value for each of 20 places, 30 layers and 3 heads: $20 \cdot 30 \cdot 2 \cdot 3 \cdot 64 = 230{,}400$,
# twenty times as many.
#
# </details>

# %%
sizes = {"hidden_size": 576, "intermediate_size": 64, "vocab_size": 100, "num_hidden_layers": 30}
asked = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=9, num_key_value_heads=3))
for config in (PromptTuning(20), PrefixTuning(20)):
    count = add_prompt(asked, config).num_parameters(only_trainable=True)
    print(f"{type(config).__name__}: {count:,}")
    remove_prompt(asked)
assert count == 20 * 30 * 2 * 3 * 64
