"""A check as text: a line with its verdict, and the remedy below. In colour on a terminal only."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from loadgen.doctor import CHECKS
from loadgen.doctor.check import Check, Verdict

_MARKS = {
    Verdict.OK: ("ok", "green"),
    Verdict.WARNING: ("warning", "yellow"),
    Verdict.FAILED: ("FAILED", "bold red"),
    Verdict.SKIPPED: ("skipped", "dim"),
    Verdict.NOT_APPLICABLE: ("n/a", "dim"),
}
_MARK_WIDTH = max(len(mark) for mark, _ in _MARKS.values())
_NAME_WIDTH = max(len(row.name) for row in CHECKS)


def show(console: Console, check: Check) -> None:
    mark, style = _MARKS[check.verdict]
    rest = f"  {check.name:<{_NAME_WIDTH}}  {check.found}"
    console.print(Text.assemble((f"{mark:<{_MARK_WIDTH}}", style), rest), soft_wrap=True)
    if check.remedy is not None:
        console.print(Text(f"{'':<{_MARK_WIDTH}}  {'':<{_NAME_WIDTH}}  -> {check.remedy}"), soft_wrap=True)
