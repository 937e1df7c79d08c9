"""The model card beside everything that a command writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

HERE = "path/to/this/directory"  # in the code of a card, for its reader to replace

_TRANSFORMERS = f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{HERE}")
tokenizer = AutoTokenizer.from_pretrained("{HERE}")
"""
_OWN = f"import nonet.model  # makes the architecture known to Transformers\n{_TRANSFORMERS}"


def card(title: str, facts: Mapping[str, Any], code: str, *, library: str = "transformers") -> str:
    """Returns a card as Markdown: a table of facts, and Python code that loads what lies beside it.

    Args:
        title: the heading.
        facts: what the table holds; values are put on one line.
        code: Python, with ``path/to/this/directory`` where the reader puts the path.
        library: the hub's name of the library that loads it.
    """
    lines = "\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items())
    return f"""---
library_name: {library}
tags: [nonet]
---

# {_cell(title)}

| | |
| --- | --- |
{lines}

Load it in Python, with the path of this directory:

```python
{code}```
"""


def code_of_model(model: Any) -> str:
    """Returns the code that loads a causal model and its tokenizer with Transformers."""
    return _OWN if model.config.model_type == "nonet" else _TRANSFORMERS


def code_of_adapter(base: str) -> str:
    """Returns the code that loads a pretrained model and puts the adapter of the card on it."""
    return f"""\
from nonet.hf import load_adapter, load_pretrained

model, tokenizer = load_pretrained({_quoted(base)})
load_adapter(model, "{HERE}")
"""


def code_of_tandem(primary: str) -> str:
    """Returns the code that loads a primary and the tandem of the card."""
    return f"""\
from nonet.hf import load_pretrained
from nonet.tandem import Tandem

primary, tokenizer = load_pretrained({_quoted(primary)})
tandem = Tandem.from_pretrained("{HERE}", primary)
"""


def _quoted(name: str) -> str:
    return json.dumps(name, allow_nan=False)  # a literal of Python, too


def _cell(value: Any) -> str:
    # The name of a file may hold bytes that are no text.
    text = str(value).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return " ".join(text.split()).replace("|", "\\|")
