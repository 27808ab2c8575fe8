"""The two sides of a comparison: which runs each is, and whether they may be compared. Reads manifests and summaries.

    side = item {"," item}
    item = DIR              a run directory, or the name of one under --runs-dir
         | group:DIR        all runs of the group of `--repeat` that DIR belongs to
         | label:NAME       all complete runs under --runs-dir that have this label

Runs of one side are repeats of one configuration; the sides may differ in the server only, and in what is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from analysis import damage
from analysis.report.saved import summary_of
from analysis.windows import readable
from loadgen import rundir
from loadgen.errors import Incomparable, RunDirError, UsageError

STEPS, STATUS, MODEL, SIMULATED = "steps", "status", "model", "simulated"
GROUP, LABEL = "group:", "label:"


class Member(NamedTuple):
    """A run of a side."""

    path: Path
    manifest: dict[str, Any]
    summary: dict[str, Any]


class RunSet(NamedTuple):
    """A side: BASE or NEW, as it was asked for, and its runs in the order in which they were made."""

    name: str
    asked: str
    runs: tuple[Member, ...]


def read_side(name: str, asked: str, runs_dir: Path) -> RunSet:
    """Raises UsageError for a text that names no run, RunDirError for a run that cannot be read."""
    paths: list[Path] = []
    for item in (item.strip() for item in asked.split(",")):
        for path in _found(item, runs_dir):
            if path in paths:
                raise UsageError(f"{name}: {path.name} is named twice: each run counts once")
            paths.append(path)
    members = [Member(path, damage.read_manifest(path, []), summary_of(path)) for path in paths]
    return RunSet(name, asked, tuple(sorted(members, key=lambda member: (_created(member), member.path.name))))


def _found(item: str, runs_dir: Path) -> list[Path]:
    if item.startswith(GROUP):
        return _group(_directory(item.removeprefix(GROUP), runs_dir))
    if item.startswith(LABEL):
        label = item.removeprefix(LABEL)
        runs = [(path, manifest) for path, manifest in manifests(runs_dir) if manifest["label"] == label]
        complete = [path for path, manifest in runs if manifest["status"] == rundir.COMPLETE]
        if not complete:
            raise UsageError(f"{item}: no complete run in {runs_dir} has this label: see loadgen runs, or --runs-dir")
        return complete
    return [_directory(item, runs_dir)]


def _directory(text: str, runs_dir: Path) -> Path:
    for path in (Path(text), runs_dir / text):
        with suppress(OSError):  # too long for a name, or in a folder that may not be entered
            if text and (path / rundir.MANIFEST).is_file():
                return path.resolve()
    raise RunDirError(f"{text!r} is no run directory, and none under {runs_dir}: see loadgen runs, or --runs-dir")


def _group(run: Path) -> list[Path]:
    group = group_of(damage.read_manifest(run, []))
    if group is None:
        raise UsageError(f"{GROUP}{run.name} was not made by --repeat: name its repeats, with commas in between")
    return [path for path, manifest in manifests(run.parent) if group_of(manifest) == group]


def group_of(manifest: dict[str, Any]) -> str | None:
    """The group of a run that was made by --repeat."""
    repeat = manifest.get("repeat")
    group = repeat.get("group") if isinstance(repeat, dict) else None
    return group if isinstance(group, str) else None


def manifests(runs_dir: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every run directory under `runs_dir` whose manifest can be read, by name; links to them are left out.

    Raises RunDirError when `runs_dir` cannot be read.
    """
    try:
        entries = sorted(entry for entry in runs_dir.iterdir() if entry.is_dir() and not entry.is_symlink())
    except OSError as error:
        raise RunDirError(f"cannot list the runs in {runs_dir}: {error.strerror}; give --runs-dir") from error
    found = []
    for entry in entries:
        try:
            found.append((entry.resolve(), damage.read_manifest(entry, [])))
        except RunDirError:
            continue  # of no run, or damaged: `loadgen runs` says so
    return found


