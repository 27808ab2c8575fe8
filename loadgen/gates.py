"""The grammar of gates: "ttft_p95<+20%, vram<+10%, error_rate<2%, qps>-5%". Text in, limits out; no clock.

    gates    = gate {"," gate}
    gate     = figure "<" limit | figure ">" limit       "<" where less is better, ">" where more is
    limit    = ("+" | "-") number "%"                    relative: against BASE
             | number unit                               absolute: NEW alone, such as 1s, 70GiB, 2%, 300W, 100

FIGURES has what can be gated. A relative gate allows for what is worse: ttft_p95<+20%, qps>-5%. Whether a comparison
passes them is not decided here (analysis/compare.py).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from loadgen.errors import UsageError
from loadgen.plan import parse_duration
from loadgen.slo import ERROR_RATE, METRICS, STATS

EXAMPLE = "ttft_p95<+20%,vram<+10%,error_rate<2%"


class Measure(NamedTuple):
    """`better` is "<", ">", or "" where a change of either way may be what is not wanted."""

    unit: str
    better: str


FIGURES: dict[str, Measure] = {
    "qps": Measure("/s", ">"),
    "goodput_qps": Measure("/s", ">"),
    "output_tokens_per_s": Measure("/s", ">"),
    **{f"{metric}_{stat}": Measure("ms", "<") for metric in METRICS for stat in STATS},
    ERROR_RATE: Measure("%", "<"),
    "vram": Measure("B", "<"),
    "vram_effective": Measure("B", "<"),
    "power": Measure("W", "<"),
    "j_per_output_token": Measure("J", "<"),
    "gpu_util": Measure("%", ""),
    "prompt_tokens": Measure("tokens", ""),
    "output_tokens": Measure("tokens", ""),
    "queue": Measure("requests", "<"),
}
# Which are 0 where all is well: a ratio of them says nothing.
ABSOLUTE_ONLY = (ERROR_RATE, "queue")
_BYTES = {"b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_UNITS: dict[str, dict[str, float]] = {
    "/s": {"": 1, "/s": 1},
    "%": {"%": 1},
    "B": {unit: float(size) for unit, size in _BYTES.items()},
    "W": {"w": 1, "kw": 1000},
    "J": {"j": 1, "mj": 0.001},
    "tokens": {"": 1},
    "requests": {"": 1},
}
_ABSOLUTE = {
    "/s": "100",
    "ms": "1s",
    "%": "2%",
    "B": "70GiB",
    "W": "300W",
    "J": "0.5J",
    "tokens": "200",
    "requests": "5",
}
_GATE = re.compile(r"(?P<name>[^<>=]*?)\s*(?P<sign>[<>=]+)\s*(?P<limit>[^<>=]*)")
_RELATIVE = re.compile(r"(?P<sign>[+-])\s*(?P<number>\d+\.?\d*|\.\d+)\s*%")
_NUMBER = re.compile(r"(?P<number>\d+\.?\d*|\.\d+)\s*(?P<unit>[a-zA-Z/%]*)")


class Gate(NamedTuple):
    """`sign` is the side of the limit that is good; `limit` is in the figure's unit, of a relative gate a ratio."""

    figure: str
    sign: str
    relative: bool
    limit: float
    text: str

    def __str__(self) -> str:
        return self.text


def parse_gates(text: str) -> tuple[Gate, ...]:
    """The gates of a text, in its order.

    Raises UsageError with every problem, one a line.
    """
    found: list[Gate] = []
    problems = []
    for part in (part.strip() for part in text.split(",")):
        try:
            gate = _gate(part)
            if any((gate.figure, gate.sign, gate.relative) == (o.figure, o.sign, o.relative) for o in found):
                raise UsageError(f"{gate.figure} has two limits of one kind: give one")
            found.append(gate)
        except UsageError as error:
            problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))
    return tuple(found)


def _gate(text: str) -> Gate:
    match = _GATE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no gate: write gates such as {EXAMPLE}")
    name, sign, limit = match["name"].lower(), match["sign"].rstrip("="), match["limit"].strip()
    kind = FIGURES.get(name)
    if kind is None:
        raise UsageError(f"{name!r} is no figure of a comparison: give one of {_listed()}")
    if sign not in ("<", ">"):
        raise UsageError(f"{text!r} has {match['sign']!r}: write {name}{kind.better or '<'} and a limit")
    if kind.better and sign != kind.better:
        better = "less" if kind.better == "<" else "more"
        example = f"{name}{kind.better}{_example(name, kind)}"
        raise UsageError(f"{text!r} is the wrong way round: of {name} {better} is better, so write {example}")
    if relative := _RELATIVE.fullmatch(limit):
        return _relative(text, name, sign, relative)
    return Gate(name, sign, False, _absolute(text, name, kind, limit), f"{name}{sign}{limit.replace(' ', '')}")


def _relative(text: str, name: str, sign: str, match: re.Match[str]) -> Gate:
    if name in ABSOLUTE_ONLY:
        example = f"{name}<{_ABSOLUTE[FIGURES[name].unit]}"
        raise UsageError(f"{text!r}: {name} may well be 0, and a share of 0 is 0: give a limit such as {example}")
    share = float(match["sign"] + match["number"]) / 100
    if (share < 0) == (sign == "<") and share != 0:
        asks = "+" if sign == "<" else "-"
        raise UsageError(f"{text!r} asks NEW to be better than BASE: give what is still good, as {name}{sign}{asks}5%")
    if share <= -1:
        raise UsageError(f"{text!r} allows for all to be lost: give less than 100 %")
    return Gate(name, sign, True, 1 + share, f"{name}{sign}{match['sign']}{match['number']}%")


def _absolute(text: str, name: str, kind: Measure, limit: str) -> float:
    if kind.unit == "ms":
        if re.fullmatch(r"[\d.]+\s*%?", limit):
            raise UsageError(f"{text!r} has no unit: give a time such as {name}<1s, or a share such as {name}<+20%")
        value = 1000 * parse_duration(limit)
    else:
        match = _NUMBER.fullmatch(limit)
        factor = _UNITS[kind.unit].get(match["unit"].lower()) if match else None
        if match is None or factor is None:
            raise UsageError(f"{text!r}: of {name} a limit is written {_example(name, kind)}")
        value = factor * float(match["number"])
    if value <= 0 or (kind.unit == "%" and value > 100):
        raise UsageError(f"{text!r} must have a limit above 0{' and up to 100 %' if kind.unit == '%' else ''}")
    return value


def _example(name: str, kind: Measure) -> str:
    absolute = _ABSOLUTE[kind.unit]
    return absolute if name in ABSOLUTE_ONLY else f"{'-5%' if kind.better == '>' else '+20%'} or {absolute}"


def _listed() -> str:
    timed = f"{'|'.join(METRICS)} with {'|'.join(STATS)} (ttft_p95)"
    return f"{', '.join(name for name, kind in FIGURES.items() if kind.unit != 'ms')}; or {timed}"
