"""The lag of a sensor that is known: a GPU that follows the requests in flight, seen late."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.analyse import summarise
from analysis.report.build import build
from tests.analysis import synthetic as syn


def load_at(t: float) -> float:
    """Requests in flight: three steps of 10 s, the users of each come within a second."""
    return (
        float(np.clip(10 * t, 0, 10) + np.clip(10 * (t - 10), 0, 10) + np.clip(20 * (t - 20), 0, 20)) if t < 30 else 0.0
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = syn.make(tmp_path / "run", (10, 20, 40), 10.0)
    begins = [k / 10 for k in range(10)] + [10 + k / 10 for k in range(10)] + [20 + k / 20 for k in range(20)]
    syn.write_requests(run, [syn.request(t, end_s=30.0) for t in begins])
    return run


def sample(run: Path, lag_s: float, signal: Callable[[float], dict[str, Any]], noise: float = 0.0) -> None:
    draw = np.random.default_rng(7)
    rows = [syn.gpu(k / 10, power_mw=None) | signal(load_at(k / 10 - lag_s)) for k in range(-50, 350)]
    for row in rows:
        row["util_pct"] += noise * draw.standard_normal()
    syn.write_table(run, "here", "gpu_fast", rows)


def lags(run: Path) -> dict[str, tuple[float | None, float | None]]:
    return {lag["signal"]: (lag["lag_ms"], lag["peak"]) for lag in summarise(run)["sensor_lag_ms"]}


@pytest.mark.parametrize("lag_s", [0.0, 0.1, 0.3, 1.1])
@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_the_lag_of_a_signal_is_found(run: Path, lag_s: float, noise: float) -> None:
    sample(run, lag_s, lambda load: {"util_pct": 2 * load}, noise)
    lag_ms, peak = lags(run)["util_pct"]
    assert lag_ms == pytest.approx(1000 * lag_s, abs=1 if not noise else 101)
    assert peak is not None and peak > (0.999 if not noise else 0.9)


def test_each_signal_has_its_own(run: Path) -> None:
    """What GPM says is of the time before: that is no lag."""
    rows = [
        syn.gpu(
            k / 10,
            util_pct=load_at(k / 10 - 0.3),
            power_mw=round(1e4 * load_at(k / 10 - 1.0)),
            gpm_sm_pct=load_at(k / 10 - 0.05),
            win_start_mono_ns=syn.at((k - 1) / 10) - 1000,
        )
        for k in range(-50, 350)
    ]
    syn.write_table(run, "here", "gpu_fast", rows)
    found = lags(run)
    assert {signal: lag_ms for signal, (lag_ms, _) in found.items()} == {"util_pct": 300, "sm_pct": 0, "power_w": 1000}
    page = build(run, figures=False).html.read_text()
    assert "Sensor lag: utilisation of here 300 ms (correlation 1.00); SM activity of here 0 ms" in page


@pytest.mark.parametrize("signal", [lambda _: {"util_pct": 100.0}, lambda load: {"util_pct": 100.0 - load}])
def test_a_signal_that_does_not_follow_the_load_has_none(run: Path, signal: Callable[[float], dict[str, Any]]) -> None:
    sample(run, 0.3, signal)
    assert lags(run)["util_pct"][0] is None
    assert "Sensor lag" not in build(run, figures=False).html.read_text()


def test_a_lag_beyond_those_tried_is_none(run: Path) -> None:
    sample(run, 3.0, lambda load: {"util_pct": load})
    assert lags(run)["util_pct"][0] is None


def test_without_steps_there_is_none(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run", levels=())
    sample(run, 0.3, lambda load: {"util_pct": load})
    assert lags(run) == {"util_pct": (None, None)}
