"""Figures of hosts and agents with known answers, and the caveats that they give."""

from pathlib import Path
from typing import Any

import pytest

from analysis.analyse import summarise
from analysis.host_tables import host_table
from analysis.report.build import build
from tests.analysis import synthetic as syn

GIB = syn.GIB
SECONDS = range(21)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [syn.request(5 + 0.015 * k) for k in range(1000)])
    return run


def codes(summary: dict[str, Any]) -> list[str]:
    return [caveat["code"] for caveat in summary["caveats"]]


def test_counters_become_rates_over_the_window(run: Path) -> None:
    rows = [syn.host(float(t), mem_available_b=(24 - t / 10) * GIB // 1) for t in SECONDS]
    syn.write_table(run, "here", "host", rows)
    (step,) = summarise(run)["steps"]
    (host,) = step["hosts"]
    shares = ("cpu_pct", "iowait_pct", "steal_pct", "psi_cpu_some_pct", "psi_io_some_pct", "psi_mem_some_pct")
    assert [host[name] for name in shares] == pytest.approx([40, 5, 1, 25, 1, 0])
    assert host["busiest_cpu_pct"] == {"mean": 60, "max": 60}
    assert host["mem_available_bytes"] == pytest.approx((24 - 1.9) * GIB)  # the window ends before second 20
    assert (host["host"], host["simulated"], host["coverage"]) == ("here", False, 1)


@pytest.mark.parametrize("spoilt", ["restart", "gap", "null"])
def test_what_cannot_be_told_is_null_not_zero(run: Path, spoilt: str) -> None:
    rows = [syn.host(float(t)) for t in SECONDS]
    if spoilt == "restart":
        rows = [syn.host(t - 10.0 if t > 10 else t + 1000.0) | {"t0_mono_ns": syn.at(t)} for t in SECONDS]
        rows = [row | {"t1_mono_ns": row["t0_mono_ns"]} for row in rows]
    elif spoilt == "gap":
        rows = rows[:8]
    else:
        rows = [row | {"cpu_idle_ticks": None, "psi_cpu_some_us": None, "cpu_max_busy_pct": None} for row in rows]
    syn.write_table(run, "here", "host", rows)
    (step,) = summarise(run)["steps"]
    assert step["hosts"][0]["cpu_pct"] is None and step["hosts"][0]["psi_cpu_some_pct"] is None
    assert build(run, figures=False).html.exists()


def test_a_host_of_the_simulator_is_an_entry_of_its_own(run: Path) -> None:
    syn.write_table(run, "sim-0", "host", [syn.host(float(t), 0.9) for t in SECONDS], simulated="true")
    syn.write_table(run, "here", "host", [syn.host(float(t), 0.2) for t in SECONDS])
    summary = summarise(run)
    hosts = summary["steps"][0]["hosts"]
    assert [(host["host"], host["simulated"]) for host in hosts] == [("here", False), ("sim-0", True)]
    assert [host["cpu_pct"] for host in hosts] == pytest.approx([20, 90])
    assert [row[1] for row in host_table(summary)[1]] == ["here", "sim-0 (simulated GPU)"]


def test_stolen_time_is_a_caveat_of_the_step(run: Path) -> None:
    syn.write_table(run, "here", "host", [syn.host(float(t), cpu_steal_ticks=t * 20) for t in SECONDS])
    assert "steal" in codes(summarise(run)["steps"][0])


def test_what_the_agent_cost_is_in_the_environment(run: Path) -> None:
    syn.write_table(run, "here", "agent", [syn.agent(float(t)) for t in SECONDS])
    built = build(run, figures=False)
    (agent,) = built.summary["agents"]
    assert agent["cpu_pct"] == pytest.approx(1) and agent["skipped_share"] == 0 and agent["ticks"] == 200
    assert not {"agent_cpu", "agent_late"} & set(codes(built.summary))
    assert "1.00 % of a core, 0 of 200 ticks skipped, 20 MiB" in built.html.read_text()


def test_an_agent_that_costs_much_is_a_caveat_of_the_run(run: Path) -> None:
    rows = [syn.agent(float(t), cpu_share=0.06, ticks=t * 9, overruns=t) for t in SECONDS]
    syn.write_table(run, "here", "agent", rows)
    summary = summarise(run)
    assert {"agent_cpu", "agent_late"} <= set(codes(summary))
    assert summary["agents"][0]["skipped_share"] == pytest.approx(0.1)


def test_the_busiest_process_of_the_server_is_told(run: Path) -> None:
    rows = [syn.process(float(t), pid, share) for t in SECONDS for pid, share in ((7, 0.2), (8, 1.5), (9, 0.1))]
    rows += [syn.process(t / 10, 10, 5.0) for t in range(100, 150)]  # it was there for a third of the window
    syn.write_table(run, "here", "host", [syn.host(float(t)) for t in SECONDS])
    syn.write_table(run, "here", "process", rows)
    built = build(run, figures=False)
    server = built.summary["steps"][0]["hosts"][0]["server"]
    known = {"cpu_pct": 150, "run_delay_pct": 10, "throttled_pct": 5, "rss_bytes": 3 * GIB}
    assert {name: server[name] for name in known} == pytest.approx(known)
    assert (server["pid"], server["name"]) == (8, "python3")
    headers, ((*_, cpu, waits, held, memory),) = host_table(built.summary)
    assert headers[-4] == "server CPU % of a core" and (cpu, waits, held, memory) == ("150", "10.0", "5.0", "3.0")
    assert "150" in (run / "report" / "tables" / "hosts.csv").read_text()


def test_a_pid_that_another_process_was_given_is_another_process(run: Path) -> None:
    rows = [syn.process(float(t), 7, 0.5) for t in range(11)]
    rows += [syn.process(float(t), 7, 0.9) | {"starttime_ticks": 5} for t in range(11, 21)]
    syn.write_table(run, "here", "host", [syn.host(float(t)) for t in SECONDS])
    syn.write_table(run, "here", "process", [row | {"run_delay_ns": None, "cg_throttled_us": None} for row in rows])
    server = summarise(run)["steps"][0]["hosts"][0]["server"]
    assert server["cpu_pct"] == pytest.approx(90)  # of seconds 11 to 19, the only one that is there for half the window
    assert server["run_delay_pct"] is None and server["throttled_pct"] is None


def test_a_host_without_processes_of_the_server_has_none(run: Path) -> None:
    syn.write_table(run, "here", "host", [syn.host(float(t)) for t in SECONDS])
    syn.write_table(run, "far", "process", [syn.process(float(t)) for t in SECONDS])
    assert [host["server"] for host in summarise(run)["steps"][0]["hosts"]] == [None]


def test_a_host_whose_samples_stop_is_said_so(run: Path) -> None:
    syn.write_table(run, "here", "host", [syn.host(float(t)) for t in range(8)])
    (step,) = summarise(run)["steps"]
    (found,) = [caveat for caveat in step["caveats"] if caveat["code"] == "telemetry_gap"]
    assert "samples of here cover 17 %" in found["text"]


@pytest.mark.parametrize(("grown_ns", "said"), [(0, False), (5_000_000, False), (2_500_000_000, True)])
def test_a_host_that_slept_during_the_run_is_said_so(run: Path, grown_ns: int, said: bool) -> None:
    rows = [syn.agent(float(t), suspended_ns=3 * 10**12 + (grown_ns if t > 9 else 0)) for t in SECONDS]
    syn.write_table(run, "here", "agent", rows)
    summary = summarise(run)
    assert summary["agents"][0]["suspended_s"] == pytest.approx(grown_ns / 1e9)
    assert ("suspended" in codes(summary)) == said


def test_network_disks_and_tasks_of_a_host(run: Path) -> None:
    rows = [
        syn.host(
            float(t),
            net_rx_b=t * 1_000_000,
            net_tx_b=t * 2_000_000,
            net_drop=t * 3,
            tcp_outsegs=t * 1000,
            tcp_retrans=t * 20,
            disk_busy_ms=t * 750,
            procs_running=4,
            procs_blocked=t % 2,
        )
        for t in SECONDS
    ]
    syn.write_table(run, "here", "host", rows)
    (host,) = summarise(run)["steps"][0]["hosts"]
    names = ("net_rx_bytes_per_s", "net_tx_bytes_per_s", "net_drops_per_s", "tcp_retrans_pct", "disk_busy_pct")
    assert [host[name] for name in names] == pytest.approx([1e6, 2e6, 3, 2, 75])
    assert host["procs_running"] == 4 and host["procs_blocked"] == pytest.approx(0.5, abs=0.05)
    syn.write_table(run, "here", "host", [syn.host(float(t)) for t in SECONDS])
    (host,) = summarise(run)["steps"][0]["hosts"]
    assert [host[name] for name in (*names, "procs_running")] == [None] * 6
