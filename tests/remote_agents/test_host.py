from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from remote_agents.agent.host import FILES, Disk, HostSampler, busiest, parse
from remote_agents.agent.sample import TABLES

TEXTS = {
    "stat": """cpu  10132153 290696 3084719 46828483 16683 10 25195 7 175628 0
cpu0 1393280 32966 572056 13343292 6130 0 17875 3 23933 0
cpu1 1335281 32966 572056 13343292 6130 0 17875 4 23933 0
intr 1462898 0 0 0
ctxt 115315
btime 769041601
processes 86031
procs_running 6
procs_blocked 2
""",
    "loadavg": "0.75 0.35 0.25 1/25 1747\n",
    "pressure/cpu": "some avg10=0.00 avg60=0.01 total=157622151\nfull avg10=0.00 avg60=0.00 total=0\n",
    "pressure/io": "some avg10=0.00 avg60=0.00 total=31\nfull avg10=0.00 avg60=0.00 total=30\n",
    "pressure/memory": "some avg10=0.00 avg60=0.00 total=21\nfull avg10=0.00 avg60=0.00 total=20\n",
    "meminfo": "MemTotal:       32858820 kB\nMemAvailable: 27214312 kB\nHugePages_Total: 0\nSwapFree:   1000 kB\n",
    "vmstat": "pgfault 1\npgmajfault 314\npgmajfault_other 9\n",
    "net/dev": """Inter-|   Receive                            |  Transmit
 face |bytes    packets errs drop fifo (…)|bytes    packets errs drop fifo (…)
    lo:  999 1 0 9 0 0 0 0 999 1 0 9 0 0 0 0
  eth0:1000 7 1 2 3 0 0 0 200 3 4 5 6 0 0 0
  ib0: 5 7 0 0 0 0 0 0 6 3 0 1 0 0 0 0
""",
    "net/snmp": "Tcp: RtoAlgorithm MaxConn OutSegs RetransSegs\nTcp: 1 -1 5249 17\nUdp: InDatagrams\nUdp: 4\n",
    "net/netstat": "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 0 3 4\nIpExt: InNoRoutes\nIpExt: 0\n",
    "diskstats": """   7       0 loop0 50 0 400 1 0 0 0 0 0 900 0 0 0 0 0 0 0
 259       0 nvme0n1 985362 84707 48290000 1004438 169118 749989 98069000 373073 0 124984 1409910 378717 25 51 31 1 9
 259       1 nvme0n1p1 10 0 100 1 10 0 100 1 0 10 10 0 0 0 0 0 0
 253       0 dm-0 10 0 1000 1 10 0 1000 1 0 800 10
   8       0 sda 1 0 8 0 2 0 16 0 0 7 7
""",
}


def test_recorded_texts() -> None:
    values, cpus, disks = parse(TEXTS)
    assert values == {
        "cpu_user_ticks": 10132153,
        "cpu_nice_ticks": 290696,
        "cpu_sys_ticks": 3084719,
        "cpu_idle_ticks": 46828483,
        "cpu_iowait_ticks": 16683,
        "cpu_irq_ticks": 25205,
        "cpu_steal_ticks": 7,
        "ctxt": 115315,
        "procs_running": 6,
        "procs_blocked": 2,
        "load1": 0.75,
        "psi_cpu_some_us": 157622151,
        "psi_cpu_full_us": 0,
        "psi_io_some_us": 31,
        "psi_io_full_us": 30,
        "psi_mem_some_us": 21,
        "psi_mem_full_us": 20,
        "mem_total_b": 32858820 * 1024,
        "mem_available_b": 27214312 * 1024,
        "swap_free_b": 1000 * 1024,
        "pgmajfault": 314,
        "net_rx_b": 1005,
        "net_tx_b": 206,
        "net_drop": 8,
        "tcp_retrans": 17,
        "tcp_outsegs": 5249,
        "tcp_listen_overflows": 3,
        "tcp_listen_drops": 4,
    }
    assert cpus["cpu0"] == (2016180, 15365602)
    assert list(cpus) == ["cpu0", "cpu1"]
    assert disks["nvme0n1"] == Disk(48_290_000 * 512, 98_069_000 * 512, 124_984)
    assert disks["sda"] == Disk(8 * 512, 16 * 512, 7)


def a_proc(root: Path, **changed: str) -> Path:
    """A /proc of these texts."""
    for name, text in (TEXTS | changed).items():
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_text(text)
    return root


def sampled(sampler: HostSampler) -> dict[str, Any]:
    return dict(zip([column.name for column in TABLES["host"]], sampler.row(), strict=True))


def test_missing_files_are_none_not_zero(tmp_path: Path) -> None:
    sampler = HostSampler(str(tmp_path))
    row = sampler.row()
    assert row[0] <= row[1]
    assert row[2:] == [None] * (len(TABLES["host"]) - 2)


