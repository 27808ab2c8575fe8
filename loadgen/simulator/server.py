"""The simulator's HTTP server: connections, routes, and its life from start to signal.

Bodies, heads, unread answers and what is accepted in one turn of the event loop are bounded; idle connections are never
closed. A client that leaves is a cancelled request. With an API key /v1 and /predict want it as a bearer token; what an
operator reads is open, as in vLLM. The work is service.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import resource
import signal
import socket
import struct
from collections import deque
from collections.abc import Callable
from http import HTTPStatus

import httptools

from loadgen.errors import UsageError
from loadgen.simulator import metrics, openai
from loadgen.simulator.config import SimulatorConfig, validate
from loadgen.simulator.service import Generation, Request, Simulator
from loadgen.simulator.truth import Kind, TruthLog

_MAX_HEAD_B = 64 << 10
_MAX_BODY_B = 8 << 20
_MAX_UNREAD_B = 256 << 10  # of an answer, beyond the kernel's buffers: who is that far behind is cut off
_LINGER_S = 2.0  # a close with unread bytes would reset the connection, and the client might miss why
_BACKLOG = 4096
_ACCEPTS_A_TURN = 32  # of the event loop, so that a storm of connects does not make tokens late
_RECEIVED = memoryview(bytearray(256 << 10))  # one for all: it is parsed before the next read
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class Connection(asyncio.BufferedProtocol):
    """One client. Requests that it sends before its answer is over wait in `_waiting`, and then no more is read."""

    transport: asyncio.Transport

    def __init__(self, simulator: Simulator, open_connections: set[Connection]) -> None:
        self._simulator = simulator
        self._open = open_connections
        self._parser = httptools.HttpRequestParser(self)
        self._generation: Generation | None = None
        self._waiting: deque[Request] = deque()
        self._refused = False
        self.on_message_begin()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport  # asyncio has set TCP_NODELAY
        transport.set_write_buffer_limits(_MAX_UNREAD_B)
        self._open.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._open.discard(self)
        self._parser = None  # which refers to us: nothing is left for the garbage collector
        self._waiting.clear()
        if self._generation is not None:
            self._simulator.cancel(self._generation)
            self._generation = None

    def pause_writing(self) -> None:
        """The client does not read its answer."""
        self.transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _RECEIVED

    def buffer_updated(self, size: int) -> None:
        if self._refused:
            return
        if not self._in_body:
            self._head_size += size
        try:
            self._parser.feed_data(_RECEIVED[:size])
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
        self._authorization = b""
        self._expects_continue = False
        self._body = bytearray()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"x-request-id":
                text = value.decode("latin-1")
                self._request_id = text if _ID.fullmatch(text) else None
            case b"authorization":
                self._authorization = value
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
            authorization=self._authorization,
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
        methods, view = _ROUTES.get(request.path, ((), None))
        content_type, status, headers = openai.JSON, HTTPStatus.OK, ""
        try:
            if view is None:
                raise openai.Refusal(HTTPStatus.NOT_FOUND, f"there is no {request.path}; see {', '.join(_ROUTES)}")
            if request.method not in methods:
                headers = f"allow: {', '.join(methods)}\r\n"
                message = f"{request.path} takes {' or '.join(methods)} only"
                raise openai.Refusal(HTTPStatus.METHOD_NOT_ALLOWED, message)
            if isinstance(view, Kind):
                self._generation = self._simulator.submit(view, request, self)
                return
            if request.path.startswith("/v1/"):
                self._simulator.check_key(request)
            content_type, body = view(self._simulator)
        except openai.Refusal as refusal:
            status, body = refusal.status, refusal.body()
        response = openai.http_response(status, body, not request.keep_alive, headers, content_type)
        self.transport.write(response if request.method != "HEAD" else response[: -len(body)])
        self._ended(request.keep_alive)

    def answered(self, keep_alive: bool) -> None:
        """The simulator has written the last of the generation."""
        self._generation = None
        self._ended(keep_alive)

    def reset(self) -> None:
        """No more is written, and the kernel sends a RST instead of a FIN."""
        self._generation = None
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

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
        self._refused = True
        self._waiting.clear()
        self.transport.write(openai.http_response(refusal.status, refusal.body(), close=True))
        self.transport.write_eof()
        asyncio.get_running_loop().call_later(_LINGER_S, self.transport.abort)


# path -> methods, and what to show, or what is asked for
_ROUTES: dict[str, tuple[tuple[str, ...], Kind | Callable[[Simulator], tuple[str, bytes]]]] = {
    "/v1/chat/completions": (("POST",), Kind.CHAT),
    "/v1/completions": (("POST",), Kind.COMPLETION),
    "/predict": (("GET", "POST"), Kind.PREDICT),
    "/v1/models": (
        ("GET",),
        lambda it: (openai.JSON, openai.models_body(it.engine.model.name, it.engine.max_model_len)),
    ),
    "/health": (("GET",), lambda it: (openai.JSON, b"")),
    "/metrics": (("GET",), lambda it: (metrics.CONTENT_TYPE, metrics.render(it.replicas, it.metrics))),
    "/telemetry": (("GET",), lambda it: (openai.JSON, it.telemetry())),
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
        connections: set[Connection] = set()
        server = await asyncio.get_running_loop().create_server(
            lambda: Connection(simulator, connections), sock=listener, backlog=_ACCEPTS_A_TURN
        )
        listener.listen(_BACKLOG)  # asyncio's argument is both; connects may wait, tokens may not
        housekeeping = asyncio.create_task(simulator.keep_house())
        stopping = asyncio.create_task(stop.wait())
        host = f"[{config.host}]" if ":" in config.host else config.host
        ready(f"http://{host}:{listener.getsockname()[1]}")
        await asyncio.wait((housekeeping, stopping), return_when=asyncio.FIRST_COMPLETED)
        server.close()
        for connection in tuple(connections):
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
        reason = (error.strerror or str(error)).split(" (")[0]
        raise UsageError(f"the simulator cannot listen on {host} port {port}: {reason}; choose another") from error


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
