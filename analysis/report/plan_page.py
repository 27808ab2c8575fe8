"""The page of a capacity plan: one HTML file with its figures inside, twice as fine as a screen needs them."""

from __future__ import annotations

from analysis import plan_tables
from analysis.capacity import Capacity
from analysis.plots import canvas
from analysis.plots import capacity as plots
from analysis.report.embedded import Picture, embed
from analysis.report.templates import template

_CAPTIONS = {
    "curve": "Steps as measured, and the fitted curve; shaded beside a line: the interval of knee and load.",
    "objectives": "The figure of each objective; the plan takes the lowest of the levels.",
    "replicas": "Left: what so many replicas hold, with the interval of what one does. Right: other targets.",
    "energy": "Of the GPUs alone, as measured in each step; between steps the plan goes in proportion.",
}


def page(capacity: Capacity) -> str:
    """The HTML page of a plan."""
    plan = capacity.plan
    return template("plan.html.j2").render(
        plan=plan,
        headline=plan_tables.headline(plan),
        verdict=plan_tables.verdict(plan),
        sizing=plan_tables.sizing_rows(plan),
        losing=plan_tables.losing_text(plan),
        objectives=plan_tables.objective_rows(plan),
        steps=plan_tables.step_table(plan),
        parameters=plan_tables.parameter_rows(plan),
        fit=plan_tables.fit_text(plan),
        check=plan_tables.check_text(plan),
        pictures=_pictures(capacity),
    )


def _pictures(capacity: Capacity) -> list[Picture]:
    with canvas.styled():
        figures = {
            "curve": plots.curve(capacity),
            "objectives": plots.objectives(capacity),
            "replicas": plots.replicas(capacity),
            "energy": plots.energy(capacity),
        }
        return [Picture(name, _CAPTIONS[name], embed(figure)) for name, figure in figures.items() if figure is not None]
