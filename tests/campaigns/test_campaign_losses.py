"""A sample of the kills and of the full disks; ``make campaign`` makes them all.

Each runs in a fresh process, since a forked child of this one would lack its threads.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork"),
]

ATTEMPTS = """
import os, tempfile
from {campaign} import attempt
from sandbox import WrongError, fresh, run
for number in range(5):
    print(attempt(1, number))
{fault}
try:
    for _ in tries():
        pass
except WrongError:
    print("noticed")
"""

# The old checkpoint is removed five operations before the new one is whole; every fourth is tried.
REMOVED_FIRST = """
from kills import kill
from nonet.training import checkpoint
replace = checkpoint.write_whole
checkpoint.write_whole = lambda path, write: (path.unlink(missing_ok=True), replace(path, write))
def tries():
    with tempfile.TemporaryDirectory() as folder:
        first = run("train", fresh(folder), after_step=lambda step: step == 2 and os._exit(0)).points
    return (kill("train", [place], False) for place in range(first + 1, first + 30, 4))
"""

# Files are written where they are to lie in the end.
IN_PLACE = """
from nonet.training import fit
def write_folder(folder, write, last):
    folder.mkdir(exist_ok=True)
    write(folder)
fit.write_folder = write_folder
def tries():
    return (attempt(1, number) for number in range(11, 100, 5))
"""


@pytest.mark.parametrize(("campaign", "fault"), [("kills", REMOVED_FIRST), ("disks", IN_PLACE)])
def test_nothing_is_lost_and_a_loss_is_noticed(campaign, fault):
    code = ATTEMPTS.format(campaign=campaign, fault=fault)
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *ends, noticed = done.stdout.split()
    assert noticed == "noticed"
    assert len(ends) == 5
    assert set(ends) <= {"served", "refused"}
