import functools
import importlib.util
import io
import json
import re
import shutil
from html import unescape

import pytest
from rich.console import Console
from rows_factory import AROUND, ENVIRONMENT, fail, find, make_plan, make_rows, write

from nonet.compare.plots import recall_plots, slot_plots
from nonet.compare.report import context, render, write_report
from nonet.compare.summary import summarise
from nonet.compare.tables import document, text_tables
from nonet.extras import pip_install

INJECTION = "<script>alert(1)</script>"
ERROR = f"RuntimeError: {INJECTION}<b>\nTraceback {'y' * 300}"


def _finished():
    plan = make_plan()
    return plan, make_rows(plan)


def _one_seed():
    plan = make_plan(seeds=(0,), left_out=["To fit --budget 10m: 1 seed instead of 3."])
    rows = make_rows(plan)
    for row in rows:
        if row["cell"]["kind"] == "recall":
            row["tasks"] = [task for task in row["tasks"] if task["length"] == 64]
    return plan, rows


def _broken():
    """Failed cells, cells that have not run, missing values, and text that would like to be markup."""
    corpus = {**make_plan()["corpus"], "name": INJECTION, "source": f"/{'long' * 40}/{INJECTION}"}
    plan = make_plan(seeds=(0, 1), corpus=corpus, command=f"nonet compare '{INJECTION}'")
    rows = make_rows(plan)
    for row in find(rows, "mixer", "linformer"):
        row |= {"peak_bytes": None, "growth": None, "decode": [], "places": []}
        row["train"]["curve"] = None
    gone = find(rows, "linear", "ternary") + find(rows, "position", "none")[:1]
    failed = find(rows, "mixer", "mamba") + find(rows, "mixer", "reformer", "recall")[:1]
    rows = [fail(row["cell"], ERROR) if row in failed else row for row in rows if row not in gone]
    return plan, rows


def _not_begun():
    return make_plan(seeds=(0,)), []


def _around():
    plan = make_plan(slots=tuple(AROUND), command="nonet compare --slots adapter,pairing")
    return plan, make_rows(plan)


def _around_broken():
    """Cells that failed or have not run, and values that are missing."""
    plan = make_plan(seeds=(0,), slots=tuple(AROUND))
    rows = make_rows(plan)
    failed = find(rows, "adapter", "lora") + find(rows, "pairing", "assisted")
    gone = find(rows, "pairing", "alone") + find(rows, "adapter", "full")
    find(rows, "adapter", "prefix")[0].update(peak_bytes=None, decode=[], file_bytes=None)
    return plan, [fail(row["cell"], ERROR) if row in failed else row for row in rows if row not in gone]


COMPARISONS = {
    "finished": _finished,
    "one seed": _one_seed,
    "broken": _broken,
    "not begun": _not_begun,
    "around": _around,
    "around, broken": _around_broken,
}


@functools.cache
def _page(comparison):
    return render(*COMPARISONS[comparison]())


def _text(page):
    """What a reader sees, roughly: no styles, scripts or tags."""
    page = re.sub(r"<(style|script)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page)))


def test_the_report_is_one_file_that_holds_all_it_needs(tmp_path):
    path = write_report(write(tmp_path, *_finished()))
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report.html"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan.json", "report.html", "rows.jsonl"]
    assert not re.findall(r"<link\b|@import|\bsrc=|\burl\(", page.partition("window.vegaEmbed")[0][:20_000])
    assert "cdn" not in page.lower()
    assert "default-src 'none'" in page
    assert page.count("window.vegaEmbed=") == 1
    assert page.count("<script") == page.count("</script>")


def test_the_answer_comes_first_and_the_command_is_there():
    words = _text(_page("finished"))
    assert words.index("Use FlashAttention.") < words.index("How it was compared")
    for needed in (
        "Use RoPE.",
        "Use Dense.",
        "Crossover lengths",
        "nonet compare --seeds 3",
        "AMD EPYC 7B13",
        "from about 1,200",
    ):
        assert needed in words
    assert "are not finished" not in words
    assert "What went wrong" not in words


