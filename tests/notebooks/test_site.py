"""The site is built with its chapters run, and every page is opened in a browser, wide and narrow."""

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest

from nonet import methods

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    builder = Path(sys.executable).with_name("sphinx-build")
    command = [
        builder,
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        "-d",
        out / "trees",
        ROOT / "docs",
        out / "html",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / "html"


def pages(site):
    return sorted(site.rglob("*.html"))


def test_it_has_a_page_for_everything(site):
    names = {page.relative_to(site).with_suffix("").as_posix() for page in pages(site)}
    assert {f"methods/{m.name}" for m in methods()} | {f"generated/{m.name}" for m in methods()} <= names
    assert {"index", "ledger", "comparison", "measured", "log", "glossary"} <= names
    assert {"how-to/your-model", "how-to/choose", "how-to/add"} <= names


def test_chapters_have_run(site):
    for method in methods():
        page = (site / "methods" / f"{method.name}.html").read_text(encoding="utf-8")
        assert "cell_output" in page
        assert "<img" in page
        assert "Traceback" not in page
        assert "<p>| " not in page  # a table that is shown as it was written


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def served(site):
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import Error, sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path=found, args=arguments)
        except Error as error:
            pytest.skip(f"no Chromium could be started, so the site was not opened in a browser: {error}")
        yield opened
        opened.close()


# What a page says outside of code, which may well hold the source of an equation.
PROSE = """() => {
    const page = document.body.cloneNode(true);
    page.querySelectorAll('pre, code, script').forEach(e => e.remove());
    return page.textContent;
}"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_opens_without_an_error_or_a_request_outside(site, served, browser, width):
    wrong = []
    context = browser.new_context(viewport={"width": width, "height": 900})
    tab = context.new_page()
    tab.on("console", lambda m: wrong.append((tab.url, m.text)) if m.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: wrong.append((tab.url, str(error))))
    tab.on("requestfailed", lambda request: wrong.append((tab.url, request.url)))
    inside = (served, "data:", "blob:")
    tab.on("request", lambda r: None if r.url.startswith(inside) else wrong.append((tab.url, r.url)))
    for page in pages(site):
        tab.goto(served + page.relative_to(site).as_posix())
        text = tab.evaluate(PROSE)
        wrong += [(tab.url, mark) for mark in ("$$", "\\frac", "\\mathrm", "\\begin{") if mark in text]
        empty = tab.locator(".math").evaluate_all("all => all.filter(m => !m.querySelector('svg')).length")
        wrong += [(tab.url, f"{empty} equations are not drawn")] if empty else []
        broken = "all => all.filter(i => !i.naturalWidth).map(i => i.src)"
        wrong += [(tab.url, source) for source in tab.locator("img").evaluate_all(broken)]
        over = tab.evaluate("document.documentElement.scrollWidth - innerWidth")
        wrong += [(tab.url, f"{over} pixels too wide")] if over > 0 else []
    context.close()
    assert not wrong


@pytest.mark.browser
def test_every_link_within_the_site_leads_somewhere(site, served, browser):
    tab = browser.new_page()
    known, asked = {}, set()
    for page in pages(site):
        address = served + page.relative_to(site).as_posix()
        tab.goto(address)
        known[address] = set(tab.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
        links = tab.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href'))")
        asked |= {(address, urljoin(address, link)) for link in links}
    tab.close()
    dead = []
    for address, target in asked:
        place, anchor = urldefrag(target)
        if place.startswith(served):
            file = site / unquote(place.removeprefix(served) or "index.html")
            known_anchor = not anchor or place not in known or unquote(anchor) in known[place]
            dead += [] if file.exists() and known_anchor else [(address, target)]
    assert not dead
