"""XIDs and the like: a thread of its own that waits in a stand-in for the driver's library."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pynvml
import pytest
from conftest import Sent, until
from fake_nvml import Clock, FakeNvml, installed, run_sampler

from remote_agents.agent.gpu_device import Gpu
from remote_agents.agent.gpu_events import EventWatch

XID = pynvml.nvmlEventTypeXidCriticalError
NO_INSTANCE = 0xFFFFFFFF


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def nvml(clock: Clock) -> Iterator[FakeNvml]:
    with installed(clock) as fake:
        yield fake


@contextmanager
def watching(sent: Sent, clock: Clock, *indexes: int) -> Iterator[list[Gpu]]:
    gpus = [Gpu(pynvml.nvmlDeviceGetHandleByIndex(index), sent.outbox, clock) for index in indexes]
    ending = threading.Event()
    thread = threading.Thread(target=EventWatch(gpus, sent.outbox, ending.is_set, clock).run)
    thread.start()
    yield gpus
    ending.set()
    thread.join(0.5)
    assert not thread.is_alive()


def collector(sent: Sent) -> Callable[[], list[dict[str, Any]]]:
    """A function that returns all events so far."""
    events: list[dict[str, Any]] = []

    def all_so_far() -> list[dict[str, Any]]:
        events.extend(sent.events())
        return events

    return all_so_far


def test_an_xid_is_an_event_with_its_gpu_number_and_meaning(nvml: FakeNvml, sent: Sent, clock: Clock) -> None:
    events = collector(sent)
    nvml.events.put((1, XID, 79, NO_INSTANCE))
    nvml.events.put((0, XID, 31, 3))
    nvml.events.put((0, XID, 999, NO_INSTANCE))
    nvml.events.put((0, pynvml.nvmlEventTypeDoubleBitEccError, 0, NO_INSTANCE))
    nvml.events.put((0, pynvml.nvmlEventTypeGpuRecoveryAction, 1, NO_INSTANCE))
    nvml.events.put((0, pynvml.nvmlEventTypeGpuUnavailableError, 2, NO_INSTANCE))
    nvml.events.put((5, XID, 1, NO_INSTANCE))  # of a GPU that nobody asked about
    with watching(sent, clock, 0, 1):
        until(lambda: len(events()) == 6)
    told = [(event["kind"], event["text"], event["code"], event["gpu_uuid"], event.get("gi_id")) for event in events()]
    assert told == [
        ("xid", "GPU 1: XID 79 (GPU has fallen off the bus)", 79, "GPU-1", None),
        ("xid", "GPU 0: XID 31 (GPU memory page fault)", 31, "GPU-0", 3),
        ("xid", "GPU 0: XID 999", 999, "GPU-0", None),
        ("ecc", "GPU 0: an uncorrected memory error, code 0", 0, "GPU-0", None),
        ("recovery_action", "GPU 0: a recovery action is asked for, code 1", 1, "GPU-0", None),
        ("gpu_unavailable", "GPU 0: unavailable, code 2", 2, "GPU-0", None),
    ]


def test_only_types_that_the_gpu_supports_are_asked_for(nvml: FakeNvml, sent: Sent, clock: Clock) -> None:
    nvml.event_types = XID | pynvml.nvmlEventTypeClock
    with watching(sent, clock, 0):
        until(lambda: nvml.registered)
        assert nvml.registered == {1: XID}


def test_of_a_storm_ten_a_minute_and_gpu_are_sent_and_the_others_counted(
    nvml: FakeNvml, sent: Sent, clock: Clock
) -> None:
    events = collector(sent)
    for number in range(500):
        nvml.events.put((0, XID, 31 if number % 5 else 43, NO_INSTANCE))
    nvml.events.put((1, XID, 79, NO_INSTANCE))
    with watching(sent, clock, 0, 1):
        until(lambda: len(events()) == 11 and nvml.events.empty())
        clock.sleep(61)
        until(lambda: len(events()) == 12)
        for _ in range(12):
            nvml.events.put((0, XID, 94, NO_INSTANCE))
        until(lambda: len(events()) == 22 and nvml.events.empty())
    kinds = [event["kind"] for event in events()]
    assert kinds == ["xid"] * 11 + ["xid_storm"] + ["xid"] * 10 + ["xid_storm"]  # the last as the thread ends
    assert [event["gpu_uuid"] for event in events()].count("GPU-1") == 1
    first, last = [event for event in events() if event["kind"] == "xid_storm"]
    assert (first["count"], first["text"]) == (
        490,
        "GPU 0: 490 more within 61 s: XID 31 (392 times), XID 43 (98 times)",
    )
    assert last["text"] == "GPU 0: 2 more within 0 s: XID 94 (2 times)"


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("nvmlEventSetCreate", "XIDs are not told: Insufficient Permissions"),
        ("nvmlDeviceRegisterEvents", "XIDs of GPU 0, GPU 1 are not told: Insufficient Permissions"),
        ("nvmlDeviceGetSupportedEventTypes", "XIDs of GPU 0, GPU 1 are not told: Insufficient Permissions"),
        ("nvmlEventSetWait_v2", "XIDs are not told for now: Insufficient Permissions"),
    ],
)
def test_where_xids_are_not_told_that_is_said_once(
    nvml: FakeNvml, sent: Sent, clock: Clock, function: str, text: str
) -> None:
    nvml.errors[function] = pynvml.NVML_ERROR_NO_PERMISSION
    events = collector(sent)
    with watching(sent, clock, 0, 1):
        until(lambda: events())
        asked = nvml.calls.count(function)
        clock.sleep(5)  # asked for again then, where that may help
        if function == "nvmlEventSetWait_v2":
            until(lambda: nvml.calls.count(function) > asked)
    assert [(event["kind"], event["text"]) for event in events()] == [("no_xids", text)]
    assert nvml.calls.count(function) <= 3


def test_a_gpu_that_cannot_tell_any_is_said(nvml: FakeNvml, sent: Sent, clock: Clock) -> None:
    nvml.event_types = 0
    events = collector(sent)
    with watching(sent, clock, 0):
        until(lambda: events())
    assert events()[0]["text"] == "XIDs of GPU 0 are not told: Not Supported"


def test_a_gpu_that_came_back_is_asked_again(nvml: FakeNvml, sent: Sent, clock: Clock) -> None:
    with watching(sent, clock, 0) as (gpu,):
        until(lambda: nvml.registered)
        nvml.registered.clear()
        gpu.handle = pynvml.nvmlDeviceGetHandleByUUID(b"GPU-0")
        until(lambda: nvml.registered)


def test_the_thread_is_out_of_the_driver_before_nvml_is_shut(nvml: FakeNvml, sent: Sent, clock: Clock) -> None:
    for number in range(20):
        nvml.events.put((number % 2, XID, 45, NO_INSTANCE))
    run_sampler(sent.outbox, clock, 2)
    assert nvml.calls[-1] == "nvmlShutdown"
    assert "nvmlEventSetFree" in nvml.calls
    assert nvml.after_shutdown == []


def test_a_thread_that_hangs_in_the_driver_is_left_and_nvml_not_shut(nvml: FakeNvml, sent: Sent, clock: Clock) -> None:
    nvml.hang_in = "nvmlEventSetWait_v2"
    clock.after(0.5, lambda: nvml.hanging.wait(5))
    run_sampler(sent.outbox, clock, 1)
    assert "nvmlShutdown" not in nvml.calls
