"""Text in three parts: the standard library by default, or a file, a folder, or a dataset on disk."""

from __future__ import annotations

import hashlib
import logging
import platform
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nonet.data.examples import Examples, read_examples
from nonet.data.saved import is_saved_dataset, saved_dataset
from nonet.data.split import SPLITS, by_file, by_lines
from nonet.data.tables import is_table
from nonet.data.text import check_text, flaw
from nonet.hub import expanded

_FEW_FILES = 20  # below this a folder is cut by lines, so that every part has text
_NOT_THE_LIBRARY = {"idlelib", "lib2to3", "pydoc_data", "test", "tests"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Documents of UTF-8 text, in the parts ``train``, ``validation`` and ``test``.

    Args:
        name: for people.
        documents: part -> its documents; iterated more than once, and may read as it goes.

    Attributes:
        fingerprint: SHA-256 over every document and the part that it is in, in hexadecimal.

    Raises:
        ValueError: a part is missing, or has no text.
    """

    name: str
    documents: Mapping[str, Iterable[bytes]] = field(repr=False, compare=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fingerprint", self._digest())

    def changed(self) -> bool:
        """Returns whether the documents read differently now than when the corpus was made."""
        return self._digest() != self.fingerprint

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for split in SPLITS:
            size = 0
            digest.update(split.encode())
            for document in self.documents.get(split, ()):
                digest.update(len(document).to_bytes(8, "big"))
                digest.update(document)
                size += len(document)
            if not size:
                raise ValueError(f"{self.name}: nothing is left for {split}; give a longer text")
        return digest.hexdigest()


def load_corpus(source: str | Path | None = None) -> Corpus:
    """Returns the text that ``source`` names, split into train, validation and test.

    ==================  ======================================================================
    source              split
    ==================  ======================================================================
    None                the ``.py`` files of the running interpreter's standard library, by file
    a file              by lines: the first 90 % of the bytes train, the next 5 % validate
    a table             its column ``text``, row by row, 80/10/10; see :func:`read_examples`
    a folder            by file, 90/5/5, in the order of a hash of the relative path; a folder
                        of fewer than 20 files by lines, one file after the other
    a saved dataset     its own parts; those that it lacks are taken from the end of ``train``
    ==================  ======================================================================

    Tests of the standard library are left out, and so are names in a folder that begin with a dot. A
    saved dataset is what ``Dataset.save_to_disk`` writes; its text is the column ``text``, or its only
    column of strings.

    Args:
        source: a path, or None.

    Returns:
        The corpus; its documents are read from disk when they are iterated.

    Raises:
        FileNotFoundError: the path does not exist, or the interpreter has no library in source.
        ValueError: a file is empty or no UTF-8 text, a table has no column ``text``, or there is too little
            text to split.
        ImportError: a saved dataset is named and the package ``datasets`` is not installed.

    Complexity: reads the text twice, to check and to hash it.
    """
    if source is None:
        return _standard_library()
    path = expanded(source)
    if path.is_file():
        return _file(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no text at {path}; name a file, a folder or a saved dataset")
    if is_saved_dataset(path):
        return Corpus(path.resolve().name, saved_dataset(path))
    return _folder(path)


def corpus_of(examples: Examples) -> Corpus:
    """Returns the texts of examples, each a document."""
    return Corpus(examples.name, {s: [e.text.encode() for e in getattr(examples, s)] for s in SPLITS})


def _standard_library() -> Corpus:
    root = Path(sysconfig.get_path("stdlib"))
    # Of the names at the top only the library's own count: others install themselves beside them.
    kept = sys.stdlib_module_names - _NOT_THE_LIBRARY
    files = [*root.glob("*.py"), *(file for name in kept for file in (root / name).rglob("*.py"))]
    texts = _texts(
        file
        for file in files
        if file.relative_to(root).parts[0].removesuffix(".py") in kept
        and _NOT_THE_LIBRARY.isdisjoint(file.relative_to(root).parts)
    )
    if not texts:
        raise FileNotFoundError(f"{root} holds no standard library in source; name a text of your own")
    name = f"{platform.python_implementation()} {platform.python_version()} standard library"
    return Corpus(name, by_file(root, texts))


def _file(path: Path) -> Corpus:
    if is_table(path):
        return corpus_of(read_examples(path, kinds=(("text",),)))
    check_text(path)
    return Corpus(path.name, by_lines([path]))


def _folder(root: Path) -> Corpus:
    texts = _texts(
        path
        for path in root.rglob("*")
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    if not texts:
        raise ValueError(f"{root} holds no text; give a folder with files of UTF-8 text")
    tables = [path for path in texts if is_table(path)]
    if len(tables) == len(texts):
        raise ValueError(f"{root} holds only tables, such as {tables[0].name}; give one of them, as a file")
    if tables:
        _log.info(
            "%d of %d files are tables and learned as they stand, such as %s; a table given as a file is "
            "learned by its column text",
            *(len(tables), len(texts), tables[0]),
        )
    return Corpus(root.resolve().name, by_lines(texts) if len(texts) < _FEW_FILES else by_file(root, texts))


def _texts(paths: Iterable[Path]) -> list[Path]:
    """Returns the files among ``paths`` that hold UTF-8 text, sorted; says which others it leaves out."""
    files = [path for path in sorted(paths) if path.is_file() and path.stat().st_size]
    flaws = {path: found for path in files if (found := flaw(path))}
    if flaws:
        first, found = next(iter(flaws.items()))
        _log.warning("%d of %d files are no text and left out; %s: %s", len(flaws), len(files), first, found)
    return [path for path in files if path not in flaws]