def test_what_users_and_errors_say_is_escaped():
    page = _page("broken")
    assert INJECTION not in page
    assert "alert(1)" in page
    words = _text(page)
    assert f"Methods compared on {INJECTION}" in words
    assert f"RuntimeError: {INJECTION}<b>" in words
    assert "3 of 30 runs failed" in words
    assert "3 of 30 runs are not finished" in words


def test_one_seed_says_so():
    words = _text(_page("one seed"))
    assert "one seed" in words
    assert "To fit --budget 10m: 1 seed instead of 3." in words
    assert "±" not in words.partition("What the numbers mean")[0].replace("±: half the width", "")


def test_a_pretrained_model_is_named_and_what_concerns_others_is_left_out():
    words = _text(_page("around"))
    for needed in (
        "smollm2, as it was trained before",
        "Use LoRA.",
        "Use Tandem with blocks of",
        "Against alone",
        "12 of 12",
        "Drafts accepted by place",
        "A draft of 3 of its layers",
        "over 4 texts a seed, of which 64 tokens",
        "1.8 %",
        "rank 8",
    ):
        assert needed in words, needed
    for foreign in ("Crossover", "Beyond window", "not matched", "within 5 %", "size tiny"):
        assert foreign not in words, foreign
    for own in ("Against alone", "Optimiser"):
        assert own not in _text(_page("finished"))
    broken = _text(_page("around, broken"))
    assert "lora: adapter, seed 0" in broken
    assert "assisted: pairing, seed 0" in broken


def test_rows_of_two_machines_are_told_apart():
    plan, rows = _finished()
    rows[0]["provenance"] = {**ENVIRONMENT, "cpu": "Another"}
    assert len(context(plan, rows)["environments"]) == 2
    assert "The runs come from 2 environments" in _text(render(plan, rows))


