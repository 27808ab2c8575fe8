"""Telemetry in seconds of the run: what each frame has, whatever clock it was stamped with."""

from pathlib import Path

import numpy as np
import pytest

from analysis.join import telemetry
from analysis.load import load
from tests.analysis import synthetic as syn


def test_a_foreign_clock_is_moved_by_its_probes_with_their_bound(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    far = syn.Far(run, 1234.5)
    far.probes()
    far.table("gpu_fast", [syn.gpu(k / 10, util_pct=k / 10) for k in range(200)])
    joined = telemetry(load(run))
    assert joined.problems == []
    assert joined.gpus["t_s"].to_numpy() == pytest.approx(joined.gpus["util_pct"].to_numpy(), abs=2e-4)
    clock = joined.clocks[0]
    assert clock.host == "far" and 100_000 <= clock.median_ns <= clock.bound_ns < 1_000_000
    assert (joined.gpus["bound_s"] <= clock.bound_ns / 1e9).all() and clock.steps == ()


def test_a_foreign_clock_without_probes_is_left_out_and_said_so(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.Far(run, 1234.5).table("gpu_fast", [syn.gpu(k / 10) for k in range(200)])
    joined = telemetry(load(run))
    assert joined.gpus.empty
    assert "no clock probes" in joined.problems[0]


def test_the_same_boot_needs_no_probes(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_table(run, "sim-0", "gpu_fast", [syn.gpu(k / 10, util_pct=k / 10) for k in range(200)], simulated="true")
    joined = telemetry(load(run))
    assert joined.gpus["t_s"].to_numpy() == pytest.approx(joined.gpus["util_pct"].to_numpy(), abs=1e-9)
    assert joined.clocks[0].bound_ns == 1000  # half the time of the read
    assert joined.simulated


def test_a_slow_scrape_does_not_blur_the_other_samples(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_table(run, "here", "gpu_fast", [syn.gpu(float(t)) for t in range(20)])
    slow = [syn.server(float(t), t1_mono_ns=syn.at(t + 3.0)) for t in range(20)]
    syn.write_table(run, "here", "server", slow)
    joined = telemetry(load(run))
    assert joined.clocks[0].bound_ns == 1000 and joined.problems == []


def test_windows_of_gpm_and_of_the_drivers_buffer_come_along(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    rows = [syn.gpu(k / 10, win_start_mono_ns=syn.at((k - 1) / 10) if k else None, gpm_sm_pct=7.0) for k in range(20)]
    syn.write_table(run, "here", "gpu_fast", rows)
    syn.write_table(run, "here", "gpu_util", [syn.util(k / 5) for k in range(10)])
    joined = telemetry(load(run))
    assert np.isnan(joined.gpus["win_start_s"][0])
    assert joined.gpus["win_start_s"][1:].to_numpy() == pytest.approx(np.arange(19) / 10)
    assert joined.gpus["sm_pct"].eq(7).all() and joined.gpus["pcie_tx"].isna().all()
    assert (joined.utils["end_s"] - joined.utils["begin_s"]).to_numpy() == pytest.approx(np.full(10, 0.2))
    assert (joined.utils["bound_s"] == 0).all()  # its window is no read


def test_a_run_without_telemetry_has_empty_frames_with_all_columns(tmp_path: Path) -> None:
    joined = telemetry(load(syn.make(tmp_path / "run")))
    names = ("host", "t_s", "bound_s")
    for frame in (
        joined.gpus,
        joined.utils,
        joined.slow,
        joined.servers,
        joined.hosts,
        joined.agents,
        joined.processes,
    ):
        assert frame.empty and set(names) <= set(frame.columns)
    assert {"effective_b", "win_start_s", "tensor_pct"} <= set(joined.gpus.columns)


def test_engines_share_out_to_the_mig_devices_of_a_divided_gpu(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    rows = [
        syn.gpu(k / 10, 0, gpu_uuid=uuid, gi_id=part)
        for k in range(30)
        for uuid, part in (("GPU-0", None), ("MIG-a", 1), ("MIG-b", 2))
    ]
    syn.write_table(run, "here", "gpu_fast", rows)
    engines = [syn.server(float(t), str(rank), kv_usage_ratio=rank / 2) for t in range(3) for rank in (0, 1)]
    syn.write_table(run, "here", "server", engines)
    effective = telemetry(load(run)).gpus.groupby("gpu_uuid")["effective_b"].mean() / syn.GIB
    assert effective[["MIG-a", "MIG-b"]].tolist() == [20, 40]  # 60 used, of a pool of 40 none or half
    assert np.isnan(effective["GPU-0"])


def test_a_gpu_beside_an_engine_that_holds_no_pool_is_effective_as_a_whole(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    cards = ((0, 60), (1, 2))
    rows = [syn.gpu(k / 10, index, mem_used_b=used * syn.GIB) for k in range(30) for index, used in cards]
    syn.write_table(run, "here", "gpu_fast", rows)
    syn.write_table(run, "here", "server", [syn.server(float(t), kv_usage_ratio=0.5) for t in range(3)])
    effective = telemetry(load(run)).gpus.groupby("gpu_uuid")["effective_b"].mean() / syn.GIB
    assert effective.tolist() == [40, 2]
