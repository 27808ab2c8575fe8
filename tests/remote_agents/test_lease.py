"""Agents that outlive their link: real processes, real abstract sockets."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_process import AgentProcess, new_token
from conftest import python, running, until

from remote_agents.agent import lease
from remote_agents.agent.protocol import ACK, HELLO, SAMPLE, STOP, WELCOME


@pytest.fixture
def links() -> Iterator[list[AgentProcess]]:
    opened: list[AgentProcess] = []
    yield opened
    for link in opened:
        link.close()


def linked(links: list[AgentProcess], token: str, **start: Any) -> AgentProcess:
    """A link whose agent has heard from its collector."""
    links.append(AgentProcess("", token=token, **{"lease_s": 20, "max_lifetime_s": 30} | start))
    links[-1].next(WELCOME)
    links[-1].send(ACK, {"received": 0})
    return links[-1]


def fast_stamps(link: AgentProcess, count: int) -> list[int]:
    """Of the GPU rows that come next."""
    stamps: list[int] = []
    while len(stamps) < count:
        table, _, rows = link.next(SAMPLE)
        stamps += [row[0] for row in rows if table == "gpu_fast" and row[3] == 0]
    return stamps


def listens(token: str) -> bool:
    name = "@gpu-agent-" + hashlib.sha256(token.encode()).hexdigest()[:32]
    return name in Path("/proc/net/unix").read_text()


def test_an_agent_outlives_its_link_and_nothing_is_lost_or_doubled(links: list[AgentProcess]) -> None:
    token = new_token()
    first = linked(links, token)
    agent = first.next(HELLO)["pid"]
    assert agent != first.process.pid
    stamps = fast_stamps(first, 5)
    first.stdin.close()
    assert first.ends_within(2) == 0  # what sshd waits for
    time.sleep(1)
    second = linked(links, token, agent=first.id, received=first.received)
    stamps += fast_stamps(second, 15)
    assert second.id == first.id
    assert running(agent)
    gaps = [after - before for before, after in itertools.pairwise(stamps)]
    assert all(50e6 < gap < 150e6 for gap in gaps), gaps
    second.send(STOP, {})
    until(lambda: not running(agent), 2)
    until(lambda: not listens(token), 2)
    assert second.ends_within(1) == 0


def test_what_was_sent_but_never_arrived_is_sent_again(links: list[AgentProcess]) -> None:
    token = new_token()
    first = linked(links, token)
    stamps = fast_stamps(first, 2)
    received = first.received
    lost = fast_stamps(first, 5)  # a link that broke before these
    first.stdin.close()
    second = linked(links, token, agent=first.id, received=received)
    assert fast_stamps(second, 5) == lost
    assert stamps[-1] < lost[0]


def test_an_agent_that_nobody_comes_back_for_ends_with_its_lease(links: list[AgentProcess]) -> None:
    token = new_token()
    link = linked(links, token, lease_s=1)
    agent = link.next(HELLO)["pid"]
    assert listens(token)
    os.killpg(link.process.pid, signal.SIGKILL)
    link.process.wait()
    link.stdin.close()
    assert running(agent)
    until(lambda: not running(agent), 4)
    until(lambda: not listens(token), 2)


def test_an_agent_that_never_heard_from_its_collector_ends_with_its_link(links: list[AgentProcess]) -> None:
    token = new_token()
    link = AgentProcess("", token=token, lease_s=20)
    links.append(link)
    agent = link.next(HELLO)["pid"]
    link.stdin.close()
    until(lambda: not running(agent), 3)
    until(lambda: not listens(token), 2)


def test_numbers_of_an_agent_that_is_gone_mean_nothing_to_its_successor(links: list[AgentProcess]) -> None:
    token = new_token()
    first = linked(links, token)
    second = linked(links, token, agent="another", received=5000)
    assert second.next(HELLO)["schema"] > 0  # its frame 1
    assert second.id == first.id


def test_two_starts_at_once_make_one_agent(links: list[AgentProcess]) -> None:
    token = new_token()
    both = [AgentProcess("", token=token, lease_s=20) for _ in range(2)]
    links += both
    ids = set()
    for link in both:
        with contextlib.suppress(AssertionError):  # the later takes the agent over, maybe before it has spoken
            link.next(WELCOME)
            ids.add(link.id)
    assert len(ids) == 1
    both[0].send(STOP, {})
    both[1].send(STOP, {})
    until(lambda: not listens(token))


@pytest.mark.skipif(os.geteuid() != 0, reason="to be another user takes root")
def test_nothing_is_handed_to_another_user_who_has_taken_the_name(links: list[AgentProcess]) -> None:
    token = new_token()
    name = "gpu-agent-" + hashlib.sha256(token.encode()).hexdigest()[:32]
    code = f"import os, socket; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.bind('\\0{name}'); s.listen()"
    thief = python("-c", f"{code}; print(flush=True); s.accept()[0].recv(1)")
    try:
        assert thief.stdout and thief.stdout.readline()
        link = AgentProcess("", token=token, lease_s=20)
        links.append(link)
        assert link.ends_within(5) == 1
        assert b"held by another user of this host (uid 65534)" in link.stderr.read()
    finally:
        thief.kill()
        thief.communicate()


def test_a_new_link_takes_over_from_one_that_hangs(links: list[AgentProcess]) -> None:
    token = new_token()
    first = linked(links, token)
    fast_stamps(first, 1)
    second = linked(links, token)
    assert fast_stamps(second, 3)
    assert (second.id, first.ends_within(1)) == (first.id, 0)


def test_two_runs_on_a_host_do_not_disturb_each_other(links: list[AgentProcess]) -> None:
    first, second = linked(links, new_token()), linked(links, new_token())
    pids = {link.next(HELLO)["pid"] for link in (first, second)}
    assert len(pids) == 2
    assert first.id != second.id
    first.send(STOP, {})
    assert first.ends_within(2) == 0
    assert fast_stamps(second, 3)


def test_who_does_not_know_the_token_gets_nothing() -> None:
    token = new_token()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listening:
        listening.bind("\0gpu-agent-" + hashlib.sha256(token.encode()).hexdigest()[:32])
        listening.listen()
        for given, comes in ((new_token(), False), (token, True)):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.connect(listening.getsockname())
                with Path(os.devnull).open() as nothing:
                    socket.send_fds(
                        client,
                        [given.encode() + b"an agent".ljust(16, b"\0") + (7).to_bytes(8, "big")],
                        [nothing.fileno()] * 2,
                    )
                handed = lease.accept(listening, token)
                assert (handed is not None) == comes
                if handed is not None:
                    assert (handed.agent, handed.received) == ("an agent", 7)
                    for descriptor in (handed.reads, handed.writes):
                        os.close(descriptor)
                    handed.holder.close()
                else:
                    assert client.recv(1) == b""  # it is let go of


def test_a_link_without_descriptors_is_refused() -> None:
    token = new_token()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind("\0test-" + token)
        listening.listen()

        def knock() -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.connect("\0test-" + token)
                client.sendall(token.encode() + bytes(24))
                client.recv(1)

        knocks = threading.Thread(target=knock)
        knocks.start()
        assert lease.accept(listening, token) is None
        knocks.join()
