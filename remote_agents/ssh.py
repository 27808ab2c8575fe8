"""SSH connections to the hosts of a run: as the user's ssh_config, keys and known_hosts have them.

    agent -> hops        -> stream      -> session         -> host key    -> keys                   -> Connection
             ssh_config     ssh_socket     ssh_transport      host_keys      ssh_keys, ssh_agent

A host key is always verified, whatever StrictHostKeyChecking says; there are no passwords. Paramiko runs a thread for
each hop, so none of this is for a process that gevent has patched. Deadlines are CLOCK_MONOTONIC seconds.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import paramiko

from remote_agents.host_keys import HostKeys
from remote_agents.hosts import LOCAL, NONE, Agent
from remote_agents.ssh_agent import KeyAgent
from remote_agents.ssh_config import Hop, route
from remote_agents.ssh_keys import check_passphrase, locked_files
from remote_agents.ssh_options import SshError, SshOptions, default_pins, left, limit_of
from remote_agents.ssh_socket import ProxyCommand, dial
from remote_agents.ssh_transport import BROKEN, Transport

__all__ = [
    "Connection",
    "SshError",
    "SshOptions",
    "check_passphrase",
    "connect",
    "default_pins",
    "encrypted_keys",
]

_TRIES_WHEN_BUSY = 4
_BUSY_S = 0.4


class Connection:
    """A host that is logged in to. `pinned` tells of host keys that were new, and are known from now on."""

    def __init__(self, hops: Sequence[Hop]) -> None:
        via = ", ".join(hop.name for hop in hops[:-1])
        self.peer = hops[-1].peer + (f" via {via}" if via else "")
        self.pinned: list[str] = []
        self._step_s = hops[-1].step_s
        self._transports: list[Transport] = []
        self._proxy: ProxyCommand | None = None

    @property
    def alive(self) -> bool:
        """Whether no hop is known to have ended; a network that is silent is noticed later."""
        return bool(self._transports) and all(transport.is_active() for transport in self._transports)

    def execute(self, command: str, deadline: float | None = None) -> paramiko.Channel:
        """Start a command in the user's login shell, without a terminal. Raises SshError."""
        with self._limited(deadline, "run a command") as limit:
            channel = self._transports[-1].open_session(timeout=left(limit))
            channel.exec_command(command)
            return channel

    def sftp(self, deadline: float | None = None) -> paramiko.SFTPClient:
        """Raises SshError; the client's own calls raise TimeoutError after the time that a step of a connect has."""
        with self._limited(deadline, "open SFTP") as limit:
            channel = self._transports[-1].open_session(timeout=left(limit))
            channel.settimeout(self._step_s)
            channel.invoke_subsystem("sftp")
            return paramiko.SFTPClient(channel)

    @contextlib.contextmanager
    def _limited(self, deadline: float | None, what: str) -> Iterator[float]:
        """Paramiko waits for some answers for ever: a server that owes one for too long is hung up on."""
        if not self.alive:
            raise SshError(f"{self.peer} cannot {what}: the connection is gone", passing=True)
        limit = limit_of(deadline, self._step_s)
        late = threading.Timer(left(limit), self.close)
        late.daemon = True
        late.start()
        try:
            yield limit
        except paramiko.ChannelException as error:
            raise SshError(
                f"{self.peer} refused to {what} ({error.text.lower()}): look at MaxSessions in its sshd_config, and at "
                "other sessions of this connection"
            ) from error
        except BROKEN as error:
            if time.monotonic() >= limit:
                self.close()  # paramiko's own limit may have been the first
                raise SshError(
                    f"{self.peer} did not {what} in time: it hangs, or is overloaded", passing=True
                ) from error
            if self.alive:
                raise SshError(f"{self.peer} refused to {what}: look at its sshd_config, and into its log") from error
            raise SshError(f"{self.peer} did not {what}: the connection broke", passing=True) from error
        finally:
            late.cancel()
            late.join()

    def close(self) -> None:
        """All hops and their threads; twice does no harm."""
        for transport in self._transports:  # the first takes along those within
            transport.end()
        if self._proxy is not None:
            self._proxy.close()

    def _add(self, hop: Hop, deadline: float | None, options: SshOptions) -> tuple[HostKeys, paramiko.PKey] | None:
        """Reach and enter the next hop; its host key when that is new. Raises SshError."""
        known = HostKeys(hop, options)
        transport = self._reach(hop, deadline, known)
        key = transport.get_remote_server_key()
        is_new = known.is_new(key)
        transport.log_in(options, deadline)
        return (known, key) if is_new else None

    def _reach(self, hop: Hop, deadline: float | None, known: HostKeys) -> Transport:
        tries = 0
        while True:
            limit = limit_of(deadline, hop.step_s)
            transport = Transport(self._stream(hop, limit), known.algorithms(), hop)
            self._transports.append(transport)
            try:
                transport.shake_hands(limit)
                return transport
            except SshError as error:
                tries += 1
                pause_s = _BUSY_S * tries * random.uniform(0.5, 1.5)
                in_time = deadline is None or time.monotonic() + pause_s < deadline
                if "MaxStartups" not in transport.first_line or tries > _TRIES_WHEN_BUSY or not in_time:
                    words = self._proxy.last_words() if self._proxy is not None and len(self._transports) == 1 else ""
                    raise SshError(f"{error}{words}", passing=error.passing) from error
            transport.end()
            self._transports.remove(transport)
            if not self._transports and self._proxy is not None:
                self._proxy.close()
            time.sleep(pause_s)  # many of ours may come through one jump host at once

    def _stream(self, hop: Hop, limit: float) -> socket.socket | paramiko.Channel:
        if not self._transports:
            if hop.proxy_command is None:
                return dial(hop, limit)
            self._proxy = ProxyCommand(hop, hop.proxy_command)
            return self._proxy.socket
        before = self._transports[-1]
        place = (hop.host, hop.port)
        try:
            return before.open_channel("direct-tcpip", place, ("127.0.0.1", 0), timeout=left(limit))
        except paramiko.ChannelException as error:
            forbidden = error.code == paramiko.common.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED
            why = "allow TCP forwarding in its sshd_config" if forbidden else "start sshd there, or correct its address"
            raise SshError(
                f"the jump host {before.hop} does not lead to {hop} ({error.text.lower()}): {why}",
                passing=not forbidden,
            ) from error
        except BROKEN as error:
            how = f"did not reach {hop} in time" if before.is_active() else f"hung up on the way to {hop}"
            raise SshError(f"the jump host {before.hop} {how}", passing=True) from error


