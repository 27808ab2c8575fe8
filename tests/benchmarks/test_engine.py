"""The command of the benchmarks, end to end and small: it measures, prints, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.run


def test_a_small_trial_accounts_for_every_request(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.engine", "--only", "plain", "--clients", "worker"]
    done = subprocess.run(
        [*command, "--duration", "1", "--scale", "0.05"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=140,
    )
    assert done.returncode == 0, done.stderr
    rows = [re.split(r" +\| +", line.strip("| ")) for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["client", "loadgen, its worker"]
    column = rows[0].index("accounted for")
    known, asked = rows[1][column].split(" of ")
    assert known == asked != "0", done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "known"), [(["--only", "nothing"], "streams-5000"), (["--clients", "floor,nobody"], "aiohttp")]
)
def test_what_is_unknown_is_refused_with_what_there_is(arguments: list[str], known: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.engine", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert known in done.stderr
