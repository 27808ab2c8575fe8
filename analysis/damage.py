"""What is wrong with a run directory, in words: what is missing, cut, or nonsense.

Here: run.json, JSON lines, and what a directory should hold by its own manifest. Not here: shards (load.py). A file
costs its bad lines only, and each loss is a Damage; the one error is a run.json that nothing can be told from.
Instants of a Span are CLOCK_MONOTONIC ns of the controller.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from loadgen import rundir
from loadgen.errors import RunDirError

# No run is longer than this; one that has ended recorded nothing this long after its end.
_LONGEST_NS = 31 * 86_400 * 10**9
_SLACK_NS = 3600 * 10**9
_REQUIRED = {"run_id": str, "status": str, "target": dict, "plan": dict, "clock": dict}
_OPTIONAL = {
    **dict.fromkeys(("reason", "created", "label", "source_revision"), str),
    **dict.fromkeys(("scenario", "options", "versions", "host", "locust", "recorded", "comparable"), dict),
    "model_config": dict,
    **dict.fromkeys(("workers", "ended_ns"), int),
}
_WORD = 2**63  # columns are 64 bits wide
_LONGEST_TEXT = 200

Line = dict[str, Any]


class Damage(NamedTuple):
    """`file` is relative to the run directory; `text` says what is wrong and what became of it."""

    file: str
    text: str


class Span(NamedTuple):
    """The instants that a stamp of the controller can have, [first_ns, last_ns]."""

    first_ns: int
    last_ns: int

    def holds(self, value: Any) -> bool:
        return whole(value) and self.first_ns <= value <= self.last_ns


def whole(value: Any) -> bool:
    """An integer that fits into a column, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _WORD


def number(value: Any) -> bool:
    """A finite number, whole or not."""
    return whole(value) or (isinstance(value, float) and math.isfinite(value))


def sentence(error: object) -> str:
    """An error's text on one line, of bounded length."""
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…"


