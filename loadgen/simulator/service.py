"""The replicas at work: requests in, tokens written at the model's instants, one timer a replica.

    submit -> stages (stages.py) -> a replica's queue and batches (model.py) -> written -> truth log
                 a fault may strike before the queue, or in the middle of the answer (faults.py)

A token is one write, just after the end of its iteration and the network's delay; when the event loop is late it writes
at once and counts how late, and the modelled GPU goes on as if it had not been. Not here: connections (server.py) and
bytes (openai.py, predict.py). Every instant is CLOCK_MONOTONIC, which is asyncio's clock too.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from loadgen.record import Outcome
from loadgen.simulator import faults, metrics, openai, predict, telemetry
from loadgen.simulator.config import SimulatorConfig
from loadgen.simulator.model import Replica, Sequence
from loadgen.simulator.profiles import Engine
from loadgen.simulator.stages import Passage, Stages
from loadgen.simulator.truth import Kind, TruthLog, TruthRow

LATE_NS = 5_000_000
_FAULT_MESSAGE = "the simulator was asked to fail"


class Client(Protocol):
    """Who waits for an answer."""

    transport: asyncio.Transport

    def answered(self, keep_alive: bool) -> None:
        """The last of the answer is written, or of what there will be of it."""

    def reset(self) -> None:
        """There will be no more, and the connection is to be reset."""


@dataclass(slots=True)
class Request:
    """A request as read from the wire."""

    method: str
    path: str
    request_id: str | None
    authorization: bytes
    body: bytes
    http_1_0: bool
    keep_alive: bool


@dataclass(eq=False, slots=True, kw_only=True)
class Generation(Sequence):
    """A request that is worked on. `received_ns` is when it joined its replica's queue."""

    client: Client
    replica: int
    ordinal: int
    request_id: str
    ask: openai.Ask
    keep_alive: bool
    head: bytes
    read_ns: int
    passage: Passage
    fault: faults.Fault | None
    strikes: bool  # the fault is one of the answer's middle, and is still to come
    timer: asyncio.TimerHandle | None = None  # before the queue, or in a stall
    in_model: bool = False
    stalled: list[bytes] | None = None  # what a stall keeps back
    first_token_ns: int | None = None
    last_token_ns: int | None = None
    ended_ns: int | None = None  # the model's instant of the last token
    late_tokens: int = 0
    late_max_ns: int = 0


