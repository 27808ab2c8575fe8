"""Passphrases of the user's SSH keys, asked for on the terminal before anything is started.

They travel in one environment variable, a line each, and are nowhere else: in no file, log or command line.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable
from pathlib import Path

from loadgen.errors import AgentError, UsageError
from loadgen.option import ENV_PREFIX
from loadgen.watching import Watching
from remote_agents.hosts import LOCAL, parse_agent

PASSPHRASES = ENV_PREFIX + "SSH_PASSPHRASE"
_TRIES = 3


def unlock(watching: Watching, ask: Callable[[str], str] | None = None) -> None:
    """See to it that the environment opens the keys that the hosts may need; does nothing where it holds some already.

    Raises UsageError for a key whose passphrase nobody gives.
    """
    if PASSPHRASES in os.environ or set(watching.agents) <= {LOCAL}:
        return
    locked = _locked(watching)
    if locked and ask is None:
        if not sys.stdin.isatty():
            raise UsageError(
                f"the SSH key {locked[0]} has a passphrase, and there is no terminal to ask for it: {_WAYS}"
            )
        ask = getpass.getpass
    texts = [_asked(path, ask) for path in locked if ask is not None]
    if texts:
        os.environ[PASSPHRASES] = "\n".join(texts)


_WAYS = f"add the key to the ssh agent with ssh-add, or give {PASSPHRASES} (empty: do without the key)"


def _locked(watching: Watching) -> list[Path]:
    """The encrypted keys that the hosts' configuration names and the ssh agent does not hold."""
    from remote_agents.ssh import SshOptions, encrypted_keys  # loads paramiko: not for every command

    options = SshOptions(config_file=Path(watching.ssh_config) if watching.ssh_config else None)
    found: dict[Path, None] = {}
    for name in watching.agents:
        try:
            found |= dict.fromkeys(encrypted_keys([parse_agent(name)], options))
        except AgentError:
            pass  # what is wrong with this host is said when it is connected to
    return list(found)


def _asked(path: Path, ask: Callable[[str], str]) -> str:
    from remote_agents.ssh import check_passphrase

    prompt = f"passphrase of {path}: "
    for _ in range(_TRIES):
        text = ask(prompt)
        if check_passphrase(path, text):
            return text
        prompt = f"that does not open it; passphrase of {path}: "
    raise UsageError(f"the SSH key {path} was not opened in {_TRIES} tries: {_WAYS}")
