"""Figures by their ink: nothing is written over anything else, whatever the number of steps."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis.checks import SIMULATED_GPU
from analysis.plots import bounds, canvas, concurrency, timeline
from analysis.tables import STEP_COLUMNS
from analysis.windows import RATE, Window


def steps(count: int, **columns: float) -> pd.DataFrame:
    """`count` steps of a server that is full at the tenth, with all figures; p99 is infinite in the last one."""
    level = np.arange(1, count + 1) * 10.0
    frame = pd.DataFrame({column.name: np.ones(count) for column in STEP_COLUMNS})
    frame = frame.assign(
        level=level, qps=np.minimum(level, 100 - level / 100), failed_qps=0.1, gpu_source=SIMULATED_GPU
    )
    for metric, base in (("ttft", 100.0), ("e2e", 1000.0)):
        for stat, factor in (("p50", 1.0), ("p90", 1.5), ("p99", 2.0)):
            frame[f"{metric}_{stat}_ms"] = base * factor * (1 + level / 50)
        frame.loc[count - 1, f"{metric}_p99_ms"] = np.inf if count > 1 else 200.0
    return frame.assign(unit="users", client_lag_source="read_lag", client_lag_limit_ms=50.0, **columns)


def hosts(frame: pd.DataFrame) -> pd.DataFrame:
    shares = dict.fromkeys(("cpu_pct", "busiest_cpu_pct_mean", "psi_cpu_some_pct", "iowait_pct"), 20.0)
    return pd.DataFrame({"level": frame["level"], "host": "a-host", "source": "measured"} | shares)


def boxes(figure: Figure, every: bool) -> list[tuple[str, object]]:
    """Titles, and with `every` what was written beside points too, with their place in pixels."""
    figure.draw_without_rendering()
    found = []
    for axes in figure.axes:
        texts = [axes.title, axes._left_title, *(axes.texts if every else ())]
        found += [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    return found


@pytest.mark.parametrize("count", [1, 3, 30])
def test_nothing_is_written_over_anything_else(count: int) -> None:
    frame = steps(count)
    with canvas.styled():
        figures = [
            concurrency.throughput_latency(frame),
            bounds.queue_vs_concurrency(frame),
            bounds.host_vs_concurrency(frame, hosts(frame)),
            bounds.client_vs_concurrency(frame),
        ]
        for number, figure in enumerate(figures):
            assert figure is not None
            found = boxes(figure, every=number == 0)
            assert all(SIMULATED_GPU in text for text, _ in found if not text.isdecimal())
            for (text, box), (other, other_box) in combinations(found, 2):
                assert not box.overlaps(other_box), (text, other)
    labels = [text for text, _ in boxes(figures[0], every=True) if text.isdecimal()]
    assert len(labels) == 2 * count if count < 30 else len(labels) >= 20
    assert labels.count(str(10 * count)) == 2  # the last step is always named


def test_open_plans_have_rates_on_the_axis_and_what_was_delivered() -> None:
    frame = steps(3).assign(unit=RATE, asked_rate=[10.0, 20.0, 30.0], delivered_rate=[10.0, 20.0, 25.0])
    with canvas.styled():
        figures = [
            concurrency.qps_vs_concurrency(frame),
            concurrency.latency_vs_concurrency(frame),
            bounds.client_vs_concurrency(frame),
            bounds.queue_vs_concurrency(frame),
        ]
    assert all(axes.get_xlabel() == "requests/s" for figure in figures if figure for axes in figure.axes)
    assert figures[0] is not None and figures[1] is not None
    lines = {line.get_label(): list(line.get_ydata()) for line in figures[0].axes[0].get_lines()}
    assert lines["asked for"] == [10, 20, 30] and lines["delivered (sent)"] == [10, 20, 25]
    assert "service time p99" in [line.get_label() for line in figures[1].axes[1].get_lines()]


def test_figures_without_data_are_left_out() -> None:
    frame = steps(3)
    nothing = frame.assign(qps=0.0, running=np.nan, waiting=np.nan, kv_usage_ratio=np.nan, worker_cpu_pct=np.nan)
    nothing = nothing.assign(client_lag_p99_ms=np.nan, loop_lag_p99_ms=np.nan)
    with canvas.styled():
        assert concurrency.throughput_latency(nothing) is None
        assert bounds.queue_vs_concurrency(nothing) is None
        assert bounds.client_vs_concurrency(nothing) is None
        assert bounds.host_vs_concurrency(frame, hosts(frame).assign(source=SIMULATED_GPU)) is None
        assert timeline.errors(pd.DataFrame({"t_s": [0.0, 1.0]}), 1.0, [], "NVML") is None


def test_failures_are_stacked_by_outcome() -> None:
    frame = pd.DataFrame({"t_s": [0.0, 2.0], "TIMEOUT": [4.0, 0.0], "EMPTY": [2.0, 6.0]})
    window = Window(0, 10, "users", 0.0, 0.0, 1.0, 4.0, True)
    with canvas.styled():
        figure = timeline.errors(frame, 2.0, [window], "NVML")
    assert figure is not None
    bars = [(bar.get_y(), bar.get_height()) for bars in figure.axes[0].containers for bar in bars]
    assert bars == [(0, 2), (0, 0), (2, 1), (0, 3)]  # a second, so half of what is in a bin
