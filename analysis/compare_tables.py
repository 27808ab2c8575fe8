"""A comparison as words and rows: for the terminal, for a pull request and for its page. Pure, made of it alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from analysis.compared import COMPARED
from analysis.judgement import FAIL, NOT_MEASURED, PASS
from analysis.plan_tables import between
from analysis.tables import DASH, as_number, text

Comparison = dict[str, Any]
Rows = list[list[str]]

# What is always shown, with the figures of gates.
_MAIN = (
    *("qps", "goodput_qps", "output_tokens_per_s", "ttft_p50", "ttft_p95", "itl_p95", "e2e_p50", "e2e_p95"),
    *("error_rate", "vram", "power", "j_per_output_token", "prompt_tokens", "output_tokens", "queue"),
)
# In words, steps are named up to so many.
_NAMED = 3


def verdict(comparison: Comparison) -> str:
    """The verdict in a sentence or two."""
    gates, indication = comparison["gates"], comparison["indication"]
    if not gates:
        told = f"No gates were given. {effects_text(comparison)}"
        return told if not comparison["indicative"] else f"{told} This is indicative: {comparison['indicative']}."
    if indication == FAIL:
        failed = [gate for gate in gates if gate["verdict"] == FAIL]
        told = f"FAIL: {'; '.join(_failed(gate) for gate in failed)}"
    elif indication == PASS:
        every = f"all {len(gates)} gates are" if len(gates) > 1 else f"{gates[0]['gate']} is"
        told = f"PASS: {every} shown to hold at {_every(comparison['steps'])}"
    else:
        told = "NOT KNOWN: no gate failed, but " + "; ".join(_open(gate) for gate in gates if gate["verdict"] != PASS)
    return f"INDICATIVE, {told}. {_capital(comparison['indicative'])}." if comparison["indicative"] else f"{told}."


def effects_text(comparison: Comparison) -> str:
    """How many figures differ."""
    known = [effect for effect in comparison["effects"] if effect["p"] is not None]
    differ = [effect for effect in known if effect["differs"]]
    worse = sum(effect["direction"] == "worse" for effect in differ)
    if not differ:
        return f"None of {len(known)} figures differs by more than chance."
    return f"{len(differ)} of {len(known)} figures differ by more than chance, {worse} of them for the worse."


def side_text(side: dict[str, Any]) -> str:
    """What a side is."""
    runs = side["runs"]
    first = runs[0]["run_id"]
    named = first if len(runs) == 1 else f"{len(runs)} runs, {first} to {runs[-1]['run_id']}"
    about = ", ".join(str(side[key]) for key in ("scenario", "model") if side[key])
    return f"{named} ({about})" if about else named


def gate_table(comparison: Comparison) -> tuple[list[str], Rows]:
    """A row a gate and step: what is held against the limit, and what comes of it."""
    rows = [
        [
            gate["gate"],
            step["step"],
            step["verdict"],
            *(amount(gate["figure"], step[side]) for side in ("base", "new")),
            held(gate, step["value"]),
            between([held(gate, end) for end in step["value_bounds95"]]),
            probability(step["p_adjusted"]),
            _why(step),
        ]
        for gate in comparison["gates"]
        for step in gate["steps"]
    ]
    return ["gate", "step", "verdict", "BASE", "NEW", "held against limit", "bounds, 95 % each", "p (Holm)", ""], rows


def effect_table(comparison: Comparison, whole: bool = False) -> tuple[list[str], Rows]:
    """A row a step and figure: the main figures and those of gates; `whole`: all of them."""
    main = {*_MAIN, *(gate["figure"] for gate in comparison["gates"])}
    rows = [
        [
            effect["step"],
            heading(effect),
            *(amount(effect["figure"], effect[side]["value"]) for side in ("base", "new")),
            changed(effect, effect["change"]),
            between([changed(effect, end) for end in effect["change_ci95"]]),
            probability(effect["p_adjusted"]),
            effect["direction"] if effect["differs"] else "",
        ]
        for effect in comparison["effects"]
        if whole or effect["figure"] in main
    ]
    return ["step", "figure", "BASE", "NEW", "change", "95 %", "p (BH)", ""], rows


def left_out(comparison: Comparison) -> str:
    """What the short table leaves out; empty when nothing."""
    main = {*_MAIN, *(gate["figure"] for gate in comparison["gates"])}
    others = [effect for effect in comparison["effects"] if effect["figure"] not in main]
    differ = sum(effect["differs"] or False for effect in others)
    return f"{len(others)} more figures are in html and json, {differ} of them differ" if others else ""


def environment_table(comparison: Comparison) -> tuple[list[str], Rows]:
    return ["what differs", "BASE", "NEW"], [[f["name"], f["base"], f["new"]] for f in comparison["environment"]]


def notes(comparison: Comparison) -> list[str]:
    """What a reader should know of the runs."""
    told = []
    if comparison["simulated_gpu"]:
        told.append("simulated GPU: figures of GPU and server are a model's")
    if comparison["allowed"]:
        told.append(f"allowed to differ: {', '.join(comparison['allowed'])}")
    if comparison["left_out"]:
        told.append(f"only one side has {', '.join(comparison['left_out'])}: left out")
    return told + list(comparison["notes"])


def heading(effect: dict[str, Any]) -> str:
    return effect["title"] if effect["unit"] in ("/s", "tokens", "requests") else f"{effect['title']}, {effect['unit']}"


def amount(name: str, value: Any) -> str:
    """A figure as a reader sees it, in the unit of its table."""
    return text(as_number(value) if value == "inf" else value, COMPARED[name].show)


def changed(effect: dict[str, Any], value: Any) -> str:
    """A change: in %, or of what is no ratio in the figure's unit."""
    if value is None:
        return DASH
    if value == "inf":
        return "infinite"
    if effect["relative"]:
        return f"{value:+.{1 if abs(value) < 99.95 else 0}f} %" if value < 1000 else f"x {1 + value / 100:.3g}"
    return f"{value:+.2f} {'points' if effect['unit'] == '%' else ''}".rstrip()


