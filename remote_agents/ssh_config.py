"""ssh_config -> the hops to a host. OpenSSH's own `ssh -G` reads it, with Include, Match exec and canonicalisation.

Without OpenSSH's client paramiko's parser does, which knows no Include. StrictHostKeyChecking and the settings of its
kind are not honoured: a host key is always verified. Nor are those that take a terminal, a password or a ControlMaster.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import paramiko

from remote_agents.hosts import Agent, parse_agent
from remote_agents.ssh_options import SshError, SshOptions, left, limit_of

_SSH_PORT = 22
_FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}
_IDENTITIES = ("~/.ssh/id_rsa", "~/.ssh/id_ecdsa", "~/.ssh/id_ed25519")
_SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
_KNOWN_HOSTS = {
    "userknownhostsfile": "~/.ssh/known_hosts ~/.ssh/known_hosts2",
    "globalknownhostsfile": "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2",
}

Values = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Hop:
    """One SSH server on the way: where it is, who logs in with what, and which host keys it may show.

    The first hop is reached by its proxy command or by TCP, each further one through the hop before it.
    """

    name: str
    host: str
    port: int
    user: str
    identity_files: tuple[Path, ...]
    certificate_files: tuple[Path, ...]
    identities_only: bool
    agent_socket: str | None
    proxy_command: str | None
    key_names: tuple[str, ...]  # in known_hosts, the first is the host's own
    known_hosts: tuple[Path, ...]
    revoked_keys: Path | None
    step_s: float
    family: int
    bind_address: str | None
    trust_command: str  # with which a user looks at the host key, and accepts it

    @property
    def peer(self) -> str:
        return f"{self.user}@{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def __str__(self) -> str:
        return self.peer if self.name in (self.host, self.peer) else f"{self.name} ({self.peer})"


def route(agent: Agent, options: SshOptions, deadline: float | None) -> list[Hop]:
    """The hops to the agent's host, which is the last. Raises SshError."""
    return _route(agent, options, deadline, ())


def _route(agent: Agent, options: SshOptions, deadline: float | None, seen: tuple[Agent, ...]) -> list[Hop]:
    if any((agent.host, agent.user, agent.port) == (other.host, other.user, other.port) for other in seen):
        way = " -> ".join(other.name for other in (*seen, agent))
        raise SshError(f"the ProxyJump of {agent.name} leads back to it ({way}): except it in ssh's configuration")
    values = _read(agent, options, deadline)
    jumps = _jumps(agent, values.get("proxyjump", ("none",))[0])
    if not jumps:
        return [_hop(agent, values, options, jumped=False)]
    hops = _route(jumps[0], options, deadline, (*seen, agent))
    for index, jump in enumerate(jumps[1:], 1):
        before = ("-J", ",".join(earlier.name for earlier in jumps[:index]))  # whatever its own configuration says
        hops.append(_hop(jump, _read(jump, options, deadline, before), options, jumped=True, way=before))
    return [*hops, _hop(agent, values, options, jumped=True)]


def _jumps(agent: Agent, text: str) -> list[Agent]:
    if text.lower() == "none":
        return []
    try:
        return [parse_agent(jump.strip().removeprefix("ssh://").rstrip("/")) for jump in text.split(",")]
    except ValueError as error:
        raise SshError(f"the ProxyJump {text!r} of {agent.name} {error}") from error


def _read(agent: Agent, options: SshOptions, deadline: float | None, way: Sequence[str] = ()) -> Values:
    """Keyword in lower case -> its values, for one host."""
    if shutil.which("ssh") is None:
        return _parse(agent, options)
    user = [] if agent.user is None else ["-l", agent.user]
    command = ["ssh", "-T", "-G", *_arguments(agent, options), *way, *user, "--", agent.host]
    return _ask(command, agent, limit_of(deadline, options.connect_timeout_s))


def _ask(command: Sequence[str], agent: Agent, limit: float) -> Values:
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        start_new_session=True,
    ) as process:
        try:
            lines, errors = process.communicate(timeout=left(limit))
        except subprocess.TimeoutExpired:
            raise SshError(
                f"ssh's configuration of {agent.name} was not read in time: look at its Match exec and at the resolver",
                passing=True,
            ) from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)  # a Match exec is its child
    if process.returncode:
        said = errors.strip().partition("\n")[0].strip() or f"exit code {process.returncode}"
        raise SshError(f"ssh's configuration of {agent.name} cannot be used ({said}): try `ssh -G {agent.host}`")
    values: dict[str, list[str]] = {}
    for line in lines.splitlines():
        key, _, value = line.partition(" ")
        values.setdefault(key.lower(), []).append(value)
    return values


def _arguments(agent: Agent, options: SshOptions) -> list[str]:
    arguments = [] if options.config_file is None else ["-F", str(options.config_file)]
    return arguments + ([] if agent.port is None else ["-p", str(agent.port)])


