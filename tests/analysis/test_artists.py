"""Figures are drawn by processes of their own: what they say, and what happens when one of them is killed."""

from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis.plots import canvas
from analysis.report.artists import artists


def drawn(*values: float) -> Figure | None:
    with canvas.styled():
        figure, (axes,) = canvas.panels(1, 1, (4, 3))
    axes.plot(values)
    return figure if values else None


def test_figures_with_data_are_saved_and_named(tmp_path: Path) -> None:
    with artists() as drawing:
        wait = drawing.draw(tmp_path, {"rising": (drawn, 1, 2, 3), "empty": (drawn,), "falling": (drawn, 3, 2, 1)})
        assert wait() == {"rising", "falling"}
    assert {path.name for path in tmp_path.iterdir()} == {"rising.png", "rising.svg", "falling.png", "falling.svg"}


def test_what_a_figure_raises_is_raised_where_it_is_waited_for(tmp_path: Path) -> None:
    with artists() as drawing:
        wait = drawing.draw(tmp_path / "missing", {"rising": (drawn, 1, 2, 3)})
        with pytest.raises(FileNotFoundError, match="missing"):
            wait()
    with artists() as drawing:
        wait = drawing.draw(tmp_path, {"table": (drawn, pd.DataFrame)})
        with pytest.raises(TypeError):
            wait()


def test_modules_of_the_directory_where_one_is_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "analysis.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    with artists() as drawing:
        assert drawing.draw(tmp_path, {"rising": (drawn, 1, 2, 3)})() == {"rising"}


def test_a_killed_process_is_said(tmp_path: Path) -> None:
    with artists() as drawing:
        for process in drawing.processes:
            process.kill()
        wait = drawing.draw(tmp_path, {"rising": (drawn, 1, 2, 3)})
        with pytest.raises(ChildProcessError, match="ended with -9"):
            wait()
