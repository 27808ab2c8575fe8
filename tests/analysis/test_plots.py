"""Figures by their ink and by what their lines say: nothing is written over anything else, whatever the shape."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.checks import SIMULATED_GPU
from analysis.plots import bounds, canvas, concurrency, distributions, energy, errors, gpus, marks, timeline
from analysis.windows import RATE, Window
from loadgen.record import Outcome
from tests.analysis import shapes

GIB = 2**30


def boxes(figure: Figure, every: bool) -> list[tuple[str, object]]:
    """Titles, and with `every` what was written beside points too, with their place in pixels; it is drawn."""
    found = []
    for axes in figure.axes:
        texts = [axes.title, axes._left_title, *(axes.texts if every else ())]
        found += [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    return found


def lines(axes: Axes) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}


def words(figure: Figure) -> list[str]:
    """The labels of all legends of a figure and its axes."""
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def inside(figure: Figure) -> None:
    """Titles, axis labels, tick labels and legends are within the figure, and tick labels apart from each other."""
    figure.draw_without_rendering()
    whole = figure.bbox.padded(1)
    for axes in figure.axes:
        texts = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            labels = [tick.label1 for tick in ticks if tick.label1.get_visible() and tick.label1.get_text()]
            for one, other in combinations([label.get_window_extent() for label in labels], 2):
                assert not one.overlaps(other), [label.get_text() for label in labels]
            texts += labels
        extents = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
        extents += [("legend", axes.get_legend().get_window_extent())] if axes.get_legend() else []
        for text, box in extents:
            assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1, text
    for (text, box), (other, other_box) in combinations(boxes(figure, every=False), 2):
        assert not box.overlaps(other_box), (text, other)


@pytest.mark.parametrize("count", [1, 3, 30])
def test_nothing_is_written_over_anything_else(count: int) -> None:
    frame = shapes.steps(count)
    with canvas.styled():
        figures = [
            concurrency.throughput_latency(frame, shapes.SLO),
            bounds.queue_vs_concurrency(frame),
            bounds.host_vs_concurrency(frame, shapes.hosts(frame)),
            bounds.client_vs_concurrency(frame),
        ]
        for number, figure in enumerate(figures):
            assert figure is not None
            figure.draw_without_rendering()
            found = boxes(figure, every=number == 0)
            assert all(SIMULATED_GPU in text for text, _ in found if not text.isdecimal())
            for (text, box), (other, other_box) in combinations(found, 2):
                assert not box.overlaps(other_box), (text, other)
    labels = [text for text, _ in boxes(figures[0], every=True) if text.isdecimal()]
    assert len(labels) == 2 * count if count < 30 else len(labels) >= 20
    assert labels.count(str(10 * count)) == 2  # the last step is always named


@pytest.mark.parametrize(("count", "cards"), [(1, 1), (3, 4), (30, 8)])
def test_every_figure_of_a_step_fits_and_says_whose_gpus_it_shows(count: int, cards: int) -> None:
    frame = shapes.steps(count)
    of_gpus, spread, windows = shapes.gpus(frame, cards), shapes.spread(count), shapes.windows(count)
    heat, over_time = spread.heat(), spread.over_time()
    failed, width_s = shapes.failures(count)
    with canvas.styled():
        figures = [
            concurrency.qps_vs_concurrency(frame),
            concurrency.latency_vs_concurrency(frame, shapes.SLO),
            concurrency.itl_vs_concurrency(frame, shapes.SLO),
            gpus.vram_vs_concurrency(frame, of_gpus),
            energy.energy_vs_concurrency(frame),
            distributions.latency_cdf(spread.cdf(), SIMULATED_GPU),
            distributions.latency_heat(heat, over_time, windows, spread.length_s, SIMULATED_GPU),
            distributions.prompt_surface(spread.surface(), SIMULATED_GPU),
            errors.errors(failed, width_s, windows, SIMULATED_GPU),
        ]
        for figure in figures:
            assert figure is not None
            inside(figure)
            titles = [axes.get_title(loc="left") for axes in figure.axes]
            assert all(SIMULATED_GPU in title for title in titles if title)
        multiples = gpus.gpu_vs_concurrency(frame, of_gpus)
        assert multiples is not None and SIMULATED_GPU in multiples.get_suptitle()
        inside(multiples)
        stacked = timeline.timeline(shapes.over_time(count), 1.0, windows, shapes.EVENTS, SIMULATED_GPU)
        assert stacked is not None
        inside(stacked)


def test_open_plans_have_rates_on_the_axis_and_what_was_delivered() -> None:
    frame = shapes.steps(3).assign(unit=RATE, asked_rate=[10.0, 20.0, 30.0], delivered_rate=[10.0, 20.0, 25.0])
    with canvas.styled():
        figures = [
            concurrency.qps_vs_concurrency(frame),
            concurrency.latency_vs_concurrency(frame),
            concurrency.itl_vs_concurrency(frame),
            gpus.vram_vs_concurrency(frame, shapes.gpus(frame, 2)),
            energy.energy_vs_concurrency(frame),
            bounds.client_vs_concurrency(frame),
            bounds.queue_vs_concurrency(frame),
        ]
        stacked = timeline.timeline(shapes.over_time(3), 1.0, shapes.windows(3, RATE), [], "NVML")
    assert all(axes.get_xlabel() == "requests/s" for figure in figures if figure for axes in figure.axes)
    assert figures[0] is not None and figures[1] is not None and stacked is not None
    seen = lines(figures[0].axes[0])
    assert seen["asked for"] == [10, 20, 30] and seen["delivered (sent)"] == [10, 20, 25]
    assert "service time p99" in lines(figures[1].axes[1])
    assert "users" not in words(stacked) and "due" in words(stacked)


def test_figures_without_data_are_left_out() -> None:
    frame = shapes.steps(3)
    nothing = frame.assign(qps=0.0, running=np.nan, waiting=np.nan, kv_usage_ratio=np.nan, worker_cpu_pct=np.nan)
    nothing = nothing.assign(client_lag_p99_ms=np.nan, loop_lag_p99_ms=np.nan)
    nothing = nothing.assign(j_per_output_token=np.nan, j_per_request=np.nan)
    for stat in ("p50", "p90", "p99"):
        nothing[[f"itl_{stat}_ms", f"tpot_{stat}_ms"]] = np.nan
    no_gpus, empty = shapes.gpus(frame, 1)[:0], shapes.spread(3, each=0)
    with canvas.styled():
        assert concurrency.throughput_latency(nothing) is None
        assert concurrency.itl_vs_concurrency(nothing) is None
        assert energy.energy_vs_concurrency(nothing) is None
        assert bounds.queue_vs_concurrency(nothing) is None
        assert bounds.client_vs_concurrency(nothing) is None
        assert bounds.host_vs_concurrency(frame, shapes.hosts(frame).assign(source=SIMULATED_GPU)) is None
        assert gpus.vram_vs_concurrency(frame, no_gpus) is None
        assert gpus.gpu_vs_concurrency(frame, no_gpus) is None
        assert gpus.gpu_vs_concurrency(frame, shapes.gpus(frame, 1, gpu_source="NVML")) is None  # not those of the run
        assert distributions.latency_cdf(empty.cdf(), "NVML") is None
        assert distributions.latency_heat(empty.heat(), empty.over_time(), [], 60.0, "NVML") is None
        assert distributions.prompt_surface(empty.surface(), "NVML") is None
        assert errors.errors(pd.DataFrame({"t_s": [0.0, 1.0]}), 1.0, [], "NVML") is None
        for draw in (concurrency.qps_vs_concurrency, concurrency.itl_vs_concurrency, energy.energy_vs_concurrency):
            assert draw(frame[:0]) is None


def test_goodput_and_objectives_are_drawn_where_they_are_given() -> None:
    frame = shapes.steps(3)
    with canvas.styled():
        with_goodput = concurrency.qps_vs_concurrency(frame)
        without = concurrency.qps_vs_concurrency(frame.assign(goodput_qps=np.nan))
        latency = concurrency.latency_vs_concurrency(frame, shapes.SLO)
        gaps = concurrency.itl_vs_concurrency(frame, shapes.SLO)
        plain = concurrency.latency_vs_concurrency(frame)
    assert with_goodput and without and latency and gaps and plain
    assert lines(with_goodput.axes[0])["good: within the SLO"] == [8.0, 16.0, 24.0]
    assert "good: within the SLO" not in lines(without.axes[0])
    for axes, name, limit in (
        (latency.axes[0], "SLO: ttft_p99<800ms", 800),
        (latency.axes[1], "SLO: e2e_p50<3s", 3000),
        (gaps.axes[0], "SLO: itl_p99<60ms", 60),
    ):
        assert [label for label in lines(axes) if label.startswith("SLO")] == [name]
        assert lines(axes)[name] == [limit, limit] and axes.get_ylim()[0] < limit < axes.get_ylim()[1]
    assert not any(label.startswith("SLO") for axes in (*plain.axes, gaps.axes[1]) for label in lines(axes))


def test_an_infinite_percentile_is_a_cross_and_not_a_point_of_the_line() -> None:
    with canvas.styled():
        figure = concurrency.itl_vs_concurrency(shapes.steps(3))
    assert figure is not None
    p99, cross = figure.axes[0].get_lines()[:2]
    assert list(p99.get_ydata()) == [24.0, 28.0] and list(cross.get_xdata()) == [30.0]
    assert "infinite: failures reach it" in words(figure)


def test_vram_of_a_card_is_under_its_limit_and_the_prediction_is_shared_out() -> None:
    frame = shapes.steps(3)
    with canvas.styled():
        one = gpus.vram_vs_concurrency(frame, shapes.gpus(frame, 1))
        eight = gpus.vram_vs_concurrency(frame.assign(vram_predicted_b=8 * 52.0 * GIB), shapes.gpus(frame, 8))
        silent = gpus.vram_vs_concurrency(
            frame.assign(vram_predicted_b=np.nan), shapes.gpus(frame, 1, vram_effective_bytes_mean=np.nan)
        )
        mixed = shapes.gpus(frame, 2)
        mixed.loc[mixed["index"] == 1, "vram_total_bytes"] = 40.0 * GIB
        two_kinds = gpus.vram_vs_concurrency(frame, mixed)
    assert one and eight and silent and two_kinds
    whole, close = (lines(axes) for axes in one.axes)
    assert whole["used"] == [72, 72, 72] and whole["effective (KV cache in use)"] == [50.75, 51.5, 52.25]
    assert whole["limit: a card has 80 GiB"] == [80, 80] and whole["predicted"] == pytest.approx([51.8, 52.6, 53.4])
    assert set(close) == {"effective (KV cache in use)", "predicted"} and "not from 0" in one.axes[1].get_ylabel()
    assert lines(eight.axes[0])["predicted"] == [52, 52, 52]
    assert lines(eight.axes[0])["used"] == [72.875] * 3 and "median and range of 8" in eight.axes[0].get_ylabel()
    band = eight.axes[0].collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == (72.0, 73.75)
    assert set(lines(silent.axes[1])) == {"used"}
    assert {"limit: a card has 40 GiB", "limit: a card has 80 GiB"} < set(lines(two_kinds.axes[0]))


@pytest.mark.parametrize(("level", "seen"), [(25.0, True), (5055.2, False)])
def test_the_level_at_which_the_cache_is_full_is_marked_where_the_axis_has_it(level: float, seen: bool) -> None:
    frame = shapes.steps(3)
    model = {"exhausted_at_level": level, "exhausted_at_level_low": level - 5, "exhausted_at_level_high": level + 5}
    with canvas.styled():
        figure = gpus.vram_vs_concurrency(frame, shapes.gpus(frame, 1), model)
        unknown = gpus.vram_vs_concurrency(frame, shapes.gpus(frame, 1), dict.fromkeys(model))
    assert figure and unknown
    (label,) = [word for word in words(figure) if word.startswith("KV cache full")]
    assert label == f"KV cache full at {level:,.0f} ({level - 5:,.0f} – {level + 5:,.0f})"
    assert lines(figure.axes[0])[label] == ([0, 1] if seen else []) and figure.axes[0].get_xlim()[1] < 40
    assert not [word for word in words(unknown) if word.startswith("KV cache full")]


def test_up_to_four_gpus_have_a_line_each_and_more_a_median_in_a_band() -> None:
    frame = shapes.steps(5)
    with canvas.styled():
        four, eight = (gpus.gpu_vs_concurrency(frame, shapes.gpus(frame, count)) for count in (4, 8))
        unequal = shapes.gpus(frame, 4)
        unequal.loc[unequal["index"] > 1, "host"] = "other"
        hosts = gpus.gpu_vs_concurrency(frame, unequal)
    assert four and eight and hosts
    assert words(four) == ["GPU 0", "GPU 1", "GPU 2", "GPU 3"]
    assert words(hosts) == ["host-0 GPU 0", "host-0 GPU 1", "other GPU 2", "other GPU 3"]
    assert words(eight) == ["median of 8 GPUs", "lowest to highest"]
    titles = [axes.get_title(loc="left") for axes in four.axes]
    assert len(titles) == 9 and titles[0] == "A kernel runs (GPU util)" and "Held back by power" in titles
    assert lines(four.axes[0])["GPU 3"] == [4, 14, 24, 34, 44]
    assert lines(eight.axes[0])["median"] == [3, 13, 23, 33, 43]
    held_back = four.axes[titles.index("Held back by power")]
    assert lines(held_back)["GPU 0"] == pytest.approx([2.5, 5, 7.5, 10, 12.5])
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in four.axes[0].get_lines()}
    assert len({each for look in looks for each in look}) == 12  # colour, marker and style differ


def test_signals_that_no_gpu_has_are_no_panels() -> None:
    frame = shapes.steps(3)
    bare = shapes.gpus(frame, 2).assign(sm_pct_mean=np.nan, tensor_pct_mean=np.nan, dram_pct_mean=np.nan)
    with canvas.styled():
        figure = gpus.gpu_vs_concurrency(frame, bare)
    assert figure is not None
    assert not {"SMs at work", "Tensor cores at work"} & {axes.get_title(loc="left") for axes in figure.axes}
    assert len(figure.axes) == 6


def test_energy_is_over_the_level() -> None:
    frame = shapes.steps(3)
    with canvas.styled():
        both = energy.energy_vs_concurrency(frame)
        plain = energy.energy_vs_concurrency(frame.assign(j_per_output_token=np.nan))
    assert both and plain
    assert lines(both.axes[0])["Energy of an output token"] == pytest.approx([0.6, 0.4, 1 / 3])
    assert [axes.get_ylabel() for axes in plain.axes] == ["J per successful request"]


@pytest.mark.parametrize("count", [1, 3, 30])
def test_curves_of_steps_end_where_their_failures_begin(count: int) -> None:
    cdf = shapes.spread(count).cdf()
    with canvas.styled():
        figure = distributions.latency_cdf(cdf, "NVML")
    assert figure is not None
    for axes, metric in zip(figure.axes, ("ttft", "e2e"), strict=False):
        mine = cdf[cdf["metric"] == metric].groupby("step")
        drawn = axes.get_lines()
        assert len(drawn) == count
        for line, (_, rows) in zip(drawn, mine, strict=True):
            assert line.get_ydata()[-1] == 100 * rows["share"].iloc[-1]
            assert line.get_xdata()[-1] == axes.get_xlim()[1]  # level to the edge
    if count == 30:
        bar = figure.axes[-1]
        labels = [label.get_text() for label in bar.get_yticklabels()]
        assert bar.get_ylabel() == "concurrent users" and labels[0] == "10" and labels[-1] == "300"
    else:
        assert words(figure) == [str(10 * (n + 1)) for n in range(count)]
        styles = {line.get_linestyle() for line in figure.axes[0].get_lines()}
        assert len(styles) == count


def test_the_heat_map_is_an_image_with_lines_and_crosses_over_it(tmp_path: Path) -> None:
    spread, windows = shapes.spread(30), shapes.windows(30)
    heat = spread.heat()
    with canvas.styled():
        figure = distributions.latency_heat(heat, spread.over_time(), windows, spread.length_s, "NVML")
        assert figure is not None
        canvas.save(figure, tmp_path, "heat")
    for axes, metric in zip(figure.axes, ("ttft", "e2e"), strict=False):
        (mesh,) = [found for found in axes.collections if isinstance(found, QuadMesh)]
        mine = heat[(heat["metric"] == metric) & np.isfinite(heat["high_ms"])]
        assert mesh.get_array().sum() == mine["requests"].sum() and mesh.get_rasterized()
        seen = lines(axes)
        assert {"p50", "p99"} <= set(seen)
        assert axes.get_xlim() == (0, 600)
    svg = (tmp_path / "heat.svg").read_text()
    assert svg.count("data:image/png") >= 2 and len(svg) < 300_000
    assert "failures" in words(figure)


def test_a_line_over_time_breaks_where_there_is_nothing() -> None:
    frame = shapes.requests(3, each=3000, failing=0.0)
    spread = shapes.Distributions(shapes.windows(3), 60.0)
    spread.add(frame[(frame["intended_s"] < 20) | (frame["intended_s"] > 40)])
    with canvas.styled():
        figure = distributions.latency_heat(spread.heat(), spread.over_time(), [], 60.0, "NVML")
    assert figure is not None
    p50 = next(line for line in figure.axes[0].get_lines() if line.get_label() == "p50")
    x = np.asarray(p50.get_xdata())
    assert np.isnan(x).sum() == 1 and x[: np.flatnonzero(np.isnan(x))[0]].max() < 21


def test_the_surface_has_a_cell_a_step_and_length_and_says_which_are_of_few_requests() -> None:
    surface = shapes.spread(3, failing=0.0).surface()
    surface.loc[0, ["requests", "ttft_p50_ms", "ttft_p99_ms"]] = [200, 123.0, np.inf]
    with canvas.styled():
        figure = distributions.prompt_surface(surface, "NVML")
        crowded = distributions.prompt_surface(shapes.spread(30).surface(), "NVML")
    assert figure and crowded
    p50, p99 = figure.axes[:2]
    assert [label.get_text() for label in p50.get_xticklabels()] == ["10", "20", "30"]
    assert p50.get_yticklabels()[0].get_text() == "32 – 63"
    assert len(p50.texts) == len(surface) and p50.texts[0].get_text() == "123" and p99.texts[0].get_text() == "inf"
    hatched = [patch for patch in p99.patches if isinstance(patch, Rectangle) and patch.get_hatch()]
    assert len(hatched) == (surface["requests"] < 100).sum() > 0
    assert words(figure) == ["fewer than 10 (p50) or 100 (p99) requests", "infinite: failures reach it"]
    assert not crowded.axes[0].texts and len(crowded.axes[0].get_xticks()) <= distributions.MOST_WRITTEN


def test_the_timeline_has_a_panel_for_what_there_is() -> None:
    windows = shapes.windows(3)
    with canvas.styled():
        full = timeline.timeline(shapes.over_time(3), 1.0, windows, [], SIMULATED_GPU)
        bare = timeline.timeline(shapes.over_time(3, telemetry=False), 1.0, windows, [], "NVML")
        nothing = timeline.timeline(pd.DataFrame(np.nan, index=[0], columns=shapes.over_time(1).columns), 1, [], [], "")
    assert full and bare and nothing is None
    titles = [axes.get_title(loc="left").removesuffix(f" ({SIMULATED_GPU})") for axes in full.axes]
    assert titles == [
        *("Load", "Throughput", "Time to first token", "Server queue", "KV cache", "GPU utilisation"),
        *("GPU memory, all GPUs", "GPU power, all GPUs", "Host CPU"),
    ]
    assert [axes.get_title(loc="left") for axes in bare.axes] == ["Load", "Throughput", "Time to first token"]
    assert lines(full.axes[4])["in use"][0] == pytest.approx(10) and full.axes[4].get_ylim() == (0, 105)
    assert all(axes.get_xlim() == (0, 60) for axes in full.axes)


@pytest.mark.parametrize(
    ("length_s", "label", "last"),
    [
        *((0.5, "seconds", "0.5"), (600, "seconds", "600"), (5400, "minutes", "90")),
        *((86_400, "hours", "24"), (400_000, "hours", "100")),
    ],
)
def test_time_is_in_a_unit_that_fits(length_s: float, label: str, last: str) -> None:
    with canvas.styled():
        figure, (axes,) = canvas.panels(1, 1, (9.6, 2))
        marks.time_axis(axes, length_s, "a note")
        inside(figure)
    texts = [tick.get_text() for tick in axes.get_xticklabels()]
    assert axes.get_xlabel() == f"{label} since the start (a note)" and axes.get_xlim() == (0, length_s)
    assert texts[0] == "0" and texts[-1] == last and 4 <= len(texts) <= 11


def test_events_are_numbers_with_a_key_and_lines_through_all_panels() -> None:
    found = marks.lane(shapes.EVENTS, 60.0)
    assert found is not None
    assert found.names[-1] == "7 samples_lost ×4" and len(found.names) == 7  # one was before the run
    assert [at_s for at_s, number, _ in found.marks if number == 7] == [3, 4, 5, 6]
    rows = {at_s: row for at_s, _, row in found.marks}
    assert rows[11.0] == 0 and rows[11.2] == 1 and found.rows == 2
    many = marks.lane([(float(k), f"kind {k % 20}") for k in range(1000)], 1000.0)
    assert many is not None and len(many.names) == 13 and many.names[-1] == "and 8 kinds more"
    assert len(many.marks) < 1000
    assert marks.lane([(-1.0, "agent_started")], 60.0) is None
    with canvas.styled():
        figure = timeline.timeline(shapes.over_time(3), 1.0, shapes.windows(3), shapes.EVENTS, "NVML")
    assert figure is not None
    lane = figure.axes[-1]
    assert lane.get_title(loc="left") == "Events" and len(lane.texts) == len(found.marks)
    assert all(name in figure.get_supxlabel() for name in found.names)
    for axes in figure.axes:
        drawn = [each for each in axes.collections if isinstance(each, LineCollection)]
        assert [len(each.get_segments()) for each in drawn] == [len(found.marks)]


def test_failures_are_stacked_by_outcome() -> None:
    frame = pd.DataFrame({"t_s": [0.0, 2.0], "TIMEOUT": [4.0, 0.0], "EMPTY": [2.0, 6.0]})
    window = Window(0, 10, "users", 0.0, 0.0, 1.0, 4.0, True)
    with canvas.styled():
        figure = errors.errors(frame, 2.0, [window], "NVML")
    assert figure is not None
    bars = [(bar.get_y(), bar.get_height()) for bars in figure.axes[0].containers for bar in bars]
    assert bars == [(0, 2), (0, 0), (2, 1), (0, 3)]  # a second, so half of what is in a bin


def test_every_way_to_fail_has_a_look_of_its_own() -> None:
    assert set(errors.OUTCOME_LOOKS) == set(Outcome) - {Outcome.OK, Outcome.CANCELLED}
    assert len(set(errors.OUTCOME_LOOKS.values())) == len(errors.OUTCOME_LOOKS)


def test_a_figure_saved_twice_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with canvas.styled():
            figure = energy.energy_vs_concurrency(shapes.steps(3))
            assert figure is not None
            canvas.save(figure, tmp_path, name)
    for kind in ("png", "svg"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()


@pytest.mark.parametrize(("low", "high", "labels"), [(60, 700, 4), (1, 5000, 4), (500, 2600, 4), (100, 130, 3)])
def test_a_logarithmic_axis_has_labels_enough_whatever_it_spans(low: float, high: float, labels: int) -> None:
    with canvas.styled():
        figure, (axes,) = canvas.panels(1, 1, (5, 4))
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        canvas.log_ticks(axes.yaxis, low, high)
        figure.draw_without_rendering()
    shown = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert labels <= len(shown) <= 12
