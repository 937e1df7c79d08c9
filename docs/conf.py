"""How the site is built: ``make docs``. Chapters are run on the way, and nothing is fetched."""

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "extensions")]

import plots
import tables

import nonet
from nonet import methods

project, author, release = "nonet", "The nonet authors", nonet.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "equations"]
exclude_patterns = ["_build", "conf.py", "tables.py", "front.py", "notebook.py", "plots.py", "extensions"]

html_theme = "furo"
html_title = "nonet"
pygments_dark_style = "a11y-high-contrast-dark"
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "drawn"
html_copy_source = html_show_sourcelink = html_show_copyright = False

nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "force"
nb_execution_timeout = 180
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_render_markdown_format = "gfm"  # outputs have tables
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
napoleon_use_rtype = napoleon_attr_annotations = False
# Docstrings name what lies outside of the site by plain names.
nitpicky = False

_ROOMS = [*(m.name for m in methods()), "model", "hf", "data", "learn", "ledger", "testing"]


def _reference(room: str) -> str:
    """Returns the page of a package's public names."""
    package = importlib.import_module(f"nonet.{room}")
    title = next((m.title for m in methods() if m.name == room), None)
    head = f"nonet.{room}" + (f": {title}" if title else "")
    parts = [head, "=" * len(head), "", (package.__doc__ or "").strip(), ""]
    for name in sorted(set(package.__all__) - {"METHOD"}):
        value = getattr(package, name)
        if not callable(value):
            parts += [f".. py:data:: nonet.{room}.{name}", ""]
            continue
        kind = "class" if isinstance(value, type) else "function"
        parts += [f".. auto{kind}:: nonet.{room}.{name}"]
        parts += ["   :members:"] if kind == "class" else []
        parts += [] if value.__module__.startswith(f"nonet.{room}") else ["   :no-index:"]
        parts += [""]
    return "\n".join(parts)


def _written(path: Path, text: str) -> None:
    """Writes a page if it changed, so that the rest of the site need not be made again."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


for _room in _ROOMS:
    _written(HERE / "generated" / f"{_room}.rst", _reference(_room))


def _completed(app, name, source):
    """Puts what is made from stored rows into a page while it is read."""
    source[0] = tables.fill(source[0])
    if name == "ledger":
        source[0] += plots.drawn(HERE / "generated")


def setup(app):
    """Hooks tables and plots in."""
    app.connect("source-read", _completed)
