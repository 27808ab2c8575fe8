"""A report as Markdown, short enough for a pull request or a wiki page. Made of a summary alone.

Words of a server or a user are escaped: they cannot become HTML, a link or a table's border.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from analysis import finding_tables, tables
from analysis.report.page import said
from analysis.tables import Summary

# What makes HTML, a table's border, emphasis, a link or code.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")


def markdown(title: str, summary: Summary) -> str:
    """Verdict, steps, what binds, damage, caveats."""
    target = summary["target"]
    parts = [
        f"# {escaped(title)}",
        f"{escaped(target.get('url') or 'no endpoint')} · {escaped(target.get('model') or 'no model')} · "
        f"run {escaped(summary['run_id'])} · {escaped(summary['status'])}",
        _listed([f"{each.symbol} **{each.name}** ({each.word}): {escaped(each.text)}" for each in said(summary)]),
    ]
    if any(step["level"] for step in summary["steps"]):
        parts += ["## Steps", table(*tables.step_table(summary))]
    bottlenecks = finding_tables.bottleneck_table(summary)
    if bottlenecks[1]:
        parts += ["## What binds", table(*bottlenecks, words=True)]
    if summary["damage"]:
        found = [f"{escaped(finding['file'])}: {escaped(finding['text'])}" for finding in summary["damage"]]
        parts += ["## Damage", _listed(found)]
    caveats = [f"{escaped(caveat['text'])}; {escaped(caveat['remedy'])}" for caveat in summary["caveats"]]
    caveats += [
        f"{step['level']} {step['unit']}: {escaped(caveat['text'])}; {escaped(caveat['remedy'])}"
        for step in summary["steps"]
        for caveat in step["caveats"]
    ]
    parts += ["## Caveats", _listed(caveats) if caveats else "None."]
    return "\n\n".join(parts) + "\n"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], words: bool = False) -> str:
    """A table of text; numbers to the right, `words` to the left."""
    lines = [headers, [":--" if words else "--:"] * len(headers), *rows]
    shown = [[cell if number == 1 else escaped(cell) for cell in line] for number, line in enumerate(lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in shown)


def escaped(text: str) -> str:
    """As it is read, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