def _parse(agent: Agent, options: SshOptions) -> Values:
    given = options.config_file
    config = paramiko.SSHConfig()
    try:
        for path in (_me()[1] / ".ssh/config", _SYSTEM_CONFIG) if given is None else (given,):
            if given is not None or path.is_file():
                with path.open(encoding="utf-8", errors="surrogateescape") as file:
                    config.parse(file)
        found = config.lookup(agent.host)
    except (OSError, paramiko.SSHException) as error:  # a configuration that cannot be read, or is none
        raise SshError(f"ssh's configuration of {agent.name} cannot be used ({error}): correct it") from error
    values = {
        key: [value] if isinstance(value, str) else list(value) for key, value in found.items() if value is not None
    }
    if agent.user is not None:
        values["user"] = [agent.user]
    if agent.port is not None:
        values["port"] = [str(agent.port)]
    return values


def _hop(agent: Agent, values: Values, options: SshOptions, *, jumped: bool, way: Sequence[str] = ()) -> Hop:
    """`way` are ssh's words for the jumps to a hop, where its own configuration does not say them."""

    def one(key: str) -> str | None:
        value = values.get(key, ("none",))[0]
        return None if value.lower() == "none" else value

    def number(key: str, default: float) -> float:
        try:
            return float(one(key) or default)
        except ValueError:
            raise SshError(f"{key} of {agent.name} in ssh's configuration is no number: correct it") from None

    me, home = _me()
    host, port = one("hostname") or agent.host, int(number("port", _SSH_PORT))
    user, alias = one("user") or me, one("hostkeyalias")
    plain = (alias or host).lower()
    tokens = {
        "%": "%",
        "d": str(home),
        "h": host,
        "i": str(os.getuid()),
        "k": alias or agent.host,
        "L": socket.gethostname().partition(".")[0],
        "l": socket.gethostname(),
        "n": agent.host,
        "p": str(port),
        "r": user,
        "u": me,
    }
    command, revoked = one("proxycommand"), one("revokedhostkeys")
    known_hosts = [name for key, default in _KNOWN_HOSTS.items() for name in _names(values.get(key, (default,))[0])]
    trust = ["ssh", *_arguments(agent, options), *way]
    return Hop(
        name=agent.name,
        host=host,
        port=port,
        user=user,
        identity_files=tuple(_path(text, tokens) for text in values.get("identityfile", _IDENTITIES) if text != "none"),
        certificate_files=tuple(_path(text, tokens) for text in values.get("certificatefile", ()) if text != "none"),
        identities_only=one("identitiesonly") == "yes",
        agent_socket=_agent_socket(values.get("identityagent", ("SSH_AUTH_SOCK",))[0], tokens),
        proxy_command=_expand(command, tokens) if command and not jumped else None,
        key_names=(plain,) if alias or port == _SSH_PORT else (f"[{plain}]:{port}", plain),
        known_hosts=tuple(_path(text, tokens) for text in known_hosts),
        revoked_keys=_path(revoked, tokens) if revoked else None,
        step_s=number("connecttimeout", options.connect_timeout_s) or options.connect_timeout_s,
        family=_FAMILIES.get(one("addressfamily") or "any", socket.AF_UNSPEC),
        bind_address=one("bindaddress"),
        trust_command=shlex.join([*trust, f"{agent.user}@{agent.host}" if agent.user else agent.host, "true"]),
    )


def _agent_socket(name: str, tokens: Mapping[str, str]) -> str | None:
    if name.lower() == "none":
        return None
    if name == "SSH_AUTH_SOCK":
        return os.environ.get(name) or None
    if name.startswith("$") and not name.startswith("${"):
        return os.environ.get(name[1:]) or None
    return str(_path(name, tokens))


def _names(text: str) -> list[str]:
    """The files in a list that ssh prints without quotes: a word that begins no path belongs to the word before it."""
    names: list[str] = []
    for word in text.split(" "):
        if names and word and word[0] not in "/~$%":
            names[-1] += " " + word
        elif word:
            names.append(word)
    return [name for name in names if name.lower() != "none"]


def _path(text: str, tokens: Mapping[str, str]) -> Path:
    """With its tilde, %-tokens and ${VARIABLES} filled in."""
    text = re.sub(r"\$\{(\w+)\}", lambda match: os.environ.get(match[1], match[0]), _expand(text, tokens))
    return _me()[1] / text[2:] if text.startswith("~/") else Path(text).expanduser()


def _expand(text: str, tokens: Mapping[str, str]) -> str:
    return re.sub("%(.)", lambda match: tokens.get(match[1], match[0]), text)


def _me() -> tuple[str, Path]:
    """The user's name and home folder, as ssh has them: of the passwd entry, whatever HOME says."""
    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:
        return str(os.getuid()), Path.home()
    return entry.pw_name, Path(entry.pw_dir)
