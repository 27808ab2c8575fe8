"""A leak of the simulator through the whole path: agent, run directory, analysis. Two runs side by side."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from analysis.analyse import summarise
from tests.conftest import ROOT

pytestmark = pytest.mark.run
BIN = Path(sys.executable).parent
LEAK_B_PER_S = 2e7


@contextmanager
def simulator(*options: str) -> Iterator[str]:
    """Its URL."""
    command = [str(BIN / "loadgen"), "simulator", "--port", "0", "--slots", "16", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield next(word for word in process.stdout.readline().split() if word.startswith("http://"))
        finally:
            process.terminate()


def soak(url: str, runs: Path) -> subprocess.Popen[bytes]:
    """20 s of 32 users, by Locust itself: it takes where the simulator's sensors are from the environment."""
    options = ("--steps", "32", "--step-time", "20s", "--prompt-tokens", "32", "--output-tokens", "32")
    command: Sequence[str] = (
        *(str(BIN / "locust"), "-f", str(ROOT / "scenarios" / "chat.py"), "--headless", "--host", url),
        *(*options, "--agents", "local", "--runs-dir", str(runs)),
    )
    environment = {**os.environ, "LOADGEN_TELEMETRY_URL": f"{url}/telemetry"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def vram_trends(runs: Path) -> list[dict[str, Any]]:
    summary = summarise((runs / "latest").resolve())
    return [trend for trend in summary["trends"] if trend["signal"] == "vram_used"]


def test_the_rate_of_a_leak_is_recovered_and_without_one_there_is_none(tmp_path: Path) -> None:
    leaking, sound = tmp_path / "leaking", tmp_path / "sound"
    with ExitStack() as stack:
        urls = [
            stack.enter_context(simulator("--replicas", "2", *options))
            for options in (("--leak-b-per-s", str(LEAK_B_PER_S)), ())
        ]
        processes = [soak(url, runs) for url, runs in zip(urls, (leaking, sound), strict=True)]
        for process in processes:
            process.wait(timeout=100)
    found = vram_trends(leaking)
    assert len(found) == 2
    for trend in found:
        low, high = (end / 3600 for end in trend["slope_per_h_ci95"])
        assert trend["verdict"] == "rising" and low <= LEAK_B_PER_S <= high
        assert trend["slope_per_h"] / 3600 == pytest.approx(LEAK_B_PER_S, rel=0.05)
        left_h = (trend["limit"] - trend["at_end"]) / LEAK_B_PER_S / 3600
        assert trend["exhausted_in_h"] == pytest.approx(left_h, rel=0.05)
    assert [trend["verdict"] for trend in vram_trends(sound)] == ["none", "none"]
