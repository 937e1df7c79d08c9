"""A sample of the campaigns that kill runs and fill disks: nothing is lost, and nothing is left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork"),
]


@pytest.mark.parametrize(("campaign", "count"), [("kills", 5), ("disks", 6)])
def test_no_attempt_fails(campaign, count):
    code = f"import {campaign}\nfor number in range({count}): print({campaign}.attempt(0, number))"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {"served", "refused"}
    assert len(done.stdout.split()) == count