class Simulator:
    """The replicas with their timers, meters and counts."""

    def __init__(self, config: SimulatorConfig, engine: Engine, truth: TruthLog | None) -> None:
        self.engine = engine
        self.replicas: list[Replica[Generation]] = [
            Replica(self.engine, config.jitter, f"{config.seed}/{index}") for index in range(config.replicas)
        ]
        self.metrics = [metrics.ReplicaMetrics() for _ in self.replicas]
        text = openai.texts(config.seed)
        self._wordings = {kind: openai.Wording(kind, engine.model.name, text) for kind in (Kind.CHAT, Kind.COMPLETION)}
        self._config = config
        self._network_ns, preprocess_ns, io_wait_ns = (
            round(1e6 * time_ms / config.speedup)
            for time_ms in (config.network_ms, config.preprocess_ms, config.io_wait_ms)
        )
        self._stages = [
            Stages(
                self._network_ns,
                preprocess_ns,
                config.preprocess_workers,
                io_wait_ns,
                config.io_places,
                8e3 / (config.network_mbit_s * config.speedup) if config.network_mbit_s else 0.0,
            )
            for _ in range(0, config.replicas, config.gpus_per_host)
        ]
        self._faults = faults.Faults(config)
        self._before_queue = [0] * config.replicas  # requests on their way to each replica
        self._started_ns = time.monotonic_ns()
        leak_b_per_s = config.leak_b_per_s * config.speedup
        self._meters = [
            telemetry.GpuMeter(replica, self._started_ns, self._network_ns, leak_b_per_s, config.leak_b_per_request)
            for replica in self.replicas
        ]
        self._truth = truth
        self._ordinal = 0
        self._loop = asyncio.get_running_loop()

    async def keep_house(self) -> None:
        """Sensors and truth log, until cancelled."""
        while True:
            await asyncio.sleep(telemetry.WINDOW_S)
            now_ns = time.monotonic_ns()
            for meter in self._meters:
                meter.advance(now_ns)
            if self._truth:
                self._truth.flush()

    def telemetry(self) -> bytes:
        gpus_per_host = self._config.gpus_per_host
        return telemetry.render(self._meters, self._stages, gpus_per_host, self._started_ns, time.monotonic_ns())

    def check_key(self, request: Request) -> None:
        """Raises Refusal."""
        key = self._config.api_key
        if key is not None and not hmac.compare_digest(request.authorization, f"Bearer {key}".encode()):
            raise openai.Refusal(HTTPStatus.UNAUTHORIZED, "Unauthorized")

    def submit(self, kind: Kind, request: Request, client: Client) -> Generation:
        """Send a request on its way to the replica with the fewest. Raises Refusal, and logs it."""
        read_ns = time.monotonic_ns()
        self._ordinal += 1
        request_id = request.request_id or f"sim-{self._ordinal}"
        try:
            self.check_key(request)
            ask = self._parse(kind, request)
        except openai.Refusal as refusal:
            self._log(
                TruthRow(
                    request_id=request_id,
                    received_ns=read_ns,
                    outcome=Outcome.HTTP_ERROR,
                    status=refusal.status.value,
                    kind=kind,
                    speedup=self._config.speedup,
                )
            )
            raise
        index = min(
            range(len(self.replicas)),
            key=lambda index: self._before_queue[index] + self.replicas[index].outstanding,
        )
        passage = self._stages[index // self._config.gpus_per_host].enter(read_ns, len(request.body))
        fault = self._faults.draw(ask.max_tokens)
        held_up_ns = fault.lasts_ns if fault and fault.kind is faults.Kind.DELAY else None
        wording = self._wordings.get(kind)
        generation = Generation(
            received_ns=passage.ready_ns + (held_up_ns or 0),
            prompt_tokens=ask.prompt_tokens,
            max_tokens=ask.max_tokens,
            item=kind is Kind.PREDICT,
            keys=ask.keys,
            client=client,
            replica=index,
            ordinal=self._ordinal,
            request_id=request_id,
            ask=ask,
            keep_alive=request.keep_alive,
            head=wording.head(self._ordinal) if wording else b"",
            read_ns=read_ns,
            passage=passage,
            fault=fault,
            strikes=fault is not None and fault.kind not in (faults.Kind.ERROR, faults.Kind.DELAY),
        )
        if fault and fault.kind is faults.Kind.ERROR:
            self._before_queue[index] += 1
            answered_s = (generation.received_ns + self._network_ns) / 1e9
            generation.timer = self._loop.call_at(answered_s, self._fail, generation)
        elif generation.received_ns > read_ns:
            self._before_queue[index] += 1
            generation.timer = self._loop.call_at(generation.received_ns / 1e9, self._arrive, generation)
        else:
            self._join(generation)
        return generation

    def _parse(self, kind: Kind, request: Request) -> openai.Ask:
        if kind is Kind.PREDICT:
            return predict.parse(request.body)
        engine = self.engine
        ask = openai.parse(kind, request.body, engine.model.name, engine.max_model_len, engine.prefix_cache)
        if ask.stream and request.http_1_0:
            raise openai.Refusal(HTTPStatus.BAD_REQUEST, "a stream needs HTTP/1.1")
        return ask

    def cancel(self, generation: Generation) -> None:
        """The client left."""
        if generation.timer is not None:
            generation.timer.cancel()
            if generation.stalled is None:
                self._before_queue[generation.replica] -= 1
        self._leave_model(generation)
        self._log_generation(generation, Outcome.CANCELLED)

    # Before the queue

    def _arrive(self, generation: Generation) -> None:
        generation.timer = None
        self._before_queue[generation.replica] -= 1
        self._join(generation)

    def _join(self, generation: Generation) -> None:
        generation.in_model = True
        replica = self.replicas[generation.replica]
        idle = replica.due_ns is None
        replica.submit(generation)
        if idle:
            self._arm(generation.replica)

    def _fail(self, generation: Generation) -> None:
        generation.timer = None
        self._before_queue[generation.replica] -= 1
        generation.client.transport.write(self._error(generation, HTTPStatus(self._config.error_status)))
        self._log_generation(generation, Outcome.HTTP_ERROR)
        generation.client.answered(generation.keep_alive)

    def _error(self, generation: Generation, status: HTTPStatus) -> bytes:
        body = openai.error_body(_FAULT_MESSAGE, self._config.error_status)
        return openai.http_response(status, body, not generation.keep_alive, _id_header(generation))

    # Out of the model

    def _arm(self, index: int) -> None:
        due_ns = self.replicas[index].due_ns
        if due_ns is not None:
            self._loop.call_at((due_ns + self._network_ns) / 1e9, self._turn, index)

    def _turn(self, index: int) -> None:
        """Write the tokens of the iterations that are over by now.

        With a network delay the replica is brought up to date that much later: it may be, and its tokens are due then.
        """
        replica, counts = self.replicas[index], self.metrics[index]
        passed_ns = time.monotonic_ns() - self._network_ns
        while (due_ns := replica.due_ns) is not None and due_ns <= passed_ns:
            for generation in replica.step():
                ended = generation.generated == generation.max_tokens
                if ended:
                    generation.in_model = False
                    generation.ended_ns = due_ns
                elif not generation.ask.stream:
                    continue
                if generation.strikes:
                    self._emit_struck(generation, due_ns, counts)
                    continue
                self._write(generation, self._bytes(generation, ended), due_ns, counts)
                if ended:
                    self._finish(generation)
        self._arm(index)

    def _bytes(self, generation: Generation, ended: bool) -> bytes:
        """What the latest token adds to the answer; the answer when it is not streamed."""
        ask = generation.ask
        if not ask.stream:
            return self._whole(generation)
        wording = self._wordings[ask.kind]
        at = ask.text_at + generation.generated - 1
        if ended:
            data = wording.last_chunks(generation.head, at, self._usage(generation) if ask.include_usage else None)
        else:
            data = wording.token_chunk(generation.head, at)
        return data if generation.generated > 1 else self._stream_head(generation) + data

    def _stream_head(self, generation: Generation) -> bytes:
        head = openai.stream_head(generation.request_id, not generation.keep_alive)
        return head + self._wordings[generation.ask.kind].first_chunk(generation.head)

    def _whole(self, generation: Generation) -> bytes:
        ask = generation.ask
        if ask.kind is Kind.PREDICT:
            headers, body = predict.answer(self.engine.model.name, ask, _timings_ms(generation))
        else:
            headers = ""
            body = self._wordings[ask.kind].whole(generation.ordinal, ask.text_at, self._usage(generation))
        headers += _id_header(generation)
        return openai.http_response(HTTPStatus.OK, body, not generation.keep_alive, headers)

    def _usage(self, generation: Generation) -> openai.Usage:
        cached_tokens = generation.cached_tokens if self.engine.prefix_cache else None
        return openai.Usage(generation.prompt_tokens, generation.max_tokens, cached_tokens)

    def _write(self, generation: Generation, data: bytes, due_ns: int, counts: metrics.ReplicaMetrics) -> None:
        now_ns = time.monotonic_ns()
        generation.client.transport.write(data)
        late_ns = now_ns - due_ns - self._network_ns
        counts.lateness_s.observe(late_ns / 1e9)
        if late_ns > LATE_NS:
            counts.late_emissions += 1
            generation.late_tokens += 1
        if late_ns > generation.late_max_ns:
            generation.late_max_ns = late_ns
        generation.last_token_ns = now_ns
        if generation.first_token_ns is None:
            generation.first_token_ns = now_ns
            if not generation.item:
                counts.ttft_s.observe((now_ns - generation.read_ns - 2 * self._network_ns) / 1e9)

    def _finish(self, generation: Generation) -> None:
        """All of the answer is written."""
        assert generation.last_token_ns is not None
        if not generation.item:
            served_ns = generation.last_token_ns - generation.read_ns - 2 * self._network_ns
            self.metrics[generation.replica].e2e_s.observe(served_ns / 1e9)
        self._log_generation(generation, Outcome.OK)
        generation.client.answered(generation.keep_alive)

    # Faults in the middle of an answer

    def _emit_struck(self, generation: Generation, due_ns: int, counts: metrics.ReplicaMetrics) -> None:
        fault, ask = generation.fault, generation.ask
        assert fault is not None
        ended = generation.ended_ns is not None
        if generation.stalled is not None:
            generation.stalled.append(self._bytes(generation, ended))
        elif ask.stream and generation.generated < fault.at:
            self._write(generation, self._bytes(generation, ended), due_ns, counts)
        else:
            before, after = self._halves(generation, ended)
            self._write(generation, before, due_ns, counts)
            self._strike(generation, after)

    def _halves(self, generation: Generation, ended: bool) -> tuple[bytes, bytes]:
        """The answer up to where the fault strikes, and what is due after it."""
        ask = generation.ask
        if not ask.stream:
            if generation.fault and generation.fault.kind is faults.Kind.STREAM_ERROR:
                return self._error(generation, HTTPStatus.OK), b""
            data = self._whole(generation)
            return data[: len(data) // 2], data[len(data) // 2 :]
        wording = self._wordings[ask.kind]
        token = wording.token_chunk(generation.head, ask.text_at + generation.generated - 1)
        usage = self._usage(generation) if ask.include_usage else None
        after = wording.end_chunks(generation.head, usage) if ended else b""
        return (token if generation.generated > 1 else self._stream_head(generation) + token), after

    def _strike(self, generation: Generation, after: bytes) -> None:
        fault, client = generation.fault, generation.client
        assert fault is not None
        if fault.kind is faults.Kind.STALL:
            assert fault.lasts_ns is not None
            generation.stalled = [after]
            generation.timer = self._loop.call_later(fault.lasts_ns / 1e9, self._resume, generation)
            return
        self._leave_model(generation)
        self._log_generation(generation, faults.OUTCOMES[fault.kind])
        match fault.kind:
            case faults.Kind.RESET:
                client.reset()
            case faults.Kind.TRUNCATE:
                client.answered(keep_alive=False)
            case _:
                if generation.ask.stream:
                    client.transport.write(openai.error_chunks(_FAULT_MESSAGE))
                client.answered(generation.keep_alive)

    def _resume(self, generation: Generation) -> None:
        """A stall is over: what it held back at once, and from here on as if it had not been."""
        held = b"".join(generation.stalled or ())
        generation.timer = generation.stalled = None
        generation.strikes = False
        if held:
            generation.last_token_ns = time.monotonic_ns()
            generation.client.transport.write(held)
        if generation.ended_ns is not None:
            self._finish(generation)

    def _leave_model(self, generation: Generation) -> None:
        if generation.in_model:
            generation.in_model = False
            self.replicas[generation.replica].cancel(generation)

    # The truth

    def _log_generation(self, done: Generation, outcome: Outcome) -> None:
        if self._truth is None:
            return
        config, passage, fault = self._config, done.passage, done.fault
        answered = done.first_token_ns is not None
        ended_ns = done.ended_ns
        self._log(
            TruthRow(
                request_id=done.request_id,
                replica=done.replica,
                received_ns=done.read_ns,
                admitted_ns=done.admitted_ns,
                first_token_ns=done.first_token_ns,
                last_token_ns=done.last_token_ns,
                prompt_tokens=None if done.item else done.prompt_tokens,
                output_tokens=_written_tokens(done, outcome),
                outcome=outcome,
                status=HTTPStatus.OK.value
                if answered
                else config.error_status
                if outcome is Outcome.HTTP_ERROR
                else None,
                late_tokens=done.late_tokens,
                late_max_us=done.late_max_ns // 1000,
                kind=done.ask.kind,
                fault=fault.kind if fault else None,
                fault_us=_us(fault.lasts_ns if fault else None),
                network_us=_us(self._network_ns),
                preprocess_wait_us=_us(passage.cpu_began_ns - passage.arrived_ns),
                preprocess_us=_us(passage.cpu_ended_ns - passage.cpu_began_ns),
                io_us=_us(passage.ready_ns - passage.cpu_ended_ns),
                queue_us=None if done.admitted_ns is None else _us(done.admitted_ns - done.received_ns),
                compute_us=None if ended_ns is None or done.admitted_ns is None else _us(ended_ns - done.admitted_ns),
                cached_tokens=done.cached_tokens if self.engine.prefix_cache and not done.item else None,
                preemptions=done.preemptions,
                emissions=0 if not answered else _written_tokens(done, outcome) if done.ask.stream else 1,
                speedup=config.speedup,
            )
        )

    def _log(self, row: TruthRow) -> None:
        if self._truth:
            self._truth.add(row)


def _written_tokens(done: Generation, outcome: Outcome) -> int:
    if done.first_token_ns is None or done.item:
        return 0
    if not done.ask.stream:
        return done.generated if outcome is Outcome.OK else 0
    if done.stalled is not None and done.fault is not None:
        return done.fault.at
    return done.generated


def _us(time_ns: int | None) -> int | None:
    return None if time_ns is None else time_ns // 1000


def _id_header(generation: Generation) -> str:
    return f"x-request-id: {generation.request_id}\r\n"


def _timings_ms(done: Generation) -> dict[str, float]:
    """How an ended item spent its time."""
    assert done.admitted_ns is not None and done.ended_ns is not None
    passage = done.passage
    return {
        "preprocess": (passage.cpu_ended_ns - passage.arrived_ns) / 1e6,
        "io": (passage.ready_ns - passage.cpu_ended_ns) / 1e6,
        "queue": (done.admitted_ns - done.received_ns) / 1e6,
        "compute": (done.ended_ns - done.admitted_ns) / 1e6,
    }
