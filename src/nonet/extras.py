"""The pip command that installs what is missing, from where this package was installed itself."""

from __future__ import annotations

import json
import shlex
from pathlib import Path


def pip_install(extra: str = "", *options: str) -> str:
    """Returns the command that installs this package again, with one of its extras.

    A package that came from a folder, such as a checkout, is installed from there; any other by its name.

    Args:
        extra: the extra's name.
        *options: of ``pip install``.
    """
    folder = _folder()
    source = "nonet" if folder is None else "." if folder == Path.cwd() else str(folder)
    target = f"{source}[{extra}]" if extra else source
    return " ".join(["pip install", *options, shlex.quote(target)])


def _folder() -> Path | None:
    """Returns the folder that pip installed this package from, as pip recorded it; None for an index."""
    from importlib import metadata  # slow to import, and needed only where something is missing
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        record = metadata.distribution("nonet").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    url = urlsplit(json.loads(record)["url"]) if record else None
    if url is None or url.scheme != "file":
        return None
    folder = Path(url2pathname(url.path))
    return folder if (folder / "pyproject.toml").is_file() else None
