"""The relay itself, between an echoing server and clients of this process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from conftest import until
from relay import Relay


class Echo:
    """Sends back what comes, with the time it came."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.came: list[float] = []
        self.ends: list[str] = []
        self._threads: list[threading.Thread] = []
        self._serve = threading.Thread(target=self._accept)
        self._serve.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._echo, args=(connection,)))
            self._threads[-1].start()

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                while data := connection.recv(65536):
                    self.came.append(time.monotonic())
                    connection.sendall(data)
                self.ends.append("end")
            except ConnectionResetError:
                self.ends.append("reset")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in (self._serve, *self._threads):
            thread.join(5)
            assert not thread.is_alive()


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def relay(echo: Echo) -> Iterator[Relay]:
    with Relay("127.0.0.1", echo.port) as relay:
        yield relay


@pytest.fixture
def client(relay: Relay) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", relay.port), 5) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield client


def trips(client: socket.socket, echo: Echo, number: int = 15) -> tuple[list[float], list[float]]:
    """Milliseconds up and down, of small messages one after the other."""
    up_ms, down_ms = [], []
    for _ in range(number):
        sent, seen = time.monotonic(), len(echo.came)
        client.sendall(b"x")
        assert client.recv(10) == b"x"
        came, back = echo.came[seen], time.monotonic()
        up_ms.append((came - sent) * 1e3)
        down_ms.append((back - came) * 1e3)
    return up_ms, down_ms


def test_each_direction_has_its_delay_to_about_a_millisecond(client: socket.socket, relay: Relay, echo: Echo) -> None:
    relay.delay(up_s=0.020, down_s=0.005)
    up_ms, down_ms = trips(client, echo)
    while min(up_ms) >= 21 or min(down_ms) >= 6:  # this machine has other things to do
        assert len(up_ms) < 100
        for all_ms, more_ms in zip((up_ms, down_ms), trips(client, echo), strict=True):
            all_ms += more_ms
    assert min(up_ms) >= 20
    assert min(down_ms) >= 5


def test_without_a_delay_it_costs_next_to_nothing(client: socket.socket, echo: Echo) -> None:
    up_ms, down_ms = trips(client, echo, 50)
    assert min(up_ms) < 1
    assert min(down_ms) < 1


def test_jitter_spreads_and_keeps_the_order(client: socket.socket, relay: Relay, echo: Echo) -> None:
    relay.delay(jitter_s=0.010)
    up_ms, _ = trips(client, echo)
    assert max(up_ms) - min(up_ms) > 2
    relay.delay(up_s=0.001, down_s=0.001, jitter_s=0.003)
    data = bytes(range(256)) * 4000
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    came = b""
    while len(came) < len(data):
        came += client.recv(65536)
    sender.join()
    assert came == data


def test_a_stall_loses_nothing_and_lets_nobody_in(client: socket.socket, relay: Relay, echo: Echo) -> None:
    relay.stall()
    client.sendall(b"late")
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(10)
    with socket.create_connection(("127.0.0.1", relay.port), 5) as other:
        other.sendall(b"other")
        assert relay.connections() == 1
        relay.restore()
        client.settimeout(5)
        assert client.recv(10) == b"late"
        assert other.recv(10) == b"other"


def test_a_blackhole_is_silent_and_what_was_on_its_way_is_lost(client: socket.socket, relay: Relay, echo: Echo) -> None:
    relay.delay(up_s=0.1)
    client.sendall(b"lost")
    until(lambda: relay.connections() == 1)
    relay.blackhole()
    client.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.recv(10)
    relay.restore()
    with pytest.raises(ConnectionResetError):
        client.recv(10)
    until(lambda: echo.ends == ["reset"])
    assert not echo.came
    with socket.create_connection(("127.0.0.1", relay.port), 5) as other:
        other.sendall(b"new")
        assert other.recv(10) == b"new"


def test_a_reset_is_one_to_both_ends(client: socket.socket, relay: Relay, echo: Echo) -> None:
    trips(client, echo, 1)
    relay.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(10)
    until(lambda: echo.ends == ["reset"])
    assert relay.connections() == 0


def test_an_end_passes_after_what_was_sent_before_it(client: socket.socket, relay: Relay, echo: Echo) -> None:
    relay.delay(up_s=0.05, down_s=0.05)
    client.sendall(b"last words")
    client.shutdown(socket.SHUT_WR)
    assert client.recv(100) == b"last words"
    assert client.recv(100) == b""
    until(lambda: relay.connections() == 0)
    assert echo.ends == ["end"]


def test_a_server_that_is_not_there_is_a_reset() -> None:
    with (
        Relay("127.0.0.1", 1) as relay,
        pytest.raises(ConnectionResetError),
        socket.create_connection(("127.0.0.1", relay.port), 5) as client,
    ):
        client.recv(10)
