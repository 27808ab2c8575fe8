"""One agent of a run: started, listened to, probed for its clock, and taken up again when the link to it breaks.

A thread for each, so that no host waits for another. A link that breaks is made anew until the run ends: an agent with
a lease then sends what was missed; one without has ended with its link, and its successor leaves a gap that is said.
All times are CLOCK_MONOTONIC ns of this host, but for an agent's own stamps.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from loadgen.errors import AgentError
from remote_agents.agent.protocol import (
    ACK,
    BYE,
    EVENT,
    HELLO,
    LOST,
    PING,
    PONG,
    SAMPLE,
    STOP,
    WELCOME,
    Decoder,
    Frame,
    ProtocolError,
    encode,
)
from remote_agents.agent.sample import SCHEMA, TABLES
from remote_agents.store import Store
from remote_agents.wire import LinkError, Wire

SECOND_NS = 1_000_000_000
BURST = 8
BURST_AT_ENDS = 16
BURST_EVERY_NS = 10 * SECOND_NS
PROBE_LIMIT_NS = SECOND_NS
SILENT_NS = 5 * SECOND_NS
GIVEN_UP_NS = 10 * SECOND_NS
RETRY_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)  # after so many links in a row that did not last
LASTING_NS = 15 * SECOND_NS
LAST_BURST_NS = 700_000_000
LEAVE_NS = SECOND_NS
DEAF_NS = 300_000_000
_TURN_S = 0.05

_HELLO = {"boot_id": str, "realtime_ns": int, "monotonic_ns": int, "simulated": bool, "gpus": list, "nvml": dict}
# What an agent does not say of its events: that is said here, or is a name of our own.
_NOT_FACTS = frozenset(("kind", "text", "t_mono_ns", "t_ns", "agent", "host", "agent_ns", "run", "self"))
# A body that no agent of ours sends ends in one of these.
_MISFITS = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)

STARTING, OK, SILENT, LINKING, ENDED = "starting", "ok", "silent", "linking", "ended"


class Watch(threading.Thread):
    """`launch(start)` makes a link whose agent has answered, or raises AgentError; a passing one is tried again."""

    def __init__(
        self, name: str, start: dict[str, Any], launch: Callable[[dict[str, Any]], Wire], store: Store
    ) -> None:
        super().__init__(name=f"agent {name}", daemon=True)
        self.agent = name
        self.host: str = start["name"]
        self.state = STARTING
        self.problem: AgentError | None = None  # why there is no agent
        self.fault: OSError | None = None  # the run directory cannot be written
        self.hello: dict[str, Any] = {}
        self.settled = threading.Event()  # it has said hello, or could not be started
        self.stopping = threading.Event()
        self.taken = ("", 0)  # agent, number of its last frame that the store has
        self.durable = ("", 0)  # the same of what is on the disk
        self.store = store
        self.greeted_hosts: set[str] = set()
        self._start_facts = start
        self._token = secrets.token_hex(32)
        self._peer = ""
        self._launch = launch
        self._broke_ns: int | None = None  # when the link broke, until there is another

    def run(self) -> None:
        failures = 0
        try:
            while not self.stopping.is_set():
                try:
                    again, failures = self._once(failures)
                except AgentError as error:
                    again, failures = error.passing, failures + 1
                    self._could_not_start(error, again)
                if not again:
                    return
                self.stopping.wait(RETRY_S[min(failures, len(RETRY_S) - 1)])
        except OSError as error:
            self.fault = error
        except Exception as error:  # whatever it is: the other hosts are watched on, and it is said
            self.state = f"failed: {type(error).__name__}: {error}"
            text = f"agent {self.agent} is watched no more: {type(error).__name__}: {error}"
            self.store.event("agent_lost", text, agent=self.agent, host=self.host, tried_again=False)
            raise
        finally:
            self.settled.set()

    def _once(self, failures: int) -> tuple[bool, int]:
        """Make a link and use it to its end: whether to make another, and how many have failed in a row."""
        agent, received = self.taken
        try:
            wire = self._launch(self._start_facts | {"token": self._token, "agent": agent, "received": received})
        except OSError as error:
            raise AgentError(
                f"this machine cannot start or reach it ({error.strerror or error}): look at its limits (ulimit -a)",
                passing=True,
            ) from error
        self._peer = wire.peer
        talk = Talk(self, wire)
        reason: str | None = "the collector failed"
        try:
            reason = talk.run()
        finally:
            how = wire.close()
        if reason is None:
            self.state = ENDED
            return False, 0
        self._lost(reason or how, talk.was_told_to_end)
        return not talk.was_told_to_end, 0 if talk.has_lasted else failures + 1

    def _could_not_start(self, error: AgentError, again: bool) -> None:
        first = self.problem is None and self._broke_ns is None
        self.problem = error
        self.state = f"{'not reached' if again else 'failed'}: {error}"
        if first or not again:
            text = f"agent {self.agent} is not there, the run goes on without it: {error}"
            self.store.event("agent_failed", text, agent=self.agent, tried_again=again)
        self.settled.set()

    def _lost(self, reason: str, for_good: bool) -> None:
        if self._broke_ns is None:
            self._broke_ns = time.monotonic_ns()
        self.state = reason if for_good else f"{LINKING}: {reason}"
        text = f"agent {self.agent} is lost, the run goes on without it: {reason}"
        self.store.event("agent_lost", text, agent=self.agent, host=self.host, tried_again=not for_good)

    def welcomed(self, agent_id: str) -> None:
        """A link has an agent at its other end: the first, the same again, or a successor."""
        known = self.taken[0]
        if known != agent_id:
            self.taken = (agent_id, 0)
        if self._broke_ns is not None:
            gap_s = (time.monotonic_ns() - self._broke_ns) / 1e9
            after = f"agent {self.agent} is back after {gap_s:.1f} s"
            if known == agent_id:
                self.store.event("agent_back", f"{after}: it kept its samples", agent=self.agent, host=self.host)
            else:
                text = f"{after}, as a new one: what was not received until then is lost"
                self.store.event("agent_restarted", text, agent=self.agent, host=self.host)
        self._broke_ns = self.problem = None
        self.state = OK if self.hello else STARTING

    def greeted(self, hello: dict[str, Any]) -> None:
        columns = {name: [column.name for column in table] for name, table in TABLES.items()}
        if hello["schema"] != SCHEMA or hello["tables"] != columns:
            raise ProtocolError(f"its tables are of schema {hello['schema']}, this collector knows {SCHEMA}")
        if bad := [name for name, kind in _HELLO.items() if not isinstance(hello[name], kind)]:
            raise ProtocolError(f"it says hello without a proper {', '.join(bad)}")
        simulates = self._start_facts["telemetry_url"] is not None and hello["simulated"]
        if hello["agent_host"] != self.host or not (hello["host"] == self.host or simulates):
            raise ProtocolError(f"it speaks for {hello['host']!r}, and is {self.host}")
        del hello["tables"]
        self.store.hello(hello)
        self.greeted_hosts.add(hello["host"])
        first = not self.hello
        if first or hello["host"] == self.host:
            self.hello = hello
        self.state = OK
        if first:
            text = f"agent {self.agent} samples {self.host}: {self._peer}"
            self.store.event("agent_started", text, agent=self.agent, host=self.host, peer=self._peer)
        self.settled.set()


class Talk:
    """What is said over one link."""

    def __init__(self, watch: Watch, wire: Wire) -> None:
        self.welcome = False
        self.was_told_to_end = False  # the agent has: by someone on its host, or by its lifetime
        self._watch = watch
        self._wire = wire
        self._decoder = Decoder(watch.taken[1])
        self._began_ns = self._heard_ns = time.monotonic_ns()
        self._next_burst_ns = 0
        self._bursts = 0
        self._probes_left = 0
        self._probe = 0
        self._asked_ns: int | None = None  # t0 of the probe that has no answer yet
        self._next_ack_ns = 0
        self._ending_ns: int | None = None  # since when the last probes are asked
        self._told_ns: int | None = None

    @property
    def has_lasted(self) -> bool:
        return self.welcome and time.monotonic_ns() - self._began_ns > LASTING_NS

    def run(self) -> str | None:
        """Why the link ended, "" when the wire knows best; None when that was in order."""
        try:
            while True:
                data = self._wire.read(_TURN_S)
                now_ns = time.monotonic_ns()
                if data == b"":
                    return None if self._told_ns is not None else ""
                if data:
                    self._heard_ns = now_ns
                    for frame in self._decoder.feed(data):
                        if frame.kind == BYE:
                            self.was_told_to_end = not self._watch.stopping.is_set()
                            return "it was told to end on its host" if self.was_told_to_end else None
                        try:
                            self._take(frame, now_ns)
                        except _MISFITS as error:
                            text = f"frame {frame.number} of kind {frame.kind} is none of an agent's: {error!r}"
                            raise ProtocolError(text) from error
                reason = self._duties(now_ns)
                if reason is not None or self._is_over(now_ns):
                    return reason
        except ProtocolError as error:
            return str(error)
        except LinkError as error:
            return str(error)

    def _take(self, frame: Frame, now_ns: int) -> None:
        watch, body = self._watch, frame.body
        if not self.welcome and frame.kind != WELCOME:
            raise ProtocolError(f"its first frame is of kind {frame.kind}, not WELCOME")
        if frame.kind == PONG:
            self._answered(body, now_ns)
        elif frame.kind == WELCOME:
            self.welcome = True
            watch.welcomed(str(body["agent"]))
            self._decoder.received = watch.taken[1]
        elif frame.kind == SAMPLE:
            table, host, rows = body
            if host not in watch.greeted_hosts or table not in TABLES:
                raise ProtocolError(f"it sends rows of {table!r} of {host!r}, which it has not greeted with")
            watch.store.add(host, table, rows)
        elif frame.kind == EVENT:
            said = _printable(body)
            facts = {key: value for key, value in said.items() if key not in _NOT_FACTS}
            stamp = {"agent": watch.agent, "host": watch.host, "agent_ns": _instant(said["t_mono_ns"])}
            watch.store.event(str(said["kind"]), str(said["text"]), **facts, **stamp)
        elif frame.kind == LOST:
            lost = {"frames": int(body["frames"])} | {name: _instant(body[name]) for name in ("from_ns", "to_ns")}
            seconds = (lost["to_ns"] - lost["from_ns"]) / 1e9
            text = f"{lost['frames']} frames of {seconds:.0f} s are lost: the spool of agent {watch.agent} was full"
            watch.store.event("samples_lost", text, agent=watch.agent, host=watch.host, **lost)
        elif frame.kind == HELLO:
            watch.greeted(_printable(body))
        if frame.number:
            watch.taken = (watch.taken[0], frame.number)

    def _duties(self, now_ns: int) -> str | None:
        """Acknowledge, probe, watch for silence; a reason to give the link up."""
        watch = self._watch
        silent_ns = now_ns - self._heard_ns
        if silent_ns > GIVEN_UP_NS and not self._wire.is_local:
            return f"nothing was heard of it for {GIVEN_UP_NS // SECOND_NS} s"
        if silent_ns > SILENT_NS and watch.state == OK:
            watch.state = SILENT
            text = f"agent {watch.agent} has said nothing for {SILENT_NS // SECOND_NS} s"
            watch.store.event("agent_silent", text, agent=watch.agent, host=watch.host)
        elif silent_ns < SILENT_NS and watch.state == SILENT:
            watch.state = OK
            watch.store.event("agent_heard", f"agent {watch.agent} is heard again", agent=watch.agent, host=watch.host)
        if not self.welcome:
            return None
        if now_ns >= self._next_ack_ns:
            self._next_ack_ns = now_ns + SECOND_NS
            agent, number = watch.durable
            self._wire.write(encode(ACK, {"received": number if agent == watch.taken[0] else 0}))
        if self._asked_ns is not None and now_ns - self._asked_ns > PROBE_LIMIT_NS:
            self._asked_ns = None  # the burst is given up
        if now_ns >= self._next_burst_ns and watch.hello and self._ending_ns is None:
            self._begin_burst(BURST if self._bursts else BURST_AT_ENDS, now_ns)
        return None

    def _is_over(self, now_ns: int) -> bool:
        """Once the run ends: asks the last probes, stops the agent, awaits its BYE; whether it waited long enough."""
        if not self._watch.stopping.is_set():
            return False
        if self._ending_ns is None:
            self._ending_ns = now_ns
            if self.welcome and self._watch.hello:
                self._begin_burst(BURST_AT_ENDS, now_ns)
        # No network is between, and it says nothing at all: it stands still.
        deaf = self._wire.is_local and self._heard_ns < self._ending_ns
        waits = self._asked_ns is not None and now_ns - self._ending_ns < (DEAF_NS if deaf else LAST_BURST_NS)
        if self._told_ns is None and not waits:
            self._told_ns, self._probes_left = now_ns, 0
            self._wire.write(encode(STOP, {}))
            if deaf and self._asked_ns is not None:
                return True
        return self._told_ns is not None and now_ns - self._told_ns > LEAVE_NS

    def _begin_burst(self, probes: int, now_ns: int) -> None:
        self._bursts += 1
        self._probes_left = probes
        self._next_burst_ns = now_ns + BURST_EVERY_NS
        self._ask()

    def _ask(self) -> None:
        self._probe += 1
        frame = encode(PING, {"id": self._probe})
        self._asked_ns = time.monotonic_ns()
        self._wire.write(frame)

    def _answered(self, pong: dict[str, Any], t3_ns: int) -> None:
        """A pong completes a probe, and asks the next of the burst."""
        if self._asked_ns is None or pong["id"] != self._probe:
            return
        t1_ns, t2_ns = _instant(pong["t1_ns"]), _instant(pong["t2_ns"])
        stamps = {"t0_ns": self._asked_ns, "t1_ns": t1_ns, "t2_ns": t2_ns, "t3_ns": t3_ns}
        self._asked_ns = None
        self._probes_left -= 1
        if self._probes_left > 0:
            self._ask()
        self._watch.store.probe(self._watch.host, stamps)


def _instant(value: Any) -> int:
    """Of an agent's clock. Raises ProtocolError."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ProtocolError(f"it sends {value!r} for a time")
    return value


def _printable(value: Any) -> Any:
    """A host's words without what a terminal would obey."""
    if isinstance(value, str):
        return "".join(letter if letter.isprintable() else " " for letter in value)
    if isinstance(value, list):
        return [_printable(item) for item in value]
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    return value
