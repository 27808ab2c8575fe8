"""The only place where clocks are converted: everything becomes seconds since the run's start, on the controller.

t = 0 is the first step's ramp (the manifest's clock when there is none). What was stamped in the controller's boot
needs no fit; anything else is moved by remote_agents.clock, and carries that fit's bound, or is left out. Here too:
what is known of each clock. Not here: the frames of samples (join.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis import damage
from analysis.damage import Damage
from analysis.load import Host, Run
from analysis.shards import Shard, first_stamps
from analysis.stats import Floats
from remote_agents.clock import ClockFit, Instants, TimeOfDay, bound_at, clock_check, fit_clocks, to_controller

# In these t0 and t1 are not those of a read: they are the driver's window, or last as long as a server lets one wait.
_NO_READ = ("gpu_util", "server", "dcgm")


class HostClock(NamedTuple):
    """How a host's clock became the controller's: the fit (None: it is the same clock) and its samples' bounds.

    `steps`: when, in seconds since the run's start, and by how many ns the clock moved against the controller's.
    `synchronised`: whether the kernel says that its time of day is, None when it does not tell; `time_of_day`: by how
    many ns it differs from the controller's, and how many it may; None when one of them is not synchronised.
    """

    host: str
    simulated: bool
    fit: ClockFit | None
    bound_ns: int
    median_ns: int
    steps: tuple[tuple[float, int], ...]
    synchronised: bool | None = None
    time_of_day: tuple[int, int] | None = None


class Placed(NamedTuple):
    """A host and what places its samples in time; None is the controller's own clock."""

    host: Host
    fit: ClockFit | None
    zero_ns: int

    def seconds(self, t_ns: Instants) -> Floats:
        """Instants of the host, since the run's start."""
        return np.asarray((to_controller(self.fit, t_ns) if self.fit else t_ns) - self.zero_ns, dtype=np.float64) / 1e9

    def bound_ns(self, table: str, t0: Instants, t1: Instants) -> Instants:
        """Of each row of a table: the fit's bound, and half the time that a read took."""
        bound: Instants = (t1 - t0) // 2 * (table not in _NO_READ) + (bound_at(self.fit, t0) if self.fit else 0)
        return bound


def start_ns(run: Run) -> int:
    """The controller's monotonic clock at t = 0."""
    first = next((line for line in run.steps if line["what"] == "ramp"), None)
    return int(first["t_ns"] if first else run.manifest["clock"]["monotonic_ns"])


def seconds(times_ns: Instants, zero_ns: int) -> Floats:
    """Seconds since `zero_ns`. Subtracts as integers, so nothing is rounded away."""
    return np.asarray(times_ns - zero_ns, dtype=np.float64) / 1e9


def align(run: Run) -> tuple[Run, list[HostClock]]:
    """The run with the shards of other hosts tied to the controller's clock, and how well that is known of each.

    Without those that are not.
    """
    if all(shard.clock is None for shard in run.shards):
        return run, []
    fits = fit_clocks(run.probes)
    found = list(run.damage)
    kept: list[Shard] = []
    first_ns: dict[str, list[Instants]] = {}
    for shard in run.shards:
        fit = fits.get(shard.clock or "")
        if shard.clock is not None and fit is None:
            text = (
                f"it was written on the clock of {shard.clock}, which no probes tie to the controller's: it is left out"
            )
            found.append(Damage(shard.file, damage.sentence(text)))
            continue
        kept.append(shard._replace(fit=fit))
        if fit is not None:
            first_ns.setdefault(fit.host, []).append(first_stamps(shard))
    zero = start_ns(run)
    of_hosts = [_worker_clock(fits[name], np.concatenate(parts), zero) for name, parts in first_ns.items()]
    return replace(run, shards=kept, damage=found), of_hosts


def _worker_clock(fit: ClockFit, first_ns: Instants, zero_ns: int) -> HostClock:
    bounds = bound_at(fit, first_ns) if first_ns.size else np.array([fit.bound_ns])
    return HostClock(fit.host, False, fit, int(bounds.max()), int(np.median(bounds)), _steps(fit, zero_ns))


