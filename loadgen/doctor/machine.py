"""What this machine lends to a run: descriptors, ports, memory, disk, CPUs, clock, agents, versions. Linux's /proc.

Estimates of a run are upper bounds of its plan and say so. Sizes are bytes, times seconds.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
import resource
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from loadgen.doctor.check import Case, Finding, failed, not_applicable, ok, warning
from loadgen.options import Settings
from loadgen.record import REQUEST_COLUMNS
from remote_agents.agent.kernel_clock import kernel_clock
from remote_agents.hosts import LOCAL

_ROOT = Path(__file__).resolve().parent.parent.parent
_MB = 1_000_000

_LOCUST_RAISES_TO = 10_000  # a soft limit below it, where the hard one allows
_OTHER_FILES = 100  # of a worker beside its users' connections
_PROCESS_B = 150 * _MB  # a worker, and the master
_USER_B = 25_000
_USERS_A_WORKER = 5_000
_LITTLE_MEMORY = 0.7

# What a run writes: measured columns of a request, and what master, workers and agents write a second.
_COLUMN_B = {"int64": 8, "int32": 4, "bool": 1, "string": 16, "list<int32>": 8}
_TOKEN_B = 4
_SECOND_B = 40_000
_REPORT_B = 10 * _MB
_LEAST_FREE_B = 5 * _MB  # the reserve of a run directory, and a few records
_FASTEST_TOKEN_S = 0.005  # a user's answers come no faster than this, for the upper bound


def open_files(case: Case) -> Finding:
    settings = case.settings
    users, all_users = _users_a_worker(settings), settings.plan.peak
    needed = users + _OTHER_FILES
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (math.inf if limit == resource.RLIM_INFINITY else limit for limit in limits)
    allowed = max(soft, _LOCUST_RAISES_TO) if hard >= _LOCUST_RAISES_TO else soft
    raised = f", raised to {allowed:.0f} by Locust" if allowed > soft else ""
    found = (
        f"a worker needs {needed} for {users} {_streams(settings)}; the limit is {soft:.0f}{raised} (hard {hard:.0f})"
    )
    if settings.host is None and all_users + _OTHER_FILES > hard:
        found = f"the simulator needs {all_users + _OTHER_FILES} for all users; the hard limit is {hard:.0f}"
    elif needed <= allowed:
        return ok(found)
    elif needed <= hard:
        return failed(found, f"run `ulimit -n {needed}` in this shell first, or use more --workers")
    return failed(found, "raise the hard limit (nofile in /etc/security/limits.conf), or use more --workers")


def local_ports(case: Case) -> Finding:
    try:
        low, high = (int(word) for word in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        return not_applicable("this kernel does not tell its range")
    settings = case.settings
    waiting = sum(1 for port in _ports_waiting() if settings.host is not None and port == case.address[1])
    addresses = len(settings.source_addresses) or 1
    free = (high - low + 1) * addresses - waiting
    peak = settings.plan.peak
    where = f"{low} to {high}" + (f" on {addresses} addresses" if addresses > 1 else "")
    found = f"{free} of {where} are free towards the endpoint ({waiting} in TIME_WAIT), for {peak} {_streams(settings)}"
    wider = (
        'run `sysctl -w net.ipv4.ip_local_port_range="1024 65535"` as root, give more --source-addresses, '
        f"or use fewer {_streams(settings)}"
    )
    return ok(found) if peak <= free else failed(found, wider)


def _ports_waiting() -> Iterator[int]:
    """The remote port of each connection in TIME_WAIT."""
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), Path("/proc/net", name).open() as table:
            next(table, None)
            for line in table:
                _, _, remote, state, *_ = line.split()
                if state == "06":
                    yield int(remote.rpartition(":")[2], 16)


def memory(case: Case) -> Finding:
    settings = case.settings
    workers = _workers(settings)
    needed = (workers + 1) * _PROCESS_B + settings.plan.peak * _USER_B
    free = _free_memory()
    if free is None:
        return not_applicable("this kernel does not tell what is free")
    found = (
        f"the run takes about {_size(needed)} ({workers} worker(s) and the master at {_PROCESS_B // _MB} MB, "
        f"{settings.plan.peak} {_streams(settings)} at {_USER_B // 1000} kB); {_size(free)} are free"
    )
    if needed > free:
        return failed(found, f"use fewer {_streams(settings)} or --workers, or a machine with more memory")
    return warning(found, "close other programs") if needed > _LITTLE_MEMORY * free else ok(found)


def _free_memory() -> int | None:
    """What the kernel calls available, or what is left of the control group's limit when that is less."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        left = limit - int(Path("/sys/fs/cgroup/memory.current").read_text())
        free = left if free is None else min(free, left)
    return free


def disk(case: Case) -> Finding:
    settings = case.settings
    requests, a_request, total = estimate(settings)
    usage = os.statvfs(_existing(Path(settings.runs_dir)))
    free = usage.f_bavail * usage.f_frsize
    found = (
        f"at most {_size(total)} ({requests} requests at {a_request} B, and telemetry); {_size(free)} are free there"
    )
    if not usage.f_blocks:
        return not_applicable(f"the file system of {settings.runs_dir} does not say how large it is")
    remedy = "free some, or choose a place with more room with --runs-dir"
    if free < _LEAST_FREE_B:
        return failed(f"{_size(free)} are free under {settings.runs_dir}, a run needs {_size(_LEAST_FREE_B)}", remedy)
    return warning(found, remedy) if total > free / 2 else ok(found)


