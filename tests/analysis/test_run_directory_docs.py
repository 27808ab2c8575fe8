"""docs/run-directory.md lists every column that is written, with its type, unit and meaning."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from loadgen import record, rundir
from loadgen.simulator.truth import TruthLog
from remote_agents.agent import sample

ROOT = Path(__file__).resolve().parents[2]
DOC = (ROOT / "docs" / "run-directory.md").read_text()


def table(heading: str) -> list[list[str]]:
    """Cells of the first table of the section, without its head."""
    section = re.split(r"^#+ ", DOC.partition(f"## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in row.strip("|").split(" | ")] for row in rows[2:]]


TABLES: list[tuple[str, Iterable[Any]]] = [
    ("requests/worker-N.arrow", record.REQUEST_COLUMNS),
    ("workers/worker-N.arrow", record.HEALTH_COLUMNS),
    ("workers/worker-N.histograms.arrow", record.HISTOGRAM_COLUMNS),
    *((f"telemetry/&lt;host&gt;/{name}.arrow", columns) for name, columns in sample.TABLES.items()),
]


@pytest.mark.parametrize(("heading", "columns"), TABLES, ids=[heading for heading, _ in TABLES])
def test_every_column_is_documented_as_it_is(heading: str, columns: Iterable[Any]) -> None:
    assert table(heading) == [[str(field) for field in column] for column in columns]


def test_the_simulators_columns_are_documented(tmp_path: Path) -> None:
    TruthLog(tmp_path / "truth.csv").close()
    head = (tmp_path / "truth.csv").read_text().strip()
    assert [row[0] for row in table("simulator/truth.csv")] == head.split(",")


def test_every_outcome_is_documented() -> None:
    assert all(f"`{outcome}`" in DOC for outcome in record.Outcome)


def test_every_name_of_the_directory_is_documented() -> None:
    names = [value for name, value in vars(rundir).items() if name.isupper() and isinstance(value, str)]
    assert len(names) > 10
    assert [name for name in names if name not in DOC and name != rundir.LATEST] == []


def texts(node: ast.AST) -> set[str]:
    """The string literals that an expression may become; of an f-string its beginning, with a star for the rest."""
    if isinstance(node, ast.JoinedStr):
        return {f"{text}*" for text in texts(node.values[0])}
    branches = [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]
    return {part.value for part in branches if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def kinds_written() -> set[str]:
    """Literals in the place of a kind in calls that write an event, and those that a name `kind` or `KIND` is given.

    One that begins with a literal is followed by one of these.
    """
    place = {"log_event": 1, "event": 0, "_event": 0, "log": 0, "_mark": 1, "Kind": 0}
    kinds: set[str] = set()
    named: set[str] = set()
    for path in [*(ROOT / "loadgen").rglob("*.py"), *(ROOT / "remote_agents").rglob("*.py")]:
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                kinds |= set().union(*map(texts, node.args[place[name] :][:1])) if name in place else set()
            elif isinstance(node, ast.Assign) and "event(" in text:
                names = {target.id for target in node.targets if isinstance(target, ast.Name)}
                kinds |= texts(node.value) if "kind" in names else set()
                named |= texts(node.value) if "KIND" in names else set()
    begun = {kind.removesuffix("*") for kind in kinds if kind.endswith("*")}
    return {kind for kind in kinds if not kind.endswith("*")} | named | {kind + end for kind in begun for end in named}


def test_the_kinds_of_events_are_documented() -> None:
    section = DOC.partition("## events.jsonl\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(\w+)`", section)) - {"agent_ns", "host", "t_ns"} == kinds_written()