def held(gate: dict[str, Any], value: Any) -> str:
    """What a gate looks at: a change in %, or NEW's own figure with its unit."""
    if gate["relative"] or value == "inf":
        return changed(gate, value)
    if value is None:
        return DASH
    unit = COMPARED[gate["figure"]].unit
    return f"{amount(gate['figure'], value)} {unit}".removesuffix(" tokens").removesuffix(" requests")


def probability(value: float | None) -> str:
    return DASH if value is None else "< 0.001" if value < 0.001 else f"{value:.2g}"


def _why(step: dict[str, Any]) -> str:
    needed = step["runs_needed"]
    return (step["why"] or "") + (f"; about {needed} runs a side would decide" if needed else "")


def _failed(gate: dict[str, Any]) -> str:
    """A gate that failed: where, and by how much."""
    steps = [step for step in gate["steps"] if step["verdict"] == FAIL]
    places = [f"at {step['step']} {held(gate, step['value'])}{_interval(gate, step)}" for step in steps[:_NAMED]]
    more = f" and {len(steps) - _NAMED} more steps" if len(steps) > _NAMED else ""
    return f"{gate['gate']} does not hold: {', '.join(places)}{more}"


def _interval(gate: dict[str, Any], step: dict[str, Any]) -> str:
    told = between([held(gate, end) for end in step["value_bounds95"]])
    return f" ({told})" if told != DASH else ""


def _open(gate: dict[str, Any]) -> str:
    if gate["verdict"] == NOT_MEASURED:
        without = [step for step in gate["steps"] if step["verdict"] == NOT_MEASURED]
        where = "" if len(without) == len(gate["steps"]) else f" at {without[0]['step']}"
        return f"{gate['gate']} cannot be judged{where}: {without[0]['why']}"
    steps = [step for step in gate["steps"] if step["verdict"] != PASS]
    places = [step["step"] + (_interval(gate, step) or f" ({step['why']})") for step in steps[:_NAMED]]
    more = f" and {len(steps) - _NAMED} more steps" if len(steps) > _NAMED else ""
    return f"{gate['gate']} is not shown to hold at {', '.join(places)}{more}"


def _every(steps: Iterable[str]) -> str:
    names = list(steps)
    return names[0] if len(names) == 1 else f"every step ({names[0]} to {names[-1]})"


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
