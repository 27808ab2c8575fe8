"""Real OpenSSH servers for tests: each with its own keys and port, run as the current user, root or not.

    with Sshd(folder) as server:
        config = server.client_config(folder / "config", "gpu1")     # more servers may be added to the same file

Where it can, `ssh_hosts` puts each into a network namespace of its own.
"""

from __future__ import annotations

import getpass
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from conftest import until
from namespaces import Host, Lan, available

_PROGRAM = "/usr/sbin/sshd"
_SEPARATION = Path("/run/sshd")


def keygen(
    path: Path, *, kind: str = "ed25519", passphrase: str = "", form: str = "RFC4716", comment: str = ""
) -> Path:
    """A new key pair; the path of its private half."""
    fast = ["-a", "1"] if kind == "ed25519" else ["-b", "2048"] if kind == "rsa" else []
    asked = ["ssh-keygen", "-q", "-t", kind, *fast, "-m", form, "-N", passphrase, "-C", comment or path.name]
    subprocess.run([*asked, "-f", str(path)], check=True, stdin=subprocess.DEVNULL)
    return path


def public(path: Path) -> str:
    """Type and key of a key pair, as known_hosts and authorized_keys have them."""
    return " ".join(Path(f"{path}.pub").read_text().split()[:2])


def children(pid: int) -> list[int]:
    """Of a process, the dead that are not waited for left out."""
    found = []
    for folder in Path("/proc").iterdir():
        state, parent = _state(folder.name)
        if parent == str(pid) and state != "Z":
            found.append(int(folder.name))
    return found


def _state(pid: int | str) -> tuple[str, str]:
    """And the parent; of what is no process, or no longer, it is Z."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return "Z", ""
    return state, parent


def kill_tree(pid: int) -> None:
    """A process and its descendants; each is stopped before it is asked for its children, so that none slips away."""
    found = [pid]
    for one in found:
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGSTOP)
        until(lambda one=one: _state(one)[0] in "TZ")
        found += children(one)
    for one in found:
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    until(lambda: all(_state(one)[0] == "Z" for one in found))


@contextmanager
def ssh_agent(folder: Path) -> Iterator[Path]:
    """A real ssh-agent without keys; its socket."""
    path = folder / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL) as process:
        try:
            until(path.exists)
            yield path
        finally:
            process.kill()


def ssh_add(agent: Path, *words: str | Path) -> None:
    asked = ["ssh-add", "-q", *map(str, words)]
    subprocess.run(asked, check=True, stdin=subprocess.DEVNULL, env=os.environ | {"SSH_AUTH_SOCK": str(agent)})


class Sshd:
    """Started when made; `sshd_config` are further keywords of its configuration, a list for repeated ones.

    `inside` are words before its command: what puts it into a network namespace.
    """

    def __init__(
        self, folder: Path, address: str = "127.0.0.1", port: int = 0, *, inside: Sequence[str] = (), **sshd_config: Any
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.address, self.user = folder, address, getpass.getuser()
        self.port = port or _free_port(address)
        self.host_key = keygen(folder / "host_key")
        self.client_key = keygen(folder / "client_key")
        self.authorized_keys = folder / "authorized_keys"
        self.authorized_keys.write_text(public(self.client_key) + "\n")
        self.log = folder / "sshd.log"
        self._inside = list(inside)
        settings = {
            "ListenAddress": address,
            "Port": self.port,
            "HostKey": self.host_key,
            "AuthorizedKeysFile": self.authorized_keys,
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
            "LogLevel": "VERBOSE",
            "Subsystem": "sftp internal-sftp",
        } | sshd_config
        lines = [f"{key} {one}\n" for key, value in settings.items() for one in _listed(value)]
        (folder / "sshd_config").write_text("".join(lines))
        if os.geteuid() == 0:
            _SEPARATION.mkdir(mode=0o755, exist_ok=True)
        self.start()

    def start(self) -> None:
        """Again, after `kill`."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._inside, _PROGRAM, "-D", "-e", "-f", str(self.folder / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self._listens)

    def _listens(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        return f"Server listening on {self.address} port {self.port}." in self.log.read_text()

    @property
    def pid(self) -> int:
        """Of the server, which is inside its namespace."""
        return self._process.pid

    @property
    def peer(self) -> str:
        """User and place, as our texts name them."""
        return f"{self.user}@{f'[{self.address}]' if ':' in self.address else self.address}:{self.port}"

    def sessions(self) -> int:
        """How many connections it serves, logged in or not."""
        return len(children(self._process.pid))

    def kill(self) -> None:
        """The server and all that was started through it, at once."""
        if self._process.returncode is None:
            kill_tree(self._process.pid)
            self._process.wait()
            self.log.write_text("")

    def __enter__(self) -> Sshd:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def client_config(self, path: Path, alias: str = "gpu1", **ssh_config: Any) -> Path:
        """Add a Host to an ssh_config, with this server's client key and its host key known; returns the path."""
        known_hosts = path.with_name(f"{path.name}-{alias}-known_hosts")
        name = self.address if self.port == 22 else f"[{self.address}]:{self.port}"
        known_hosts.write_text(f"{name} {public(self.host_key)}\n")
        settings = {
            "HostName": self.address,
            "Port": self.port,
            "User": self.user,
            "IdentityFile": self.client_key,
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": known_hosts,
            "GlobalKnownHostsFile": "/dev/null",
        } | ssh_config
        lines = [f"  {key} {one}\n" for key, value in settings.items() for one in _listed(value)]
        with path.open("a") as file:
            file.write(f"Host {alias}\n{''.join(lines)}\n")
        return path


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _free_port(address: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as asking:
        asking.bind((address, 0))
        return int(asking.getsockname()[1])


@contextmanager
def ssh_hosts(folder: Path, number: int = 3) -> Iterator[list[tuple[Sshd, Host | None]]]:
    """So many servers, each in a host of its own on a network of its own; without the right to that on loopback."""
    servers: list[tuple[Sshd, Host | None]] = []
    lan = Lan(number) if available() is None else None
    try:
        for index in range(number):
            host = lan.host(index) if lan else None
            address, port = (host.address, 22) if host else (f"127.0.0.{index + 2}", 0)
            inside = host.inside if host else ()
            servers.append((Sshd(folder / f"host-{index}", address, port, inside=inside), host))
        yield servers
    finally:
        for server, _ in servers:
            server.kill()
        if lan:
            lan.close()