def estimate(settings: Settings) -> tuple[int, int, int]:
    """(requests, bytes a request, bytes of the run). In the closed model all at most: answers at 200 tokens/s, no gap
    between requests; in the open model what the rates come to."""
    a_request = sum(_COLUMN_B[column.type] for column in REQUEST_COLUMNS) + settings.output_tokens * _TOKEN_B
    answer_s = settings.output_tokens * _FASTEST_TOKEN_S
    plan = settings.plan
    requests, seconds, before = 0, plan.drain_s, 0.0
    for step in plan.steps:
        fastest = step.level if plan.is_open else step.level / answer_s
        fitting = math.inf if step.duration_s is None else fastest * step.duration_s
        counted = math.inf if step.requests is None else step.requests
        hold = min(fitting, counted)
        ramp = plan.ramp_s * (before + fastest) / 2
        requests += math.ceil(hold + ramp)
        seconds += plan.ramp_s + (step.duration_s if step.duration_s is not None else hold / fastest)
        before = fastest
    return requests, a_request, int(requests * a_request + seconds * _SECOND_B * _workers(settings) + _REPORT_B)


def runs_directory(case: Case) -> Finding:
    wanted = Path(case.settings.runs_dir)
    remedy = "choose another with --runs-dir"
    folder = _existing(wanted)
    if not folder.is_dir():
        return failed(f"{folder} is no directory", remedy)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return failed(f"nothing can be written under {folder} ({(error.strerror or '').lower()})", remedy)
    return ok(f"{wanted} can be written" if folder == wanted else f"{wanted} can be made")


def _existing(path: Path) -> Path:
    """The path itself, or the nearest above it that exists."""
    return next((folder for folder in (path, *path.absolute().parents) if folder.exists()), Path("/"))


def cpus(case: Case) -> Finding:
    settings = case.settings
    total = float(len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError, ValueError):
        quota, period = (int(word) for word in Path("/sys/fs/cgroup/cpu.max").read_text().split())
        total = min(total, quota / period)
    busy = min(os.getloadavg()[0], total)
    workers, users = _workers(settings), _users_a_worker(settings)
    found = (
        f"{total:g} CPUs, {busy:.1f} of them busy over the last minute, "
        f"for {workers} worker(s) of {users} {_streams(settings)}"
    )
    if workers > total:
        return warning(found, f"use --workers {max(int(total), 1)} at most: more would take time from each other")
    if users > _USERS_A_WORKER:
        return warning(found, f"use more workers or machines: one holds about {_USERS_A_WORKER} streams in time")
    if workers + busy > total + 0.5:
        return warning(found, "stop what else runs here: workers that wait for a CPU read late")
    return ok(found)


def clock(case: Case) -> Finding:
    unsynchronised, maxerror_us, _ = kernel_clock()
    if maxerror_us is None:
        return not_applicable("this kernel does not tell whether it is synchronised")
    if unsynchronised:
        return warning(
            f"not synchronised (error up to {maxerror_us / 1e6:g} s)",
            "start chrony or another NTP client: no figure depends on it, but times of day in the run do",
        )
    return ok(f"synchronised, error at most {maxerror_us / 1e3:.1f} ms")


def agents(case: Case) -> Finding:
    """Starts the agents as a run does, and reads what they announce."""
    from remote_agents.checkup import examine  # loads SSH: not for every command
    from remote_agents.collector import Config

    settings = case.settings
    names = settings.watching.agents
    if not names:
        return not_applicable("no host is watched: --agents is none")
    if settings.host is None and names == (LOCAL,):
        return ok("local: host counters, and the GPUs that the simulator models")
    found = examine(Config(run_dir=Path(), **settings.watching.config()), sample_s=0)
    texts = [f"{one.agent}: {one.problem or _watched(one.hello)}" for one in found]
    if any(one.problem for one in found):
        return failed("; ".join(texts), "see `loadgen agents check`, or leave the host out of --agents")
    if any(one.hello.get("warnings") for one in found):
        return warning("; ".join(texts), "see `loadgen agents check`; correct --gpus")
    if any(one.hello.get("nvml", {}).get("state") == "starting" for one in found):
        return warning("; ".join(texts), "see whether nvidia-smi answers, and switch persistence mode on")
    return ok("; ".join(texts))


def _watched(hello: dict[str, Any]) -> str:
    if not hello:
        return "it announced nothing in time"
    if hello["warnings"]:
        return "; ".join(hello["warnings"])
    nvml = hello["nvml"]
    if nvml["state"] == "absent":
        return f"no GPU driver ({nvml['reason']}), host counters only"
    if nvml["state"] == "starting":
        return "the GPU driver has not answered in time"
    names = ", ".join(f"{gpu['index']} {gpu['name']}" for gpu in hello["gpus"]) or "no GPU"
    return f"host counters and {names} (driver {nvml.get('driver')})"


def versions(case: Case) -> Finding:
    try:
        lines = (_ROOT / "constraints.txt").read_text().splitlines()
    except OSError:
        return not_applicable("this installation has no constraints.txt")
    tested = dict(line.split("==") for line in lines if "==" in line)
    others = list(differing(tested.items()))
    if others:
        return warning(f"not as tested: {', '.join(others)}", "run `make setup`, or install with constraints.txt")
    return ok(f"Python {sys.version.split()[0]}, packages as tested (constraints.txt)")


def differing(tested: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The packages that are installed in another version."""
    for package, version in tested:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a tool of the developers, most likely
            installed = importlib.metadata.version(package)
            if installed != version:
                yield f"{package} {installed} instead of {version}"


def _workers(settings: Settings) -> int:
    assert settings.workers is not None, "the caller resolves --workers auto"
    return settings.workers


def _streams(settings: Settings) -> str:
    """What `plan.peak` counts."""
    return "requests in flight" if settings.plan.is_open else "users"


def _users_a_worker(settings: Settings) -> int:
    return math.ceil(settings.plan.peak / _workers(settings))


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{math.ceil(size / 1e6)} MB"
