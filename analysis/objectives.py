"""Which requests meet the objectives that a run was given: the good ones of its goodput. ms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.damage import Damage, sentence
from loadgen import rundir
from loadgen.errors import UsageError
from loadgen.slo import Objective, parse_slo

# A request has no gaps between tokens in its row: their mean is its TPOT.
_COLUMNS = {"ttft": "ttft_ms", "e2e": "e2e_ms", "service": "service_ms", "itl": "tpot_ms", "tpot": "tpot_ms"}

Objectives = tuple[Objective, ...]


def objectives_of(manifest: dict[str, Any], asked: Objectives | None, found: list[Damage]) -> Objectives | None:
    """Those that were asked for, else those that the run was given; None where it was given none."""
    text = (manifest["options"] or {}).get("slo")
    if asked is not None or not text:
        return asked
    try:
        if not isinstance(text, str):
            raise UsageError(f"{text!r} is no text")
        return parse_slo(text)
    except UsageError as error:
        problem = f"options.slo is nonsense: there is no goodput ({' '.join(str(error).split())})"
        found.append(Damage(rundir.MANIFEST, sentence(problem)))
        return None


def listed(objectives: Objectives | None) -> list[dict[str, Any]] | None:
    """As summary.json has them; the unit of a limit is ms or %."""
    return (
        None
        if objectives is None
        else [{"text": str(each)} | each._asdict() | {"unit": each.unit} for each in objectives]
    )


def limits_of(objectives: Sequence[Objective]) -> dict[str, float]:
    """The limit of each latency, by its column: of several the largest, as some requests may exceed the others."""
    limits: dict[str, float] = {}
    for each in objectives:
        if each.stat:
            column = _COLUMNS[each.metric]
            limits[column] = max(each.limit, limits.get(column, 0.0))
    return limits


def good(frame: pd.DataFrame, objectives: Sequence[Objective]) -> NDArray[np.bool_]:
    """Which requests are OK and below the limit of each latency that they have."""
    met = frame["ok"].to_numpy(dtype=bool)
    for column, limit in limits_of(objectives).items():
        met = met & ~(frame[column].to_numpy() >= limit)
    return np.asarray(met)
