"""Tables tell wins, losses, failures and what is missing."""

import io

from bench_helpers import row
from rich.console import Console

from nonet.bench import table
from nonet.compare import units


def plain(text):
    """The text in letters of a keyboard."""
    for sign, letter in ((units.DASH, "-"), (units.GAP, " "), (units.times(1)[-1], "x")):
        text = text.replace(sign, letter)
    return text


def cells(markdown):
    lines = [line for line in plain(markdown).splitlines() if line.startswith("|")]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in found}) == 1
    return [line for line in found[2:] if line]


def against(made, **entry):
    """The row with another contender in place of the eager loop."""
    made["contenders"][1] |= entry
    return made


def test_a_line_tells_ours_theirs_and_the_ratio_of_rounds():
    [line] = cells(table.document([row()]))
    assert line == [
        "hgrn_scan forward T2048",
        "2",
        "2.00 ms (1.90 ms to 2.10 ms)",
        "50 % bytes",
        "eager loop",
        "30.0 ms",
        "15x (14x to 16x)",
        "7",
    ]
    [line] = cells(table.headlines([row()]))
    assert line == ["hgrn_scan forward T2048", "2.00 ms", "50 % bytes", "eager loop 15x (14x to 16x)"]


def test_a_loss_stays():
    lost = against(row(), ratio={"median": 0.5, "low": 0.4, "high": 0.6})
    assert "0.50x (0.40x to 0.60x)" in plain(table.headlines([lost]))


def test_a_peer_that_did_not_run_says_why_and_the_rest_is_a_dash():
    absent = against(row(), failure="ImportError: a | b")
    [line] = cells(table.document([absent]))
    assert line[4:] == ["eager loop", "ImportError: a / b", "-", "-"]
    [line] = cells(table.headlines([absent]))
    assert line[3] == "eager loop did not run"


def test_a_row_that_failed_is_told():
    failed = row(state="failed", reason="wrong: nonet out: largest error 1 > 0", shares={})
    del failed["contenders"][0]["median"]
    assert cells(table.headlines([failed])) == [["hgrn_scan forward T2048", "failed", "-", "-"]]
    [line] = cells(table.document([failed]))
    assert line[2] == "failed: wrong: nonet out: largest error 1 > 0"
    assert line[3:] == ["-"] * 5
    failed["series"] = True
    assert "failed: wrong" in table.document([failed])


def test_headlines_are_peers_on_the_most_threads():
    variant = row(name="hgrn_scan forward C64 T16")
    variant["contenders"][1] |= {"name": "nonet torch", "package": None}
    both = row()
    both["contenders"].append({**both["contenders"][1], "name": "nonet avx2", "package": None})
    said = table.headlines(
        [both, row(threads=1), variant, row(name="hgrn_scan forward C1024 T512", series=True)]
    )
    assert [(line[0], line[3]) for line in cells(said)] == [
        ("hgrn_scan forward T2048", "eager loop 15x (14x to 16x)")
    ]
    assert "(threads: 2)" in said
    whole = table.document([both, variant])
    assert "nonet avx2" in whole
    assert "nonet torch" in whole


def test_growth_is_against_half_the_length_of_the_same_curve():
    def point(T, median, threads=2):
        made = row(
            name=f"hgrn_scan forward T{T}", series=True, sizes={"B": 1, "C": 8, "T": T}, threads=threads
        )
        made["contenders"] = [made["contenders"][0] | {"median": median}]
        return made

    points = [point(2048, 0.008), point(512, 0.002), point(512, 0.5, threads=1), point(1024, 0.003)]
    lines = cells(table.document(points))
    assert [(line[1], line[2], line[4]) for line in lines] == [
        ("2", "512", "-"),
        ("2", "1,024", "1.5x"),
        ("2", "2,048", "2.7x"),
        ("1", "512", "-"),
    ]


def test_ways_to_allocate_are_told_apart():
    kept = row(memory_kept=True)
    assert cells(table.headlines([row(), kept])) == cells(table.headlines([row()]))
    assert [line[0] for line in cells(table.document([row(), kept]))] == [
        "hgrn_scan forward T2048",
        "hgrn_scan forward T2048, memory kept",
    ]


def test_memory_has_a_table_of_its_own():
    made = row()
    made["contenders"][0]["kept"] = 2**20
    made["contenders"][1] |= {"kept": 2**30, "peak": None}
    memory = table.document([made]).split("Memory:")[1]
    assert [line[2:] for line in cells(memory)] == [
        ["nonet", "1.00 MiB", "-"],
        ["eager loop", "1.00 GiB", "-"],
    ]


def test_the_machine_the_versions_the_days_and_the_command_are_named():
    said = table.origin([row(), row(date="2026-11-20")])
    for words in ("AMD EPYC with 2 cores", "2026-11-20 to 2026-11-22", "torch 2.13.0", "commit 3f0c9a41d2"):
        assert words in said
    assert said.endswith("Again by `nonet bench`.")


def test_nothing_measured_is_said():
    assert table.document([row(quick=True)]) == table.headlines([]) == "Nothing has been measured yet."


def test_the_terminal_shows_it_shorter():
    page = io.StringIO()
    Console(file=page, width=200).print(table.terminal([row()]))
    for words in ("eager loop", "15x", "50 % bytes", "AMD EPYC"):
        assert words in plain(page.getvalue())
