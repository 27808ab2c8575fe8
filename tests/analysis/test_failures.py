"""The table of failures: counted over the whole run, with raw texts that nobody vouches for."""

import re
from pathlib import Path
from typing import Any

import pytest

from analysis.analyse import analyse
from analysis.report.build import build
from tests.analysis import synthetic as syn


def failed(t: float, outcome: str, error: str | None) -> dict[str, object]:
    return syn.request(t, ttft_ms=None, gaps_ms=(), outcome=outcome, error=error, end_s=t + 0.5)


def test_kinds_are_counted_over_the_whole_run_with_a_raw_text_each(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    rows = [failed(t, "HTTP_ERROR", "HTTP <n>: full") for t in (1.0, 6.0, 18.0)]
    rows += [failed(7.0, "TIMEOUT", None), syn.request(8.0), failed(9.0, "CANCELLED", "stopped")]
    syn.write_requests(run, rows)
    syn.example(run, 0, "HTTP_ERROR", "HTTP <n>: full", "<script>alert('ü\ud800')</script>" + "x" * 5000, t=6.0)
    syn.example(run, 1, "HTTP_ERROR", "HTTP <n>: full", "a later one", t=7.0)
    built = build(run, figures=False)
    first, second = built.summary["failures"]
    assert (first["outcome"], first["error"], first["requests"]) == ("HTTP_ERROR", "HTTP <n>: full", 3)
    assert (first["first_s"], first["last_s"]) == (1.5, 18.5)
    assert first["example"].startswith("<script>") and len(first["example"]) == 501
    assert (second["outcome"], second["error"], second["example"]) == ("TIMEOUT", "", None)
    page = built.html.read_text()
    assert "<h2>Requests and failures</h2>" in page and "<script" not in page and "HTTP &lt;n&gt;: full" in page


def test_without_failures_there_is_no_section(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [syn.request(6.0)])
    built = build(run, figures=False)
    assert built.summary["failures"] == [] and 'class="failures"' not in built.html.read_text()


def test_a_long_tail_of_kinds_is_cut_and_said_so(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [failed(6 + k / 10, "RESET", f"kind {k}") for k in range(60)])
    built = build(run, figures=False)
    assert len(built.summary["failures"]) == 60
    page = built.html.read_text()
    assert "10 rarer kinds" in page and len(re.findall(r"<td>kind \d+</td>", page)) == 50


def test_bins_count_failures_at_their_end_by_outcome(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [*(failed(t, "RESET", "r") for t in (0.0, 0.6, 0.7)), failed(1.0, "TIMEOUT", "t")])
    failed_ = analyse(run).over_time.failures
    assert failed_[:2].to_dict("list") == {"t_s": [0, 1], "RESET": [1, 2], "TIMEOUT": [0, 1]}
    assert failed_[2:][["RESET", "TIMEOUT"]].to_numpy().sum() == 0


@pytest.mark.parametrize("error", [["a", "list"], {"a": 1}, 7])
def test_an_example_whose_error_is_no_text_is_damage(tmp_path: Path, error: Any) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [failed(6.0, "HTTP_ERROR", "HTTP <n>")])
    for text in (error, None, "HTTP <n>"):
        syn.example(run, 0, "HTTP_ERROR", text, "raw")
    summary = analyse(run).summary
    assert summary["failures"][0]["example"] == "raw"
    damage = [found["text"] for found in summary["damage"] if found["file"].endswith(".errors.jsonl")]
    assert damage == ["nonsense in 1 lines, line 1 is the first: they are left out"]
