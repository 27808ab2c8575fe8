"""What one host can do to the collector: its agent is a script of frames here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import until

from loadgen import rundir
from loadgen.errors import AgentError
from remote_agents.agent.protocol import EVENT, HELLO, LOST, MAGIC, PING, PONG, SAMPLE, STOP, WELCOME, Decoder, encode
from remote_agents.agent.sample import SCHEMA, TABLES
from remote_agents.store import Live, Store
from remote_agents.watch import Watch

HELLO_BODY: dict[str, Any] = {
    "schema": SCHEMA,
    "tables": {name: [column.name for column in table] for name, table in TABLES.items()},
    "host": "gpu1",
    "agent_host": "gpu1",
    "boot_id": "of another host",
    "realtime_ns": 1,
    "monotonic_ns": 2,
    "simulated": False,
    "gpus": [],
    "nvml": {"state": "absent"},
}
ROW = [1, 2, *(None for _ in TABLES["host"][2:])]


class Script:
    """A wire at whose other end nobody is: what comes is given, pings are answered with `pong`."""

    is_local = False
    peer = "nowhere"

    def __init__(self, *frames: tuple[int, Any], agent: Any = "a", pong: Any = None) -> None:
        self._coming = MAGIC + encode(WELCOME, {"agent": agent})
        for number, (kind, body) in enumerate(frames, 1):
            self._coming += encode(kind, body, number)
        self._pong = pong
        self._decoder = Decoder()
        self._decoder.in_step = True
        self._ended = False
        self.closed = False

    def read(self, wait_s: float) -> bytes | None:
        coming, self._coming = self._coming, b""
        if not coming:
            time.sleep(0.01)
        return coming or (b"" if self._ended else None)

    def write(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            if frame.kind == PING and self._pong is not None:
                self._coming += encode(PONG, {"id": frame.body["id"], **self._pong})
            self._ended |= frame.kind == STOP

    def close(self) -> str:
        self.closed = True
        return "closed"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "telemetry").mkdir()
    return Store(tmp_path, Live())


@pytest.fixture
def watched(store: Store) -> Iterator[Callable[..., Watch]]:
    """Starts a watch of gpu1 over these wires, one after the other; errors are raised."""
    watches: list[Watch] = []

    def start(*wires: Any) -> Watch:
        left = list(wires)

        def launch(_: dict[str, Any]) -> Any:
            wire = left.pop(0) if left else AgentError("there is none", passing=True)
            if isinstance(wire, Exception):
                raise wire
            return wire

        watches.append(Watch("gpu1", {"name": "gpu1", "telemetry_url": None}, launch, store))
        watches[-1].start()
        return watches[-1]

    yield start
    for watch in watches:
        watch.stopping.set()
        watch.join(5)
        assert not watch.is_alive()


def events(tmp_path: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in rundir.read_lines(tmp_path / rundir.EVENTS) if event["kind"] == kind]


GREETED = (HELLO, HELLO_BODY)


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ([(HELLO, HELLO_BODY | {"host": "gpu2"})], "it speaks for 'gpu2', and is gpu1"),
        ([(HELLO, HELLO_BODY | {"host": "sim-0", "simulated": True})], "it speaks for 'sim-0', and is gpu1"),
        ([(HELLO, HELLO_BODY | {"agent_host": "gpu2"})], "it speaks for 'gpu1', and is gpu1"),
        ([(HELLO, HELLO_BODY | {"host": ["gpu1"]})], "it speaks for ['gpu1'], and is gpu1"),
        ([(HELLO, HELLO_BODY | {"boot_id": 7, "gpus": None})], "it says hello without a proper boot_id, gpus"),
        ([(HELLO, {})], "KeyError('schema')"),
        ([(SAMPLE, ["host", "gpu1", [ROW]])], "rows of 'host' of 'gpu1', which it has not greeted with"),
        ([GREETED, (SAMPLE, ["host", "gpu2", [ROW]])], "rows of 'host' of 'gpu2'"),
        ([GREETED, (SAMPLE, ["../../evil", "gpu1", [ROW]])], "rows of '../../evil' of 'gpu1'"),
        ([GREETED, (SAMPLE, [["host"], "gpu1", [ROW]])], "TypeError("),
        ([GREETED, (SAMPLE, {"host": 1})], "ValueError("),
        ([GREETED, (SAMPLE, ["host", "gpu1", 7])], "TypeError("),
        ([GREETED, (EVENT, {"kind": "xid"})], "KeyError('t_mono_ns')"),
        ([GREETED, (EVENT, {"kind": "xid", "text": "", "t_mono_ns": -1})], "it sends -1 for a time"),
        ([GREETED, (EVENT, 7)], "AttributeError("),
        ([GREETED, (LOST, {"frames": 1, "from_ns": None, "to_ns": 3})], "it sends None for a time"),
    ],
)
def test_what_no_agent_sends_ends_the_link_with_one_event_and_is_tried_again(
    tmp_path: Path, store: Store, watched: Callable[..., Watch], frames: list[tuple[int, Any]], said: str
) -> None:
    wire = Script(*frames)
    watch = watched(wire, Script((HELLO, HELLO_BODY), agent="b"))
    until(lambda: events(tmp_path, "agent_restarted"))
    (lost,) = events(tmp_path, "agent_lost")
    assert said in lost["text"]
    assert (lost["tried_again"], wire.closed, watch.fault) == (True, True, None)
    until(lambda: watch.state == "ok")
    store.flush()
    assert {path.name for path in (tmp_path / "telemetry").iterdir()} <= {"gpu1"}


@pytest.mark.parametrize("bad", ["later", None, -1, 1 << 70])
def test_stamps_that_are_none_are_in_no_file(tmp_path: Path, watched: Callable[..., Watch], bad: Any) -> None:
    watched(Script(GREETED, pong={"t1_ns": bad, "t2_ns": 5}))
    until(lambda: events(tmp_path, "agent_lost"))
    assert rundir.read_lines(tmp_path / rundir.CLOCKS) == []


def test_an_event_of_a_host_is_its_own_and_obeys_no_terminal(tmp_path: Path, watched: Callable[..., Watch]) -> None:
    event = {"kind": "xid", "text": "\x1b[2J\ud800gone", "t_mono_ns": 5, "code": 79}
    claims = {"agent": "gpu2", "host": "gpu2", "t_ns": 1, "agent_ns": 1, "run": "/", "self": 0}
    watched(Script(GREETED, (EVENT, event | claims)))
    (xid,) = until(lambda: events(tmp_path, "xid"))
    assert xid.pop("t_ns") > 1
    assert xid == {
        "kind": "xid", "text": " [2J gone", "code": 79, "agent": "gpu1", "host": "gpu1", "agent_ns": 5
    }  # fmt: skip


def test_rows_that_do_not_fit_reach_neither_file_nor_live_line(tmp_path: Path, watched: Callable[..., Watch]) -> None:
    store_rows = [["x"] * len(ROW), ROW[:-1], ROW]
    watch = watched(Script(GREETED, (SAMPLE, ["host", "gpu1", store_rows])))
    until(lambda: watch.taken[1] == 2)
    watch.store.flush()
    (bad,) = events(tmp_path, "bad_rows")
    assert bad["text"].startswith("2 rows of host from gpu1 do not fit")
    assert watch.state == "ok"


def test_a_link_that_breaks_at_once_again_and_again_is_made_less_and_less_often(
    tmp_path: Path, watched: Callable[..., Watch]
) -> None:
    watched(*(Script(GREETED, (EVENT, 7), agent=str(number)) for number in range(50)))
    time.sleep(4)
    assert len(events(tmp_path, "agent_lost")) == 3  # at 0, 1 and 3 s


def test_a_machine_without_room_for_more_is_no_fault_of_the_run_directory(
    tmp_path: Path, watched: Callable[..., Watch]
) -> None:
    watch = watched(OSError(24, "Too many open files"), Script(GREETED))
    until(lambda: watch.state == "ok")
    assert watch.fault is None
    (failed,) = events(tmp_path, "agent_failed")
    assert "cannot start or reach it (Too many open files): look at its limits" in failed["text"]


def test_names_that_make_the_same_file_name_have_folders_of_their_own(tmp_path: Path, store: Store) -> None:
    for host in ("me@gpu1", "me-gpu1", "me+gpu1"):
        store.hello(HELLO_BODY | {"host": host, "agent_host": host})
        store.add(host, "host", [ROW])
    store.close()
    shards = (tmp_path / "telemetry").glob("*/host.arrow")
    assert sorted(path.parent.name for path in shards) == ["me-gpu1", "me-gpu1-2", "me-gpu1-3"]


def test_nothing_is_written_after_the_end(tmp_path: Path, store: Store) -> None:
    store.close()
    (tmp_path / "telemetry").rmdir()
    store.hello(HELLO_BODY)
    store.event("agent_started", "too late")
    store.probe("gpu1", {})
    assert list(tmp_path.iterdir()) == []