def test_pressure_that_is_switched_off_is_none(tmp_path: Path) -> None:
    root = a_proc(tmp_path)
    (root / "pressure/cpu").unlink()
    (root / "pressure/cpu").mkdir()  # can be opened, and not be read, as where the kernel has it switched off
    row = sampled(HostSampler(str(root)))
    assert (row["psi_cpu_some_us"], row["psi_io_some_us"]) == (None, 31)


def test_whole_disks_count_and_the_busiest_of_each_second_is_added_up(tmp_path: Path) -> None:
    for name in ("nvme0n1/device", "sda/device", "dm-0", "loop0"):
        (tmp_path / "block" / name).mkdir(parents=True)
    root = a_proc(tmp_path / "proc")
    sampler = HostSampler(str(root), str(tmp_path / "block"))
    first = sampled(sampler)
    assert first["disk_r_b"] == (48_290_000 + 8) * 512
    assert first["disk_w_b"] == (98_069_000 + 16) * 512
    assert first["disk_busy_ms"] == 0
    for nvme_ms, sda_ms, added_ms in ((125_084, 7, 100), (125_090, 907, 1000), (0, 908, 1001), (5, 908, 1006)):
        text = TEXTS["diskstats"].replace("124984", str(nvme_ms)).replace("0 7 7", f"0 {sda_ms} 7")
        (root / "diskstats").write_text(text)
        assert sampled(sampler)["disk_busy_ms"] == added_ms  # a counter that begins again is left out once


def test_without_sys_no_disk_is_made_up(tmp_path: Path) -> None:
    row = sampled(HostSampler(str(a_proc(tmp_path)), str(tmp_path / "none")))
    assert (row["disk_r_b"], row["disk_w_b"], row["disk_busy_ms"]) == (None, None, None)


def test_256_cpus_stay_cheap(tmp_path: Path) -> None:
    lines = [f"cpu{number} {'123456789 ' * 10}" for number in range(256)]
    lines += ["intr " + "1234567 " * 8000, "ctxt 7"]
    sampler = HostSampler(str(a_proc(tmp_path, stat="cpu  1 1 1 1 1 1 1 1\n" + "\n".join(lines) + "\n")))
    took_ns = []
    for _ in range(20):
        started_ns = time.thread_time_ns()
        row = sampled(sampler)
        took_ns.append(time.thread_time_ns() - started_ns)
    assert row["ctxt"] == 7
    assert min(took_ns) < 5_000_000  # 0.8 ms where this was written


def test_every_file_alone_may_be_missing() -> None:
    for missing in FILES:
        values, _, _ = parse(TEXTS | {missing: ""})
        assert None not in [values.get("load1") if missing != "loadavg" else 0, values.get("ctxt", missing == "stat")]


def test_the_busiest_cpu_is_seen_where_the_mean_hides_it() -> None:
    before = {f"cpu{n}": (1000, 5000) for n in range(64)}
    now = {f"cpu{n}": (1000, 5100) for n in range(64)} | {"cpu7": (1100, 5100)}
    assert busiest(before, now) == 100
    assert busiest({}, now) is None
    assert busiest(before, before) is None
    assert busiest(before, now | {"cpu64": (900, 901)}) == 100  # a CPU that came online has no before


def test_the_real_proc() -> None:
    sampler = HostSampler()
    first = sampler.row()
    end = time.monotonic() + 0.15
    while time.monotonic() < end:
        pass
    second = sampler.row()
    names = [column.name for column in TABLES["host"]]
    rows = [dict(zip(names, row, strict=True)) for row in (first, second)]
    spent = sum(rows[1][name] - rows[0][name] for name in ("cpu_user_ticks", "cpu_nice_ticks", "cpu_sys_ticks"))
    assert spent >= 10
    assert rows[0]["cpu_max_busy_pct"] is None
    assert 50 < rows[1]["cpu_max_busy_pct"] <= 100
    meminfo = Path("/proc/meminfo").read_text()
    assert rows[0]["mem_total_b"] == int(meminfo.split()[1]) * 1024
    assert rows[1]["t1_mono_ns"] - rows[1]["t0_mono_ns"] < 50_000_000
    assert rows[1]["ctxt"] >= rows[0]["ctxt"]
    assert rows[1]["net_drop"] >= rows[0]["net_drop"] >= 0
    sampler.close()


def test_a_file_longer_than_one_read_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("".join(f"cpu{n} 1 1 1 1 1 1 1 1\n" for n in range(20_000)) + "ctxt 7\n")
    sampler = HostSampler(str(tmp_path))
    assert sampler.row()[[column.name for column in TABLES["host"]].index("ctxt")] == 7


@pytest.mark.parametrize("text", ["cpu  1 2 3 4\n", "cpu  1 2 3 4 5 6 7 8 9 10 11\n"])
def test_old_and_new_kernels_have_other_numbers_of_cpu_fields(text: str) -> None:
    assert parse(TEXTS | {"stat": text})[0]["cpu_idle_ticks"] == 4
