"""Bottlenecks made on purpose: real runs against the simulator, whose limits are known, and what is judged of each.

    python -m benchmarks.bottleneck_cases --runs-dir DIR          runs every case, prints the table of confusions
    python -m benchmarks.bottleneck_cases --runs-dir DIR --again  judges the runs that are there already
    … --only NAME,NAME  some cases   --write  docs/bottleneck.md   --record  tests/analysis/data/bottlenecks.json

Every case is a run of several steps; what counts is the verdict on its last one. Cases of class `client` have
processes beside them that take the workers' core away.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from analysis.analyse import summarise
from analysis.bottleneck import CLASSES, NEEDED, judge
from benchmarks.bottlenecks_made import CASES, LATER, Case
from loadgen import conductor
from loadgen.options import parse_settings
from loadgen.simulator.config import SimulatorConfig

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "bottleneck.md"
RECORDED = ROOT / "tests" / "analysis" / "data" / "bottlenecks.json"
_BEGIN, _END = "<!-- confusion: begin -->", "<!-- confusion: end -->"
_STEP_S = 5


@contextmanager
def _rivals(count: int) -> Iterator[None]:
    """Processes that keep the last core busy, which the workers of a run with the simulator are on."""
    core = sorted(os.sched_getaffinity(0))[-1]
    program = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    with ExitStack() as ends:
        for _ in range(count):
            # Each in a session of its own, or the kernel's autogroups would give all of them the share of one.
            process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
            ends.callback(process.wait)
            ends.callback(process.kill)
        yield


def run(case: Case, runs_dir: Path) -> Path:
    """The run directory of a case, run now."""
    simulator = SimulatorConfig(**case.simulator)
    texts = {"step_time": f"{_STEP_S}s", "workers": "1", "label": case.name, "runs_dir": str(runs_dir)} | case.options
    settings = parse_settings(texts, simulated=True, steps_required=True)
    scenario = ROOT / "scenarios" / f"{case.scenario}.py"
    directory, settings = conductor.prepare(scenario, settings, print, simulator=simulator)
    with _rivals(case.rivals):
        conductor.conduct(directory, scenario, settings, simulator)
    return directory


def latest(case: Case, runs_dir: Path) -> Path | None:
    """The last run of a case that is there."""
    return max((path for path in runs_dir.glob("*") if path.name.split("-", 2)[-1] == case.name), default=None)


class Judged(NamedTuple):
    case: Case
    steps: list[dict[str, Any]]
    cards: list[dict[str, Any]]

    @property
    def found(self) -> dict[str, Any]:
        """What is said of the last step; of one without throughput nothing can be."""
        return judge(self.steps[-1], self.steps, self.cards) or {"verdict": "nothing", "confidence": 0.0}


def judged(case: Case, directory: Path) -> Judged:
    summary = summarise(directory)
    return Judged(case, summary["steps"], summary["gpu_facts"])


def confusion(found: Sequence[Judged]) -> str:
    """Rows: what was made; columns: what was said of it; Markdown."""
    said = [
        name
        for name in (*CLASSES, "nothing")
        if name != "nothing" or any(one.found["verdict"] == name for one in found)
    ]
    lines = [f"| made \\ said | {' | '.join(said)} | right |", "|---" * (len(said) + 2) + "|"]
    for truth in CLASSES:
        verdicts = [one.found["verdict"] for one in found if one.case.truth == truth]
        counts = [str(verdicts.count(name) or "") for name in said]
        lines.append(f"| {truth} | {' | '.join(counts)} | {verdicts.count(truth)} of {len(verdicts)} |")
    right = sum(one.found["verdict"] == one.case.truth for one in found)
    share = f"{100 * right / len(found):.0f} %" if found else "none"
    return "\n".join([*lines, "", f"{right} of {len(found)} cases are right ({share})."])


def _table(first: Sequence[Judged], later: Sequence[Judged]) -> str:
    parts = [confusion([*first, *later])]
    for name, part in (("that the rules were made with", first), ("that were made when the rules were ready", later)):
        right = sum(one.found["verdict"] == one.case.truth for one in part)
        if part:
            parts.append(f"Of the cases {name}: {right} of {len(part)}.")
    return "\n".join(parts)


def listing(found: Sequence[Judged]) -> str:
    """A row a case: what it was made of, and what was said of each of its steps."""
    lines = ["| case | made | said of each step, with its confidence |", "|---|---|---|"]
    for one in found:
        told = [judge(step, one.steps, one.cards) for step in one.steps]
        steps = ", ".join(
            f"{step['level']:g}: {what['verdict']} {what['confidence']:.2f}"
            for step, what in zip(one.steps, told, strict=True)
            if what
        )
        lines.append(f"| {one.case.name} | {one.case.truth} | {steps} |")
    return "\n".join(lines)


def recorded(found: Sequence[Judged]) -> str:
    """What `judge` reads of each case, as JSON, a line a case; figures to four digits."""
    lines = [
        json.dumps(
            {
                "name": one.case.name,
                "truth": one.case.truth,
                "speedup": one.case.simulator["speedup"],
                "cards": [{key: card[key] for key in ("uuid", "name", "sm_max_mhz")} for card in one.cards[:1]],
                "steps": [_stripped(step) for step in one.steps],
            },
            separators=(",", ":"),
        )
        for one in found
    ]
    return "[\n" + ",\n".join(lines) + "\n]\n"


# Of a GPU's or a host's entry, what says nothing of a bottleneck; eight like GPUs are recorded as one.
_UNREAD = frozenset(
    {
        *("host", "index", "gi_id", "coverage", "bound_ms", "occ_pct", "temp_c", "pcie_bytes_per_s"),
        *("nvlink_bytes_per_s", "vram_effective_bytes", "steal_pct", "psi_mem_some_pct", "mem_available_bytes"),
        *("mem_total_bytes", "net_rx_bytes_per_s", "net_tx_bytes_per_s", "net_drops_per_s"),
    }
)


def _stripped(step: dict[str, Any]) -> dict[str, Any]:
    """A step's entry less what is not read."""
    kept = {name: step.get(name) for name in NEEDED}
    for name in ("ttft_ms_ok", "e2e_ms_ok"):
        kept[name] = {"mean": step[name]["mean"]}
    kept["gpus"] = [{key: value for key, value in gpu.items() if key not in _UNREAD} for gpu in step["gpus"][:1]]
    kept["hosts"] = [{key: value for key, value in host.items() if key not in _UNREAD} for host in step["hosts"]]
    rounded: dict[str, Any] = json.loads(json.dumps(kept), parse_float=lambda text: float(f"{float(text):.4g}"))
    return rounded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, required=True)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[case.name for case in (*CASES, *LATER)])
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    found = []
    for case in (*CASES, *LATER):
        if case.name in asked.only:
            directory = latest(case, asked.runs_dir) if asked.again else run(case, asked.runs_dir)
            if directory is not None:
                found.append(judged(case, directory))
    first = [one for one in found if one.case in CASES]
    later = [one for one in found if one.case in LATER]
    table, cases = _table(first, later), listing(found)
    print(f"{table}\n\n{cases}")
    if asked.write:
        text = DOCUMENT.read_text()
        block = f"{_BEGIN}\n{table}\n\n{cases}\n{_END}"
        DOCUMENT.write_text(re.sub(f"{_BEGIN}.*{_END}", lambda _: block, text, flags=re.DOTALL))
    if asked.record:
        RECORDED.write_text(recorded(found))


if __name__ == "__main__":
    main()
