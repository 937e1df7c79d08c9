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
from {campaign} import WrongError, attempt
for number in {numbers}:
    print(attempt(1, number))
{fault}
for number in {caught}:
    try:
        attempt(1, number)
    except WrongError:
        print("noticed")
        break
"""

# The old checkpoint is removed before the new one is whole.
REMOVED_FIRST = """
from nonet.training import checkpoint
replace = checkpoint.write_whole
checkpoint.write_whole = lambda path, write: (path.unlink(missing_ok=True), replace(path, write))
"""

# Files are written where they are to lie in the end.
IN_PLACE = """
from nonet.training import fit
def write_folder(folder, write, last):
    folder.mkdir(exist_ok=True)
    write(folder)
fit.write_folder = write_folder
"""


@pytest.mark.parametrize(
    ("campaign", "fault", "caught"),
    [("kills", REMOVED_FIRST, range(1, 50, 5)), ("disks", IN_PLACE, range(11, 50, 5))],
)
def test_nothing_is_lost_and_a_loss_is_noticed(campaign, fault, caught):
    code = ATTEMPTS.format(campaign=campaign, numbers=range(5), fault=fault, caught=caught)
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *ends, noticed = done.stdout.split()
    assert len(ends) == 5
    assert set(ends) <= {"served", "refused"}
    assert noticed == "noticed"
