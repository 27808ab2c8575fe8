"""The simulator's HTTP server: asyncio protocols around the event model, one timer a replica.

Here: connections, routes, emission of tokens at the model's instants, life from start to signal. Not here: what bytes
mean (openai.py), how long work takes (model.py). A token is one write, just after the iteration's end; when the loop is
late it writes at once and counts how late, and the modelled GPU goes on as if it had not been. Every instant is
CLOCK_MONOTONIC, which is asyncio's clock too. Idle connections are never closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import resource
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

import httptools

from loadgen.errors import UsageError
from loadgen.record import Outcome
from loadgen.simulator import metrics, openai, telemetry
from loadgen.simulator.config import SimulatorConfig, validate
from loadgen.simulator.model import Replica, Sequence
from loadgen.simulator.profiles import Engine
from loadgen.simulator.truth import TruthLog, TruthRow

LATE_NS = 5_000_000

_MAX_HEAD_B = 64 << 10
_MAX_BODY_B = 8 << 20
_MAX_UNREAD_B = 1 << 20  # of an answer, beyond the kernel's buffers: then the client is gone as far as we care
_BACKLOG = 4096
_ACCEPTS_A_TURN = 32  # of the event loop, so that a storm of connects does not make tokens late
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_JSON = "application/json"


@dataclass(eq=False, slots=True, kw_only=True)
class Generation(Sequence):
    """A chat request that the model works on."""

    connection: Connection
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


@dataclass(slots=True)
class Request:
    """A request as read from the wire."""

    method: str
    path: str
    request_id: str | None
    body: bytes
    http_1_0: bool
    keep_alive: bool


class Simulator:
    """The replicas with their timers, meters and counts."""

    def __init__(self, config: SimulatorConfig, engine: Engine, truth: TruthLog | None) -> None:
        self.engine = engine
        self.wording = openai.Wording(self.engine.model.name, config.seed)
        self.replicas: list[Replica[Generation]] = [
            Replica(self.engine, config.jitter, f"{config.seed}/{index}") for index in range(config.replicas)
        ]
        self.metrics = [metrics.ReplicaMetrics() for _ in self.replicas]
        self.connections: set[Connection] = set()
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

    def accept(self, request: Request, connection: Connection) -> Generation:
        """Give a chat request to the replica with the fewest outstanding. Raises Refusal, and logs it."""
        received_ns = time.monotonic_ns()
        self._ordinal += 1
        request_id = request.request_id or f"sim-{self._ordinal}"
        try:
            chat = openai.parse_chat(request.body, self.engine.model.name, self.engine.max_model_len)
            if chat.stream and request.http_1_0:
                raise openai.Refusal(HTTPStatus.BAD_REQUEST, "a stream needs HTTP/1.1")
        except openai.Refusal as refusal:
            self._log(
                TruthRow(
                    *(request_id, None, received_ns, None, None, None, None),
                    *(0, Outcome.HTTP_ERROR, refusal.status, 0, 0),
                )
            )
            raise
        index = min(range(len(self.replicas)), key=lambda index: self.replicas[index].outstanding)
        generation = Generation(
            received_ns=received_ns,
            prompt_tokens=chat.prompt_tokens,
            max_tokens=chat.max_tokens,
            connection=connection,
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
            data = openai.http_response(HTTPStatus.OK, _JSON, body, headers, not generation.keep_alive)
        now_ns = time.monotonic_ns()
        generation.connection.transport.write(data)
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
            generation.connection.answered(generation.keep_alive)

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


class Connection(asyncio.Protocol):
    """One client. Requests that it sends before its answer is over wait in `_waiting`, and then no more is read."""

    transport: asyncio.Transport

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._parser = httptools.HttpRequestParser(self)
        self._generation: Generation | None = None
        self._waiting: deque[Request] = deque()
        self.on_message_begin()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport  # asyncio has set TCP_NODELAY
        transport.set_write_buffer_limits(_MAX_UNREAD_B)
        self._simulator.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._simulator.connections.discard(self)
        self._parser = None  # which refers to us: nothing is left for the garbage collector
        self._waiting.clear()
        if self._generation is not None:
            self._simulator.cancel(self._generation)
            self._generation = None

    def pause_writing(self) -> None:
        """The client does not read its answer."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
            if not self._in_body and self._head_size > _MAX_HEAD_B:
                raise openai.Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the head of the request is too long")
        except httptools.HttpParserUpgrade:
            pass  # answered as if not asked to; whatever follows in the other protocol is an error
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, openai.Refusal):
                raise
            self._refuse_and_close(error.__context__)
        except httptools.HttpParserError as error:
            self._refuse_and_close(openai.Refusal(HTTPStatus.BAD_REQUEST, f"this is not HTTP/1.1: {error}"))
        except openai.Refusal as refusal:
            self._refuse_and_close(refusal)

    # Called by the parser

    def on_message_begin(self) -> None:
        self._in_body = False
        self._head_size = 0
        self._target = b""
        self._request_id: str | None = None
        self._expects_continue = False
        self._body = bytearray()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"x-request-id":
                text = value.decode("latin-1")
                self._request_id = text if _ID.fullmatch(text) else None
            case b"expect":
                self._expects_continue = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        self._in_body = True
        if self._expects_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        if len(self._body) + len(data) > _MAX_BODY_B:
            raise openai.Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is longer than {_MAX_BODY_B} bytes")
        self._body += data

    def on_message_complete(self) -> None:
        request = Request(
            method=self._parser.get_method().decode(),
            path=self._target.split(b"?")[0].decode("latin-1"),
            request_id=self._request_id,
            body=bytes(self._body),
            http_1_0=self._parser.get_http_version() == "1.0",
            keep_alive=self._parser.should_keep_alive(),
        )
        if self._generation is None and not self._waiting:
            self._answer(request)
        else:
            self._waiting.append(request)
            self.transport.pause_reading()

    # Answers

    def _answer(self, request: Request) -> None:
        if self.transport.is_closing():
            return
        method, view = _ROUTES.get(request.path, ("", None))
        content_type, status, headers = _JSON, HTTPStatus.OK, ""
        try:
            if not method:
                raise openai.Refusal(HTTPStatus.NOT_FOUND, f"there is no {request.path}; see {', '.join(_ROUTES)}")
            if request.method != method:
                headers = f"allow: {method}\r\n"
                raise openai.Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"{request.path} takes {method} only")
            if view is None:
                self._generation = self._simulator.accept(request, self)
                return
            content_type, body = view(self._simulator)
        except openai.Refusal as refusal:
            status, body = refusal.status, refusal.body()
        response = openai.http_response(status, content_type, body, headers, not request.keep_alive)
        self.transport.write(response if request.method != "HEAD" else response[: -len(body)])
        self._ended(request.keep_alive)

    def answered(self, keep_alive: bool) -> None:
        """The simulator has written the last of the generation."""
        self._generation = None
        self._ended(keep_alive)

    def _ended(self, keep_alive: bool) -> None:
        if not keep_alive:
            self.transport.close()
        elif self._waiting:
            asyncio.get_running_loop().call_soon(self._answer_waiting)

    def _answer_waiting(self) -> None:
        while self._waiting and self._generation is None:
            self._answer(self._waiting.popleft())
        if not self._waiting:
            self.transport.resume_reading()

    def _refuse_and_close(self, refusal: openai.Refusal) -> None:
        if self._generation is not None:
            self.transport.abort()  # in the middle of an answer no other can be given
            return
        self.transport.write(openai.http_response(refusal.status, _JSON, refusal.body(), close=True))
        self.transport.close()


