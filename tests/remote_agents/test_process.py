"""The model server's processes: who is found, and what their rows say; in made-up trees and in the real /proc."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Sent, until
from proc_tree import FIRST_PID, Tree

from remote_agents.agent.cgroup import Cgroup
from remote_agents.agent.process import MOST, ProcessSampler
from remote_agents.agent.sample import TABLES
from remote_agents.agent.server_processes import listening, split_stat

S = 1_000_000_000
NAMES = [column.name for column in TABLES["process"]]
SHELL, SERVER, ENGINE, WORKER, HELPER, OTHER = range(FIRST_PID, FIRST_PID + 6)
GPU_FILES = ("/dev/null", "/dev/nvidiactl", "/dev/nvidia0")


class Clock:
    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


class Watch:
    """A sampler of a tree, its clock, and the processes that use a GPU."""

    def __init__(self, tree: Tree, sent: Sent, port: int | None = 8000) -> None:
        self.gpu_pids: frozenset[int] = frozenset()
        self.clock = Clock()
        self.sent = sent
        self.sampler = ProcessSampler(
            port, lambda: self.gpu_pids, sent.outbox, str(tree.proc), str(tree.cgroup), self.clock
        )

    def rows(self, after_s: float = 1) -> dict[int, dict[str, Any]]:
        """pid -> row, a while after the last."""
        self.clock.now_ns += int(after_s * S)
        rows = [dict(zip(NAMES, row, strict=True)) for row in self.sampler.rows()]
        assert len({row["pid"] for row in rows}) == len(rows)
        return {row["pid"]: row for row in rows}

    def events(self) -> list[tuple[str, str]]:
        return [(event["kind"], event["text"]) for event in self.sent.events()]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path)
    tree.process(1, 0, "systemd", exe="/usr/lib/systemd/systemd")
    return tree


@pytest.fixture
def watch(tree: Tree, sent: Sent) -> Iterator[Watch]:
    watch = Watch(tree, sent)
    yield watch
    watch.sampler.close()


def a_server(tree: Tree) -> None:
    """Shell -> API server that listens -> engine that uses a GPU -> worker; a helper beside the engine; some other."""
    tree.process(SHELL, 1, "bash", exe="/usr/bin/bash")
    tree.process(SERVER, SHELL, "vllm", files=("/dev/null", "socket:[77]"))
    tree.process(ENGINE, SERVER, "VLLM::EngineCor", files=GPU_FILES)
    tree.process(WORKER, ENGINE, "VLLM::Worker", files=GPU_FILES)
    tree.process(HELPER, SERVER, "tokenizer", exe="/opt/tokenizer")
    tree.process(OTHER, 1, "postgres", exe="/usr/bin/postgres", files=("socket:[78]",))
    tree.sockets((5432, 78, 0), (8000, 77, 0), connected=50)


def test_the_server_is_its_listener_its_gpu_users_and_their_kin(tree: Tree, watch: Watch) -> None:
    a_server(tree)
    watch.gpu_pids = frozenset({ENGINE, WORKER})
    assert set(watch.rows()) == {SERVER, ENGINE, WORKER, HELPER}
    assert watch.events() == [
        ("server_process", f"process {SERVER} (vllm) is watched: it listens on port 8000"),
        ("server_process", f"process {ENGINE} (VLLM::EngineCor) is watched: it uses a GPU"),
        ("server_process", f"process {WORKER} (VLLM::Worker) is watched: it uses a GPU"),
        ("server_process", f"process {HELPER} (tokenizer) is watched: it is below {SERVER}"),
    ]


def test_without_a_port_what_is_above_a_gpu_user_and_of_its_program_is_found(tree: Tree, sent: Sent) -> None:
    a_server(tree)
    watch = Watch(tree, sent, port=None)
    assert watch.rows() == {}
    watch.gpu_pids = frozenset({WORKER})
    assert set(watch.rows()) == {
        WORKER,
        ENGINE,
        SERVER,
    }  # the helper is nobody's kin that is sure, the shell is no server
    tree.process(SERVER, SHELL, "vllm", exe="/usr/bin/rust-router", start_ticks=2000)
    assert set(watch.rows()) == {WORKER, ENGINE}  # the server ended, and another program has its number


def test_a_program_that_cannot_be_seen_goes_by_its_name(tree: Tree, watch: Watch) -> None:
    tree.process(SERVER, 1, "python3", exe=None)
    tree.process(ENGINE, SERVER, "python3", exe=None, files=GPU_FILES)
    tree.process(WORKER, HELPER, "python3", exe=None, files=GPU_FILES)
    tree.process(HELPER, 1, "launcher", exe=None)
    watch.gpu_pids = frozenset({ENGINE, WORKER})
    assert set(watch.rows()) == {SERVER, ENGINE, WORKER}


def test_a_row_has_the_kernels_figures(tree: Tree, watch: Watch) -> None:
    tree.process(SERVER, 1, "a ) name (", files=("socket:[77]",), ticks=(123, 45), cgroup="0::/kube/pod\n")
    tree.sockets((8000, 77, 0))
    tree.write(tree.cgroup / "cgroup.controllers", "cpu memory\n")
    tree.write(tree.cgroup / "kube/pod/cpu.stat", "usage_usec 9000\nnr_periods 9\nnr_throttled 4\nthrottled_usec 777\n")
    tree.write(tree.cgroup / "kube/pod/memory.current", "1048576\n")
    tree.write(tree.cgroup / "kube/pod/memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    row = watch.rows()[SERVER]
    assert row.pop("t0_mono_ns") <= row.pop("t1_mono_ns") <= time.monotonic_ns()
    assert row == {
        "pid": SERVER,
        "starttime_ticks": 1000,
        "name": "a ) name (",
        "utime_ticks": 123,
        "stime_ticks": 45,
        "rss_b": 2500 * os.sysconf("SC_PAGE_SIZE"),
        "threads": 12,
        "vctx": 150,
        "nvctx": 25,
        "run_delay_ns": 321,
        "cg_usage_us": 9000,
        "cg_nr_throttled": 4,
        "cg_throttled_us": 777,
        "cg_mem_b": 1048576,
        "cg_oom_kill": 2,
    }
    [event] = watch.sent.events()
    assert (event["pid"], event["starttime_ticks"], event["cgroup"]) == (SERVER, 1000, "0::/kube/pod\n")
    assert event["absent"] == {}


def test_what_a_kernel_does_not_tell_is_none(tree: Tree, watch: Watch) -> None:
    tree.process(SERVER, 1, files=("socket:[77]",))
    tree.sockets((8000, 77, 0))
    for name in ("statm", "status", "schedstat"):
        (tree.proc / str(SERVER) / name).unlink()
    row = watch.rows()[SERVER]
    absent = ("rss_b", "vctx", "nvctx", "run_delay_ns", *(name for name in NAMES if name.startswith("cg_")))
    assert {name for name in NAMES if row[name] is None} == set(absent)


def test_a_restart_is_seen_at_once(tree: Tree, watch: Watch) -> None:
    tree.process(SERVER, 1, "vllm", files=("socket:[77]",))
    tree.sockets((8000, 77, 0))
    assert set(watch.rows()) == {SERVER}
    tree.end(SERVER)
    tree.sockets()
    assert [watch.rows(), watch.rows()] == [{}, {}]
    tree.process(ENGINE, 1, "vllm", files=("socket:[79]",))
    tree.sockets((8000, 79, 0))
    assert set(watch.rows(2)) == {ENGINE}
    assert [kind for kind, _ in watch.events()] == ["server_process", "server_process_gone", "server_process"]


def test_a_pid_that_is_used_again_is_another_process(tree: Tree, watch: Watch) -> None:
    tree.process(SERVER, 1, "vllm", files=("socket:[77]",))
    tree.sockets((8000, 77, 0))
    watch.rows()
    tree.process(SERVER, 1, "cron", start_ticks=5000)
    tree.sockets()
    assert [watch.rows(), watch.rows()] == [{}, {}]
    assert watch.events()[1] == ("server_process_gone", f"process {SERVER} (vllm) of the server is gone")
    tree.process(SERVER, 1, "vllm", start_ticks=6000, files=("socket:[80]",))
    tree.sockets((8000, 80, 0))
    assert watch.rows(2)[SERVER]["starttime_ticks"] == 6000


def test_a_zombie_is_gone(tree: Tree, watch: Watch) -> None:
    tree.process(SERVER, 1, files=("socket:[77]",))
    tree.sockets((8000, 77, 0))
    watch.rows()
    tree.process(SERVER, 1, files=(), state="Z")
    tree.sockets()
    assert watch.rows() == {}


def test_no_more_than_32_are_watched_the_sure_ones_first(tree: Tree, watch: Watch) -> None:
    a_server(tree)
    for number in range(40):
        tree.process(OTHER + 1 + number, SERVER, "compile", files=())
    watch.gpu_pids = frozenset({ENGINE, WORKER})
    rows = watch.rows()
    assert len(rows) == MOST
    assert {SERVER, ENGINE, WORKER} <= set(rows)
    watch.rows(40)
    texts = [text for _, text in watch.events()]
    assert texts[MOST:] == ["12 more processes of the server are left out: 32 are watched"]


def test_children_that_come_later_are_found_within_half_a_minute(tree: Tree, watch: Watch) -> None:
    a_server(tree)
    watch.rows()
    tree.process(OTHER + 1, HELPER, "late")
    assert OTHER + 1 not in watch.rows(1)
    assert OTHER + 1 in watch.rows(30)


def test_children_that_come_and_go_do_not_make_it_search_all_the_time(tree: Tree, watch: Watch) -> None:
    a_server(tree)
    watch.rows()
    tree.end(HELPER)
    assert HELPER not in watch.rows()
    tree.process(OTHER + 1, SERVER, "next")
    assert OTHER + 1 not in watch.rows()


def test_nothing_there_is_said_when_it_lasts(tree: Tree, watch: Watch) -> None:
    assert watch.rows(0) == {}
    assert not watch.events()
    for _ in range(3):
        watch.rows(10)
    said = "nothing listens on port 8000 here, and no process uses a watched GPU"
    assert watch.events() == [("no_server_process", said)]
    tree.process(SERVER, 1, files=("socket:[77]",))
    tree.sockets((8000, 77, 0))
    assert set(watch.rows(2)) == {SERVER}


def test_a_listener_that_cannot_be_seen_is_said_with_whose_it_is(tree: Tree, watch: Watch) -> None:
    tree.process(SERVER, 1, files=())
    tree.sockets((8000, 77, 1234))
    watch.rows()
    watch.rows(10)
    [(kind, text)] = watch.events()
    assert kind == "no_server_process"
    assert "it is that of user 1234, or in another pid namespace" in text
    assert f"start the agent as that user or as root (it is that of user {os.geteuid()})" in text


def test_a_port_that_is_only_passed_on_is_said(tree: Tree, watch: Watch) -> None:
    tree.process(SERVER, 1, "docker-proxy", files=("socket:[77]",))
    tree.process(ENGINE, 1, "vllm", files=GPU_FILES)
    tree.sockets((8000, 77, 0))
    watch.gpu_pids = frozenset({ENGINE})
    assert set(watch.rows()) == {ENGINE}
    watch.rows(40)
    assert watch.events()[1][1].startswith("port 8000 is held by docker-proxy, which passes it on: ")


def test_pids_of_another_namespace_are_not_mistaken_for_ours(tree: Tree, watch: Watch) -> None:
    tree.process(OTHER, 1, "postgres")  # the number that NVML gives is that of a process without a GPU
    watch.gpu_pids = frozenset({OTHER, WORKER})
    assert watch.rows() == {}
    watch.rows(10)
    [(kind, text)] = watch.events()
    assert kind == "no_server_process"
    assert f"not seen here as users of a GPU ({WORKER}, {OTHER}): they are in another pid namespace" in text


def test_only_the_sockets_that_listen_are_read(tree: Tree) -> None:
    tree.sockets((22, 5, 0), (8000, 6, 1000), connected=100_000)
    started_ns = time.perf_counter_ns()
    assert list(listening(str(tree.proc), 8000)) == [("6", 1000)]
    assert time.perf_counter_ns() - started_ns < 20_000_000
    (tree.proc / "net/tcp6").write_text((tree.proc / "net/tcp").read_text().replace("0100007F", "0" * 32))
    tree.sockets(*((port, port, 0) for port in range(100, 400)), (8000, 9, 7))
    assert list(listening(str(tree.proc), 8000)) == [("9", 7), ("6", 1000)]


def test_names_may_hold_anything() -> None:
    assert split_stat("7 (a (b) c) S 1 7")[0] == "a (b) c"
    assert split_stat("7 (a (b) c) S 1 7")[1] == ["S", "1", "7"]


V1 = """12:pids:/docker/ab
5:cpu,cpuacct:/docker/ab
4:memory:/docker/ab
1:name=systemd:/docker/ab
0::/system.slice/docker.service
"""


def test_control_groups_of_version_1(tree: Tree) -> None:
    tree.write(tree.cgroup / "cpu,cpuacct/docker/ab/cpuacct.usage", "123456789\n")
    tree.write(tree.cgroup / "cpu,cpuacct/docker/ab/cpu.stat", "nr_periods 9\nnr_throttled 4\nthrottled_time 5000000\n")
    tree.write(tree.cgroup / "memory/docker/ab/memory.usage_in_bytes", "4096\n")
    tree.write(tree.cgroup / "memory/docker/ab/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    cgroup = Cgroup(V1, str(tree.cgroup))
    assert cgroup.counters() == [123_456, 4, 5_000, 4096, 1]
    assert cgroup.absent == {}
    cgroup.close()


def test_control_groups_of_both_versions(tree: Tree) -> None:
    """The memory is of version 1, the rest is of version 2, which is mounted beside it."""
    tree.write(tree.cgroup / "unified/ab/cpu.stat", "usage_usec 7\nnr_periods 1\nnr_throttled 0\nthrottled_usec 0\n")
    tree.write(tree.cgroup / "memory/ab/memory.usage_in_bytes", "4096\n")
    cgroup = Cgroup("4:memory:/ab\n1:name=systemd:/ab\n0::/ab\n", str(tree.cgroup))
    assert cgroup.counters() == [7, 0, 0, 4096, None]
    assert cgroup.absent == {"cg_oom_kill": f"there is no {tree.cgroup}/memory/ab/memory.oom_control"}


def test_control_groups_without_limits_or_out_of_sight(tree: Tree) -> None:
    tree.write(tree.cgroup / "cgroup.controllers", "cpu memory\n")
    tree.write(tree.cgroup / "cpu.stat", "usage_usec 7\nuser_usec 5\n")
    root = Cgroup("0::/\n", str(tree.cgroup))
    assert root.counters() == [7, None, None, None, None]
    assert root.absent["cg_nr_throttled"] == f"{tree.cgroup}/cpu.stat has no nr_throttled"
    assert root.absent["cg_mem_b"] == f"there is no {tree.cgroup}/memory.current"
    for outside in ("0::/../other\n", ""):
        cgroup = Cgroup(outside, str(tree.cgroup))
        assert cgroup.counters() == [None] * 5
        assert set(cgroup.absent.values()) == {"its group is not of those that are seen here"}


def test_a_process_that_is_moved_is_followed(tree: Tree, watch: Watch) -> None:
    tree.write(tree.cgroup / "cgroup.controllers", "memory\n")
    for name, size in (("one", 1), ("two", 2)):
        tree.write(tree.cgroup / name / "memory.current", f"{size}\n")
    tree.process(SERVER, 1, files=("socket:[77]",), cgroup="0::/one\n")
    tree.sockets((8000, 77, 0))
    assert watch.rows()[SERVER]["cg_mem_b"] == 1
    tree.write(tree.proc / str(SERVER) / "cgroup", "0::/two\n")
    assert watch.rows(40)[SERVER]["cg_mem_b"] == 2


SERVE = """
import os, socket, subprocess, sys, time
listener = socket.create_server(("127.0.0.1", 0))
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
print(listener.getsockname()[1], os.getpid(), child.pid, flush=True)
end = time.monotonic() + 0.1
while time.monotonic() < end: pass
sys.stdin.read()
"""
ABOVE = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


def test_the_real_proc(sent: Sent) -> None:
    above = subprocess.Popen(
        [sys.executable, "-c", ABOVE, SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert above.stdin and above.stdout
    port, server, child = (int(word) for word in above.stdout.readline().split())
    sampler = ProcessSampler(port, frozenset, sent.outbox)

    def rows() -> dict[int, dict[str, Any]]:
        return {row[2]: dict(zip(NAMES, row, strict=True)) for row in sampler.rows()}

    first = rows()
    assert set(first) == {server, child, above.pid}  # and not this test, which is above them all
    row = until(lambda: (row := rows()[server])["utime_ticks"] + row["stime_ticks"] >= 5 and row)
    assert row["threads"] == 1
    assert row["rss_b"] > 1_000_000
    assert row["vctx"] + row["nvctx"] >= 1
    assert row["run_delay_ns"] is None or row["run_delay_ns"] >= 0
    events = sent.events()
    assert {event["pid"]: event["text"].split(": it ")[1] for event in events} == {
        server: f"listens on port {port}",
        child: f"is below {server}",
        above.pid: f"is above {server}",
    }
    assert all(row[name] is not None or name in events[0]["absent"] for name in NAMES if name.startswith("cg_"))
    above.stdin.close()
    above.wait()
    until(lambda: rows() == {})
    assert {event["kind"] for event in sent.events()} == {"server_process_gone"}
    sampler.close()


AS_NOBODY = """
import os, sys
from remote_agents.agent.process import ProcessSampler
if os.fork() == 0:
    os.setgroups([])
    os.setuid(65534)
    class Outbox:
        def event(self, kind, text, **facts): print(kind, text, sep="|", flush=True)
    times = iter((0, 0, 11 * 10**9))
    sampler = ProcessSampler(int(sys.argv[1]), frozenset, Outbox(), clock=lambda: next(times))
    print(sampler.rows() + sampler.rows())
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become someone else")
def test_another_users_listener_in_the_real_proc() -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        port = ours.getsockname()[1]
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, str(port)], capture_output=True, text=True, check=True)
    event, rows = done.stdout.splitlines()
    assert event.startswith(
        f"no_server_process|the process that listens on port {port} is not seen: it is that of user 0"
    )
    assert "(it is that of user 65534)" in event
    assert rows == "[]"