def check(base: RunSet, new: RunSet, allowed: Sequence[str]) -> None:
    """Raises Incomparable with every reason, one a line; UsageError for what cannot be allowed."""
    members = [*base.runs, *new.runs]
    known = {STEPS, STATUS, MODEL, *(key for member in members for key in _comparable(member))} - {SIMULATED}
    if SIMULATED in allowed:
        raise UsageError("--allow simulated: the figures of a simulated GPU are never those of a real one")
    if unknown := sorted(set(allowed) - known):
        raise UsageError(f"--allow {', '.join(unknown)}: there is no such key; known are {', '.join(sorted(known))}")
    if both := {member.path for member in base.runs} & {member.path for member in new.runs}:
        raise UsageError(f"{', '.join(sorted(path.name for path in both))} is on both sides: each run counts once")
    reasons = [reason for side in (base, new) for reason in _inside(side, allowed)]
    reasons += _differing(base.name, base.runs[0], new.name, new.runs[0], set(allowed))
    if STEPS in allowed and not set(levels(base.runs[0].summary)) & set(levels(new.runs[0].summary)):
        reasons.append("BASE and NEW have no step in common: there is nothing to compare")
    if reasons:
        raise Incomparable("\n".join(dict.fromkeys(reasons)))


def _inside(side: RunSet, allowed: Sequence[str]) -> list[str]:
    """Why a side is not repeats of one configuration; what is allowed between the sides is not within one."""
    reasons = []
    for member in side.runs:
        status = member.manifest["status"]
        if status != rundir.COMPLETE and STATUS not in allowed:
            reasons.append(f"{side.name}: {member.path.name} is {status}: leave it out, or --allow {STATUS}")
        if not any(step["level"] for step in member.summary["steps"]):
            reasons.append(f"{side.name}: {member.path.name} has no step with a load: it has nothing to compare")
    first = side.runs[0]
    for other in side.runs[1:]:
        reasons += _differing(f"{side.name} {first.path.name}", first, other.path.name, other, set())
    return reasons


def _differing(here: str, one: Member, there: str, other: Member, allowed: Iterable[str]) -> list[str]:
    reasons = []
    for key, (before, after) in _keys(one, other).items():
        if before != after and key not in allowed:
            remedy = "" if key == SIMULATED else f"; when that is what you compare: --allow {key}"
            reasons.append(f"{key} differs: {here} has {_short(before)}, {there} has {_short(after)}{remedy}")
    return reasons


def differing(one: Member, other: Member) -> str:
    """The keys in which two runs differ that have to be equal, steps and model apart; empty without any."""
    unequal = {key for key, (before, after) in _keys(one, other).items() if before != after}
    return ", ".join(f"{key} differs" for key in sorted(unequal - {STEPS, MODEL}))


def _keys(one: Member, other: Member) -> dict[str, tuple[Any, Any]]:
    """What has to be equal, of both."""
    mine, theirs = (_of(member) for member in (one, other))
    return {key: (mine.get(key), theirs.get(key)) for key in {**mine, **theirs}}


def _of(member: Member) -> dict[str, Any]:
    simulated = bool(member.manifest["target"].get("simulated")) or bool(member.summary["simulated_gpu"])
    return {
        **_comparable(member),
        MODEL: member.manifest["target"].get("model"),
        STEPS: levels(member.summary),
        SIMULATED: simulated,
    }


def _comparable(member: Member) -> dict[str, Any]:
    return member.manifest["comparable"] or {}


def damaged(members: Iterable[Member]) -> list[str]:
    """What to say of runs whose files are damaged; nothing without any."""
    names = [member.path.name for member in members if member.summary["damage"]]
    return [f"files of {', '.join(names)} are damaged: their reports say what was left out"] if names else []


def levels(summary: dict[str, Any]) -> list[str]:
    """The steps of a run, as they are told apart: level, unit, and which of several of that level."""
    names: list[str] = []
    for step in summary["steps"]:
        name = f"{readable(step['level'])} {step['unit']}"
        again = sum(other == name or other.startswith(f"{name} #") for other in names)
        names.append(f"{name} #{again + 1}" if again else name)
    return names


def objectives(summary: dict[str, Any]) -> str | None:
    """The objectives that goodput was counted by; None without any."""
    return ", ".join(sorted(each["text"] for each in summary.get("slo") or [])) or None


def steps_of(side: RunSet, name: str) -> list[dict[str, Any]]:
    """The step of this name of every run of a side."""
    return [
        step
        for member in side.runs
        for label, step in zip(levels(member.summary), member.summary["steps"], strict=True)
        if label == name
    ]


def _created(member: Member) -> str:
    return str(member.manifest.get("created") or "")


def _short(value: Any) -> str:
    text = ", ".join(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}…"
