"""A classification that every machine has: which package of the standard library a docstring comes from."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nonet.data.examples import Example, Examples, deal

PACKAGES = ("asyncio", "email", "logging", "multiprocessing", "unittest")
_SHORTEST = 40  # characters: below it a docstring says too little to be told from others
_MOST = 150  # of a package, so that none is met more often than the rest


def library_topics(packages: Sequence[str] = PACKAGES, seed: int = 0, few: int | None = None) -> Examples:
    """Returns first paragraphs of docstrings, labelled with the package that they come from.

    Every package gives as many, up to 150; they are dealt 80/10/10 into train, validation and test. Names of
    packages are blotted out, so that a text has to be told from what it says.

    Args:
        packages: names of packages of the running interpreter's standard library.
        seed: of the choice and of the order in which texts are dealt.
        few: train on so many only, as evenly over the packages as it goes; the rest tests too.

    Raises:
        FileNotFoundError: a package is not there in source.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, list[str]] = {}
    for package in packages:
        files = sorted((root / package).rglob("*.py"))
        if not files:
            raise FileNotFoundError(f"{root} holds no source of {package}; name other packages")
        texts = (text for path in files for text in _paragraphs(path))
        names = re.compile("|".join(packages), re.IGNORECASE)
        found[package] = sorted({names.sub("___", text) for text in texts if len(text) >= _SHORTEST})
    count = min(_MOST, *(len(texts) for texts in found.values()))
    random = np.random.default_rng(seed)
    examples = [
        Example(found[package][i], package)
        for package in packages
        for i in random.choice(len(found[package]), count, replace=False)
    ]
    return deal("docstrings of the standard library", ("text", "label"), examples, seed, few)


def _paragraphs(path: Path) -> Iterator[str]:
    """Yields the first paragraph of every docstring of a file, on one line."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield " ".join(text.split("\n\n")[0].split())
