"""Starts the processes of a run, shows its progress, ends them in order, and hands over a finished run directory.

Never monkey-patched. Every child has a lifeline to this process and a session of its own, so Ctrl-C arrives here
alone: the first ends the run in order, the second kills. What was recorded stays, whatever happens.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from loadgen import lifeline, rundir
from loadgen.agents.passphrases import PASSPHRASES
from loadgen.doctor import Verdict, quick_checks, raise_for
from loadgen.errors import LoadgenError, RunAborted, UsageError
from loadgen.manifest import Repeat, new_manifest
from loadgen.option import ENV_PREFIX
from loadgen.options import SCENARIO_OPTIONS, Settings
from loadgen.progress import Progress
from loadgen.simulator.config import SimulatorConfig, to_options
from loadgen.simulator.profiles import MODELS

_SIMULATOR = SimulatorConfig()
_START_S = 60.0
_STOP_S = 15.0


class _Conductor:
    """The children of one run, and what to tell them."""

    def __init__(self, run: Path, progress: Progress) -> None:
        self.run = run
        self.progress = progress
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.interrupts = 0
        # Locust would take options from LOCUST_* variables: a run is what its own options say.
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("LOCUST_", ENV_PREFIX))}
        self.env["PYTHONUNBUFFERED"] = "1"

    def spawn(self, name: str, command: list[str], pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        log = self.run / rundir.LOGS / f"{name}.log"
        child = lifeline.spawn(command, log, cwd=self.run, env=self.env, pass_fds=pass_fds)
        self.children[name] = child
        return child

    def failed_to_start(self, name: str, scenario: Path | None = None) -> LoadgenError:
        log = self.run / rundir.LOGS / f"{name}.log"
        lines = log.read_text(errors="replace").splitlines() or ["no output"]
        if scenario is not None and (any(str(scenario) in line for line in lines) or "No User class" in lines[-1]):
            return UsageError(f"the scenario {scenario} cannot be loaded: {lines[-1]} (all of it: {log})")
        return LoadgenError(f"the {name} did not start: {lines[-1]} (all of it: {log})")

    def end(self) -> None:
        """Let go of every child and wait for it; one that stays is killed."""
        for child in self.children.values():
            lifeline.release(child)
        deadline = time.monotonic() + lifeline.GRACE_S + 2
        for child in self.children.values():
            try:
                child.wait(timeout=max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        for child in self.children.values():
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)


def default_workers() -> int:
    """One a core but one, at least one."""
    return max(len(os.sched_getaffinity(0)) - 1, 1)


def prepare(
    scenario: Path,
    settings: Settings,
    say: Callable[[str], None],
    repeat: Repeat | None = None,
    simulator: SimulatorConfig = _SIMULATOR,
) -> tuple[Path, Settings]:
    """Make the quick checks and the run directory with its manifest. Without a host the target is the simulator.

    `say` gets a line for each check that warns. Raises UsageError, TargetError, RunDirError, LoadgenError.
    """
    _compile(scenario)
    simulated = settings.host is None
    settings = replace(settings, workers=settings.workers or default_workers())
    checks, model = quick_checks(settings)
    raise_for(checks)
    for check in checks:
        if check.verdict is Verdict.WARNING:
            say(f"warning: {check.name}: {check.found}: {check.remedy}")
    if simulated:
        model = settings.model or MODELS[simulator.model].name
    settings = replace(settings, model=model)
    run = rundir.create(Path(settings.runs_dir), scenario.stem, settings.label)
    target = {
        "url": settings.host,
        "model": model,
        "simulated": simulated,
        "simulator": _model_of(simulator) if simulated else None,
    }
    rundir.write_manifest(run, new_manifest(run, scenario, target, settings, settings.workers, repeat))
    return run, settings


def _model_of(simulator: SimulatorConfig) -> dict[str, Any]:
    """What is modelled; not where it listens and logs, and no key."""
    return {
        name: value for name, value in asdict(simulator).items() if name not in ("host", "port", "truth", "api_key")
    }


def _compile(scenario: Path) -> None:
    """Raises UsageError for what can be seen before the scenario is loaded."""
    try:
        compile(scenario.read_bytes(), str(scenario), "exec")
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"the scenario {scenario} cannot be loaded: {error}") from error


def conduct(run: Path, scenario: Path, settings: Settings, simulator: SimulatorConfig = _SIMULATOR) -> None:
    """Run the plan. Returns when every child has ended and the manifest has its final status.

    Raises LoadgenError when a child cannot be started, RunAborted when the master is lost.
    """
    cores = os.sched_getaffinity(0)
    with Progress() as progress:
        conductor = _Conductor(run, progress)
        with _interrupts(conductor):
            try:
                simulated = settings.host is None
                if simulated:
                    settings = replace(settings, host=_start_simulator(conductor, simulator))
                _export(conductor.env, run, settings, simulated=simulated)
                _run_locust(conductor, scenario, settings)
            except LoadgenError as error:
                rundir.finish(run, rundir.ABORTED, str(error))
                raise
            finally:
                conductor.end()
                os.sched_setaffinity(0, cores)


def _start_simulator(conductor: _Conductor, simulator: SimulatorConfig) -> str:
    """Its URL. It gets a core of its own and the rest of the run the others, so that neither makes the other late."""
    (conductor.run / rundir.SIMULATOR).mkdir()
    truth = str(conductor.run / rundir.TRUTH)
    first, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {first})
    child = conductor.spawn(
        "simulator",
        [sys.executable, "-m", "loadgen.cli", "simulator", *to_options(simulator), "--port", "0", "--truth", truth],
    )
    os.sched_setaffinity(0, others or {first})
    log = conductor.run / rundir.LOGS / "simulator.log"
    deadline = time.monotonic() + _START_S
    while (announced := re.search(r"http://\S+(?=\s)", log.read_text())) is None:
        if child.poll() is not None or time.monotonic() > deadline:
            raise conductor.failed_to_start("simulator")
        time.sleep(0.02)
    url = announced[0]
    manifest = rundir.read_manifest(conductor.run)
    manifest["target"]["url"] = url
    rundir.write_manifest(conductor.run, manifest)
    return url


def _export(env: dict[str, str], run: Path, settings: Settings, *, simulated: bool) -> None:
    """The options, as Locust's parser will read them: by environment, so that no secret shows in a process list."""
    texts = settings.texts()
    for option in SCENARIO_OPTIONS:
        if option.key in texts:
            env[option.env] = texts[option.key]
    env[ENV_PREFIX + "RUN_DIR"] = str(run)
    if simulated:
        env[ENV_PREFIX + "TELEMETRY_URL"] = f"{settings.host}/telemetry"


