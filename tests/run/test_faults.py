"""Bad days: a fault ends with one clear sentence and its exit code; what was measured is kept. See docs/faults.md."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from loadgen.shards import read_shard
from tests.run.processes import Run, running

pytestmark = pytest.mark.run
LOADGEN = str(Path(sys.executable).with_name("loadgen"))
MINE = """
from locust import task
from loadgen.endpoints import openai
from loadgen.users import ModelUser


class Mine(ModelUser):
    @task
    def chat(self):
        BEFORE
        self.send(openai.chat([{"role": "user", "content": "hi"}], model=self.model, max_tokens=2))
"""


def _run(cwd: Path, *arguments: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, LOADGEN, "run", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def _said(done: subprocess.CompletedProcess[str], code: int, *texts: str) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    for text in texts:
        assert text in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def _requests(run: Path) -> pd.DataFrame:
    tables = [read_shard(path)[0] for path in sorted((run / "requests").glob("*.arrow"))]
    return pd.concat([table.to_pandas() for table in tables if table is not None])


def _manifest(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "run.json").read_text()))


# -- scenarios


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def broken(:\n", "line 1"),
        ("import no_such_module_of_mine\n", "No module named 'no_such_module_of_mine'"),
        ("X = 1\n", "No User class found"),
        ("raise RuntimeError('not today')\n", "not today"),
    ],
)
def test_scenario_that_cannot_be_loaded(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    _said(_run(tmp_path, "./mine.py", "--steps", "1", "--agents", "none"), 2, "mine.py cannot be loaded", said)


def test_scenario_that_only_workers_cannot_load(tmp_path: Path) -> None:
    text = "import sys\nassert '--worker' not in sys.argv, 'not in a worker'\n" + MINE.replace("BEFORE", "pass")
    (tmp_path / "mine.py").write_text(text)
    _said(_run(tmp_path, "./mine.py", "--steps", "1", "--agents", "none"), 2, "cannot be loaded", "not in a worker")


def test_task_that_raises_now_and_then(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE.replace("BEFORE", "assert self.random.random() < 0.9, 'unlucky'"))
    done = _run(tmp_path, "./mine.py", "--steps", "20", "--step-time", "6", "--agents", "none")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "latest"
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    raised = [event for event in events if event["kind"] == "user_error"]
    assert "unlucky" in raised[0]["text"]
    assert raised[0]["count"] >= 5
    assert set(_requests(run).outcome) <= {"OK", "CANCELLED"}
    assert "unlucky" in done.stdout, "the run's caveats name it"
    assert (run / "logs" / "worker-0.log").stat().st_size < 100_000


def test_task_that_always_raises(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE.replace("BEFORE", "raise KeyError('nothing works')"))
    done = _run(tmp_path, "./mine.py", "--steps", "50", "--step-time", "4", "--agents", "none")
    _said(done, 2, "no request succeeded", "nothing works")
    assert (tmp_path / "runs" / "latest" / "logs" / "worker-0.log").stat().st_size < 100_000


# -- targets


class Target:
    """A simulator on a port of its own, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        log = self._folder / "target.out"
        log.write_text("")
        with log.open("ab") as output:
            command = [LOADGEN, "simulator", "--port", str(self.port)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        deadline = time.monotonic() + 15
        while "http://" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    target = Target(tmp_path)
    yield target
    target.kill()


SMALL = ("--prompt-tokens", "8", "--output-tokens", "8", "--agents", "local")


def test_target_that_dies_and_comes_back(target: Target, tmp_path: Path) -> None:
    arguments = ("--host", target.url, "--steps", "10", "--step-time", "16", *SMALL)
    with running(LOADGEN, tmp_path / "runs", *arguments) as run:
        run.wait_for_hold()
        time.sleep(1)
        died = time.monotonic_ns()
        target.kill()
        time.sleep(5)
        target.start()
        back = time.monotonic_ns()
        assert run.end(60) == 0, run.output
        rows = _requests(run.directory)
    before, after = rows[rows.end_ns < died], rows[rows.intended_ns > back + 3_000_000_000]
    away = rows[(rows.intended_ns > died) & (rows.end_ns < back)]
    assert set(before.outcome) == set(after.outcome) == {"OK"}
    assert set(away.outcome) <= {"CONNECT_ERROR", "RESET"}
    assert 10 <= len(away) <= 200, "users wait while the server is away"
    assert set(rows.outcome) & {"TRUNCATED", "RESET"}, "what was under way when it died"
    assert _manifest(run.directory)["status"] == "complete"
    assert "failed" in run.output or "fail" in run.output


def test_target_that_stalls(target: Target, tmp_path: Path) -> None:
    arguments = ("--host", target.url, "--steps", "10", "--step-time", "12", "--timeout", "2s", *SMALL)
    with running(LOADGEN, tmp_path / "runs", *arguments) as run:
        run.wait_for_hold()
        os.kill(target.process.pid, signal.SIGSTOP)
        time.sleep(5)
        os.kill(target.process.pid, signal.SIGCONT)
        assert run.end(60) == 0, run.output
        rows = _requests(run.directory)
    assert set(rows.outcome) == {"OK", "TIMEOUT"}
    late = rows[rows.outcome == "TIMEOUT"]
    assert ((late.end_ns - late.intended_ns) / 1e9).between(1.9, 3.5).all()


# -- this machine


def test_too_few_descriptors(target: Target, tmp_path: Path) -> None:
    limited = ("sh", "-c", 'ulimit -n 300; exec "$@"', "sh")
    done = _run(tmp_path, "chat", "--host", target.url, "--concurrency", "2000", prefix=limited)
    _said(done, 1, "2000 users", "the limit is 300", "raise the hard limit", "--workers")
    assert not (tmp_path / "runs").exists()


@contextmanager
def _unprivileged(folder: Path) -> Iterator[Sequence[str]]:
    """A command prefix under which `folder` cannot be written, also when root runs the tests."""
    folder.chmod(0o555)
    try:
        if os.geteuid() == 0:
            yield ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
        else:
            yield ()
    finally:
        folder.chmod(0o755)


def test_runs_directory_that_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    with _unprivileged(folder) as prefix:
        done = _run(tmp_path, "chat", "--steps", "1", "--runs-dir", str(folder / "runs"), prefix=prefix)
    _said(done, 4, "permission denied", "--runs-dir")
    assert list(folder.iterdir()) == []


needs_mounts = pytest.mark.skipif(
    os.geteuid() != 0 and "CI" not in os.environ, reason="mounts small and read-only file systems: needs root"
)


def _mounted(options: str, folder: Path, copy_to: Path) -> Sequence[str]:
    """A prefix that runs a command with a tmpfs on `folder`, of its own, and copies what is on it afterwards."""
    script = f'mount -t tmpfs -o {options} none "$0" && "$@"; code=$?; cp -r "$0/." "{copy_to}"; exit $code'
    return ("unshare", "--mount", "sh", "-c", script, str(folder))


@needs_mounts
def test_read_only_mount(tmp_path: Path) -> None:
    folder, copy = tmp_path / "disk", tmp_path / "copy"
    folder.mkdir()
    copy.mkdir()
    done = _run(tmp_path, "chat", "--steps", "1", "--runs-dir", str(folder), prefix=_mounted("ro", folder, copy))
    _said(done, 4, "read-only file system", "--runs-dir")


@needs_mounts
def test_disk_full_before_the_run(tmp_path: Path) -> None:
    folder, copy = tmp_path / "disk", tmp_path / "copy"
    folder.mkdir()
    copy.mkdir()
    prefix = _mounted("size=1m", folder, copy)
    done = _run(tmp_path, "chat", "--steps", "1", "--runs-dir", str(folder), prefix=prefix)
    _said(done, 1, "a run needs 5 MB", "--runs-dir")
    assert list(copy.glob("2*")) == []


@needs_mounts
def test_disk_full_during_the_run(tmp_path: Path) -> None:
    folder, copy = tmp_path / "disk", tmp_path / "copy"
    folder.mkdir()
    copy.mkdir()
    arguments = ("chat", "--steps", "400", "--step-time", "60", "--runs-dir", str(folder))
    done = _run(tmp_path, *arguments, prefix=_mounted("size=6m", folder, copy))
    _said(done, 5, "No space left on device")
    run = next(copy.glob("2*"))
    manifest = _manifest(run)
    assert manifest["status"] == "aborted"
    assert "No space left on device" in manifest["reason"]
    rows = _requests(run)
    assert len(rows) > 200
    assert len(rows[rows.outcome != "CANCELLED"]) == manifest["recorded"]["requests"], "nothing measured is lost"
    assert (run / "report" / "report.html").stat().st_size > 10_000


def test_existing_run_directories_are_never_written_again(tmp_path: Path) -> None:
    from loadgen import rundir

    names = [rundir.create(tmp_path, "chat", "x").name for _ in range(3)]
    assert len(set(names)) == 3
    assert (tmp_path / "latest").resolve().name == names[-1]
    shutil.rmtree(tmp_path / names[-1])


def test_nothing_is_left_by_a_run_that_never_started(tmp_path: Path) -> None:
    with running(LOADGEN, tmp_path / "runs", "--host", "http://127.0.0.1:9") as run:
        assert run.end(20) == 3
        assert run.processes() == {}
        assert isinstance(run, Run)


def test_counts_that_differ_end_with_an_error(tmp_path: Path) -> None:
    from loadgen import cli, rundir
    from loadgen.errors import LoadgenError

    run = rundir.create(tmp_path, "chat", None)
    counts = {"locust": {"requests": 9, "failures": 0}, "recorded": {"requests": 8, "failures": 0}}
    rundir.write_manifest(run, {"schema": rundir.SCHEMA, "status": rundir.COMPLETE, "reason": None, **counts})
    summary = {"steps": [{"ok": 8, "errors": {}}]}
    cli._raise_for(run, summary)
    rundir.log_event(run, "locust_mismatch", "Locust counted other requests than were recorded")
    with pytest.raises(LoadgenError, match="do not trust this run") as caught:
        cli._raise_for(run, summary)
    assert caught.value.exit_code == 1


@needs_mounts
def test_no_room_for_the_report(tmp_path: Path) -> None:
    done = _run(tmp_path, "chat", "--steps", "2", "--step-requests", "4", "--runs-dir", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    run = (tmp_path / "runs" / "latest").resolve()
    shutil.rmtree(run / "report")
    size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    script = f'mount -t tmpfs -o size={size + 300_000} none "$0" && cp -r "$1" "$0/run" && "$2" report "$0/run"'
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["unshare", "--mount", "sh", "-c", script, str(disk), str(run), LOADGEN]
    _said(subprocess.run(command, capture_output=True, text=True, timeout=60), 4, "cannot write the report", "No space")
