"""Figures of GPUs with known answers: windows of their own, counters, MIG devices."""

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.analyse import summarise
from analysis.host_tables import gpu_table
from analysis.report.build import build
from analysis.serving import idle_gpus, only_serving
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


def facts(run: Path, host: str, *gpus: dict[str, Any]) -> None:
    """What an agent told of the GPUs at the start."""
    usual = {"index": 0, "sm_max_mhz": 1980, "dram_peak_b_s": None}
    told = {"host": host, "simulated": host.startswith("sim"), "gpus": [usual | gpu for gpu in gpus]}
    (run / "telemetry" / host / "hello.json").write_text(json.dumps(told))


def test_of_a_gpu_in_parts_the_memory_is_one_and_the_peaks_are_not_known(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run", (10, 20), model_config=CONFIG)
    syn.write_requests(run, [syn.request(k / 10, prompt_tokens=100, seq=k) for k in range(400)])
    syn.write_table(run, "here", "server", [syn.server(float(t)) for t in range(41)])
    part = {"util_pct": None, "power_mw": None, "mem_total_b": 10 * GIB, "mem_used_b": 9 * GIB}
    rows = [
        row
        for k in range(205)
        for row in (
            syn.gpu(k / 5, util_pct=None, mem_used_b=21 * GIB),
            *(gpm(k / 5, busy, 0.2) | part | {"gpu_uuid": f"MIG-{n}", "gi_id": n} for n, busy in ((7, 70.0), (8, 0.0))),
        )
    ]
    syn.write_table(run, "here", "gpu_fast", rows)
    name = "NVIDIA A100-SXM4-80GB"
    parts = [{"uuid": f"MIG-{n}", "name": f"{name} MIG 1g.10gb", "mem_total_b": 10 * GIB} for n in (7, 8)]
    facts(run, "here", {"uuid": "GPU-0", "name": name, "mem_total_b": 80 * GIB}, *parts)
    summary = summarise(run)
    assert summary["vram"]["limit_bytes"] == 80 * GIB and summary["steps"][0]["roofline"] is None
    assert summary["steps"][0]["energy"]["power_w"] == 300
    (told,) = [entry["text"] for entry in summary["caveats"] if entry["code"] == "idle_gpus"]
    assert told.startswith("GPU 0 MIG 8 of here ran nothing throughout")


def test_a_real_gpu_beside_simulated_ones_is_in_no_figure_of_theirs(tmp_path: Path) -> None:
    """The client's own, on the controller."""
    run = syn.make(tmp_path / "run", (10, 20), model_config=CONFIG)
    syn.write_requests(run, [syn.request(k / 10, prompt_tokens=100, seq=k) for k in range(400)])
    syn.write_table(run, "here", "server", [syn.server(float(t)) for t in range(41)])
    syn.write_table(run, "here", "gpu_fast", [syn.gpu(k / 5) for k in range(205)])
    rows = [syn.gpu(k / 5, gpu_uuid="SIM-GPU-0", mem_used_b=20 * GIB) for k in range(205)]
    syn.write_table(run, "sim-0", "gpu_fast", rows, simulated="true")
    facts(run, "here", {"uuid": "GPU-0", "name": "NVIDIA H200", "mem_total_b": 141 * GIB})
    facts(run, "sim-0", {"uuid": "SIM-GPU-0", "name": "L4", "mem_total_b": 24 * GIB})
    summary = summarise(run)
    assert summary["vram"]["limit_bytes"] == 24 * GIB
    assert summary["steps"][0]["roofline"]["peak_flops"] == 121e12


def test_a_gpu_that_serves_nothing_holds_none_of_the_cache(tmp_path: Path) -> None:
    """Another server has filled it: all that it uses is effective."""
    run = syn.make(tmp_path / "run")
    syn.write_table(run, "here", "server", [syn.server(float(t)) for t in range(21)])
    cards = ((0, 60.0, 60), (1, 0.0, 72))
    rows = [syn.gpu(k / 5, n, util_pct=busy, mem_used_b=used * GIB) for k in range(105) for n, busy, used in cards]
    syn.write_table(run, "here", "gpu_fast", rows)
    built = build(run, figures=False)
    (step,) = built.summary["steps"]
    assert [gpu["vram_effective_bytes"]["mean"] / GIB for gpu in step["gpus"]] == [30, 72]
    assert step["gpu_total"]["vram_effective_bytes"] == 102 * GIB
    header, *lines = (run / "report" / "tables" / "timeline.csv").read_text().splitlines()
    assert float(lines[10].split(",")[header.split(",").index("vram_effective_b")]) == 102 * GIB


def test_a_recording_says_which_gpus_are_left_out(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run", (), plan={"arrival": "none", "steps": []}, workers=0)
    rows = [syn.gpu(k / 5, n, util_pct=60.0 * (n == 0)) for k in range(105) for n in (0, 1)]
    syn.write_table(run, "here", "gpu_fast", rows)
    summary = summarise(run)
    assert summary["steps"][0]["energy"]["power_w"] == 300
    (told,) = [entry["text"] for entry in summary["caveats"] if entry["code"] == "idle_gpus"]
    assert told.startswith("GPU 1 of here ran nothing throughout")


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
    card = {"name": "NVIDIA H100 80GB HBM3", "mem_total_b": 80 * GIB, "dram_peak_b_s": 3.35e12}
    facts(run, "here", *(card | {"index": n, "uuid": f"GPU-{n}"} for n in busy))
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
    assert [gpu["uuid"] for gpu in idle_gpus([step(50, 1, 0, None), step(90, 30, 2, None)])] == ["GPU-2"]
    assert idle_gpus([step(0, 0)]) == []


def step(*busy: float | None, simulated: bool = False) -> dict[str, Any]:
    """Of GPUs that were so busy, %."""
    figures = [None if each is None else {"mean": each} for each in busy]
    usual = {"host": "here", "gi_id": None, "simulated": simulated, "util_pct": None}
    return {"gpus": [usual | {"uuid": f"GPU-{n}", "index": n, "sm_pct": figure} for n, figure in enumerate(figures)]}


def test_under_a_light_load_those_are_idle_that_run_next_to_nothing_of_what_the_busiest_does() -> None:
    assert idle_gpus([step(2.6, 3.3, 2.9, 3.1)]) == []
    assert idle_gpus([step(1, 2)]) == []
    assert [gpu["uuid"] for gpu in idle_gpus([step(2, 2, 0, 0.1)])] == ["GPU-2", "GPU-3"]


def test_a_gpu_in_parts_is_one_and_is_idle_when_all_of_them_are() -> None:
    two = step(None, None)
    for index, busy in ((0, 70.0), (0, 0.0), (1, 0.0), (1, 0.2)):
        uuid = f"MIG-{len(two['gpus'])}"
        two["gpus"].append(two["gpus"][index] | {"uuid": uuid, "gi_id": 7, "sm_pct": {"mean": busy}})
    assert {gpu["uuid"] for gpu in idle_gpus([two])} == {"GPU-1", "MIG-3", "MIG-4", "MIG-5"}
    assert [gpu["uuid"] for gpu in only_serving([two])[0]["gpus"]] == ["GPU-0"]


def test_real_gpus_beside_simulated_ones_do_not_serve() -> None:
    both = {"gpus": [*step(90)["gpus"], *step(40, 50, simulated=True)["gpus"]]}
    assert [gpu["simulated"] for gpu in only_serving([both])[0]["gpus"]] == [True, True]
