"""Passphrases of SSH keys: from the environment, from a terminal, or else a reason; handed to the collector alone."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadgen.agents.passphrases import PASSPHRASES, unlock
from loadgen.errors import UsageError
from loadgen.options import parse_settings
from loadgen.watching import Watching
from remote_agents import collector
from tests.run.processes import running

SECRET = "s3cret of the key"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """ssh's configuration of two hosts with an encrypted key, nothing listens there; and of one with another."""
    text = ""
    for name, key in (("gpu1", "one"), ("gpu2", "one"), ("gpu3", "two")):
        path = tmp_path / key
        if not path.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-a", "1", "-N", SECRET, "-f", path], check=True)
        text += f"Host {name}\n HostName 127.0.0.1\n Port 1\n IdentityFile {path}\n"
        text += " IdentitiesOnly yes\n IdentityAgent none\n"
    (tmp_path / "config").write_text(text)
    return tmp_path / "config"


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    before = os.environ.pop(PASSPHRASES, None)
    yield
    os.environ.pop(PASSPHRASES, None)
    if before is not None:
        os.environ[PASSPHRASES] = before


def watching(config: Path, agents: str) -> Watching:
    texts = {"agents": agents, "ssh_config": str(config)}
    return parse_settings(texts, simulated=False, steps_required=False).watching


def test_the_collector_reads_the_same_variable() -> None:
    assert collector.PASSPHRASES == PASSPHRASES


def test_each_key_is_asked_for_once_and_again_when_the_answer_is_wrong(config: Path) -> None:
    answers = iter(["wrong", SECRET, SECRET])
    prompts: list[str] = []

    def ask(prompt: str) -> str:
        prompts.append(prompt)
        return next(answers)

    unlock(watching(config, "gpu1,local,gpu2,gpu3"), ask)
    one, two = config.parent / "one", config.parent / "two"
    assert prompts == [
        f"passphrase of {one}: ",
        f"that does not open it; passphrase of {one}: ",
        f"passphrase of {two}: ",
    ]
    assert os.environ[PASSPHRASES].splitlines() == [SECRET, SECRET]


def test_three_tries(config: Path) -> None:
    with pytest.raises(UsageError, match=f"{config.parent / 'one'} was not opened in 3 tries: add the key to the ssh"):
        unlock(watching(config, "gpu1"), lambda _: "wrong")
    assert PASSPHRASES not in os.environ


@pytest.mark.parametrize("given", [SECRET, ""])
def test_nobody_is_asked_when_the_environment_has_the_variable(config: Path, given: str) -> None:
    os.environ[PASSPHRASES] = given
    unlock(watching(config, "gpu1"), lambda _: pytest.fail("asked"))
    assert os.environ[PASSPHRASES] == given


def test_nobody_is_asked_without_an_encrypted_key(config: Path) -> None:
    config.write_text("Host *\n IdentityFile /nonexistent\n")
    unlock(watching(config, "gpu1"), lambda _: pytest.fail("asked"))
    unlock(watching(config, "local"), lambda _: pytest.fail("asked"))
    assert PASSPHRASES not in os.environ


def test_a_host_whose_configuration_is_bad_is_not_this_commands_concern(config: Path) -> None:
    config.write_text(config.read_text() + "Host gpu4\n ProxyJump gpu4\n")
    unlock(watching(config, "gpu4,gpu1"), lambda _: SECRET)
    assert os.environ[PASSPHRASES] == SECRET


@pytest.mark.parametrize("command", [["agents", "check", "gpu1"], ["run", "chat", "--agents", "gpu1", "--steps", "1"]])
def test_without_a_terminal_the_key_and_the_ways_out_are_named(loadgen: str, config: Path, command: list[str]) -> None:
    arguments = [*command, "--ssh-config", str(config)]
    ended = subprocess.run([loadgen, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        f"error: the SSH key {config.parent / 'one'} has a passphrase, and there is no terminal to ask for it: "
        "add the key to the ssh agent with ssh-add, or give LOADGEN_SSH_PASSPHRASE (empty: do without the key)\n"
    )


@pytest.mark.run
def test_a_run_that_requires_its_agents_ends_before_any_load_and_only_the_collector_knows_the_passphrase(
    loadgen: str, tmp_path: Path, config: Path
) -> None:
    arguments = ("--agents", "local,gpu1", "--require-agents", "--steps", "5", "--step-time", "2", "--workers", "1")
    env = {PASSPHRASES: SECRET, "LOADGEN_SSH_CONFIG": str(config)}
    knowing: dict[str, bool] = {}
    with running(loadgen, tmp_path / "runs", *arguments, env=env) as run:
        while run.process.poll() is None:
            for pid, line in run.processes().items():
                try:
                    environment = Path(f"/proc/{pid}/environ").read_bytes()
                except OSError:
                    continue
                known = SECRET.encode() in environment
                knowing[line] = knowing.get(line, True) and known
                assert SECRET not in line
            time.sleep(0.1)
        assert run.end(60) == 5, run.output
        reason = "not every host can be watched, as --require-agents asks: gpu1: not reached: gpu1 (root@127.0.0.1:1)"
        assert f"error: the run was aborted: {reason}" in run.output
        assert run.manifest["status"] == "aborted"
        assert run.lines("steps.jsonl") == []
        written = b"".join(path.read_bytes() for path in run.directory.rglob("*") if path.is_file())
        assert SECRET.encode() not in written
    words = ("--worker --master-port", "cli simulator", " --master ", "remote_agents.collector")
    told = [next(known for line, known in knowing.items() if word in line) for word in words]
    assert told == [False, False, True, True]
