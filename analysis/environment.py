"""What else differs between two sides: options, versions, scenario, hosts, GPUs, driver, clocks. No clock.

Facts come from manifests, from what agents said of their hosts (telemetry/<host>/hello.json), and from summaries. A
fact that differs within a side is shown with all its values, each of them once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from analysis.sides import Member, RunSet, objectives
from analysis.tables import DASH
from loadgen import rundir

# Of a run, not of its configuration; and what is said elsewhere.
_OWN = {"seed", "label", "notes", "runs_dir", "repeat", "host", "agents_file", "slo"}
_OF_GPU = ("name", "sm_max_mhz", "mem_max_mhz", "mem_total_b", "pcie_gen", "pcie_width", "ecc_mode", "mig_mode")
# Clocks that differ by less are the same.
_MHZ = 25


class Fact(NamedTuple):
    """A fact that differs."""

    name: str
    base: str
    new: str


def differences(base: RunSet, new: RunSet) -> list[Fact]:
    """The facts that differ between the sides, or within one; in the order of the manifest."""
    sides = [[dict(_facts(member)) for member in side.runs] for side in (base, new)]
    names = dict.fromkeys(name for runs in sides for run in runs for name in run)
    rows = []
    for name in names:
        before, after = (sorted({run.get(name, DASH) for run in runs}) for runs in sides)
        if before != after or len(before) > 1:
            rows.append(Fact(name, _listed(before), _listed(after)))
    return rows


def _listed(values: list[str]) -> str:
    return " | ".join(values)


def _facts(member: Member) -> Iterator[tuple[str, str]]:
    manifest = member.manifest
    simulated = bool(manifest["target"].get("simulated"))
    if not simulated:  # the embedded simulator has another port each time
        yield from _flat("target.url", manifest["target"].get("url"))
    yield from _flat("model", manifest["target"].get("model"))
    yield from _flat("simulator", manifest["target"].get("simulator"))
    yield from _flat("scenario", manifest["scenario"])
    options = manifest["options"] or {}
    yield from _flat("options", {key: text for key, text in options.items() if key not in _OWN})
    yield from _flat("slo", objectives(member.summary))
    yield from _flat("workers", manifest["workers"])
    yield from _flat("loadgen revision", manifest["source_revision"])
    yield from _flat("versions", manifest["versions"])
    yield from _flat("load generator", manifest["host"])
    for path in sorted((member.path / rundir.TELEMETRY).glob("*/hello.json")):
        yield from _of_host(path)
    yield from _clocks(member.summary)


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Nested facts get a dotted name; what is not there is left out."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _flat(f"{name}.{key}", entry)
    elif value is not None and value != "" and value != []:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield name, text[:12] if name.endswith(".sha256") else text


def _of_host(path: Path) -> Iterator[tuple[str, str]]:
    """What an agent said of a host; of equal GPUs their number and one value."""
    try:
        hello = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if not isinstance(hello, dict):
        return
    name = path.parent.name
    nvml = hello.get("nvml")
    for key, title in (("driver", "driver"), ("version", "NVML")):
        yield from _flat(f"{name}: {title}", nvml.get(key) if isinstance(nvml, dict) else None)
    for key in ("cpus", "python"):
        yield from _flat(f"{name}: {key}", hello.get(key))
    gpus = [gpu for gpu in hello.get("gpus") or [] if isinstance(gpu, dict)]
    for key in _OF_GPU:
        values = Counter(json.dumps(gpu[key]).strip('"') for gpu in gpus if gpu.get(key) is not None)
        if values:
            yield f"{name}: GPU {key}", ", ".join(f"{number} x {value}" for value, number in values.items())


def _clocks(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The SM clock of the last step, rounded: the mean of the GPUs that tell it."""
    gpus = summary["steps"][-1].get("gpus") or [] if summary["steps"] else []
    known = [gpu["sm_mhz"] for gpu in gpus if gpu.get("sm_mhz") is not None]
    if known:
        yield "SM clock in the last step, MHz", f"{_MHZ * round(sum(known) / len(known) / _MHZ)}"