# path -> method, and what to show; None is the chat itself
_ROUTES: dict[str, tuple[str, Callable[[Simulator], tuple[str, bytes]] | None]] = {
    "/v1/chat/completions": ("POST", None),
    "/v1/models": ("GET", lambda it: (_JSON, openai.models_body(it.engine.model.name, it.engine.max_model_len))),
    "/health": ("GET", lambda it: (_JSON, b"")),
    "/metrics": ("GET", lambda it: (metrics.CONTENT_TYPE, metrics.render(it.replicas, it.metrics))),
    "/telemetry": ("GET", lambda it: (_JSON, it.telemetry())),
}


async def serve(config: SimulatorConfig, ready: Callable[[str], None], stop: asyncio.Event) -> None:
    """Listen, call `ready` with the URL, end when `stop` is set: open requests are cancelled, the truth log is whole.

    Raises UsageError.
    """
    engine = validate(config)
    with contextlib.ExitStack() as resources:
        listener = resources.enter_context(_listen(config.host, config.port))
        truth = None if config.truth is None else resources.enter_context(contextlib.closing(TruthLog(config.truth)))
        simulator = Simulator(config, engine, truth)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(simulator), sock=listener, backlog=_ACCEPTS_A_TURN)
        listener.listen(_BACKLOG)  # asyncio's argument is both; connects may wait, tokens may not
        housekeeping = asyncio.create_task(simulator.keep_house())
        stopping = asyncio.create_task(stop.wait())
        host = f"[{config.host}]" if ":" in config.host else config.host
        ready(f"http://{host}:{listener.getsockname()[1]}")
        await asyncio.wait((housekeeping, stopping), return_when=asyncio.FIRST_COMPLETED)
        server.close()
        for connection in tuple(simulator.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # the turn in which the connections learn that they are lost
        for task in (housekeeping, stopping):
            task.cancel()
        if housekeeping.done():
            housekeeping.result()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(f"the simulator cannot listen on {host} port {port}: {error.strerror or error}") from error


def run(config: SimulatorConfig, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; `announce` gets the URL. For a process of its own: sets its limits and collector.

    Raises UsageError.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def ready(url: str) -> None:
        # Requests leave no cycles behind, so that the collector finds nothing and may come rarely.
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 50, 1000)
        announce(url)

    async def until_signal() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(config, ready, stop)

    asyncio.run(until_signal())
