"""A user's mapping file: which series of a model server, one that we do not know, means which column of table `server`.

    [running]
    series = "my_server_active_requests"
    label = "state=busy"   # optional: only where the label has this value
    combine = "max"        # optional: sum (of all such series, the default) or max
    scale = 1.0            # optional: what to multiply by, for another unit

Read before a run begins, with every problem at once. No clock.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from remote_agents.agent.server_series import METRICS

_KEYS = ("series", "label", "combine", "scale")
_COMBINE = ("sum", "max")
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"([a-zA-Z_][a-zA-Z0-9_]*)=(.*)", re.DOTALL)


def read_metrics_map(path: str | Path) -> tuple[list[list[Any]], list[str]]:
    """Rows [column, series, [label, value] or None, "sum" or "max", scale] as agents take them, and what is wrong."""
    try:
        tables = tomllib.loads(Path(path).read_bytes().decode())
    except OSError as error:
        return [], [f"the mapping {path} cannot be read ({(error.strerror or str(error)).lower()}): give another file"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return [], [f"the mapping {path} is no TOML: {error}"]
    problems = [f"the mapping {path}, {problem}" for column in tables for problem in _problems(column, tables[column])]
    if not tables:
        problems = [f"the mapping {path} names no column: give one or more of {', '.join(METRICS)} as [column]"]
    return ([] if problems else [_row(column, tables[column]) for column in tables]), problems


def _row(column: str, table: dict[str, Any]) -> list[Any]:
    label = _LABEL.fullmatch(table.get("label", ""))
    combine, scale = table.get("combine", "sum"), float(table.get("scale", 1))
    return [column, table["series"], list(label.groups()) if label else None, combine, scale]


def _problems(column: str, table: object) -> Iterator[str]:
    if column not in METRICS:
        yield f"[{column}]: this is no column of table server; choose {', '.join(METRICS)}"
    if not isinstance(table, dict):
        yield f'{column}: write [{column}] in a line of its own, and series = "NAME" below it'
        return
    for key in table:
        if key not in _KEYS:
            yield f"[{column}] {key}: this key is unknown; choose {', '.join(_KEYS)}"
    series, label = table.get("series"), table.get("label")
    combine, scale = table.get("combine", "sum"), table.get("scale", 1)
    if series is None:
        yield f'[{column}]: the series is missing; give it as series = "NAME"'
    elif not isinstance(series, str) or not _NAME.fullmatch(series):
        yield f"[{column}] series {series!r}: give the name of a series, without labels"
    if label is not None and not (isinstance(label, str) and _LABEL.fullmatch(label)):
        yield f'[{column}] label {label!r}: give one label as "NAME=VALUE"'
    if combine not in _COMBINE:
        yield f"[{column}] combine {combine!r}: choose {' or '.join(_COMBINE)}"
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        yield f"[{column}] scale {scale!r}: give a number above 0"
