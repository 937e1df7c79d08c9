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
# # Recent Methods in Transformers
#
# Nine methods, each with its idea, its mathematics, a simple implementation that runs, and a check that
# it is right. The implementations shown are the library's own. Most are *oracles*: the paper's equations
# in few lines of PyTorch, which every faster path is held to.
#
# To run this page in a checkout, install the library with `pip install '.[learn]'`. Everything runs on a
# laptop, without a network, in a few minutes. Each method has a chapter of its own that goes further: a
# picture, something to play with, a measurement, what became of the paper's claims, when not to use it,
# an exercise.
#
# <!-- table:uses -->
