"""Locust started by hand writes the same run directory: headless, with its web UI, with master and workers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadgen.shards import read_shard
from tests.conftest import ROOT

pytestmark = pytest.mark.run
BIN = Path(sys.executable).parent
SCENARIO = ROOT / "scenarios" / "chat.py"
SHORT = ("--prompt-tokens", "8", "--output-tokens", "4")


@contextmanager
def _process(folder: Path, name: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / f"{name}.out").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=15)
            finally:
                process.kill()


def _until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)
    return found


@pytest.fixture
def target(tmp_path: Path) -> Iterator[str]:
    """URL of a simulator."""
    with _process(tmp_path, "simulator", str(BIN / "loadgen"), "simulator", "--port", "0"):
        log = tmp_path / "simulator.out"
        yield _until(lambda: [word for word in log.read_text().split() if word.startswith("http://")])[0]


def _port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _locust(folder: Path, name: str, *arguments: str) -> Any:
    return _process(folder, name, str(BIN / "locust"), "-f", str(SCENARIO), *SHORT, *arguments)


def _requests(run: Path) -> int:
    tables = [read_shard(path)[0] for path in sorted((run / "requests").glob("*.arrow"))]
    return sum(table.num_rows for table in tables if table is not None)


def _manifest(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "run.json").read_text()))


def _steps(run: Path) -> list[tuple[int, int, str]]:
    lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    return [(line["step"], line["level"], line["what"]) for line in lines]


def _finished(runs: Path, number: int) -> Path:
    """The `number`th run directory, when its status is final."""
    found = sorted(path for path in runs.glob("2*") if (path / "run.json").exists())
    return found[number - 1] if len(found) >= number and _manifest(found[number - 1])["status"] != "running" else Path()


def test_headless(target: str, tmp_path: Path) -> None:
    arguments = ("--host", target, "--headless", "-u", "5", "-r", "5", "-t", "5s", "--agents", "local")
    with _locust(tmp_path, "locust", *arguments) as process:
        assert process.wait(timeout=40) == 0, (tmp_path / "locust.out").read_text()
    run = (tmp_path / "runs" / "latest").resolve()
    manifest = _manifest(run)
    assert (manifest["status"], manifest["target"]["model"]) == ("complete", "sim-8b")
    assert manifest["locust"] == manifest["recorded"]
    assert _requests(run) > 30
    assert _steps(run) == [(0, 5, "ramp"), (0, 5, "begin"), (0, 5, "end")]
    assert list((run / "telemetry").glob("*/host.arrow"))
    report = subprocess.run([str(BIN / "loadgen"), "report", str(run)], capture_output=True, text=True)
    assert report.returncode == 0, report.stderr
    assert json.loads((run / "report" / "summary.json").read_text())["steps"][0]["ok"] > 10


def test_web_ui(target: str, tmp_path: Path) -> None:
    port = _port()
    url = f"http://127.0.0.1:{port}"
    runs = tmp_path / "runs"

    def swarm(**form: Any) -> dict[str, Any]:
        return dict(httpx.post(f"{url}/swarm", data={"host": target, **form}, timeout=15).json())

    with _locust(tmp_path, "locust", "--host", target, "--web-port", str(port), "--agents", "none"):
        page = _until(lambda: _page(url))
        for option in ("output_tokens", "step_time", "extra_body"):
            assert f'"{option}"' in page or f"&#34;{option}&#34;" in page, option
        assert '"header"' not in page
        assert not runs.exists(), "nothing is made before the load starts"

        assert swarm(user_count=3, spawn_rate=3)["success"]
        time.sleep(3)
        assert swarm(user_count=6, spawn_rate=6)["success"], "users stay editable"
        time.sleep(3)
        httpx.post(f"{url}/stop", timeout=15)
        first = _until(lambda: _finished(runs, 1) if _finished(runs, 1) != Path() else None)
        assert _manifest(first)["status"] == "complete"
        marks = ("ramp", "begin", "end")
        assert _steps(first) == [*((0, 3, mark) for mark in marks), *((1, 6, mark) for mark in marks)]
        assert _requests(first) > 20

        httpx.get(f"{url}/stats/reset", timeout=15)
        refused = swarm(user_count=1, spawn_rate=1, steps="2,x")
        assert not refused["success"]
        assert "--steps: '2,x' are no steps" in refused["message"]

        time.sleep(1)  # run directories are named by the second
        assert swarm(user_count=1, spawn_rate=1, steps="2,4", step_time="2", output_tokens="3")["success"]
        second = _until(lambda: _finished(runs, 2) if _finished(runs, 2) != Path() else None, 30)
        manifest = _manifest(second)
        assert manifest["status"] == "complete"
        assert manifest["options"]["output_tokens"] == "3"
        assert _steps(second) == [*((0, 2, mark) for mark in marks), *((1, 4, mark) for mark in marks)]
        assert manifest["locust"] == manifest["recorded"]
        tokens = read_shard(next((second / "requests").glob("*.arrow")))[0].to_pandas().output_tokens
        assert set(tokens.dropna()) == {3}

        time.sleep(1)
        given = {"steps": "", "step_time": "2", "rate": "20", "arrival": "constant", "max_in_flight": "30"}
        assert swarm(user_count=1, spawn_rate=1, insecure="true", **given)["success"]
        third = _until(lambda: _finished(runs, 3) if _finished(runs, 3) != Path() else None, 30)
        manifest = _manifest(third)
        assert manifest["status"] == "complete"
        assert (manifest["options"]["rate"], manifest["options"]["insecure"]) == ("20", "true")
        assert _steps(third) == [(0, 20, mark) for mark in marks]
        assert manifest["locust"] == manifest["recorded"]
        assert _requests(third) == 40


def _page(url: str) -> str | None:
    try:
        return httpx.get(url, timeout=5).text
    except httpx.HTTPError:
        return None


def test_master_and_workers(target: str, tmp_path: Path) -> None:
    """Two workers started by hand, steps on the command line; Ctrl-C on the master ends the run in order."""
    rpc, web = str(_port()), str(_port())
    master = (
        "--master",
        "--master-bind-port",
        rpc,
        "--expect-workers",
        "2",
        "--web-port",
        web,
        "--autostart",
        "--autoquit",
        "3",
    )
    with (
        _locust(tmp_path, "worker-a", "--worker", "--master-port", rpc),
        _locust(tmp_path, "worker-b", "--worker", "--master-port", rpc),
        _locust(tmp_path, "master", *master, "--host", target, "--steps", "4,8", "--step-time", "60") as process,
    ):
        steps = tmp_path / "runs" / "latest" / "steps.jsonl"
        _until(lambda: steps.exists() and '"begin"' in steps.read_text(), 40)
        time.sleep(3)
        os.kill(process.pid, signal.SIGINT)
        process.wait(timeout=30)
    run = (tmp_path / "runs" / "latest").resolve()
    manifest = _manifest(run)
    assert (manifest["status"], manifest["reason"]) == ("interrupted", "stopped by hand")
    assert manifest["locust"] == manifest["recorded"]
    assert len(list((run / "requests").glob("*.arrow"))) == 2
    assert _requests(run) > 10
    assert _steps(run) == [(0, 4, "ramp"), (0, 4, "begin"), (0, 4, "end")]
