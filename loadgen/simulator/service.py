"""The replicas at work: requests in, tokens written at the model's instants, one timer a replica.

A token is one write, just after the end of its iteration; when the event loop is late it writes at once and counts how
late, and the modelled GPU goes on as if it had not been. Not here: connections (server.py), bytes (openai.py), how long
work takes (model.py). Every instant is CLOCK_MONOTONIC, which is asyncio's clock too.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from loadgen.record import Outcome
from loadgen.simulator import metrics, openai, telemetry
from loadgen.simulator.config import SimulatorConfig
from loadgen.simulator.model import Replica, Sequence
from loadgen.simulator.profiles import Engine
from loadgen.simulator.truth import TruthLog, TruthRow

LATE_NS = 5_000_000


class Client(Protocol):
    """Who waits for an answer."""

    transport: asyncio.Transport

    def answered(self, keep_alive: bool) -> None:
        """The last of the answer is written."""


@dataclass(slots=True)
class Request:
    """A request as read from the wire."""

    method: str
    path: str
    request_id: str | None
    body: bytes
    http_1_0: bool
    keep_alive: bool


@dataclass(eq=False, slots=True, kw_only=True)
class Generation(Sequence):
    """A chat request that the model works on."""

    client: Client
    replica: int
    ordinal: int
    request_id: str
    chat: openai.ChatRequest
    keep_alive: bool
    head: bytes
    first_token_ns: int | None = None
    last_token_ns: int | None = None
    late_tokens: int = 0
    late_max_ns: int = 0


class Simulator:
    """The replicas with their timers, meters and counts."""

    def __init__(self, config: SimulatorConfig, engine: Engine, truth: TruthLog | None) -> None:
        self.engine = engine
        self.wording = openai.Wording(self.engine.model.name, config.seed)
        self.replicas: list[Replica[Generation]] = [
            Replica(self.engine, config.jitter, f"{config.seed}/{index}") for index in range(config.replicas)
        ]
        self.metrics = [metrics.ReplicaMetrics() for _ in self.replicas]
        self._gpus_per_host = config.gpus_per_host
        self._started_ns = time.monotonic_ns()
        self._meters = [telemetry.GpuMeter(replica, self._started_ns) for replica in self.replicas]
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
        return telemetry.render(self._meters, self._gpus_per_host, self._started_ns, time.monotonic_ns())

    def submit(self, request: Request, client: Client) -> Generation:
        """Give a chat request to the replica with the fewest outstanding. Raises Refusal, and logs it."""
        received_ns = time.monotonic_ns()
        self._ordinal += 1
        request_id = request.request_id or f"sim-{self._ordinal}"
        try:
            chat = openai.parse_chat(request.body, self.engine.model.name, self.engine.max_model_len)
            if chat.stream and request.http_1_0:
                raise openai.Refusal(HTTPStatus.BAD_REQUEST, "a stream needs HTTP/1.1")
        except openai.Refusal as refusal:
            outcome, status = Outcome.HTTP_ERROR, refusal.status.value
            self._log(TruthRow(request_id=request_id, received_ns=received_ns, outcome=outcome, status=status))
            raise
        index = min(range(len(self.replicas)), key=lambda index: self.replicas[index].outstanding)
        generation = Generation(
            received_ns=received_ns,
            prompt_tokens=chat.prompt_tokens,
            max_tokens=chat.max_tokens,
            client=client,
            replica=index,
            ordinal=self._ordinal,
            request_id=request_id,
            chat=chat,
            keep_alive=request.keep_alive,
            head=self.wording.head(self._ordinal),
        )
        replica = self.replicas[index]
        idle = replica.due_ns is None
        replica.submit(generation)
        if idle:
            self._arm(index)
        return generation

    def cancel(self, generation: Generation) -> None:
        """The client left."""
        self.replicas[generation.replica].cancel(generation)
        self._log_generation(generation, Outcome.CANCELLED)

    def _arm(self, index: int) -> None:
        due_ns = self.replicas[index].due_ns
        if due_ns is not None:
            self._loop.call_at(due_ns / 1e9, self._turn, index)

    def _turn(self, index: int) -> None:
        """Write the tokens of the iterations that are over by now."""
        replica, counts = self.replicas[index], self.metrics[index]
        now_ns = time.monotonic_ns()
        while (due_ns := replica.due_ns) is not None and due_ns <= now_ns:
            for generation in replica.step():
                if generation.chat.stream or generation.generated == generation.max_tokens:
                    self._emit(generation, due_ns, counts)
        self._arm(index)

    def _emit(self, generation: Generation, due_ns: int, counts: metrics.ReplicaMetrics) -> None:
        chat = generation.chat
        ended = generation.generated == generation.max_tokens
        if chat.stream:
            data = self.wording.token_chunk(generation.head, chat.text_at + generation.generated - 1)
            if generation.generated == 1:
                head = openai.stream_head(generation.request_id, not generation.keep_alive)
                data = head + self.wording.role_chunk(generation.head) + data
            if ended:
                usage = (chat.prompt_tokens, chat.max_tokens) if chat.include_usage else None
                data += self.wording.last_chunks(generation.head, usage)
        else:
            body = self.wording.whole(generation.ordinal, chat.text_at, chat.prompt_tokens, chat.max_tokens)
            headers = f"x-request-id: {generation.request_id}\r\n"
            data = openai.http_response(HTTPStatus.OK, body, not generation.keep_alive, headers)
        now_ns = time.monotonic_ns()
        generation.client.transport.write(data)
        late_ns = now_ns - due_ns
        counts.lateness_s.observe(late_ns / 1e9)
        if late_ns > LATE_NS:
            counts.late_emissions += 1
            generation.late_tokens += 1
        generation.late_max_ns = max(late_ns, generation.late_max_ns)
        generation.last_token_ns = now_ns
        if generation.first_token_ns is None:
            generation.first_token_ns = now_ns
            counts.ttft_s.observe((now_ns - generation.received_ns) / 1e9)
        if ended:
            counts.e2e_s.observe((now_ns - generation.received_ns) / 1e9)
            self._log_generation(generation, Outcome.OK)
            generation.client.answered(generation.keep_alive)

    def _log_generation(self, done: Generation, outcome: Outcome) -> None:
        answered = done.first_token_ns is not None
        self._log(
            TruthRow(
                request_id=done.request_id,
                replica=done.replica,
                received_ns=done.received_ns,
                admitted_ns=done.admitted_ns,
                first_token_ns=done.first_token_ns,
                last_token_ns=done.last_token_ns,
                prompt_tokens=done.prompt_tokens,
                output_tokens=done.generated if answered else 0,
                outcome=outcome,
                status=HTTPStatus.OK.value if answered else None,
                late_tokens=done.late_tokens,
                late_max_us=done.late_max_ns // 1000,
            )
        )

    def _log(self, row: TruthRow) -> None:
        if self._truth:
            self._truth.add(row)
