"""Where the columns of one GPU come from: the way that works for each, what is lacking, and when to ask for it again.

The way that worked first stays for the run: two ways may be two quantities. What the errors mean is in gpu_errors.py.
A clock is CLOCK_MONOTONIC ns of this host, given by the caller.
"""

import math
from typing import Any, Dict, List, Mapping, Optional, Sequence

from remote_agents.agent.gpu_errors import GONE, LOST, NEVER, NVML_ERRORS, is_due_to_be_said
from remote_agents.agent.gpu_readings import Call, Field, Handle, Outcome, Reading, Value, Way, read_fields
from remote_agents.agent.outbox import Outbox

RETRY_ABSENT_NS = 60_000_000_000
FIRST_RETRY_NS = 100_000_000  # after an error that may pass; twice as long after each more
LAST_RETRY_NS = 5_000_000_000

# NVML sets all bits, of 32 or 64, where it has no value; and a column is a signed integer of 64.
_ALL_32 = (1 << 32) - 1
_TOO_LARGE = 1 << 63

Answers = Mapping[Field, Outcome]


class Lacks:
    """What a GPU lacks, said once, and the errors of it that may pass, counted."""

    def __init__(self, outbox: Outbox, name: str, uuid: str, index: int) -> None:
        self.name = name
        self.absent: Dict[str, str] = {}
        self._errors: Dict[str, int] = {}
        self._outbox = outbox
        self._uuid = uuid
        self._index = index

    def never(self, columns: Sequence[str], reason: str) -> None:
        new = [column for column in columns if column not in self.absent]
        if new:
            self.absent.update(dict.fromkeys(new, reason))
            names = ", ".join(new)
            self.event("gpu_absent", f"{self.name} has no {names}: {reason}", column=names)

    def passing(self, columns: Sequence[str], reason: str) -> None:
        names = ", ".join(columns)
        count = self._errors[names] = self._errors.get(names, 0) + 1
        if is_due_to_be_said(count):
            text = f"{self.name} did not tell its {names}: {reason} ({count} so far)"
            self.event("nvml_error", text, column=names, count=count)

    def event(self, kind: str, text: str, **facts: Any) -> None:
        self._outbox.event(kind, text, gpu_uuid=self._uuid, gpu_index=self._index, **facts)


class Source:
    """The way in use for one reading, or the time of the next attempt."""

    def __init__(self, reading: Reading, lacks: Lacks) -> None:
        self.reading = reading
        self.used: Optional[Way] = None
        self._ways = reading.ways  # one, once it has worked
        self._missing: List[Value] = [None] * len(reading.columns)
        self._lacks = lacks
        self._retry_ns = 0
        self._failures = 0

    def field(self, now_ns: int) -> Optional[Field]:
        """The field that the next `values` needs an answer of."""
        way = self._ways[0] if self._ways and now_ns >= self._retry_ns else None
        return way if isinstance(way, Field) else None

    def values(self, handle: Handle, now_ns: int, answers: Answers) -> List[Value]:
        """A value for each column; None where there is none, which is said."""
        found = self.attempt(handle, now_ns, answers)
        if found is None:
            return self._missing
        return list(map(self._value, self.reading.columns, found))

    def attempt(self, handle: Handle, now_ns: int, answers: Answers) -> Optional[Sequence[Any]]:
        """What the way in use returns, or the first that works; None: not now. Raises LOST and GONE."""
        if now_ns < self._retry_ns:
            return None
        reason = ""
        for way in self._ways:
            try:
                found = way.read(handle) if isinstance(way, Call) else (_raised(answers[way]),)
            except (*LOST, *GONE):
                raise
            except NEVER as error:
                reason = reason or f"{way.name}: {error}"
                continue
            except NVML_ERRORS as error:
                self._retry_ns = now_ns + min(FIRST_RETRY_NS << min(self._failures, 10), LAST_RETRY_NS)
                self._failures += 1
                self._lacks.passing(self.reading.columns, f"{way.name}: {error}")
                return None
            if self.used is None:
                self.used = way
                self._ways = (way,)
            self._failures = 0
            return found
        if self._ways:
            self._retry_ns = now_ns + RETRY_ABSENT_NS
            self._lacks.never(self.reading.columns, reason)
        return None

    def _value(self, column: str, outcome: Outcome) -> Value:
        if isinstance(outcome, Exception):
            tell = self._lacks.never if isinstance(outcome, NEVER) else self._lacks.passing
            tell((column,), f"{self._way_name}: {outcome}")
            return None
        if isinstance(outcome, int):
            if outcome == _ALL_32 or outcome >= _TOO_LARGE:
                self._lacks.never((column,), f"{self._way_name}: all bits are set")
                return None
        elif outcome is not None and not math.isfinite(outcome):
            self._lacks.passing((column,), f"{self._way_name}: {outcome} is no number")
            return None
        return outcome

    @property
    def _way_name(self) -> str:
        return self.used.name if self.used else ""


class Row:
    """The columns of one table from their sources, the fields by one call."""

    def __init__(self, readings: Sequence[Reading], lacks: Lacks) -> None:
        self.sources = [Source(reading, lacks) for reading in readings]
        self._of_fields = [source for source in self.sources if source.field(0) is not None]

    def values(self, handle: Handle, now_ns: int) -> List[Value]:
        answers = read_fields(handle, self.fields(now_ns))
        values: List[Value] = []
        for source in self.sources:
            values += source.values(handle, now_ns, answers)
        return values

    def fields(self, now_ns: int) -> List[Field]:
        return [field for field in [source.field(now_ns) for source in self._of_fields] if field is not None]


def _raised(outcome: Outcome) -> Value:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
