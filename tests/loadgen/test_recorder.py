"""The recorder under a load that never pauses: nothing that was appended is lost, however it is written and closed.

gevent's loop runs in a process of its own here, so that the tests' process stays as it is.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loadgen.shards import read_shard

PROGRAM = """
import sys, time, gevent
from pathlib import Path
from loadgen import recorder as module
from loadgen.record import REQUEST_COLUMNS
module._FLUSH_S = 0.005
run = Path(sys.argv[1])
recorder = module.Recorder(run, 0)
VALUES = {"int32": 1, "int64": 2, "string": "OK", "list<int32>": [1, 2, 3]}
row = [VALUES[column.type] for column in REQUEST_COLUMNS]
appended = 0
end = time.monotonic() + 1.5
while time.monotonic() < end:
    for _ in range(200):
        recorder.append(tuple(row))
        appended += 1
    gevent.sleep(0)
for _ in range(int(sys.argv[2])):
    recorder.append(tuple(row))
    appended += 1
gevent.sleep(0.006)  # a write of them is under way when it closes
recorder.close()
assert recorder.failure is None, recorder.failure
assert recorder.written == appended, (recorder.written, appended)
print(appended)
"""


@pytest.mark.parametrize("last", [0, 1, 30_000])
def test_nothing_is_lost(tmp_path: Path, last: int) -> None:
    for folder in ("requests", "workers"):
        (tmp_path / folder).mkdir()
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(last)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    table, problem = read_shard(tmp_path / "requests" / "worker-0.arrow")
    assert problem is None
    assert table is not None
    assert table.num_rows == int(done.stdout) > last
