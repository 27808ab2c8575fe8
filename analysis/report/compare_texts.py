"""A comparison as text for a terminal, as Markdown for a pull request, and as JUnit XML for a CI system."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from analysis import compare_tables as tables
from analysis.judgement import FAIL, NOT_MEASURED, NOT_SHOWN, PASS
from analysis.plan_tables import aligned, between
from analysis.report.markdown import escaped

Comparison = dict[str, Any]
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# From what decides to what does not.
_ORDER = (FAIL, NOT_MEASURED, NOT_SHOWN, PASS)
METHOD = (
    "The run is the unit of replication: with two runs or more on both sides a figure is compared by Welch's t-test on "
    "run-level figures (their logarithms where a ratio is compared), otherwise by the intervals within the runs; where "
    "some are infinite, or 0, by the order of the runs (Smirnov's test, exact). "
    "A gate fails where NEW is shown to be beyond its limit with 95 % confidence, and passes where NEW is shown to be "
    "within it; p of gates is corrected by Holm over all gates and steps, p of figures by Benjamini-Hochberg."
)


def as_text(comparison: Comparison) -> str:
    """All of it, for a terminal."""
    lines = [tables.verdict(comparison), ""]
    lines += [f"{name.upper():<5} {tables.side_text(comparison[name])}" for name in ("base", "new")]
    if comparison["gates"]:
        lines += ["", *aligned(*tables.gate_table(comparison), words=3)]
    lines += ["", *aligned(*tables.effect_table(comparison), words=2), "", tables.effects_text(comparison)]
    if others := tables.left_out(comparison):
        lines.append(others)
    if comparison["environment"]:
        lines += ["", *aligned(*tables.environment_table(comparison), words=3)]
    lines += ["", *(f"note: {note}" for note in tables.notes(comparison))]
    return "\n".join(line.rstrip() for line in lines).rstrip() + "\n"


def as_markdown(comparison: Comparison) -> str:
    """For a pull request: the verdict and a row a gate; everything else is folded."""
    lines = [
        f"### Load test: {(comparison['verdict'] or 'no gates').upper()}",
        "",
        _said(tables.verdict(comparison)),
    ]
    if comparison["gates"]:
        lines += ["", *_table(*gates_in_short(comparison))]
        lines += _folded(f"Gates at every step ({len(comparison['steps'])})", *tables.gate_table(comparison))
    lines += _folded(f"Figures: {tables.effects_text(comparison)}", *tables.effect_table(comparison))
    differing = comparison["environment"]
    lines += _folded(
        f"Environment: {len(differing)} {'difference' if len(differing) == 1 else 'differences'}",
        *tables.environment_table(comparison),
    )
    lines += ["", "<details><summary>Runs and method</summary>", ""]
    lines += [f"- {name.upper()}: {_said(tables.side_text(comparison[name]))}" for name in ("base", "new")]
    lines += [f"- {_said(note)}" for note in tables.notes(comparison)]
    return "\n".join([*lines, f"- {METHOD}", "", "</details>"]) + "\n"


def gates_in_short(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """A row a gate, of the step that decides: the worst verdict, and of these the least probable by chance."""
    rows = []
    for gate in comparison["gates"]:
        step = min(gate["steps"], key=lambda s: (_ORDER.index(s["verdict"]), 1.0 if s["p"] is None else s["p"]))
        value = tables.held(gate, step["value"])
        within = between([tables.held(gate, end) for end in step["value_bounds95"]])
        rows.append([gate["gate"], gate["verdict"], value, within, step["step"]])
    return ["gate", "verdict", "NEW", "bounds, 95 % each", "at"], rows


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [headers, ["---"] * len(headers), *[[_said(cell) for cell in row] for row in rows]]
    return [f"| {' | '.join(line)} |" for line in lines]


def _folded(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    return ["", f"<details><summary>{html.escape(title)}</summary>", "", *_table(headers, rows), "", "</details>"]


def _said(text: str) -> str:
    """Text that Markdown leaves alone, and that calls nobody: a zero-width space follows each @."""
    return escaped(text).replace("@", "@\N{ZERO WIDTH SPACE}")


def as_junit(comparison: Comparison, strict: bool) -> str:
    """A test case a gate and step: failed; skipped where not shown (`strict`: failed); an error where not measured."""
    suite = ElementTree.Element("testsuite", name="loadgen compare", time="0")
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    about = ElementTree.SubElement(suite, "properties")
    for name in ("base", "new"):
        ElementTree.SubElement(about, "property", name=name, value=_xml(tables.side_text(comparison[name])))
    ElementTree.SubElement(about, "property", name="verdict", value=comparison["verdict"] or "")
    headers, rows = tables.gate_table(comparison)
    for row in rows:
        gate, step, verdict = row[:3]
        case = ElementTree.SubElement(suite, "testcase", classname=f"loadgen.{gate}", name=step, time="0")
        counts["tests"] += 1
        told = ", ".join(f"{name} {cell}" for name, cell in zip(headers[3:], row[3:], strict=True) if cell)
        if verdict == PASS:
            ElementTree.SubElement(case, "system-out").text = _xml(told)
            continue
        failed = verdict == FAIL or (strict and verdict == NOT_SHOWN)
        kind, counted = ("failure", "failures") if failed else ("error", "errors")
        if verdict == NOT_SHOWN and not failed:
            kind = counted = "skipped"
        counts[counted] += 1
        indicative = "indicative: " if comparison["indicative"] else ""
        ElementTree.SubElement(case, kind, message=_xml(f"{indicative}{gate} at {step}: {verdict}; {told}"))
    suite.attrib |= {name: str(number) for name, number in counts.items()}
    whole = ElementTree.Element("testsuites", {"name": "loadgen compare", **suite.attrib})
    whole.append(suite)
    ElementTree.indent(whole)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(whole, encoding="unicode") + "\n"


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 has no place for."""
    return _NO_XML.sub("?", text)
