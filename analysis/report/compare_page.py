"""The page of a comparison: one HTML file with its figures inside, twice as fine as a screen needs them."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from analysis import compare_tables as tables
from analysis.compare_tables import Comparison
from analysis.plots import canvas
from analysis.plots import compare as plots
from analysis.report.compare_texts import METHOD, gates_in_short
from analysis.report.embedded import Picture, embed
from analysis.report.templates import template

_CAPTIONS = {
    "changes": "The change of each figure with its 95 % interval; grey where it may be chance; dashed: limits of gates",
    "curves": "Both sides over the level, with the 95 % interval of each point: between runs, or within the only one",
}


def page(comparison: Comparison) -> str:
    """The HTML page of a comparison."""
    with canvas.styled():
        pictures = [Picture(name, _CAPTIONS[name], embed(figure)) for name, figure in _figures(comparison).items()]
    return template("compare.html.j2").render(
        comparison=comparison,
        verdict=tables.verdict(comparison),
        sides=[(name.upper(), tables.side_text(comparison[name])) for name in ("base", "new")],
        gates=gates_in_short(comparison),
        gate_steps=tables.gate_table(comparison),
        effects_text=tables.effects_text(comparison),
        effects=tables.effect_table(comparison, whole=True),
        environment=tables.environment_table(comparison),
        notes=tables.notes(comparison),
        method=METHOD,
        pictures=pictures,
    )


def save_figures(comparison: Comparison, folder: Path) -> None:
    """Write each figure as PNG and SVG. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with canvas.styled():
        for name, figure in _figures(comparison).items():
            canvas.save(figure, folder, name)


def _figures(comparison: Comparison) -> dict[str, Figure]:
    found = {"changes": plots.changes(comparison), "curves": plots.curves(comparison)}
    return {name: figure for name, figure in found.items() if figure is not None}