def test_missing_packages_are_named_with_the_remedy(tmp_path, monkeypatch):
    actual = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "vl_convert" else actual(name)
    )
    with pytest.raises(ImportError, match=f"'vl_convert'.*{re.escape(pip_install('report'))}"):
        write_report(write(tmp_path, *_not_begun()))


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_the_terminal_shows_each_slot_within_eighty_columns(comparison):
    plan, rows = COMPARISONS[comparison]()
    console = Console(width=80, file=io.StringIO())
    console.print(*text_tables(plan, rows))
    text = console.file.getvalue()
    for slot in plan["slots"]:
        assert slot.capitalize() in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_a_document_has_a_table_a_slot_and_says_where_it_is_from(comparison):
    plan, rows = COMPARISONS[comparison]()
    short, whole = document(plan, rows), document(plan, rows, full=True)
    for slot in plan["slots"]:
        assert f"**{slot.capitalize()}: " in short
    assert plan["environment"]["cpu"] in short
    assert short.endswith(f"Again by `{plan['command']}`.")
    assert len(whole) > len(short) or not rows
    for table in re.findall(r"(?:^\|.*\n)+", whole + "\n", re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_a_document_tells_of_the_rows_and_not_of_the_plan():
    plan, rows = _finished()
    rows = [row for row in rows if row["cell"]["seed"] != plan["seeds"][-1]]
    rows[0]["provenance"] = {**rows[0]["provenance"], "commit": "b" * 40, "dirty": True}
    rows[0]["started"] = "2999-12-31T00:00:00+00:00"
    told = document(plan, rows).splitlines()[-1]
    assert f"seeds {', '.join(map(str, plan['seeds'][:-1]))}, on" in told
    assert "to 2999-12-31;" in told
    assert f"commits 3f0c9a41d2 and {'b' * 10}, with changes." in told


def test_plots_are_what_vega_lite_allows():
    altair = pytest.importorskip(
        "altair", reason="altair is not installed, so no plot is checked by its schema"
    )
    plan, rows = _finished()
    (mixer, *_) = summarise(plan, rows)
    alone = recall_plots(summarise(*_one_seed())[0])
    plots = [*slot_plots(mixer, plan), *recall_plots(mixer), *alone]
    assert len(plots) == 10 + 3 + 3
    around = _around()
    adapter, pairing = (slot_plots(slot, around[0]) for slot in summarise(*around))
    assert (len(adapter), len(pairing)) == (4, 3)
    for plot in (*plots, *adapter, *pairing):
        altair.Chart.from_dict(json.loads(json.dumps(plot.spec)))


# In a browser


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        pytest.skip("playwright is not installed, so the report was not opened in a browser")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path=found, args=arguments)
        except Error as error:
            pytest.skip(f"no Chromium could be started, so the report was not opened in a browser: {error}")
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Opens a page, and at the end fails on any error of it or any request that leaves it."""
    wrong, contexts = [], []

    def opened(path, width, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else wrong.append(r.url),
        )
        page.goto(path.as_uri())
        page.wait_for_function("document.documentElement.dataset.drawn === 'yes'")
        return page

    yield opened
    for opened_context in contexts:
        opened_context.close()
    assert wrong == []


@pytest.fixture
def stored(tmp_path):
    """Writes the page of a comparison to a file."""

    def written(comparison):
        path = tmp_path / "report.html"
        path.write_text(_page(comparison), encoding="utf-8")
        return path

    return written


def _overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("comparison", COMPARISONS)
def test_a_browser_draws_every_plot_and_nothing_overflows(stored, visit, comparison, width):
    page = visit(stored(comparison), width)
    slots = context(*COMPARISONS[comparison]())["slots"]
    measure = "p => [p.querySelectorAll('svg .mark-symbol path').length, p.querySelector('svg').clientWidth]"
    drawn = page.locator(".plot").evaluate_all(f"plots => plots.map({measure})")
    assert len(drawn) == sum(len(slot["plots"]) + len(slot["recall_plots"]) for slot in slots)
    assert all(marks > 0 and across > 200 for marks, across in drawn)
    assert _overflow(page) <= 0
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert _overflow(page) <= 0


@pytest.mark.browser
def test_text_that_looks_like_markup_stays_text(stored, visit):
    page = visit(stored("broken"), 1280)
    assert page.locator("h1").inner_text() == f"Methods compared on {INJECTION}"
    assert page.title().endswith(INJECTION)
    assert page.locator("#failures .error").first.inner_text() == f"RuntimeError: {INJECTION}<b>"


@pytest.mark.browser
def test_a_press_on_a_method_shows_it_alone_and_another_shows_all(stored, visit):
    page = visit(stored("one seed"), 1280)
    faded = page.locator("#mixer .plot svg .mark-symbol path[opacity='0.125']")
    button = page.locator("#mixer .legend button", has_text="Mamba")
    assert faded.count() == 0
    button.click()
    faded.first.wait_for(state="attached")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    faded.first.wait_for(state="detached")
    assert button.get_attribute("aria-pressed") == "false"


@pytest.mark.browser
def test_words_of_plots_follow_dark_and_print_while_methods_keep_their_colours(stored, visit):
    page = visit(stored("one seed"), 1280, color_scheme="dark")
    plot = page.locator("#mixer .plot").first

    def fills():
        paths = (plot.locator(path).first for path in (".role-axis-label text", ".mark-symbol path"))
        return tuple(path.evaluate("element => getComputedStyle(element).fill") for path in paths)

    dark = fills()
    page.emulate_media(color_scheme="light")
    light = fills()
    page.emulate_media(media="print", color_scheme="dark")
    assert dark[0] != light[0]
    assert dark[1] == light[1] != light[0]
    assert fills() == light


@pytest.mark.browser
def test_printing_unfolds_what_is_folded(stored, visit):
    page = visit(stored("one seed"), 1280)
    assert page.locator("details:not([open])").count() > 0
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert page.locator("details:not([open])").count() == 0


@pytest.mark.browser
def test_without_javascript_the_tables_remain(stored, browser):
    path = stored("finished")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("noscript").is_visible()
    assert page.locator("#mixer table.main tbody tr").count() == 5
    context.close()
