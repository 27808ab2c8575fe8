"""How a system scales, in words and rows, for the terminal and for a page. Made of what scaling.py gives alone."""

from __future__ import annotations

from typing import Any

from analysis.checks import SIMULATED_GPU
from analysis.plan_tables import aligned, shown
from analysis.tables import DASH, count, fine, text

Scaling = dict[str, Any]

MEASURES = {"output_tokens_per_s": "output tokens/s", "qps": "requests/s"}
# What ate the rest -> in a table, and what to do.
EATERS = {
    "nothing": ("nothing", ""),
    "load": ("not known: too little load", "measure higher levels until more load brings no more"),
    "client": ("the client", "use more workers, or more machines to send from"),
    "fed": ("cards wait for work", "look at what is before them: front end, CPU, network, batch limits, the load"),
    "balance": (
        "the balancer",
        "look at how requests are shared out: in turn and not by queue, or by sessions that stick to a card",
    ),
    "clock": ("power or heat", "look at power limits and cooling: all cards at work draw more than one"),
    "communication": ("communication", "fewer cards a replica and more replicas, or faster links between the cards"),
    "work": (
        "less done while busy",
        "look for smaller batches, and for cards that wait for each other while they count as busy",
    ),
    "unknown": ("not known", "watch the GPUs with agents, and measure steps that are long enough for intervals"),
}


# A law that a run lies further off is not told from.
_APART_PCT = 10.0


def of_ideal(value: float) -> str:
    """A share of 1 in %, which may be more than all of it."""
    return f"{round(100 * value, 1) + 0.0:.1f}"


def verdict(scaling: Scaling) -> str:
    """The whole in one sentence, of the run with the most cards."""
    first, last = scaling["runs"][0], scaling["runs"][-1]
    times, within = shown(last, "speedup")
    efficiency, _ = shown(last, "efficiency", of_ideal)
    told = (
        f"{last['cards']} cards do {times} times ({within}) the {MEASURES[scaling['measure']]} of {first['cards']}: "
        f"{efficiency} % of {last['ideal_speedup']:g} times"
    )
    if not first["saturated"]:
        return f"{told}; as the run with {first['cards']} did not show its limit, it may be less."
    eater, _ = EATERS[last["eaten_by"]]
    rest = "nothing that can be told is lost" if last["eaten_by"] == "nothing" else f"the rest is eaten by: {eater}"
    return f"{told}; {rest}."


def remedy(scaling: Scaling) -> str:
    """What to do about what ate most of the rest; empty where nothing did."""
    return EATERS[scaling["runs"][-1]["eaten_by"]][1]


def peak_table(scaling: Scaling) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: peaks, speed-up and efficiency with their intervals, and what ate the rest; a row a run."""
    headers = ["cards", f"at {scaling['unit']}", "QPS", "95 %"]
    tokens = scaling["measure"] == "output_tokens_per_s"
    headers += ["output tok/s", "95 %"] if tokens else []
    headers += ["speed-up", "95 %", "efficiency %", "95 %", "serial share %", "eaten by"]
    within = ["QPS within the SLO", "95 %", "efficiency within it %", "95 %"] if scaling["slo"] else []
    rows = []
    for run in scaling["runs"]:
        row = [str(run["cards"]), f"{run['level']:g}" + ("" if run["saturated"] else " (no limit seen)")]
        row += shown(run, "qps")
        row += shown(run, "output_tokens_per_s", count) if tokens else ()
        row += (*shown(run, "speedup"), *shown(run, "efficiency", of_ideal), text(run["serial_share"], of_ideal))
        row.append(DASH if run["eaten_by"] is None else EATERS[run["eaten_by"]][0])
        if within:
            row += (*shown(run, "max_qps_within_slo"), *shown(run, "efficiency_within_slo", of_ideal))
        rows.append(row)
    return headers + within, rows


def loss_table(scaling: Scaling) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: what a card did, how even the cards were, what went over the links, and the factors."""
    headers = ["cards", f"{MEASURES[scaling['measure']]} a card", "95 %", "util % least", "mean", "most"]
    headers += ["running", "waiting", "NVLink KiB a token", "PCIe KiB a token"]
    headers += ["fed %", "balance %", "clock %", "work %"]
    rows = []
    for run in scaling["runs"]:
        utils = run["util_pct"] or dict.fromkeys(("least", "mean", "most"))
        rows.append(
            [
                str(run["cards"]),
                *shown(run, "per_card"),
                *(text(utils[name]) for name in ("least", "mean", "most")),
                *(text(run[name]) for name in ("running", "waiting")),
                *(text(run["bytes_per_token"][link], lambda value: fine(value / 1024)) for link in ("nvlink", "pcie")),
                *(text(run["factors"][name], of_ideal) for name in ("fed", "balance", "clock", "work")),
            ]
        )
    return headers, rows


def law_text(scaling: Scaling) -> str:
    """What the fitted law says; or why there is none."""
    law = scaling["usl"]
    if law is None:
        return f"No law was fitted: {scaling['usl_refused']}."
    sigma, of_sigma = shown(law, "sigma", lambda value: f"{100 * value:.2g}")
    kappa, of_kappa = shown(law, "kappa", "{:.2g}".format)
    told = (
        f"Universal Scalability Law over cards: serial share (sigma) {sigma} % ({of_sigma}), cost of each pair of "
        f"cards (kappa) {kappa} ({of_kappa})"
    )
    if law["apart_pct"] > _APART_PCT:
        told += f"; a run lies {law['apart_pct']:.0f} % off it, so this is not how it scales: look for one fixed limit"
    elif law["most_cards"] is not None:
        told += f"; by it more than {law['most_cards']:.3g} cards do less than fewer"
    return f"{told}."


def warnings_of(scaling: Scaling) -> list[str]:
    """What makes the figures doubtful, those of a run with its cards."""
    found: list[str] = list(scaling["warnings"])
    if scaling["simulated_gpu"]:
        found.insert(0, f"{SIMULATED_GPU}: this is how the simulator's model scales, not cards")
    for run in scaling["runs"]:
        found += [f"{run['cards']} cards ({run['run_id']}): {warning}" for warning in run["warnings"]]
    return found


METHOD = (
    "A run's peak is its step with the highest rate. Speed-up: that / the same of the run with the fewest cards; "
    "efficiency: speed-up / how many times the cards. Intervals are those of the two steps together; what differs from "
    "run to run is not in them.",
    "Serial share (Karp and Flatt): the share of the work that cannot be divided, were that all that is lost.",
    "fed: utilisation of the busiest card, times the requests that a card works on where none wait for one. balance: "
    "mean use / that of the most used card, by utilisation or KV usage. clock: mean SM clock, by use. work: what is "
    "left, so what a busy card gets done. Each is against the run with the fewest cards; their product is the "
    "efficiency.",
)


def as_text(scaling: Scaling) -> str:
    """The whole for a terminal."""
    lines = [verdict(scaling)]
    if told := remedy(scaling):
        lines.append(f"What to try: {told}.")
    for table in (peak_table(scaling), loss_table(scaling)):
        lines += ["", *aligned(*table, words=0)]
    lines += ["", law_text(scaling), *(f"warning: {warning}" for warning in warnings_of(scaling))]
    return "\n".join(line.rstrip() for line in lines) + "\n"
