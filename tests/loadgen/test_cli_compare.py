"""`loadgen compare` and `loadgen history` as commands: on run directories, in each format, and what they refuse."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.analysis import synthetic as syn

GATES = "ttft_p95<+20%,error_rate<2%"


def answered(run: Path, ttft_ms: float, **changes: object) -> Path:
    """A run of one step with 300 answers around a TTFT."""
    syn.make(run, (10,), **changes)
    syn.write_requests(run, [syn.request(0.06 * k, ttft_ms * (1 + 0.001 * (k % 100)), seq=k) for k in range(300)])
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three repeats of v1, and three of v2, which is 50 % slower."""
    runs = tmp_path_factory.mktemp("runs")
    for label, ttft_ms in (("v1", 100.0), ("v2", 150.0)):
        for number in range(3):
            repeat = {"number": number + 1, "of": 3, "group": f"{label}-0"}
            created = f"2026-01-0{label[1]}T0{number}:00:00Z"
            answered(runs / f"{label}-{number}", ttft_ms + number, label=label, repeat=repeat, created=created)
    answered(runs / "model", 100.0, target={"url": "u", "model": "n", "simulated": False, "simulator": None})
    return runs


def call(loadgen: str, command: str, runs: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    line = [loadgen, command, *map(str, arguments), "--runs-dir", str(runs)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60)


def test_gates_decide_the_exit_code(loadgen: str, runs: Path) -> None:
    slower = call(loadgen, "compare", runs, "label:v1", "label:v2", "--gate", GATES)
    assert slower.returncode == 7 and slower.stdout.startswith("FAIL: ttft_p95<+20% does not hold: at 10 users +4")
    assert "error: gates: ttft_p95<+20% (failed)" in slower.stderr
    faster = call(loadgen, "compare", runs, "group:v2-1", "v1-0,v1-1,v1-2", "--gate", GATES)
    assert faster.returncode == 0 and faster.stdout.startswith("PASS: all 2 gates are shown to hold"), faster.stderr
    unmeasured = call(loadgen, "compare", runs, "label:v1", "label:v2", "--gate", "vram<+10%")
    assert unmeasured.returncode == 7 and "vram<+10% (could not be judged)" in unmeasured.stderr


def test_strict_fails_what_is_not_shown(loadgen: str, runs: Path) -> None:
    asked = ("v1-0", runs / "v2-0", "--gate", "ttft_p95<+50%")
    assert call(loadgen, "compare", runs, *asked).returncode == 0
    strict = call(loadgen, "compare", runs, *asked, "--strict")
    assert strict.returncode == 7 and "not shown to hold" in strict.stderr


def test_every_format(loadgen: str, runs: Path, tmp_path: Path) -> None:
    sides = ("label:v1", "label:v2", "--gate", GATES)
    made = json.loads(call(loadgen, "compare", runs, *sides, "--format", "json").stdout)
    assert made["verdict"] == "fail" and [len(made[side]["runs"]) for side in ("base", "new")] == [3, 3]
    assert call(loadgen, "compare", runs, *sides, "--format", "md").stdout.startswith("### Load test: FAIL")
    suite = ElementTree.fromstring(call(loadgen, "compare", runs, *sides, "--format", "junit").stdout)
    assert suite.get("failures") == "1" and suite.get("tests") == "2"
    page, figures = tmp_path / "compare.html", tmp_path / "figures"
    written = ("--format", "html", "--output", page, "--figures", figures)
    assert call(loadgen, "compare", runs, *sides, *written).returncode == 7
    assert page.read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in figures.iterdir()) == [
        f"{n}.{e}" for n in ("changes", "curves") for e in ("png", "svg")
    ]
    assert not list(runs.glob("*/report"))  # a comparison writes nothing into the runs


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("label:v1", "label:v3"), 2, "no complete run"),
        (("label:v1", "nowhere"), 4, "'nowhere' is no run directory"),
        (("label:v1", "x" * 300), 4, "is no run directory"),
        (("label:v1", "v1-0"), 2, "v1-0 is on both sides"),
        (("v1-0,v1-0", "v2-0"), 2, "named twice"),
        (("group:model", "v1-0"), 2, "not made by --repeat"),
        (
            ("v1-0", "model"),
            8,
            'model differs: BASE has "m", NEW has "n"; when that is what you compare: --allow model',
        ),
        (("v1-0", "v2-0", "--allow", "colour"), 2, "no such key"),
        (("v1-0", "v2-0", "--gate", "qps<+5%"), 2, "--gate: 'qps<+5%' is the wrong way round"),
        (("v1-0", "v2-0", "--format", "junit"), 2, "--gate"),
        (("v1-0", "v2-0", "--strict"), 2, "--gate"),
        (("v1-0", "v2-0", "--gate", ""), 2, "--gate is empty, and nothing would be judged"),
        (("v1-0", "v2-0", "--format", "html"), 2, "--output"),
        (("v1-0", "v2-0", "--output", "/no/such/folder/c"), 1, "cannot write"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_its_code(
    loadgen: str, runs: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    ended = call(loadgen, "compare", runs, *arguments)
    assert ended.returncode == code, ended.stderr
    assert says in ended.stderr and "Traceback" not in ended.stderr and ended.stderr.count("error:") == 1


def test_what_was_changed_on_purpose_is_allowed_by_name(loadgen: str, runs: Path) -> None:
    ended = call(loadgen, "compare", runs, "v1-0", "model", "--allow", "model")
    assert ended.returncode == 0 and "note: allowed to differ: model" in ended.stdout


def test_the_history_of_a_label(loadgen: str, runs: Path, tmp_path: Path) -> None:
    told = call(loadgen, "history", runs, "v*")
    assert told.returncode == 0 and told.stdout.startswith("v*: 2 points of 6 runs, at 10 users."), told.stderr
    points = json.loads(call(loadgen, "history", runs, "v*", "--format", "json").stdout)["points"]
    assert [point["name"] for point in points] == ["v1-0", "v2-0"] and points[1]["figures"]["ttft_p95"]["differs"]
    page = tmp_path / "history.html"
    assert call(loadgen, "history", runs, "v1", "--format", "html", "--output", page).returncode == 0
    assert page.read_text().startswith("<!doctype html>")
    assert call(loadgen, "history", runs, "weekly").returncode == 2
