"""Figures of GPUs with known answers: windows of their own, counters, MIG devices."""

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.analyse import summarise
from analysis.gpus import idle_gpus
from analysis.host_tables import gpu_table
from analysis.report.build import build
from tests.analysis import synthetic as syn

GIB = syn.GIB


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Its window is [5, 20) s."""
    return syn.make(tmp_path / "run")


def figures(run: Path) -> dict[str, Any]:
    (step,) = summarise(run)["steps"]
    (gpu,) = step["gpus"]
    return dict(gpu)


def gpm(t: float, value: float, length_s: float = 0.1, **values: Any) -> dict[str, Any]:
    """A fast row whose GPM columns are of the time before it."""
    names = ("gpm_sm_pct", "gpm_occ_pct", "gpm_tensor_pct", "gpm_dram_pct")
    return syn.gpu(t, win_start_mono_ns=syn.at(t - length_s) - 1000, **dict.fromkeys(names, value), **values)


def test_gpm_counts_for_the_time_that_it_is_the_mean_of(run: Path) -> None:
    """Read once a second: the row of second 13 is of [12, 13), and that of second 5 of the time before the window."""
    rows = [gpm(float(t), 90.0 if t == 13 else 30.0 if t > 5 else 1000.0, length_s=1.0) for t in range(22)]
    syn.write_table(run, "here", "gpu_fast", rows)
    gpu = figures(run)
    assert gpu["sm_pct"] == pytest.approx({"mean": (14 * 30 + 90) / 15, "max": 90})
    assert gpu["occ_pct"] == gpu["tensor_pct"] == gpu["dram_pct"] == gpu["sm_pct"]


def test_gpm_that_covers_too_little_has_no_figure(run: Path) -> None:
    syn.write_table(run, "here", "gpu_fast", [gpm(float(t), 30.0, length_s=0.4) for t in range(22)])
    gpu = figures(run)
    assert gpu["sm_pct"] is None and gpu["util_pct"] is not None and gpu["coverage"] == pytest.approx(1)


def test_utilisation_is_the_drivers_own_where_it_has_a_buffer(run: Path) -> None:
    syn.write_table(run, "here", "gpu_fast", [syn.gpu(k / 10) for k in range(201)])
    rows = [syn.util(k / 5, util_pct=100.0 if k == 50 else 40.0) for k in range(1, 101)]
    rows[30] |= {"t0_mono_ns": rows[30]["t1_mono_ns"]}  # one whose begin is not known: a sixth of a second
    syn.write_table(run, "here", "gpu_util", rows)
    covered = 15 - 0.2 + 1 / 6
    assert figures(run)["util_pct"] == pytest.approx({"mean": 40 + 60 * 0.2 / covered, "max": 100})


def test_the_average_of_power_looks_back_a_second(run: Path) -> None:
    fast = [syn.gpu(k / 10, power_mw=None) for k in range(201)]
    syn.write_table(run, "here", "gpu_fast", fast)
    syn.write_table(run, "here", "gpu_slow", [syn.slow(t, power_avg_mw=100_000 * (t > 12)) for t in range(21)])
    assert figures(run)["power_w"] == pytest.approx({"mean": 100 * 8 / 15, "max": 100})  # of [12, 20)
    syn.write_table(run, "here", "gpu_fast", [row | {"power_mw": 400_000} for row in fast])
    assert figures(run)["power_w"] == pytest.approx({"mean": 100 * 8 / 15, "max": 400})


def test_clocks_heat_throttling_and_links(run: Path) -> None:
    syn.write_table(run, "here", "gpu_fast", [syn.gpu(k / 10) for k in range(201)])
    rows = [
        syn.slow(
            t,
            sm_mhz=1000 if t < 12 else 1500,
            temp_c=80 if t == 15 else 99 if t < 5 else 60,
            thr_sw_power_ns=t * 200_000_000,
            thr_hw_brake_ns=t * 50_000_000,
            thr_sw_therm_ns=None,
            thr_hw_therm_ns=t * 2_000_000_000,
            pcie_tx_b=(t * 10**9) % 2**32,
            pcie_rx_b=t * 10**6,
            nvl_tx_kib=t * 1024,
            nvl_rx_kib=10**6 - t,
        )
        for t in range(21)
    ]
    syn.write_table(run, "here", "gpu_slow", rows)
    gpu = figures(run)
    assert gpu["sm_mhz"] == pytest.approx((6.5 * 1000 + 8.5 * 1500) / 15) and gpu["temp_c"] == 80
    assert gpu["throttled_share"] == pytest.approx({"power": 0.25, "heat": 1})
    assert gpu["pcie_bytes_per_s"] == pytest.approx({"tx": 1e9, "rx": 1e6})  # of 32 bits: it went round
    assert gpu["nvlink_bytes_per_s"] is None  # a counter that goes back says nothing
    syn.write_table(run, "here", "gpu_slow", [row | {"nvl_rx_kib": 7} for row in rows])
    assert figures(run)["nvlink_bytes_per_s"] == pytest.approx({"tx": 2**20, "rx": 0})


def test_links_are_what_gpm_says_where_there_is_gpm(run: Path) -> None:
    rates = {"gpm_pcie_tx_mibs": 3.0, "gpm_pcie_rx_mibs": 20_000.0}
    syn.write_table(run, "here", "gpu_fast", [gpm(k / 10, 1.0, **rates) for k in range(201)])
    syn.write_table(run, "here", "gpu_slow", [syn.slow(t, pcie_tx_b=t, pcie_rx_b=t) for t in range(21)])
    assert figures(run)["pcie_bytes_per_s"] == pytest.approx({"tx": 3 * 2**20, "rx": 20_000 * 2**20})


def test_a_driver_that_was_loaded_again_leaves_no_mean_of_its_counters(run: Path) -> None:
    rows = [syn.gpu(k / 10, energy_mj=k * 25_000 if k < 100 else k) for k in range(201)]
    syn.write_table(run, "here", "gpu_fast", rows)
    assert figures(run)["power_w"] == {"mean": 300, "max": 300}  # of the samples


def test_mig_devices_have_entries_of_their_own_and_count_once(run: Path) -> None:
    device = {"util_pct": None, "power_mw": None, "mem_total_b": 20 * GIB, "mem_used_b": 10 * GIB, "gpm_sm_pct": 60.0}
    rows = [
        row
        for k in range(201)
        for row in (
            syn.gpu(k / 10, util_pct=None, mem_used_b=21 * GIB),
            gpm(k / 10, 60.0) | device | {"gpu_uuid": "MIG-a", "gi_id": 3},
            gpm(k / 10, 60.0) | device | {"gpu_uuid": "MIG-b", "gi_id": 4},
        )
    ]
    syn.write_table(run, "here", "gpu_fast", rows)
    built = build(run, figures=False)
    (step,) = built.summary["steps"]
    assert [(gpu["uuid"], gpu["gi_id"]) for gpu in step["gpus"]] == [("MIG-a", 3), ("MIG-b", 4), ("GPU-0", None)]
    assert step["gpus"][0]["sm_pct"]["mean"] == 60 and step["gpus"][0]["vram_total_bytes"] == 20 * GIB
    assert step["gpu_total"]["vram_used_bytes"] == 21 * GIB and step["gpu_total"]["power_w"] == 300
    headers, cells = gpu_table(built.summary)
    assert [row[2] for row in cells] == ["0 MIG 3", "0 MIG 4", "0"] and "util %" not in headers
    table = (run / "report" / "tables" / "gpus.csv").read_text().splitlines()
    assert [row.split(",")[5] for row in table] == ["gi_id", "3", "4", ""]


def test_mig_devices_alone_are_the_total(run: Path) -> None:
    rows = [
        syn.gpu(k / 10, gpu_uuid=f"MIG-{n}", gi_id=n, mem_used_b=n * GIB, util_pct=None)
        for k in range(201)
        for n in (1, 2)
    ]
    syn.write_table(run, "here", "gpu_fast", rows)
    (step,) = summarise(run)["steps"]
    assert step["gpu_total"]["vram_used_bytes"] == 3 * GIB and step["gpu_total"]["util_pct"] is None


CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}


@pytest.mark.parametrize("idle", [0, 7])
def test_gpus_that_run_nothing_are_named_and_change_no_figure_of_those_that_serve(tmp_path: Path, idle: int) -> None:
    run = syn.make(tmp_path / "run", (10, 20), model_config=CONFIG)
    rows = [syn.request(k / 10, prompt_tokens=100, seq=k) for k in range(400)]
    syn.write_requests(run, rows)
    syn.write_table(run, "here", "server", [syn.server(float(t), running=10.0) for t in range(41)])
    busy = {n: 0.4 if n else 60.0 for n in range(1 + idle)}
    fast = [gpm(k / 5, busy[n], 0.2, gpu_index=n, gpu_uuid=f"GPU-{n}") for k in range(205) for n in busy]
    syn.write_table(run, "here", "gpu_fast", [row | {"util_pct": busy[row["gpu_index"]]} for row in fast])
    facts = {"name": "NVIDIA H100 80GB HBM3", "mem_total_b": 80 * GIB, "sm_max_mhz": 1980, "dram_peak_b_s": 3.35e12}
    gpus = [facts | {"index": n, "uuid": f"GPU-{n}"} for n in busy]
    (run / "telemetry" / "here" / "hello.json").write_text(
        json.dumps({"host": "here", "simulated": False, "gpus": gpus})
    )
    summary = summarise(run)
    step = summary["steps"][-1]
    assert step["gpu_total"]["power_w"] == 300 * (1 + idle) and step["energy"]["power_w"] == 300
    assert step["energy"]["j_per_output_token"] == pytest.approx(300 / step["output_tokens_per_s"])
    assert step["roofline"]["peak_flops"] == pytest.approx(989e12, rel=0.01)
    found = step["bottleneck"]
    assert any("tensor cores worked 60 %" in row["text"] for row in found["evidence"])
    assert any("7 GPUs beside" in row["text"] for row in found["evidence"]) == bool(idle)
    caveats = [entry["text"] for entry in summary["caveats"] if entry["code"] == "idle_gpus"]
    assert len(caveats) == bool(idle) and all("GPU 1, 2, 3, 4, 5, 6, 7 of here" in text for text in caveats)


def test_a_gpu_that_is_busy_in_any_step_serves_and_so_may_one_that_tells_nothing() -> None:
    def step(*busy: float | None) -> dict[str, Any]:
        figures = [None if each is None else {"mean": each} for each in busy]
        return {"gpus": [{"uuid": n, "simulated": False, "util_pct": None, "sm_pct": f} for n, f in enumerate(figures)]}

    assert [gpu["uuid"] for gpu in idle_gpus([step(50, 1, 0, None), step(90, 30, 2, None)])] == [2]
    assert idle_gpus([step(1, 2)]) == []  # a load so light that none is busy tells of none
