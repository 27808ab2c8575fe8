"""False alarms and power of `loadgen compare`, on real runs: 5 repeats a side, alike and with one side 20 % slower.

    python -m benchmarks.compare_study --runs-dir DIR            makes the runs that DIR lacks, and prints the tables
    python -m benchmarks.compare_study --runs-dir DIR --write    and writes RESULTS-compare.md

Two simulators serve, one with all modelled times 1.2 times as long. A group is `loadgen run … --repeat 5` against one
of them; groups of both are made in a random order, a few at a time. Every run has a seed of its own. Runs are compared
in three ways: sides made in turn (of ten runs that followed each other every second one), sides made one after the
other (groups), and sides drawn at random from all runs.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from analysis.compared import value_of
from analysis.judgement import FAIL, of_gates, overall
from analysis.report.saved import summary_of
from analysis.sides import Member, RunSet, levels
from loadgen import rundir
from loadgen.gates import parse_gates

RESULTS = Path(__file__).with_name("RESULTS-compare.md")
SLOWER = 1.2
SPEEDUPS = {"base": SLOWER, "slow": 1.0}
GROUPS, REPEATS, LANES = 20, 5, 4
LOAD = ("--steps", "12", "--step-time", "5s", "--prompt-tokens", "32", "--output-tokens", "8")
TEXTS = (
    "ttft_p95<+0%",
    "e2e_p95<+0%",
    "ttft_p95<+10%",
    "ttft_p95<+0%,e2e_p95<+0%,itl_p95<+0%,qps>-0%,error_rate<2%",
)
DRAWS, SPLITS = 1000, 25
_START_S, _GROUP_S = 30.0, 900.0


@contextmanager
def simulator(folder: Path, speedup: float) -> Iterator[str]:
    """Its URL, while it serves."""
    log = folder / f"simulator-{speedup:g}.log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "loadgen.cli", "simulator", "--port", "0", "--speedup", f"{speedup:g}"]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + _START_S
        while (announced := re.search(r"http://\S+(?=\s)", log.read_text())) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the simulator did not start: {log.read_text()}")
            time.sleep(0.05)
        yield announced[0]
    finally:
        process.terminate()
        process.wait(10)


def collect(folder: Path, groups: int, lanes: int) -> None:
    """Make the groups that `folder` lacks. Raises RuntimeError when a run fails."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(side, number) for side in SPEEDUPS for number in range(groups) if not _made(folder, side, number)]
    random.Random(1).shuffle(wanted)
    if not wanted:
        return
    with simulator(folder, SPEEDUPS["base"]) as base, simulator(folder, SPEEDUPS["slow"]) as slow:
        urls = {"base": base, "slow": slow}
        with ThreadPoolExecutor(lanes) as pool:
            for done in pool.map(lambda group: _group(folder, urls[group[0]], *group), wanted):
                print(done, flush=True)


def _made(folder: Path, side: str, number: int) -> list[Path]:
    """The runs of a group; none when it is not whole."""
    runs = sorted(run for run in folder.glob(f"*-chat-{side}-{number:02d}*") if (run / "report/summary.json").exists())
    return runs if len(runs) == REPEATS else []


def _group(folder: Path, url: str, side: str, number: int) -> str:
    label = f"{side}-{number:02d}"
    seed = 1000 * (number + 1) + (500 if side == "slow" else 0)
    command = [sys.executable, "-m", "loadgen.cli", "run", "chat", "--host", url, "--agents", "none", "--workers", "1"]
    command += [*LOAD, "--repeat", str(REPEATS), "--seed", str(seed), "--label", label, "--runs-dir", str(folder)]
    begun = time.monotonic()
    ended = subprocess.run(command, capture_output=True, text=True, timeout=_GROUP_S)
    if ended.returncode:
        raise RuntimeError(f"{label}: {ended.stderr[-2000:]}")
    return f"{label}: {REPEATS} runs in {time.monotonic() - begun:.0f} s"


class Rate(NamedTuple):
    """How many of how many comparisons failed their gate."""

    failed: int
    compared: int

    def __str__(self) -> str:
        low, high = wilson(self.failed, self.compared)
        return f"{self.failed} of {self.compared}: {self.failed / self.compared:.1%} ({low:.1%} to {high:.1%})"


