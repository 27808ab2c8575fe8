"""Ours and its peers side by side against the reference server: who keeps up, at what cost, and whose times are true.

    make bench                                                          all scenarios, about half an hour
    python -m benchmarks.engine --only streams-5000 --duration 20       one of them
    python -m benchmarks.engine --only streams-1000 --peers all         GuideLLM and AIPerf too: heavy to install
    python -m benchmarks.engine --write                                 and into RESULTS.md

Server and client have a core each; the server has real-time priority where that is allowed. README.md says what is
measured and how. Give it a quiet machine: the load average is printed with the results.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import shlex
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks import figures, peers, reference
from benchmarks.clients import Cores
from benchmarks.scenarios import HEAVY, RUNNERS, SCENARIOS, Bench

RESULTS = Path(__file__).with_name("RESULTS.md")


def machine(command: str, load_average: float) -> str:
    """Where, when and with what, for those who compare."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    ours = {name: importlib.metadata.version(name) for name in ("gpu-loadgen", "locust", "gevent")}
    versions = ", ".join(f"{name} {version}" for name, version in {**ours, **peers.versions()}.items())
    return (
        f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}; {model[1] if model else platform.machine()}, "
        f"{os.cpu_count()} cores, load average {load_average:.1f} before; Linux {platform.release()}, "
        f"Python {platform.python_version()}, {versions}; `{command}`"
    )


def write(name: str, section: str, results: Path = RESULTS) -> None:
    """Replace one scenario's section of RESULTS.md, or add it; sections are in the order of SCENARIOS."""
    text = results.read_text() if results.exists() else ""
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.M | re.S)) | {name: section}
    body = "".join(f"## {key}\n{sections[key].rstrip()}\n\n" for key in SCENARIOS if key in sections)
    results.write_text(f"# Results of `make bench`\n\nWhat each column means: README.md.\n\n{body.rstrip()}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=SCENARIOS, help="this scenario; may be repeated")
    parser.add_argument("--duration", type=float, default=20, help="seconds measured of each run (20)")
    usual = [name for name in RUNNERS if name not in HEAVY]
    parser.add_argument(
        "--clients",
        metavar="LIST",
        default=",".join(usual),
        help=f"of {', '.join(RUNNERS)}; default: all but the last two …",
    )
    parser.add_argument(
        "--peers",
        choices=("usual", "all"),
        default="usual",
        help=f"… and with all, {' and '.join(HEAVY)} too: each some GB in an environment of its own",
    )
    parser.add_argument("--scale", type=float, default=1, help="share of the users and rates, for a quick trial (1)")
    parser.add_argument("--write", action="store_true", help="keep the results in RESULTS.md")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("server and client need a core each: this process may use one only")
    wanted = (*options.clients.split(","), *(HEAVY if options.peers == "all" else ()))
    if unknown := set(wanted) - set(RUNNERS):
        parser.error(f"--clients: {', '.join(sorted(unknown))}: there are {', '.join(RUNNERS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # with what was started
    os.sched_setaffinity(0, {cores[0]})  # this process, and what it does while a client runs
    command = shlex.join(["python", "-m", "benchmarks.engine", *sys.argv[1:]])
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            binaries = reference.build(Path(folder))
        except reference.BuildError as error:
            sys.exit(f"error: {error}")
        bench = Bench(
            binaries,
            reference.self_signed(Path(folder)),
            Path(folder),
            Cores(*cores[:2]),
            options.duration,
            wanted,
            options.scale,
        )
        for name in options.only or SCENARIOS:
            print(f"{name} …", file=sys.stderr)
            section = measured(name, bench, command)
            print(f"## {name}\n{section}", flush=True)
            if options.write:
                write(name, section)


def measured(name: str, bench: Bench, command: str) -> str:
    """A scenario's section: what it is, where it was measured, and its table."""
    scenario, load_average = SCENARIOS[name], os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:  # logs are large: gone before the next
        rows = list(scenario.rows(replace(bench, folder=Path(folder))))
    table = figures.table(scenario.columns, rows)
    return f"\n{scenario.title}.\n\n{machine(command, load_average)}\n\n{table}\n"


if __name__ == "__main__":
    main()
