"""What workers wrote, part by part: the rows that can be used, on the controller's clock.

Here: which shards there are, whose clock they speak, and their usable rows. A file is read as often as it is asked for,
so that none has to fit in memory. Not here: what is derived of the rows (requests.py, workers.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from analysis import arrow
from analysis.ahead import in_turn
from analysis.damage import Damage, Span
from loadgen import record, rundir
from remote_agents.clock import ClockFit, to_controller

# clocks.jsonl has probes of a worker's host under its name after this: an agent there has a clock of its own.
WORKER = "worker:"
_OUTCOMES = pa.array([str(outcome) for outcome in record.Outcome])


class Kind(NamedTuple):
    """A kind of shard that workers write. A row without one of `keys`, the first of which is a stamp, says nothing."""

    folder: str
    suffix: str
    columns: tuple[record.Column, ...]
    keys: tuple[str, ...]


REQUESTS = Kind(rundir.REQUESTS, ".arrow", record.REQUEST_COLUMNS, ("intended_ns", "outcome"))
HEALTH = Kind(rundir.WORKERS, ".arrow", record.HEALTH_COLUMNS, ("t_ns",))
HISTOGRAMS = Kind(rundir.WORKERS, ".histograms.arrow", record.HISTOGRAM_COLUMNS, ("t_ns", "name", "buckets", "counts"))


class Shard(NamedTuple):
    """A worker's file. `clock` is the host of the probes that tie its clock to the controller's, None if it is that.

    `fit` does so, see clocks.align; `filled`: it has rows.
    """

    kind: Kind
    path: Path
    file: str
    clock: str | None
    filled: bool
    fit: ClockFit | None = None

    @property
    def worker(self) -> int:
        """The worker's number, which the file's name ends in."""
        return int("".join(c for c in self.path.name if c.isdecimal()) or 0)


def shards(run_dir: Path, kind: Kind, boot_id: str, found: list[Damage]) -> list[Shard]:
    """Each readable shard of that kind."""
    there = []
    for path in sorted((run_dir / kind.folder).glob("*.arrow")):
        if "".join(path.suffixes) != kind.suffix:
            continue
        file = f"{kind.folder}/{path.name}"
        known = arrow.known(path, file, record.SCHEMA, found)
        if known is not None:
            ours = known.facts.get("boot_id", "") == boot_id
            there.append(Shard(kind, path, file, None if ours else f"{WORKER}{known.facts.get('host')}", known.filled))
    return there


def read(
    some: Sequence[Shard], kind: Kind, within: Span, found: list[Damage], columns: Sequence[str] | None = None
) -> Iterator[tuple[Shard, pa.Table]]:
    """The usable rows of the shards of a kind, in parts; with the columns that are named, else with all.

    A row is moved as a whole, by the offset of its clock at its first stamp: durations stay as they were measured.
    Parts of two shards are read at a time; what is wrong is added to `found` at the end, in the order of the shards.
    """
    wanted = [column for column in kind.columns if columns is None or column.name in (*columns, *kind.keys)]

    def parts(shard: Shard, wrong: list[Damage]) -> Iterator[tuple[Shard, pa.Table]]:
        for table in arrow.parts(shard.path, shard.file, wanted, wrong, _usable(shard, within)):
            yield shard, _moved(table, shard)

    mine = [shard for shard in some if shard.kind is kind and (shard.clock is None or shard.fit is not None)]
    wrong: list[list[Damage]] = [[] for _ in mine]
    yield from in_turn(map(parts, mine, wrong))
    found += chain.from_iterable(wrong)


def first_stamps(shard: Shard) -> NDArray[np.int64]:
    """The first stamp of each row, on the clock of the worker."""
    key = [column for column in shard.kind.columns if column.name == shard.kind.keys[0]]
    parts = [table[0].drop_null().to_numpy() for table in arrow.parts(shard.path, shard.file, key, [])]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _usable(shard: Shard, within: Span) -> Callable[[pa.Table], pa.Array]:
    """Which rows have all keys, an outcome that there is, and no stamp outside the run."""

    def good(table: pa.Table) -> pa.Array:
        rows = arrow.complete(table, shard.kind.keys)
        if "outcome" in shard.kind.keys:
            rows = pc.and_(rows, pc.is_in(table["outcome"], value_set=_OUTCOMES))
        moved = _moved(table, shard)
        for name in _stamps(table):
            inside = pc.and_(pc.greater_equal(moved[name], within.first_ns), pc.less_equal(moved[name], within.last_ns))
            rows = pc.and_(rows, pc.fill_null(inside, True))
        return rows

    return good


def _moved(table: pa.Table, shard: Shard) -> pa.Table:
    if shard.fit is None:
        return table
    at = pc.fill_null(table[shard.kind.keys[0]], 0).to_numpy()
    shift = pa.array(to_controller(shard.fit, at) - at)
    for name in _stamps(table):
        table = table.set_column(table.column_names.index(name), name, pc.add(table[name], shift))
    return table


def _stamps(table: pa.Table) -> list[str]:
    return [name for name in table.column_names if name.endswith("_ns")]
