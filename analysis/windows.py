"""Each step's windows, from what really happened (steps.jsonl): seconds since the run's start, on the controller.

A step is held from its `begin` line to its `end` line; its figures come from the measuring window, which leaves the
first `warmup_share` of the hold out. A step that never reached its level has no window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from analysis.clocks import start_ns
from analysis.load import Run
from loadgen.plan import WARMUP_SHARE

# The unit of a step of the open model.
RATE = "requests/s"


@dataclass(frozen=True)
class Window:
    """The level was asked for at `ramp_s` and there at `hold_s`; `begin_s` to `end_s` is measured.

    A level of "users" is how many there were, one of "requests/s" is the rate that was asked for. `ended` is False
    when a kill left the step without its end.
    """

    step: int
    level: int | float
    unit: str
    ramp_s: float
    hold_s: float
    begin_s: float
    end_s: float
    ended: bool

    @property
    def length_s(self) -> float:
        return self.end_s - self.begin_s

    @property
    def open(self) -> bool:
        """Whether requests were due on a schedule, whatever became of those before."""
        return self.unit == RATE


def step_windows(run: Run, last_s: float) -> tuple[list[Window], list[str]]:
    """The windows in the order of the steps, and those that were never reached, as "100 users".

    `last_s` is when the last request ended: the end of a step that was killed.
    """
    zero = start_ns(run)
    share = float(run.manifest["plan"].get("warmup_share", WARMUP_SHARE))
    steps: dict[int, dict[str, dict[str, Any]]] = {}
    for line in run.steps:
        steps.setdefault(int(line["step"]), {}).setdefault(line["what"], line)
    windows: list[Window] = []
    unreached: list[str] = []
    for step, lines in sorted(steps.items()):
        first = lines.get("ramp") or lines.get("begin")
        if first is None or "begin" not in lines:
            unreached.extend([" ".join(map(str, _level(first)))] if first else [])
            continue
        level, unit = _level(first)
        hold = (int(lines["begin"]["t_ns"]) - zero) / 1e9
        following = steps.get(step + 1, {}).get("ramp")
        if "end" in lines:
            end = (int(lines["end"]["t_ns"]) - zero) / 1e9
        else:
            end = max(hold, (int(following["t_ns"]) - zero) / 1e9 if following else last_s)
        windows.append(
            Window(
                step=step,
                level=level,
                unit=unit,
                ramp_s=(int(first["t_ns"]) - zero) / 1e9,
                hold_s=hold,
                begin_s=hold + share * (end - hold),
                end_s=end,
                ended="end" in lines,
            )
        )
    return windows, unreached


def readable(level: float) -> int | float:
    """An int where it is whole, else six digits: a rate of 100, or one of a third."""
    return int(level) if level == int(level) else float(f"{level:.6g}")


def _level(line: dict[str, Any]) -> tuple[int | float, str]:
    return readable(line["level"]), str(line.get("unit", "users"))
