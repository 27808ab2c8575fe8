"""What a run says, before any table: one sentence a topic, with its figure, its interval and a state. No clock.

    what was found   capacity, bottleneck, slo, failures, trends
    how far it holds client, load, sample, time, record, simulated (validity.py)

Made of a summary (analyse.py), which has it as `verdict`, and of what validity.Beside tells. A link is the id of the
section of the page that tells more. A recording has no load, so nothing is said of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from analysis import tables, validity
from analysis.answers import hung
from analysis.bottleneck import SURE
from analysis.interval_tables import interval
from analysis.operating import Working, knee, usable_steps, working
from analysis.ranges import Range, read
from analysis.tables import Summary, fine
from analysis.trend_words import quiet_s, without_trend
from analysis.validity import BAD, GOOD, NOTHING_BESIDE, UNKNOWN, WARN, Beside, Line, line
from analysis.windows import RATE
from analysis.within_slo import Measured, largest_load, limits, value_of
from loadgen.errors import UsageError
from loadgen.slo import Objective

# A share of failed requests above it is bad.
FAILED = 0.01
# Of a long list of failures this much is quoted.
_LONGEST_ERROR = 60
# In less time than this a leak or a drift need not show.
_LONG_S = 600.0


def verdict(summary: Summary, beside: Beside = NOTHING_BESIDE) -> list[Line]:
    """The sentences in the order in which they are read."""
    has_load = not any(step["level"] == 0 for step in summary["steps"])
    found = [*_capacity(summary), *_bottleneck(summary), *_slo(summary), *_failures(summary)] if has_load else []
    return [*found, *_trends(summary), *validity.lines(summary, has_load, beside)]


def objectives_of(summary: Summary) -> tuple[Objective, ...]:
    """Those that the run or its report was given."""
    return tuple(Objective(entry["metric"], entry["stat"] or "", entry["limit"]) for entry in summary.get("slo") or ())


def _capacity(summary: Summary) -> Iterator[Line]:
    best = tables.peak(summary)
    steps, left_out = usable_steps(summary)
    if best is None:
        why = "no request succeeded within the window of its step" if summary["steps"] else "no step reached its level"
        yield line("capacity", BAD if summary["steps"] else UNKNOWN, f"Not known: {why}.", "steps")
        return
    told = f"Peak {fine(best['qps'])} requests/s{_within(best['qps_ci95'])} at {best['level']} {best['unit']}"
    if not steps:
        yield line("capacity", BAD, f"{told}, but {left_out[0]['reason']}: no step tells the capacity.", "steps")
        return
    at = working(steps, tables.unit_of(summary), summary["steps"])
    seen, found = _knee(at)
    slo = objectives_of(summary)
    if not slo:
        yield line("capacity", GOOD if seen else WARN, f"{told}; {found}.", "curves")
        return
    state, most = _most(at, slo)
    yield line("capacity", state, f"{most}; {told[0].lower()}{told[1:]}; {found}.", "curves")


def _knee(at: Working) -> tuple[bool, str]:
    """Whether the knee was seen, and where it is."""
    figures = knee(at, [])
    if at.curve is None:
        return False, f"its knee is not known, as {at.refused}"
    value = read(figures, "knee")
    if value.value is None:
        return False, f"its knee was not reached: at {at.last.level:g} {at.unit} more load still brought more"
    return True, f"the knee is at {_level(value.value, at.unit)} {at.unit}{_range(value, at.unit)}"


def _most(at: Working, slo: Sequence[Objective]) -> tuple[str, str]:
    """State and words of the largest load within the SLO."""
    text = ", ".join(map(str, slo))
    try:
        found = limits(at, slo, [])
    except UsageError as error:
        why = str(error).removeprefix("--slo: ").partition(":")[0]
        return UNKNOWN, f"What it holds within {text} is not known, as {why}"
    level, qps = largest_load(at, found, [])
    if level.value is None or qps.value is None:
        return BAD, f"No measured load is within {text}"
    held = f"{fine(qps.value)} requests/s{_range(qps)} at {_level(level.value, at.unit)} {at.unit} within {text}"
    if found[0].beyond:
        return WARN, f"Holds {held}, and maybe more: no step breaks it"
    return GOOD, f"Holds {held}"


def _bottleneck(summary: Summary) -> Iterator[Line]:
    """Of the steps' own verdicts (bottleneck.py)."""
    first = summary.get("bottleneck")
    told = [step["bottleneck"] for step in summary["steps"] if step.get("bottleneck")]
    if first is not None:
        sure = first["confidence"] >= SURE
        state = UNKNOWN if not sure else BAD if first["verdict"] in ("client", "network") else WARN
        name = f"{tables.bottleneck_name(first['verdict'])} {'binds' if sure else 'may bind'}"
        where = f"From {first['level']:g} {first['unit']} on {name} (confidence {100 * first['confidence']:.0f} %)"
        text = f"{where}: {first['text'].rstrip('.')}. Next: {first['next'].rstrip('.')}."
        yield line("bottleneck", state, text, "bottleneck")
    elif told:
        last = max((step for step in summary["steps"] if step.get("bottleneck")), key=_load)
        share = last["bottleneck"]["confidence"]
        sure = share >= SURE
        begin = "Nothing binds yet" if sure else "Nothing was seen to bind"
        where = f"up to {last['level']:g} {last['unit']} (confidence {100 * share:.0f} %)"
        heavier = [step for step in summary["steps"] if _load(step) > _load(last)]
        failed = [step["level"] for step in heavier if step["requests"] or step["in_flight_mean"]]
        if failed:
            where += f", but no request succeeded within the window at {validity.levels_text(summary, failed)}"
        state = BAD if failed else GOOD if sure else UNKNOWN
        yield line("bottleneck", state, f"{begin} {where}.", "bottleneck")


