"""Hosts on a network of their own, as network namespaces of this machine: links that go down, packets that vanish.

    this machine, 198.18.x.254 -- bridge lg-<tag> -- link lg-<tag>-0 -- eth0 of namespace lg-<tag>-0, 198.18.x.1
                                                '--- link lg-<tag>-1 -- eth0 of namespace lg-<tag>-1, 198.18.x.2

Needs root; `available` says whether it can be.
"""

from __future__ import annotations

import functools
import os
import random
import secrets
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@functools.cache
def available() -> str | None:
    """Why there can be no such network here; None when there can."""
    try:
        Lan(1).close()
    except FileNotFoundError:
        return "there is no `ip` command (iproute2)"
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(error.cmd)}` fails: {error.stderr.strip()}"
    return None


class Host:
    """A namespace with one link, and `address` on it."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        self.inside = ("ip", "netns", "exec", name)
        self.neighbours: list[tuple[str, str]] = []  # address, hardware address: nothing has to be asked for

    def run(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*self.inside, *argv], **options)

    def down(self) -> None:
        """Its own end of the link: what it sends fails at once, what is sent to it vanishes."""
        _ip("-n", self.name, "link", "set", "eth0", "down")

    def up(self) -> None:
        _ip("-n", self.name, "link", "set", "eth0", "up")
        for address, hardware in self.neighbours:
            _ip("-n", self.name, "neigh", "replace", address, "lladdr", hardware, "dev", "eth0", "nud", "permanent")

    def blackhole(self) -> None:
        """Packets of both directions vanish: no end is told of it, by RST or FIN or otherwise."""
        _ip("link", "set", self.name, "down")

    def restore(self) -> None:
        """After `blackhole`."""
        _ip("link", "set", self.name, "up")


class Lan:
    """A bridge and so many hosts, there when it is made; `close` removes it with all that runs in its hosts."""

    def __init__(self, number: int) -> None:
        self._name = f"lg-{secrets.token_hex(3)}"
        self._hosts: list[Host] = []
        try:
            taken = _ip("-4", "addr")
            net = random.choice([net for net in range(256) if f" 198.18.{net}." not in taken])
            self.address = f"198.18.{net}.254"
            places = {
                f"198.18.{net}.{number}": f"02:12:{net:02x}:00:00:{number:02x}" for number in range(1, number + 1)
            }
            places[self.address] = f"02:12:{net:02x}:00:00:fe"
            self._make_bridge(places)
            for address in list(places)[:-1]:
                self._make_host(address, places)
        except BaseException:
            self.close()
            raise

    def host(self, index: int) -> Host:
        return self._hosts[index]

    def _make_bridge(self, places: dict[str, str]) -> None:
        _ip("link", "add", self._name, "address", places[self.address], "type", "bridge")
        _ip("addr", "add", f"{self.address}/24", "dev", self._name)
        _ip("link", "set", self._name, "up")
        for address, hardware in places.items():
            if address != self.address:
                _ip("neigh", "replace", address, "lladdr", hardware, "dev", self._name, "nud", "permanent")

    def _make_host(self, address: str, places: dict[str, str]) -> None:
        name = f"{self._name}-{len(self._hosts)}"
        _ip("netns", "add", name)
        host = Host(name, address)
        self._hosts.append(host)
        host.neighbours = [place for place in places.items() if place[0] != address]
        own_end = ("name", "eth0", "address", places[address], "netns", name)
        _ip("link", "add", name, "type", "veth", "peer", *own_end)
        _ip("link", "set", name, "master", self._name, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        host.up()

    def close(self) -> None:
        """Also of what was only begun."""
        for host in self._hosts:
            found = subprocess.run(["ip", "netns", "pids", host.name], capture_output=True, text=True)
            for pid in found.stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "link", "del", host.name], capture_output=True)  # a namespace goes later than its del
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)
        with suppress(FileNotFoundError):
            subprocess.run(["ip", "link", "del", self._name], capture_output=True)
