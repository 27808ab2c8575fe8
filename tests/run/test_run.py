"""One real run against the simulator, looked at from all sides: truth, counts, files, secrets, web UI."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from loadgen.record import REQUEST_COLUMNS
from loadgen.shards import read_shard
from tests.conftest import ROOT
from tests.run.browser import browser
from tests.run.processes import Run, running

pytestmark = pytest.mark.run
SECRET = "s3cret-Of-The-Test"


class Looked:
    """A finished run, and what was seen of it while it went on."""

    def __init__(
        self,
        run: Run,
        code: int,
        command_lines: list[str],
        answers: dict[str, httpx.Response],
        listening: set[tuple[str, int]],
    ) -> None:
        self.run, self.code, self.command_lines, self.answers = run, code, command_lines, answers
        self.listening = listening
        self.summary: dict[str, Any] = json.loads((run.directory / "report" / "summary.json").read_text())
        table, problem = read_shard(run.directory / "requests" / "worker-0.arrow")
        assert problem is None
        assert table is not None
        self.table: pa.Table = table
        self.requests: pd.DataFrame = table.to_pandas()


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Looked]:
    loadgen = str(Path(sys.executable).with_name("loadgen"))
    steps = ("--steps", "50,200", "--step-time", "10", "--label", "a test/of it", "--workers", "1")
    env = {"TEST_API_KEY": SECRET, "LOADGEN_HEADER": f"X-Api-Key: {SECRET}"}
    runs = tmp_path_factory.mktemp("runs")
    with running(loadgen, runs, *steps, "--api-key-env", "TEST_API_KEY", env=env) as run:
        run.wait_for_hold()
        lines = list(run.processes().values())
        url = next(word for word in run.output.split() if word.startswith("http://127.0.0.1:"))
        answers = {
            "page": httpx.get(url, timeout=10),
            "preflight": httpx.options(f"{url}/swarm", headers={"Origin": "http://evil.example"}, timeout=10),
            "foreign": httpx.post(f"{url}/stop", headers={"Origin": "http://evil.example"}, timeout=10),
            "stats": httpx.get(f"{url}/stats/requests", headers={"Origin": url}, timeout=10),
        }
        listening = run.listening()
        yield Looked(run, run.end(90), lines, answers, listening)


def test_it_completes_and_says_where_the_report_is(looked: Looked) -> None:
    assert looked.code == 0, looked.run.output
    assert looked.run.output.rstrip().endswith(str(looked.run.directory / "report" / "report.html"))
    assert looked.run.manifest["status"] == "complete"
    assert looked.run.directory.name.endswith("-chat-a-test-of-it")
    assert looked.run.processes() == {}


def test_counts_agree_with_locusts_own(looked: Looked) -> None:
    manifest = looked.run.manifest
    counted = looked.requests[looked.requests.outcome != "CANCELLED"]
    assert manifest["locust"] == manifest["recorded"] == {"requests": len(counted), "failures": 0}
    assert "locust_mismatch" not in [event["kind"] for event in looked.run.lines("events.jsonl")]


def test_times_are_those_of_the_truth_log(looked: Looked) -> None:
    truth = pd.read_csv(looked.run.directory / "simulator" / "truth.csv").set_index("request_id")
    ours = looked.requests.set_index("request_id")
    assert len(ours) > 500
    assert set(ours.index) == set(truth.index)
    truth = truth.loc[ours.index]
    assert (ours.outcome == truth.outcome).all()
    assert (ours.output_tokens == truth.output_tokens).all()
    assert (ours.prompt_tokens == truth.prompt_tokens).all()
    assert set(ours.token_source) == {"usage"}
    steps = {(line["step"], line["what"]): line["t_ns"] for line in looked.run.lines("steps.jsonl")}
    for step in (0, 1):
        window = (ours.intended_ns >= steps[step, "begin"]) & (ours.intended_ns < steps[step, "end"])
        measured = (ours.first_token_ns - ours.intended_ns)[window] / 1e6
        true = (truth.first_token_ns - truth.received_ns)[window] / 1e6
        for share in (50, 99):
            expected = np.percentile(true, share)
            assert abs(np.percentile(measured, share) - expected) <= max(5.0, 0.02 * expected), (step, share)


def test_records_are_what_the_schema_says(looked: Looked) -> None:
    assert looked.table.schema.names == [column.name for column in REQUEST_COLUMNS]
    rows = looked.requests
    assert (rows.intended_ns <= rows.sent_ns).all()
    assert (rows.sent_ns < rows.first_byte_ns).all()
    assert (rows.first_byte_ns <= rows.first_token_ns).all()
    assert (rows.first_token_ns <= rows.last_token_ns).all()
    assert (rows.last_token_ns <= rows.end_ns).all()
    assert set(rows.stamp_source) == {"kernel"}
    assert rows.seq.tolist() == list(range(len(rows)))
    gaps_us = rows.chunk_gaps_us.map(sum)
    assert (abs(gaps_us - (rows.last_token_ns - rows.first_token_ns) / 1000) <= 40).all()
    assert (rows.chunk_gaps_us.map(len) == rows.output_events - 1).all()


def test_summary_has_the_steps(looked: Looked) -> None:
    assert looked.summary["simulated_gpu"] is True
    assert [step["level"] for step in looked.summary["steps"]] == [50, 200]
    for step in looked.summary["steps"]:
        assert step["in_flight_mean"] == pytest.approx(step["level"], rel=0.05)
        assert step["errors"] == {}
        assert len(step["gpus"]) == 8
        assert step["gpu_total"]["vram_used_bytes"] > 8 * 16e9
        assert step["gpus"][0]["vram_effective_bytes"]["mean"] < step["gpus"][0]["vram_used_bytes"]["mean"]


def test_secrets_are_nowhere(looked: Looked) -> None:
    assert any("--worker" in line for line in looked.command_lines)
    assert not [line for line in looked.command_lines if SECRET in line]
    files = [path for path in looked.run.runs.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert SECRET not in looked.answers["page"].text


def test_everything_listens_on_loopback_alone(looked: Looked) -> None:
    assert len(looked.listening) == 3, "simulator, RPC and web UI"
    assert {address for address, _ in looked.listening} <= {"0100007F", "0000000000000000FFFF00000100007F"}


def test_web_ui_is_for_its_own_pages_only(looked: Looked) -> None:
    assert looked.answers["page"].status_code == 200
    assert looked.answers["stats"].status_code == 200
    assert looked.answers["foreign"].status_code == 403
    for answer in looked.answers.values():
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


def test_report_is_built_again_from_the_directory_alone(looked: Looked, loadgen: str) -> None:
    before = looked.summary
    report = looked.run.directory / "report"
    subprocess.run(["rm", "-r", str(report)], check=True)
    subprocess.run([loadgen, "report", str(looked.run.runs / "latest")], check=True, capture_output=True, cwd="/")
    assert json.loads((report / "summary.json").read_text()) == before
    assert sorted(path.suffix for path in (report / "figures").iterdir())[:1] == [".png"]


@pytest.mark.skipif(
    shutil.which("chromium") is None and "CI" not in os.environ, reason="needs Chromium: make system-deps"
)
def test_report_opens_in_a_browser_without_a_network(looked: Looked, tmp_path: Path) -> None:
    report = looked.run.directory / "report" / "report.html"
    assert report.stat().st_size < 5_000_000
    assert "simulated GPU" in report.read_text()
    with browser(tmp_path / "profile") as page:
        page.open(report.as_uri())
        assert page.complaints() == []
        assert page.requested() == [report.as_uri()]
        pictures = page.value("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
        assert len(pictures) > 5 and all(pictures)
        sections = page.value("[...document.querySelectorAll('section')].map(section => section.id)")
        assert sections[:3] == ["verdict", "caveats", "curves"]
        assert {"steps", "gpus", "telemetry", "bottleneck", "definitions", "reconciliation"} <= set(sections)
        with Image.open(page.picture(tmp_path / "page.png")) as image:
            counts = {colour: count for count, colour in image.convert("RGB").getcolors(maxcolors=1 << 24)}
        assert counts.get((0x00, 0x72, 0xB2), 0) > 500, "the blue of the figures' lines"
        assert counts.get((0xD5, 0x5E, 0x00), 0) > 100, "the red of the figures' p99"

        page.open(report.as_uri(), width=360)
        assert page.value("document.documentElement.scrollWidth") == 360, "nothing but tables scrolls sideways"
        page.open(report.as_uri(), dark=True)
        assert sum(page.colour("body", "backgroundColor")) < 150 < 500 < sum(page.colour("h1", "color"))

        page.as_printed(width=1032)  # A4 landscape within its margins
        assert page.colour("body", "backgroundColor") == [255, 255, 255] and sum(page.colour("h1", "color")) < 200
        cut = "[...document.querySelectorAll('.wide')].filter(box => box.scrollWidth > box.clientWidth + 1).length"
        assert page.value(cut) == 0, "no table is cut"
        assert page.value("document.querySelector('table.facts').getBoundingClientRect().height") > 300, "it is open"
        assert page.pdf(tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
        assert page.complaints() == []


def test_a_run_is_repeated_from_its_manifest(looked: Looked, loadgen: str, tmp_path: Path) -> None:
    run = str(looked.run.directory)
    command = [loadgen, "run", "--from", run, "--runs-dir", str(tmp_path), "--label", "again"]
    secret = subprocess.run(command, capture_output=True, text=True)
    assert secret.returncode == 2
    assert "give it again with --header 'X-Api-Key: …'" in secret.stderr
    command += ["--header", "X-Team: red", "--steps", "7", "--step-time", "2", "--notes", "a second look"]
    env = {**os.environ, "TEST_API_KEY": SECRET}
    plan = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, env=env)
    assert plan.returncode == 0, plan.stderr
    assert "step      7 users for 2 s" in plan.stdout
    assert not list(tmp_path.iterdir())
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    then, now = looked.run.manifest, json.loads((tmp_path / "latest" / "run.json").read_text())
    assert now["scenario"] == then["scenario"]
    assert now["target"]["simulated"]
    assert now["notes"] == "a second look"
    differing = {key for key in then["options"] | now["options"] if then["options"].get(key) != now["options"].get(key)}
    assert differing == {"header", "steps", "step_time", "label", "notes", "runs_dir"}


def test_a_users_own_scenario(loadgen: str, tmp_path: Path) -> None:
    (tmp_path / "words.py").write_text("TEXT = 'one two three'\n")
    own = (ROOT / "scenarios" / "chat.py").read_text()
    own = own.replace("from locust import task", "from locust import task\nfrom words import TEXT")
    own = own.replace("synthetic.prompt(self.random, settings.prompt_tokens)", "TEXT")
    (tmp_path / "mine.py").write_text(own)
    command = [loadgen, "run", "./mine.py", "--steps", "5", "--step-requests", "20", "--agents", "none"]
    started = time.monotonic()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - started < 40
    table, _ = read_shard(tmp_path / "runs" / "latest" / "requests" / "worker-0.arrow")
    assert table is not None
    rows = table.to_pandas()
    assert set(rows.prompt_tokens.dropna()) == {3}
    assert 20 <= len(rows) < 60


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["chat", "--host", "http://127.0.0.1:9"], 3, "cannot be reached"),
        (["chat", "--host", "127.0.0.1"], 2, "--host: '127.0.0.1' is no URL"),
        (["chat", "--agents", "gpu7:ssh"], 2, "agent 'gpu7:ssh' has no port after the colon"),
        (["chart"], 2, "there is no scenario 'chart': give one of chat"),
        (["chat", "--steps", "1", "--runs-dir", "/proc/runs"], 4, "choose another with --runs-dir"),
        (["chat", "--host", "http://127.0.0.1:9", "--api-key-env", "NO_SUCH_KEY"], 3, "NO_SUCH_KEY"),
    ],
)
def test_bad_input_is_one_sentence(loadgen: str, tmp_path: Path, arguments: list[str], code: int, text: str) -> None:
    done = subprocess.run([loadgen, "run", *arguments], cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
