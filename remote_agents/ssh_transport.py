"""One hop's SSH session on a stream: the handshake and the login, each within its limit, each failure one sentence.

Paramiko's Transport, a thread of its own each. Limits are CLOCK_MONOTONIC seconds.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Sequence

import paramiko
from paramiko.packet import Packetizer
from paramiko.ssh_exception import IncompatiblePeer

from remote_agents.ssh_agent import KeyAgent
from remote_agents.ssh_config import Hop
from remote_agents.ssh_keys import Offer, offers
from remote_agents.ssh_options import SshError, SshOptions, left, limit_of

BROKEN = (paramiko.SSHException, paramiko.SFTPError, OSError, EOFError)
_LISTING_S = 3.0
_SIGNING_S = 30.0  # somebody may be asked, or a token wants to be touched
_JOIN_S = 2.0

# Paramiko's own words would go to standard error, with traces; what matters of them is in our errors.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class _Packets(Packetizer):
    """Without the timer thread that outlives a failed handshake; keeps the line a server begins with."""

    first_line = ""

    def start_handshake(self, timeout: float) -> None:
        """Whoever waits for the handshake has a limit."""

    def readline(self, timeout: float) -> str:
        line = super().readline(timeout)
        self.first_line = self.first_line or line
        return line

    def close(self) -> None:
        """Never fails: of a channel through a jump host that is gone it would, and end the thread half-way."""
        with contextlib.suppress(*BROKEN):
            super().close()


class Transport(paramiko.Transport):
    """Asks for host keys in an order of ours, and keeps what a server says when it hangs up."""

    _active_check_timeout = 1.0  # `end` wakes its thread: to look ten times a second is a tenth of a core for 60 hosts

    def __init__(self, stream: socket.socket | paramiko.Channel, host_key_algorithms: Sequence[str], hop: Hop) -> None:
        super().__init__(stream, packetizer_class=_Packets)
        self.name = f"ssh {hop.name}"
        self.hop = hop
        self._host_key_algorithms = host_key_algorithms
        self._goodbye = ""

    @property
    def preferred_keys(self) -> Sequence[str]:
        return self._host_key_algorithms

    def _parse_disconnect(self, message: paramiko.Message) -> None:
        message.get_int()
        self._goodbye = message.get_binary().decode(errors="replace")

    @property
    def first_line(self) -> str:
        assert isinstance(self.packetizer, _Packets)
        return self.packetizer.first_line

    def shake_hands(self, limit: float) -> None:
        """Banner and key exchange; the host key is known then, and not yet judged. Raises SshError."""
        self.banner_timeout = left(limit)
        done = threading.Event()
        self.start_client(done)
        done.wait(left(limit))
        if self.is_active() and self.initial_kex_done:
            return
        error = self.get_exception()
        in_time = time.monotonic() < limit
        line = self.first_line
        if line and not self.remote_version:
            if "MaxStartups" in line or "Not allowed" in line:
                raise SshError(f"{self.hop} is not let in at this time ({line!r}): try again later", passing=True)
            raise SshError(f"{self.hop} is no SSH server: it begins with {line[:80]!r}: correct the port")
        if isinstance(error, IncompatiblePeer):
            raise SshError(
                f"{self.hop} ({self.remote_version}) has no algorithms in common with us ({_reason(error)}), as it is "
                "with SHA-1 only: bring its OpenSSH up to date"
            )
        stage = "the key exchange" if self.remote_version else "its banner"
        if not in_time:
            raise SshError(
                f"{self.hop} is reached, and {stage} does not come in time: it hangs, is overloaded, or is no SSH "
                "server",
                passing=True,
            )
        raise SshError(
            f"{self.hop} ended the connection before {stage} was complete ({self._goodbye or _reason(error)}): look "
            "into its log, it may refuse this address",
            passing=True,
        )

    def log_in(self, options: SshOptions, deadline: float | None) -> None:
        """Raises SshError; BROKEN when the connection breaks."""
        hop = self.hop
        self.auth_timeout = left(limit_of(deadline, hop.step_s))
        try:
            methods = self.auth_none(hop.user)
            if not methods:
                return  # it asks for nothing
        except paramiko.BadAuthenticationType as error:
            methods = error.allowed_types
        except paramiko.AuthenticationException as error:
            raise self._hung_up([], error) from error
        if "publickey" not in methods:
            raise SshError(
                f"{hop} takes no keys, only {', '.join(methods)}: allow PubkeyAuthentication there and add a key with "
                "`ssh-copy-id`; passwords are not used here"
            )
        with KeyAgent(hop.agent_socket, limit_of(deadline, _LISTING_S)) as agent:
            self._offer_keys(agent, options, deadline)

    def _offer_keys(self, agent: KeyAgent, options: SshOptions, deadline: float | None) -> None:
        tried: list[Offer] = []
        skipped = [agent.problem] if agent.problem else []
        for offer in offers(self.hop, agent, options.passphrases, skipped):
            agent.limit = limit = limit_of(deadline, _SIGNING_S)
            self.auth_timeout = left(limit)
            tried.append(offer)
            try:
                methods = self.auth_publickey(self.hop.user, offer)
                if not methods:
                    return
            except paramiko.BadAuthenticationType as error:
                methods = error.allowed_types
            except paramiko.AuthenticationException as error:
                if not self.is_active() or time.monotonic() >= limit:
                    raise self._hung_up(tried, error) from error
                continue
            if "publickey" not in methods:
                raise SshError(
                    f"{self.hop} accepted {offer} and asks for {', '.join(methods)} besides: let a key alone be enough "
                    "for this user in its sshd_config (AuthenticationMethods)"
                )
        raise SshError(
            f"{self.hop} accepts no key of ours ({_tried(tried)}{''.join(f'; skipped {text}' for text in skipped)}): "
            f"add one of them to the authorized_keys of {self.hop.user}, or name another with IdentityFile in ssh's "
            "configuration; passwords are not used here"
        )

    def _hung_up(self, tried: Sequence[Offer], error: Exception) -> SshError:
        if "Too many" in self._goodbye:
            return SshError(
                f"{self.hop} had too many keys to look at and hung up ({_tried(tried)}): name the right one with "
                "IdentityFile in ssh's configuration, and add IdentitiesOnly yes"
            )
        said = self._goodbye or ("no answer in time" if self.is_active() else _reason(error))
        keys = f"; {_tried(tried)}" if tried else ""
        return SshError(f"{self.hop} did not complete the login ({said}{keys}): look into its log", passing=True)

    def end(self) -> None:
        """The session and its thread."""
        if isinstance(self.sock, socket.socket):
            with contextlib.suppress(OSError):  # it is closed already
                self.sock.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self.close()
        self.sock.close()
        if self.is_alive():
            self.join(_JOIN_S)


def _tried(tried: Sequence[Offer]) -> str:
    return "tried " + ", ".join(str(offer) for offer in tried) if tried else "there is none to try"


def _reason(error: BaseException | None) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) if error is not None and str(error) else "it hung up"