def read_manifest(run_dir: Path, found: list[Damage]) -> Line:
    """The manifest with every optional key: null when it is missing or nonsense.

    Raises RunDirError when run.json is missing, damaged, of an unknown schema, or without what a report needs.
    """
    manifest = rundir.read_manifest(run_dir)
    bad = [key for key, kind in _REQUIRED.items() if not isinstance(manifest.get(key), kind) or not manifest[key]]
    if "clock" not in bad and not whole(manifest["clock"].get("monotonic_ns")):
        bad.append("clock.monotonic_ns")
    if bad:
        raise RunDirError(
            f"{run_dir / rundir.MANIFEST} has no usable {', '.join(bad)}: the run cannot be analysed; look for a copy"
        )
    for key, kind in _OPTIONAL.items():
        if not isinstance(manifest.setdefault(key, None), kind | None):
            found.append(Damage(rundir.MANIFEST, f"{key} is nonsense: it is taken as not known"))
            manifest[key] = None
    share = manifest["plan"].get("warmup_share", 0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        found.append(Damage(rundir.MANIFEST, "plan.warmup_share is nonsense: the usual warm-up is left out"))
        del manifest["plan"]["warmup_share"]
    if not isinstance(manifest["plan"].get("steps", []), list):
        found.append(Damage(rundir.MANIFEST, "plan.steps is nonsense: it is not known what was planned"))
        del manifest["plan"]["steps"]
    manifest["target"].setdefault("url", None)
    return manifest


def span(manifest: Mapping[str, Any]) -> Span:
    """When the run's stamps can be, by its manifest."""
    first, ended = manifest["clock"]["monotonic_ns"], manifest["ended_ns"]
    longest = Span(first - _SLACK_NS, first + _LONGEST_NS)
    return Span(longest.first_ns, ended + _SLACK_NS) if longest.holds(ended) else longest


def read_steps(run_dir: Path, within: Span, found: list[Damage]) -> list[Line]:
    """Lines of steps.jsonl in the order that they were written; a step's begin follows its ramp, its end its begin."""

    def fits(line: Line) -> bool:
        return (
            within.holds(line.get("t_ns"))
            and line.get("what") in ("ramp", "begin", "end")
            and whole(line.get("step"))
            and number(line.get("level"))
            and line["level"] > 0
            and isinstance(line.get("unit", ""), str)
        )

    kept: list[Line] = []
    reached: dict[int, int] = {}
    lines = read_lines(run_dir / rundir.STEPS, run_dir, fits, found)
    for line in lines:
        if line["t_ns"] >= reached.get(line["step"], line["t_ns"]):
            reached[line["step"]] = line["t_ns"]
            kept.append(line)
    if len(kept) < len(lines):
        found.append(Damage(rundir.STEPS, f"{len(lines) - len(kept)} lines go back in time: they are left out"))
    return kept


def read_events(run_dir: Path, within: Span, found: list[Damage]) -> list[Line]:
    def fits(line: Line) -> bool:
        words = isinstance(line.get("kind", ""), str) and isinstance(line.get("text", ""), str)
        return words and within.holds(line.get("t_ns"))

    return read_lines(run_dir / rundir.EVENTS, run_dir, fits, found)


def read_probes(run_dir: Path, found: list[Damage]) -> list[Line]:
    uptime = Span(0, _WORD)  # of any host: the difference of two stamps still fits into a column

    def fits(line: Line) -> bool:
        stamps = [line.get(f"t{k}_ns") for k in range(4)]
        if not isinstance(line.get("host"), str) or not all(map(uptime.holds, stamps)):
            return False
        return bool(line["t0_ns"] <= line["t3_ns"] and line["t1_ns"] <= line["t2_ns"])

    return read_lines(run_dir / rundir.CLOCKS, run_dir, fits, found)


def read_examples(run_dir: Path, found: list[Damage]) -> list[Line]:
    """Raw texts of failures, one a kind and worker; there are none without failures."""

    def fits(line: Line) -> bool:
        texts = (line.get("outcome"), line.get("raw"), line.get("error") or "")
        return all(isinstance(text, str) for text in texts) and whole(line.get("t_ns"))

    paths = sorted((run_dir / rundir.REQUESTS).glob("*.errors.jsonl"))
    return [line for path in paths for line in read_lines(path, run_dir, fits, found)]


def read_lines(path: Path, run_dir: Path, fits: Callable[[Line], bool], found: list[Damage]) -> list[Line]:
    """The JSON objects of a file, one a line, that fit; a missing file has none, see `missing`."""
    name = str(path.relative_to(run_dir))
    try:
        texts = path.read_text(errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        found.append(Damage(name, f"it cannot be read ({error.strerror})"))
        return []
    lines: list[Line] = []
    bad: list[int] = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text) if text else None
        except (ValueError, RecursionError):
            line = text
        if isinstance(line, dict) and fits(line):
            lines.append(line)
        elif line is not None or text:
            bad.append(number)
    if bad == [len(texts)]:
        found.append(Damage(name, "its last line is cut: it is left out"))
    elif bad:
        found.append(Damage(name, f"nonsense in {len(bad)} lines, line {bad[0]} is the first: they are left out"))
    return lines


def never_watched(events: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The hosts on which no agent could be started, and why not."""
    events = list(events)
    started = {event.get("agent") for event in events if event.get("kind") == "agent_started"}
    failed = {str(event.get("agent")): str(event["text"]) for event in events if event.get("kind") == "agent_failed"}
    return {name: text for name, text in failed.items() if name not in started}


def missing(
    run_dir: Path, manifest: Mapping[str, Any], began: bool, events: Iterable[Mapping[str, Any]]
) -> list[Damage]:
    """What the manifest promises and the directory lacks; `began`: there was load."""
    found: list[Damage] = []

    def expect(name: str, loss: str) -> None:
        path = run_dir / name
        if not path.exists():
            found.append(Damage(name, f"it is missing: {loss}"))
        elif path.suffix == ".jsonl" and not path.stat().st_size:
            found.append(Damage(name, f"it is empty: {loss}"))

    given = (manifest["options"] or {}).get("agents")
    agents = [name for name in given.split(",") if name != "none"] if isinstance(given, str) else []
    is_recording = manifest["workers"] == 0
    if began or manifest["status"] == rundir.COMPLETE:
        workers = range(min(manifest["workers"] or 0, 10_000))
        for folder, loss in (
            ()
            if is_recording
            else (
                (rundir.REQUESTS, "requests are in no figure"),
                (rundir.WORKERS, "what the load-generating process did is not known"),
            )
        ):
            if not list((run_dir / folder).glob("*.arrow")):
                found.append(Damage(folder, f"it has no shard: {loss}"))
            else:
                for worker in workers:
                    expect(f"{folder}/worker-{worker}.arrow", loss)
        if list((run_dir / rundir.WORKERS).glob("*.histograms.arrow")):  # there was a time without
            for worker in workers:
                expect(f"{rundir.WORKERS}/worker-{worker}.histograms.arrow", "how late its reads were is not known")
        if manifest["plan"].get("steps"):
            expect(rundir.STEPS, "no step has figures")
        expect(rundir.LOGS, "what the processes said is lost")
        if agents:
            expect(rundir.EVENTS, "what else happened is not known")
            expect(rundir.CLOCKS, "samples of other hosts cannot be placed in time")
        if manifest["target"].get("simulated"):
            expect(rundir.TRUTH, "whether the simulator was on time is not known")
    if agents and (began or is_recording):
        watched = len(set(agents) - never_watched(events).keys())
        found += _missing_telemetry(run_dir, watched, bool(manifest["target"].get("simulated")))
    return found


def _missing_telemetry(run_dir: Path, agents: int, simulated: bool) -> Iterable[Damage]:
    """By what each host said of itself: a table a host, GPUs where it has some, the agent's own where it is real."""
    real = modelled = 0
    for folder in sorted((run_dir / rundir.TELEMETRY).glob("*/")):
        name = f"{rundir.TELEMETRY}/{folder.name}"
        try:
            hello = json.loads((folder / "hello.json").read_text())
            gpus, is_simulated = bool(hello["gpus"]), bool(hello["simulated"])
            by_smi = hello.get("nvml", {}).get("state") == "nvidia-smi"  # which tells of GPUs alone
        except FileNotFoundError:
            yield Damage(f"{name}/hello.json", "it is missing: what the host has is not known")
            gpus, by_smi, is_simulated = False, False, bool(list(folder.glob("gpu_*"))) and simulated
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            yield Damage(f"{name}/hello.json", "it is damaged: what the host has is not known")
            gpus, by_smi, is_simulated = False, False, bool(list(folder.glob("gpu_*"))) and simulated
        real, modelled = real + (not is_simulated), modelled + is_simulated
        for table in (["gpu_fast", "gpu_slow"] if gpus else []) + ([] if is_simulated or by_smi else ["host", "agent"]):
            if not (folder / f"{table}.arrow").exists():
                yield Damage(f"{name}/{table}.arrow", "it is missing: its figures are not known")
    if real < agents:
        yield Damage(rundir.TELEMETRY, f"{agents - real} of {agents} hosts that were watched left nothing")
    if simulated and not modelled:
        yield Damage(rundir.TELEMETRY, "the simulator's GPUs left nothing: their figures are not known")
    if simulated and not list((run_dir / rundir.TELEMETRY).glob("*/server.arrow")):
        yield Damage(f"{rundir.TELEMETRY}/*/server.arrow", "it is missing: queue and KV cache are not known")