def _load(step: dict[str, Any]) -> float:
    return float(step["level"])


def _slo(summary: Summary) -> Iterator[Line]:
    slo = objectives_of(summary)
    if not slo:
        yield line(
            "slo", UNKNOWN, "No objective was given: --slo ttft_p99<1s says up to which level it is met.", "steps"
        )
        return
    text, unit = ", ".join(map(str, slo)), tables.unit_of(summary)
    met: list[dict[str, Any]] = []
    lacking = breaking = ""
    for step in sorted(summary["steps"], key=_load):
        found = [(objective, value_of(step, objective)) for objective in slo]
        over = [(o, figure) for o, figure in found if figure is not None and figure.value >= o.limit]
        names = ", ".join(objective.name for objective, figure in found if figure is None)
        if over:
            breaking = f"at {step['level']} {unit} {_figure(step, *over[0])}"
            break
        if names:
            lacking = lacking or f"at {step['level']} {unit} {names} was not measured"
        else:  # a lighter load is served no worse
            met.append(step)
            lacking = ""
    where = "" if lacking else "not met at any step" if breaking else "no step reached its level"
    if met:
        where = "met up to" if len(met) < len(summary["steps"]) else "met at every step, up to"
        where += f" {met[-1]['level']} {unit}{_good(met[-1])}"
    state = (WARN if met else BAD) if breaking else GOOD if met and not lacking else UNKNOWN
    yield line("slo", state, f"{text}: {'; '.join(filter(None, (where, lacking, breaking)))}.", "steps")


def _figure(step: dict[str, Any], objective: Objective, figure: Measured) -> str:
    """A figure that is not below its limit."""
    if hung(step):
        return "no request was answered"
    name = f"{objective.metric.upper()} {objective.stat}" if objective.stat else "the error rate"
    within = interval([figure.low, figure.high]) if figure.low != figure.high else None
    if figure.value == float("inf"):
        return f"{name} is infinite, as failures reach it"
    told = f"{name} is {fine(figure.value)} {objective.unit}"
    return f"{told} ({within})" if within else told