def connect(agent: Agent, options: SshOptions, deadline: float | None) -> Connection:
    """Log in to the agent's host, through its jumps. Raises SshError; nothing is left of the attempt then."""
    hops = route(agent, options, deadline)
    connection = Connection(hops)
    try:
        new = [connection._add(hop, deadline, options) for hop in hops]
        for hop, found in zip(hops, new, strict=True):
            if found is not None:
                known, key = found
                connection.pinned.append(known.pin(key, limit_of(deadline, hop.step_s)))
    except BROKEN as error:
        connection.close()
        reason = getattr(error, "strerror", None) or str(error) or "it ended"
        raise SshError(f"the connection to {connection.peer} broke ({reason})", passing=True) from error
    except BaseException:
        connection.close()
        raise
    return connection


def encrypted_keys(agents: Iterable[Agent], options: SshOptions) -> list[Path]:
    """Identity files whose passphrase has to be asked for: encrypted, and not in the ssh agent. Raises SshError."""
    found: dict[Path, None] = {}
    for agent in agents:
        if agent.name in (LOCAL, NONE):
            continue
        for hop in route(agent, options, None):
            with KeyAgent(hop.agent_socket, limit_of(None, options.connect_timeout_s)) as keys:
                found |= dict.fromkeys(locked_files(hop, keys))
    return [path for path in found if not any(check_passphrase(path, text) for text in options.passphrases)]
