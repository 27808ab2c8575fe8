"""The recorder: nothing that was appended is lost, however it is written and closed, and nothing holds the loop.

gevent's loop runs in a process of its own here, so that the tests' process stays as it is.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from loadgen import histogram
from loadgen.shards import read_shard

ROOT = Path(__file__).resolve().parents[2]

HEAD = """
import sys, time, gevent
from pathlib import Path
from loadgen import batch, recorder as module
from tests.loadgen.recorded import recorded
module.load_arrow()
module._FLUSH_S = 0.005
run = Path(sys.argv[1])
"""

NEVER_PAUSES = """
recorder = module.Recorder(run, 0)
request = recorded(0, [1, 2, 3], [4, 5])
appended = 0
end = time.monotonic() + 1.5
while time.monotonic() < end:
    for _ in range(200):
        recorder.append(*request)
        appended += 1
    gevent.sleep(0)
for _ in range(int(sys.argv[2])):
    recorder.append(*request)
    appended += 1
gevent.sleep(0.006)  # batches of them are being made, or written, when it closes
recorder.close()
assert recorder.failure is None, recorder.failure
assert recorder.written == appended, (recorder.written, appended)
print(appended)
"""

# A limit on the size of files is a disk that is full, and then has room again.
FULL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def room(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
recorder = module.Recorder(run, 0)
module._MAX_WAITING = int(sys.argv[2])
room(300_000)
for seq in range(20_000):
    recorder.append(*recorded(seq, outcome="TIMEOUT" if seq % 10 == 0 else "OK"))
    if seq % 100 == 0:
        gevent.sleep(0.001)
gevent.sleep(0.05)
assert isinstance(recorder.failure, OSError), recorder.failure
assert 0 < recorder.written < 20_000
assert max(len(table.waiting) for table in recorder._tables) <= module._MAX_WAITING
room(resource.RLIM_INFINITY)
recorder.close()
print(recorder.written, recorder.written_failed, recorder.failure)
"""

GIVES_WAY = """
turns = 0
def other():
    global turns
    while True:
        gevent.sleep(1e-6)
        turns += 1
seen = []
recorder = module.Recorder(run, 0, lambda batch: seen.append((len(batch), turns)))
gevent.spawn(other)
for seq in range(20_000):
    recorder.append(*recorded(seq))
gevent.sleep(0.1)
recorder.close()
assert sum(rows for rows, _ in seen) == 20_000
assert max(rows for rows, _ in seen) <= batch.MAX_ROWS
assert all(later > earlier for (_, earlier), (_, later) in zip(seen, seen[1:])), "the loop turned in between"
"""

HISTOGRAMS = """
recorder = module.Recorder(run, 0)
module._FLUSH_S = 0.05
for seq in range(3000):
    recorder.append(*recorded(seq, [1000 + seq, 2000], None, read_lag_us=seq))
    if seq % 10 == 0:
        gevent.sleep(0.001)
recorder.close()
assert recorder.failure is None
"""

OBSERVED = """
seen = []
def observe(batch):
    seen.append(len(batch))
    if len(seen) == 2:
        raise ValueError("a bug of ours")
recorder = module.Recorder(run, 0, observe)
for seq in range(2000):
    recorder.append(*recorded(seq, outcome="CANCELLED" if seq % 2 else "RESET"))
gevent.sleep(0.1)
assert str(recorder.failure) == "a bug of ours", recorder.failure
recorder.close()
assert sum(seen) == 2000, "each batch once"
print(recorder.written, recorder.written_failed)
"""

HEALTH = """
import gc
gc.disable()
recorder = module.Recorder(run, 0)
recorder.users, recorder.in_flight = 7, 3
gevent.sleep(0.5)
gc.collect()
gevent.sleep(1.6)
recorder.close()
gc.collect()
"""


def run_program(program: str, run: Path, argument: object = "") -> str:
    for folder in ("requests", "workers"):
        (run / folder).mkdir()
    command = [sys.executable, "-c", HEAD + program, str(run), str(argument)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def whole(path: Path) -> pa.Table:
    table, problem = read_shard(path)
    assert problem is None
    assert table is not None
    return table


@pytest.mark.parametrize("last", [0, 1, 30_000])
def test_nothing_is_lost(tmp_path: Path, last: int) -> None:
    appended = int(run_program(NEVER_PAUSES, tmp_path, last))
    assert whole(tmp_path / "requests" / "worker-0.arrow").num_rows == appended > last


def test_what_a_full_disk_did_not_take_is_written_at_the_end(tmp_path: Path) -> None:
    assert run_program(FULL_DISK, tmp_path, 2000).split() == ["20000", "2000", "None"]
    table = whole(tmp_path / "requests" / "worker-0.arrow")
    assert table.column("seq").to_pylist() == list(range(20_000))


def test_what_waits_for_a_full_disk_is_bounded(tmp_path: Path) -> None:
    written, failed, *failure = run_program(FULL_DISK, tmp_path, 3).split()
    assert " ".join(failure).endswith("File too large"), "lost is lost, also when there is room again"
    rows = whole(tmp_path / "requests" / "worker-0.arrow").column("seq").to_pylist()
    assert len(rows) == int(written) < 20_000
    assert sum(seq % 10 == 0 for seq in rows) == int(failed)


def test_the_loop_turns_between_two_batches(tmp_path: Path) -> None:
    run_program(GIVES_WAY, tmp_path)


def test_an_observer_that_fails_loses_no_record(tmp_path: Path) -> None:
    assert run_program(OBSERVED, tmp_path).split() == ["1000", "1000"]
    assert whole(tmp_path / "requests" / "worker-0.arrow").num_rows == 2000


def test_histograms_of_the_seconds_add_up_to_every_gap_and_lag(tmp_path: Path) -> None:
    run_program(HISTOGRAMS, tmp_path)
    found: dict[str, Counter[int]] = {}
    rows = whole(tmp_path / "workers" / "worker-0.histograms.arrow").to_pylist()
    for row in rows:
        counts = dict(zip(row["buckets"], row["counts"], strict=True))
        assert list(counts) == sorted(counts)
        assert all(counts.values())
        found.setdefault(row["name"], Counter()).update(counts)
    table = whole(tmp_path / "requests" / "worker-0.arrow")
    gaps_us = table.column("chunk_gaps_us").combine_chunks().flatten().to_numpy()
    assert found == {
        "chunk_gap": histogram.count(gaps_us * 1000),
        "read_lag": histogram.count(table.column("read_lag_us").to_numpy() * 1000),
        "send_lag": Counter({histogram.bucket(0): 3000}),
    }
    times = sorted({row["t_ns"] for row in rows})
    assert len(times) > 2
    assert len(rows) == len({(row["t_ns"], row["name"]) for row in rows})


def test_a_row_of_health_has_the_pauses_of_the_collector(tmp_path: Path) -> None:
    run_program(HEALTH, tmp_path)
    first, second = whole(tmp_path / "workers" / "worker-0.arrow").to_pylist()[:2]
    assert (first["users"], first["in_flight"]) == (7, 3)
    assert 0 < first["gc_pause_max_us"] <= first["gc_pause_us"] < 1_000_000
    assert (second["gc_pause_us"], second["gc_pause_max_us"]) == (0, 0)