def _run_locust(conductor: _Conductor, scenario: Path, settings: Settings) -> None:
    """Start master and workers, follow the live lines until the master ends."""
    assert settings.workers is not None
    assert settings.host is not None
    ours, theirs = os.pipe()
    locust = [sys.executable, "-m", "loadgen.locust", "-f", str(scenario), "--host", settings.host]
    for_master = {name: os.environ[name] for name in (PASSPHRASES,) if name in os.environ}
    for_master[ENV_PREFIX + "LIVE_FD"] = str(theirs)
    conductor.env |= for_master
    master = conductor.spawn(
        "master",
        [
            *locust,
            *("--master", "--master-bind-port", "0", "--web-port", "0", "--autostart", "--autoquit", "3"),
            *("--expect-workers", str(settings.workers), "--expect-workers-max-wait", f"{_START_S:.0f}"),
        ],
        pass_fds=(theirs,),
    )
    os.close(theirs)
    for name in for_master:
        del conductor.env[name]
    started = False
    asked_to_stop_at: float | None = None
    lost: set[str] = set()
    phase, begun = "start", False
    for line in _lines(ours):
        if line is not None and not started and line["rpc_port"]:
            started = True
            port = str(line["rpc_port"])
            for index in range(settings.workers):
                conductor.spawn(f"worker-{index}", [*locust, "--worker", "--master-port", port])
            conductor.progress.say(f"Locust web UI: http://127.0.0.1:{line['web_port']}")
        if line is not None and line["phase"] != "start":
            conductor.progress.show(line)
        phase = line["phase"] if line is not None else phase
        begun = begun or phase != "start"
        for name, child in conductor.children.items():
            if name.startswith("worker") and child.poll() is not None and name not in lost:
                if not begun and not conductor.interrupts:
                    raise conductor.failed_to_start(name, scenario)
                lost.add(name)
                if phase in ("ramp", "hold", "drain"):
                    conductor.progress.say(f"{name} was lost; its share of the load is gone, the run goes on")
        if conductor.interrupts and asked_to_stop_at is None:
            asked_to_stop_at = time.monotonic()
            conductor.progress.say("stopping; press Ctrl-C again to kill")
        if conductor.interrupts and phase != "stop":
            lifeline.tell(master, lifeline.STOP)  # again and again: it may not listen yet
        if asked_to_stop_at is not None and (
            conductor.interrupts > 1 or time.monotonic() - asked_to_stop_at > _STOP_S + settings.plan.drain_s
        ):
            conductor.kill()
    os.close(ours)
    code = master.wait()
    if not started:
        raise conductor.failed_to_start("master", scenario)
    manifest = rundir.read_manifest(conductor.run)
    if manifest["status"] == rundir.RUNNING:
        if conductor.interrupts:
            reason = "killed by the user" if conductor.interrupts > 1 else "it did not stop in time and was killed"
            rundir.finish(conductor.run, rundir.INTERRUPTED, reason)
        else:
            raise RunAborted(f"the Locust master was lost (exit status {code}); what was recorded is kept")


def _lines(descriptor: int) -> Iterator[dict[str, Any] | None]:
    """The live lines of the master until it closes the pipe; None at least twice a second in between."""
    os.set_blocking(descriptor, False)
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            if selector.select(timeout=0.5):
                data = os.read(descriptor, 65536)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    yield json.loads(line)
            else:
                yield None


@contextmanager
def _interrupts(conductor: _Conductor) -> Iterator[None]:
    """Count Ctrl-C (and SIGTERM) instead of being torn out of the work."""

    def count(*_: object) -> None:
        conductor.interrupts += 1
        if conductor.interrupts > 2:
            conductor.kill()

    previous = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
