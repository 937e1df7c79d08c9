"""Draws the equations of the site when it is built, so that a page needs no script for them."""

from __future__ import annotations

import html
import re

import ziamath
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

_SIZE = 16.0  # pixels that the equation is laid out for; the page scales it with its letters


def drawn(latex: str, *, block: bool) -> str:
    """Returns an equation as SVG in the colour of the text around it, measured in letters.

    Raises:
        ExtensionError: it cannot be read.
    """
    if block and "\\\\" in latex and "\\begin" not in latex:
        several = "aligned" if "&" in latex else "gathered"
        latex = f"\\begin{{{several}}}{{}}{latex}\\end{{{several}}}"
    try:
        equation = ziamath.Latex(latex, size=_SIZE, color="currentColor", inline=not block)
        svg, below = equation.svg(), -equation.getyofst()
    except Exception as error:
        raise ExtensionError(f"the equation {latex!r} cannot be drawn: {error}") from error
    svg = re.sub(r'(<svg[^>]*?) width="([\d.]+)(?:px)?" height="([\d.]+)(?:px)?"', _scaled, svg, count=1)
    style = "" if block else f' style="vertical-align:{-below / _SIZE:.3f}em"'
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(latex)}"{style} ', 1)


def _scaled(found: re.Match[str]) -> str:
    head, width, height = found.groups()
    return f'{head} width="{float(width) / _SIZE:.3f}em" height="{float(height) / _SIZE:.3f}em"'


def _inline(page: nodes.NodeVisitor, node: nodes.math) -> None:
    page.body.append(f'<span class="math">{drawn(node.astext(), block=False)}</span>')
    raise nodes.SkipNode


def _block(page: nodes.NodeVisitor, node: nodes.math_block) -> None:
    page.body.append(f'<div class="math">{drawn(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the renderer under the name ``drawn``."""
    app.add_html_math_renderer("drawn", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