def wilson(hits: int, number: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    z, share = NormalDist().inv_cdf(0.975), hits / number
    middle, reach = share + z * z / (2 * number), z * math.sqrt(share * (1 - share) / number + (z / (2 * number)) ** 2)
    return max((middle - reach) / (1 + z * z / number), 0.0), min((middle + reach) / (1 + z * z / number), 1.0)


def fails(base: Sequence[Member], new: Sequence[Member], text: str) -> bool:
    """Whether any gate of the text fails."""
    sides = RunSet("BASE", "", tuple(base)), RunSet("NEW", "", tuple(new))
    return overall(of_gates(*sides, parse_gates(text), levels(base[0].summary))) == FAIL


def rate(pairs: Iterable[tuple[Sequence[Member], Sequence[Member]]], text: str) -> Rate:
    found = [fails(base, new, text) for base, new in pairs]
    return Rate(sum(found), len(found))


def drawn(
    base: Sequence[Member], new: Sequence[Member], repeats: int, count: int, seed: int
) -> Iterator[tuple[list[Member], list[Member]]]:
    """Pairs of sides at random, none with a run twice."""
    rng = random.Random(seed)
    for _ in range(count):
        one = rng.sample(base, repeats)
        yield one, rng.sample([run for run in new if run not in one], repeats)


def in_turn(runs: Sequence[Member], splits: int) -> list[tuple[list[Member], list[Member]]]:
    """Runs that followed each other, ten at a time, in two sides: in turn, or in `splits` ways at random."""
    rng = random.Random(3)
    pairs = []
    for begin in range(0, len(runs) - 2 * REPEATS + 1, 2 * REPEATS):
        ten = list(runs[begin : begin + 2 * REPEATS])
        orders = [ten[::2] + ten[1::2]] if not splits else [rng.sample(ten, len(ten)) for _ in range(splits)]
        pairs += [(order[:REPEATS], order[REPEATS:]) for order in orders]
    return pairs


def study(folder: Path, groups: int) -> Iterator[str]:
    """The results in Markdown, line by line."""
    made = {
        side: [
            [Member(path, rundir.read_manifest(path), summary_of(path)) for path in runs]
            for number in range(groups)
            if (runs := _made(folder, side, number))
        ]
        for side in SPEEDUPS
    }
    pool = {side: sorted(itertools.chain.from_iterable(found), key=_begun) for side, found in made.items()}
    yield f"{len(pool['base'])} runs of the base, {len(pool['slow'])} of the slower simulator."
    yield ""
    yield "| figure | base | slower | shift | spread between runs, base | slower |"
    yield "|---|---|---|---|---|---|"
    for name in ("ttft_p95", "e2e_p95", "itl_p95", "qps"):
        yield _shift(pool, name)
    turns, splits = ([pair for runs in pool.values() for pair in in_turn(runs, number)] for number in (0, SPLITS))
    blocks = [pair for found in made.values() for pair in zip(found[::2], found[1::2], strict=False)]
    parts = [[runs[k : k + REPEATS] for k in range(0, len(runs) - REPEATS + 1, REPEATS)] for runs in pool.values()]
    shifted = list(zip(*parts, strict=False))
    yield from ("", "False alarms:", "")
    yield f"| gate | {len(turns)} pairs, in turn | {len(splits)} random splits of these | {len(blocks)} of groups |"
    yield "|---|---|---|---|"
    for text in TEXTS:
        yield f"| `{text}` | {' | '.join(str(rate(pairs, text)) for pairs in (turns, splits, blocks))} |"
    yield from ("", "Shifts found:", "")
    yield f"| gate | {len(shifted)} pairs, in turn | {len(made['base'])} pairs of groups |"
    yield "|---|---|---|"
    for text in TEXTS:
        found = [rate(pairs, text) for pairs in (shifted, list(zip(made["base"], made["slow"], strict=False)))]
        yield f"| `{text}` | {' | '.join(map(str, found))} |"
    yield from ("", "Runs drawn at random from all:", "")
    yield f"| repeats a side | false alarms of `{TEXTS[0]}` | shifts found |"
    yield "|---|---|---|"
    for repeats in (1, 2, 3, 5, 10):
        false = itertools.chain.from_iterable(
            drawn(runs, runs, repeats, DRAWS // 2, seed) for seed, runs in enumerate(pool.values())
        )
        shifts = drawn(pool["base"], pool["slow"], repeats, DRAWS, 9)
        yield f"| {repeats} | {rate(false, TEXTS[0])} | {rate(shifts, TEXTS[0])} |"


def _begun(run: Member) -> tuple[str, str]:
    return str(run.manifest["created"]), run.path.name


def _shift(pool: dict[str, list[Member]], name: str) -> str:
    logs = {
        side: np.log([value for run in runs if (value := value_of(run.summary["steps"][0], name)) is not None])
        for side, runs in pool.items()
    }
    means = [math.exp(float(values.mean())) for values in logs.values()]
    spreads = [f"{100 * float(values.std(ddof=1)):.1f} %" for values in logs.values()]
    shift = f"{100 * (means[1] / means[0] - 1):+.1f} %"
    return f"| {name} | {means[0]:.4g} | {means[1]:.4g} | {shift} | {' | '.join(spreads)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, required=True, help="where the runs are, or are made")
    parser.add_argument("--groups", type=int, default=GROUPS, help="groups of each simulator")
    parser.add_argument("--lanes", type=int, default=LANES, help="groups that are made at the same time")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    collect(options.runs_dir, options.groups, options.lanes)
    lines = []
    for line in study(options.runs_dir, options.groups):
        print(line, flush=True)
        lines.append(line)
    if options.write:
        RESULTS.write_text(_HEAD.format(groups=options.groups) + "\n".join(lines) + "\n" + _TAIL)


_HEAD = f"""# False alarms and power of `loadgen compare`

Real runs against two `loadgen simulator`s that differ in `--speedup` alone: all modelled times of the slower one are
{SLOWER} times as long.

    loadgen run chat {" ".join(LOAD)} --repeat {REPEATS}

That is a group. There are {{groups}} of each simulator, made in a random order, {LANES} at a time, in half an hour on
two cores that others used too; every run has a seed of its own. A false alarm is a gate that fails between runs of one
simulator. The limit +0% is where they are most likely: a gate with another limit has fewer. Several gates in one line
are corrected together (Holm): the rate is that of any failing.

In turn: of ten runs that followed each other every second one is on the other side; no run is in two of these pairs.
Of groups: {REPEATS} runs one after the other against {REPEATS} of another time; no run is in two of them either.
Random splits and draws use runs many times, so that their intervals (in brackets, 95 %, of independent comparisons)
are too narrow.

`python -m benchmarks.compare_study --runs-dir DIR --groups {{groups}} --write`

"""
_TAIL = """
**What to take from it.** With repeats of both sides made in turn, the gate keeps its 5 %. When all repeats of one side
are made before those of the other, what the machine did meanwhile is on one side only: here that was 1 to 2 %, which a
limit of +0% calls a difference, rightly, and a limit of +10% does not. `loadgen compare` says so when it sees it.
One run a side is judged by the intervals within the runs, which know nothing of what differs from run to run: hence
"indicative".
"""

if __name__ == "__main__":
    main()
