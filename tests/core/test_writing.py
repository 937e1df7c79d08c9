"""Files and folders are whole or not there, whatever ends a process, and temporary names lead nowhere."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nonet import writing
from nonet.writing import check_writable, remove_abandoned, write_folder, write_whole

NAMES = ("secondary", "a.txt", "config.json")


def fill(text):
    def write(folder):
        (folder / "secondary").mkdir()
        for name in ("config.json", "a.txt", "secondary/b.txt"):
            (folder / name).write_text(text)

    return write


def contents(folder):
    return {str(f.relative_to(folder)): f.read_text() for f in sorted(folder.rglob("*")) if f.is_file()}


def whole(text):
    return {"a.txt": text, "config.json": text, "secondary/b.txt": text}


@pytest.fixture
def filled(tmp_path):
    write_folder(tmp_path / "out", fill("old"), "config.json")
    return tmp_path / "out"


def test_a_file_is_replaced_and_nothing_is_left_beside(tmp_path):
    path = tmp_path / "report.html"
    write_whole(path, "old")
    write_whole(path, "new\n§")
    assert path.read_text(encoding="utf-8") == "new\n§"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    if os.name == "posix":
        plain = tmp_path / "plain"
        plain.touch()
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_folder_is_replaced_and_keeps_what_else_it_holds(filled):
    (filled / "notes.txt").write_text("mine")
    assert contents(filled) == {**whole("old"), "notes.txt": "mine"}
    write_folder(filled, fill("new"), "config.json")
    assert contents(filled) == {**whole("new"), "notes.txt": "mine"}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_that_cannot_be_written_keeps_the_old_one(tmp_path, monkeypatch, step):
    path = tmp_path / "report.html"
    write_whole(path, "old")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(
        OSError, match=r"^cannot write report\.html in .*: No space left.*free some"
    ) as raised:
        write_whole(path, "new")
    assert raised.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_weights_that_do_not_fit_are_an_error_of_the_disk(tmp_path):
    code = (
        "import resource, sys, torch\nfrom pathlib import Path\nfrom safetensors.torch import save_file\n"
        "from nonet.writing import write_whole\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_whole(Path(sys.argv[1]), lambda path: save_file({'a': torch.ones(1000)}, path))\n"
        "except OSError as error: print(error.errno, error)"
    )
    pytest.importorskip("resource")
    path = tmp_path / "w.safetensors"
    write_whole(path, lambda fresh: save_file({"a": torch.ones(2)}, fresh))
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"{errno.EFBIG} cannot write w.safetensors in {tmp_path}: File too large;")
    assert load_file(path)["a"].tolist() == [1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


class Killed(BaseException):
    """After it no operation on a file happens."""


@pytest.mark.parametrize("shared", [False, True])
def test_a_folder_is_never_a_mix_wherever_writing_is_cut_off(shared, tmp_path, monkeypatch):
    """Every operation in turn is the first that does not happen, nor does any after it."""
    operations = ("mkdir", "replace", "rename", "unlink", "rmdir", "fsync")
    seen = set()
    for last in range(200):
        folder = tmp_path / str(last)
        write_folder(folder, fill("old"), "config.json")
        done = 0

        def cut(actual):
            def operation(*arguments, **options):
                nonlocal done
                done += 1
                if done > last:  # noqa: B023
                    raise Killed
                return actual(*arguments, **options)

            return operation

        with monkeypatch.context() as patch:
            for name in operations:
                patch.setattr(os, name, cut(getattr(os, name)))
            try:
                write_folder(folder, fill("new"), "config.json", shared=shared)
            except Killed:
                pass
            else:
                break
        remove_abandoned(folder)
        found = contents(folder)
        readable = "config.json" in found
        seen.add(found.get("config.json"))
        if readable and not shared:
            assert found in (whole("old"), whole("new"))
        assert readable or not shared
        write_folder(folder, fill("newer"), "config.json")
        assert contents(folder) == whole("newer")
    assert done < 200
    assert seen == {"old", "new"} | (set() if shared else {None})


def test_temporary_names_cannot_be_foreseen_or_shared(tmp_path):
    places = []

    def write(fresh):
        places.append(fresh.parent)
        assert stat.S_IMODE(fresh.parent.stat().st_mode) == 0o700
        assert list(fresh.parent.iterdir()) == []
        fresh.write_text("x")

    for _ in range(3):
        write_whole(tmp_path / "file", write)
    assert len(set(places)) == 3
    assert {place.parent for place in places} == {tmp_path}


def test_planted_links_are_not_followed(tmp_path):
    shared, mine = tmp_path / "shared", tmp_path / "mine"
    for folder in (shared, mine):
        folder.mkdir()
    (mine / "precious.txt").write_text("precious")
    for name in (".nonet-writing-x", "checkpoint.new", ".out-x", ".file.txt.1.tmp"):
        (shared / name).symlink_to(mine)
    (shared / "file.txt").symlink_to(mine / "precious.txt")
    write_whole(shared / "file.txt", "new")
    write_folder(shared, fill("new"), "config.json")
    remove_abandoned(shared)
    assert contents(mine) == {"precious.txt": "precious"}
    assert not (shared / "file.txt").is_symlink()


@pytest.mark.skipif(os.name != "posix", reason="the system has no such locks")
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom nonet.writing import write_folder\n"
        "def write(folder):\n    (folder / 'half').write_text('x')\n    print(folder.name, flush=True)\n"
        "    time.sleep(600)\n"
        "write_folder(Path(sys.argv[1]), write, 'config.json')"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        name = process.stdout.readline().strip()
        write_folder(tmp_path, fill("new"), "config.json")
        assert (tmp_path / name / "half").read_text() == "x"
        process.kill()
    assert (tmp_path / name).is_dir()
    write_folder(tmp_path, fill("new"), "config.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("opens", [True, False])  # not every system opens a folder
def test_without_locks_what_is_left_is_removed_after_a_day(opens, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "fcntl", None)
    if not opens:
        monkeypatch.setattr(writing, "_open", lambda place: None)
    for name, age in (("old", 2 * 86_400), ("now", 60)):
        left = tmp_path / f".nonet-writing-{name}"
        left.mkdir()
        then = left.stat().st_mtime - age
        os.utime(left, (then, then))
    (tmp_path / "mine").mkdir()
    (tmp_path / ".nonet-writing-link").symlink_to("mine")
    os.utime(tmp_path / ".nonet-writing-link", (0, 0), follow_symlinks=False)
    remove_abandoned(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".nonet-writing-link",
        ".nonet-writing-now",
        "mine",
    ]


@pytest.mark.parametrize("out", ["new/../out", "new/../../out", "../out", "a/b/c"])
def test_the_trial_stays_inside_its_folder(out, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    check_writable(Path(out))
    assert [p.name for p in tmp_path.rglob("*")] == ["here"]


def test_whether_a_folder_can_be_written_is_tried_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path / ("n" * 250))
    for place in ("file", "file/out", "link", "link/out"):
        with pytest.raises(NotADirectoryError, match=r"(file|link) is a file; name a folder"):
            check_writable(tmp_path / place)
    with pytest.raises(OSError, match=r"cannot write .*n: File name too long; choose another folder"):
        check_writable(tmp_path / ("n" * 256))
    with pytest.raises(
        OSError, match=r"the disk of .*out has [\d,]+ bytes free, but [\d,]+ are needed; free some"
    ):
        check_writable(tmp_path / "out", 1 << 60)

    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(writing.tempfile, "mkdtemp", refuse)
    with pytest.raises(
        PermissionError, match=r"cannot write .*out: Permission denied; choose another folder"
    ):
        check_writable(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.parametrize("length", [200, 250, 255])
def test_long_names_are_written(length, tmp_path):
    write_whole(tmp_path / ("f" * length), "text")
    write_folder(tmp_path / ("d" * length), fill("new"), "config.json")
    assert contents(tmp_path / ("d" * length)) == whole("new")
    assert sorted(len(p.name) for p in tmp_path.iterdir()) == [length, length]


def test_an_error_of_something_else_stays_as_it_is(tmp_path):
    missing = Path(__file__).with_name("missing.txt")
    with pytest.raises(FileNotFoundError) as raised:
        write_whole(tmp_path / "file", lambda fresh: fresh.write_text(missing.read_text()))
    assert raised.value.filename == str(missing)
    assert list(tmp_path.iterdir()) == []
