"""What the kernel says of its clocks, asked for real; a host that has slept is a time namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from remote_agents.agent.kernel_clock import kernel_clock, suspended_ns


def test_the_kernel_tells_how_good_its_time_is() -> None:
    unsynchronised, maxerror_us, freq_ppm = kernel_clock()
    if unsynchronised is None:
        assert (maxerror_us, freq_ppm) == (None, None)  # a sandbox forbids it
        return
    assert maxerror_us is not None
    assert freq_ppm is not None
    assert unsynchronised in (0, 1)
    assert maxerror_us >= 0
    assert -500 <= freq_ppm <= 500  # what the kernel corrects at most


def test_a_host_that_never_slept_says_so_exactly() -> None:
    slept = suspended_ns()
    assert slept == 0 or slept > 1_000_000
    assert abs(suspended_ns() - slept) < 1_000_000


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root, to shift a clock of its own")
def test_a_sleep_of_an_hour_is_seen() -> None:
    ask = "from remote_agents.agent.kernel_clock import suspended_ns; print(suspended_ns())"
    shifted = ["unshare", "--fork", "--time", "--boottime", "3600", sys.executable, "-c", ask]
    done = subprocess.run(shifted, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no time namespace here: {done.stderr.strip()}")
    assert abs(int(done.stdout) - suspended_ns() - 3600 * 1_000_000_000) < 5_000_000