def _good(step: dict[str, Any]) -> str:
    """The step's goodput, where the summary has one."""
    if step.get("goodput_qps") is None:
        return ""
    return f" (goodput {fine(step['goodput_qps'])} requests/s{_within(step.get('goodput_qps_ci95'))})"


def _failures(summary: Summary) -> Iterator[Line]:
    counted = sum(step["requests"] - step["cancelled"] for step in summary["steps"])
    failed = sum((Counter(step["errors"]) for step in summary["steps"]), Counter[str]())
    silent = [step["level"] for step in summary["steps"] if hung(step)]
    told = []
    if failed:
        share, (outcome, most) = sum(failed.values()) / counted, failed.most_common(1)[0]
        kind = next(
            (kind for kind in summary["failures"] if kind["outcome"] == outcome), {"outcome": outcome, "error": None}
        )
        many = f"{sum(failed.values())} of {counted} requests ({tables.share(share)} %) in the measuring windows failed"
        told.append(f"{many}, {'all' if len(failed) == 1 else f'{most} of them'} {_kind(kind)}")
    elif counted:
        told.append(f"All {counted} requests in the measuring windows succeeded")
    elif summary["failures"]:
        many = f"{sum(kind['requests'] for kind in summary['failures'])} requests of the run failed"
        told.append(f"{many}, most often {_kind(summary['failures'][0])}")
    if silent:
        told.append(f"{'no' if told else 'No'} request was answered at {validity.levels_text(summary, silent)}")
    if told:
        bad = silent or not counted or sum(failed.values()) > FAILED * counted
        state = BAD if bad else WARN if failed else GOOD
        yield line("failures", state, f"{'; '.join(told)}.", "failures")


def _kind(kind: dict[str, Any]) -> str:
    """An outcome with its text, which is quoted up to a length."""
    why = kind["error"] or ""
    quoted = why if len(why) <= _LONGEST_ERROR else f"{why[:_LONGEST_ERROR]}…"
    return f"{kind['outcome']}: {quoted}" if quoted else str(kind["outcome"])


def _trends(summary: Summary) -> Iterator[Line]:
    """Of the signals that were followed while the load stood still (trends.py)."""
    signals = summary.get("trends")
    if not signals:
        return
    leaks = [caveat["text"] for caveat in summary["caveats"] if caveat["code"] == "leak"]
    moving = [entry["text"] for entry in signals if entry["verdict"] in ("rising", "falling")]
    quiet = without_trend(summary)
    if leaks:
        yield line("trends", BAD, f"It leaks: {'; '.join(leaks)}.", "trends")
    elif moving:
        more = f", and {len(moving) - 1} more signals change (see there)" if len(moving) > 1 else ""
        yield line("trends", WARN, f"{moving[0]}{more}.", "trends")
    elif quiet:
        length_s = quiet_s(summary)
        if length_s < _LONG_S:
            text = f"{quiet} over {length_s:.0f} s: too short to say that nothing leaks or drifts."
            yield line("trends", UNKNOWN, text, "trends")
        else:
            yield line("trends", GOOD, f"{quiet} over {length_s / 60:.0f} minutes.", "trends")
    else:
        yield line(
            "trends", UNKNOWN, "Whether anything leaks or drifts is not known: the steps are too short.", "trends"
        )


def _level(value: float, unit: str) -> str:
    return fine(value) if unit == RATE else tables.count(value)


def _within(ends: Any) -> str:
    """The interval of a figure in brackets; nothing where there is none."""
    told = interval(ends)
    return "" if told == tables.DASH else f" ({told})"


def _range(figure: Range, unit: str = RATE) -> str:
    ends = [None if end is None else float(end) for end in (figure.low, figure.high)]
    told = interval(ends, lambda value: _level(value, unit))
    return "" if told == tables.DASH else f" ({told})"
