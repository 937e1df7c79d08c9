"""``nonet doctor`` tells the truth about the machine and about what select chooses."""

import json
import os
from importlib import metadata

import torch
from typer.testing import CliRunner

import nonet
from nonet import methods, native
from nonet.cli import app, doctor
from nonet.extras import pip_install
from nonet.select import absent, select


def _run(*arguments):
    run = CliRunner().invoke(app, ["doctor", *arguments], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert run.exit_code == 0, run.output
    return run.stdout


def test_the_document_tells_versions_and_machine():
    machine = json.loads(_run("--json"))["machine"]
    assert machine["nonet"] == nonet.__version__
    assert machine["torch"] == torch.__version__
    assert machine["accelerate"] == metadata.version("accelerate")
    assert machine["cores"] == os.cpu_count()
    assert machine["threads"] == torch.get_num_threads()
    assert machine["cache_folder"] == os.environ["NONET_CACHE"]


def test_every_op_is_told_with_what_select_chooses():
    told = {c["op"]: c for c in json.loads(_run("--json"))["choices"] if c["device"] == "cpu"}
    for op in (op for method in methods() for op in method.ops):
        chosen = select(op, "cpu", "float32", missing=absent(op, "cpu"))
        assert (told[op.name]["implementation"], told[op.name]["reason"]) == tuple(chosen)


def test_the_page_for_people_names_every_op():
    page = _run()
    assert torch.__version__ in page
    for op in (op for method in methods() for op in method.ops):
        assert op.name in page


def _with_kernels():
    return {op.name for m in methods() for op in m.ops if any(i.name == "cpu" for i in op.implementations)}


def test_the_library_is_told_as_it_is():
    told = json.loads(_run("--json"))["library"]
    if native.absence() is not None:
        assert told == {"absent": native.absence()}
        return
    library = native.library()
    assert told["file"] == str(library.path)
    assert told["ABI"] == native.ABI
    assert told["instruction_set"] == library.isa
    assert told["instruction_sets"] == list(library.isas())
    assert told["threads"].startswith("those of torch" if library.pooled else "one")
    assert str(native.ABI) in _run()


def test_a_missing_library_is_told_with_what_runs_instead(monkeypatch):
    monkeypatch.setattr(native, "absence", lambda: "was not built")
    told = doctor.examine()
    assert told["library"] == {"absent": "was not built"}
    for choice in told["choices"]:
        if choice["op"] in _with_kernels() and choice["device"] == "cpu":
            assert choice["implementation"] != "cpu"
            assert "cpu is missing: was not built" in choice["reason"]
    assert "was not built" in _run()


def test_a_broken_library_is_told_and_no_reason_to_fail(monkeypatch):
    def broken():
        raise native.NativeError("is broken")

    monkeypatch.setattr(native, "absence", broken)
    told = doctor.examine()
    assert told["library"] == {"broken": "is broken"}
    for choice in told["choices"]:
        if choice["device"] == "cpu":
            failing = (choice["implementation"], choice["reason"]) == (None, "is broken")
            assert failing == (choice["op"] in _with_kernels())
    assert "is broken" in _run()


def test_a_missing_extra_is_told_with_how_to_get_it(monkeypatch):
    version = metadata.version

    def without_jinja(name):
        if name == "jinja2":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_jinja)
    assert doctor.examine()["extras"]["report"]["jinja2"] is None
    page = _run()
    assert "missing jinja2" in page
    assert " ".join(pip_install("report").split()) in " ".join(page.split())