def place(run: Run) -> tuple[list[Placed], list[str]]:
    """The hosts whose samples can be placed, and what is wrong with the others."""
    zero = start_ns(run)
    fits = fit_clocks(run.probes)
    placed: list[Placed] = []
    problems: list[str] = []
    for host in run.hosts:
        fit = None if _is_ours(run, host) else fits.get(host.clock)
        if fit is None and not _is_ours(run, host):
            problems.append(f"telemetry of {host.name}: left out, no clock probes tie its clock to the controller's")
        else:
            placed.append(Placed(host, fit, zero))
    return placed, problems


def events(run: Run) -> list[tuple[float, dict[str, Any]]]:
    """The lines of events.jsonl by when they happened: an agent's own by its stamp, as one may come long after."""
    zero, within = start_ns(run), damage.span(run.manifest)
    fits = fit_clocks(run.probes)
    ours = {host.clock for host in run.hosts if _is_ours(run, host)}
    timed = []
    for event in run.events:
        at_ns, name, there_ns = int(event["t_ns"]), event.get("host"), event.get("agent_ns")
        if isinstance(there_ns, int) and damage.whole(there_ns) and (name in ours or name in fits):
            told_ns = there_ns if name in ours else int(to_controller(fits[name], np.array([there_ns]))[0])
            at_ns = told_ns if within.holds(told_ns) else at_ns
        timed.append(((at_ns - zero) / 1e9, event))
    return sorted(timed, key=lambda one: one[0])


def _is_ours(run: Run, host: Host) -> bool:
    return host.boot_id == (run.manifest["clock"].get("boot_id") or "")


def host_clocks(
    run: Run, placed: Sequence[Placed], bounds: Mapping[str, Instants], agents: pd.DataFrame
) -> list[HostClock]:
    """What is known of the clock of each host: by the bounds of all its samples, and by what its agent says."""
    told = {one.host.name: _kernel_sync(agents[agents["host"] == one.host.name]) for one in placed}
    ours = _controller_time(run, [told[one.host.name] for one in placed if _is_ours(run, one.host)])
    return [_host_clock(one, bounds[one.host.name], *told[one.host.name], ours) for one in placed]


def _host_clock(
    placed: Placed, bounds: Instants, synchronised: bool | None, maxerror_ns: int | None, ours: TimeOfDay | None
) -> HostClock:
    host, fit = placed.host, placed.fit
    checked = None
    if fit is not None and ours is not None and host.realtime_ns is not None and host.monotonic_ns is not None:
        checked = clock_check(fit, ours, TimeOfDay(host.realtime_ns, host.monotonic_ns, maxerror_ns))
    return HostClock(
        host=host.name,
        simulated=host.simulated,
        fit=fit,
        bound_ns=int(bounds.max(initial=0)),
        median_ns=int(np.median(bounds)) if bounds.size else 0,
        steps=_steps(fit, placed.zero_ns),
        synchronised=synchronised,
        time_of_day=checked,
    )


def _steps(fit: ClockFit | None, zero_ns: int) -> tuple[tuple[float, int], ...]:
    if fit is None or not fit.steps:
        return ()
    at = to_controller(fit, np.array([step.t_agent_ns for step in fit.steps], dtype=np.int64)) - zero_ns
    return tuple((float(t_ns) / 1e9, step.size_ns) for t_ns, step in zip(at, fit.steps, strict=True))


def _kernel_sync(agent: pd.DataFrame) -> tuple[bool | None, int | None]:
    """Whether the host's time of day was synchronised all the time, and then how far it may have been off."""
    told = agent[["clock_unsync", "clock_maxerror_us"]].dropna()
    if told.empty:
        return None, None
    if (told["clock_unsync"] != 0).any():
        return False, None
    return True, 1000 * int(told["clock_maxerror_us"].max())


def _controller_time(run: Run, told: Sequence[tuple[bool | None, int | None]]) -> TimeOfDay | None:
    """As the manifest has it; whether it is synchronised an agent on the controller may have `told`, too."""
    clock = run.manifest["clock"]
    if not damage.whole(clock.get("realtime_ns")):
        return None
    maxerror_ns = 1000 * clock["maxerror_us"] if damage.whole(clock.get("maxerror_us")) else None
    if maxerror_ns is None:
        maxerror_ns = next((error_ns for _, error_ns in told if error_ns is not None), None)
    return TimeOfDay(clock["realtime_ns"], clock["monotonic_ns"], maxerror_ns)
