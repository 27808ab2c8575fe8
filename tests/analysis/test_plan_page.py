"""The figures of a plan by their ink, and its page as a whole."""

from dataclasses import replace
from itertools import combinations

import pytest

from analysis.capacity import plan
from analysis.plots import canvas
from analysis.plots import capacity as plots
from analysis.report.plan_page import page
from loadgen.slo import parse_slo
from tests.analysis.test_capacity import DEMAND, drawn, known, step, summary


@pytest.mark.parametrize("levels", [(100,), (100, 500, 800), tuple(range(50, 1550, 50))])
def test_figures_at_any_number_of_steps(levels: tuple[int, ...]) -> None:
    made = drawn(levels)
    with canvas.styled():
        figures = [plots.curve(made), plots.objectives(made), plots.replicas(made), plots.energy(made)]
        for figure in figures:
            assert figure is not None
            figure.draw_without_rendering()
            boxes = [axes.get_tightbbox() for axes in figure.axes]
            assert not any(one.overlaps(other) for one, other in combinations(boxes, 2) if one and other)


def test_a_figure_without_data_is_left_out() -> None:
    run = summary([step(level, gpu_total=None) for level in (100, 200, 400)])
    assert plots.energy(plan(run, DEMAND)) is None
    assert plots.replicas(plan(known(), replace(DEMAND, slo=parse_slo("ttft_p99<1ms")))) is None


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    html = page(drawn())
    assert html.count("<img") == 4 and 'src="http' not in html and "<link" not in html and "<script" not in html
    for part in ("Capacity plan", "Method", "Assumptions", "9 replicas", "prefers-color-scheme: dark", "@media print"):
        assert part in html, part
    assert len(html) < 2_000_000


def test_text_of_the_run_is_escaped() -> None:
    run = known()
    run["target"]["url"] = "<script>alert(1)</script>"
    assert "<script>" not in page(plan(run, DEMAND))


def test_there_is_a_page_where_there_is_no_plan() -> None:
    html = page(plan(known((100, 800)), replace(DEMAND, slo=parse_slo("ttft_p99<1ms"))))
    assert "No plan" in html and "No curve" in html
