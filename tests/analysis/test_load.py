"""What a run directory may look like after a crash."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from analysis.damage import span
from analysis.load import Run, load, samples
from analysis.requests import parts
from analysis.shards import REQUESTS, read
from loadgen import record, rundir
from loadgen.errors import RunDirError
from loadgen.shards import arrow_schema
from tests.analysis import synthetic as syn


def requests(run: Run) -> pa.Table:
    """All usable rows of all workers."""
    tables = [table for _, table in read(run.shards, REQUESTS, span(run.manifest), run.damage)]
    columns = [(column.name, column.type) for column in record.REQUEST_COLUMNS]
    return pa.concat_tables([arrow_schema(columns, {}).empty_table(), *tables])


def gaps(run: Run) -> list[list[int]]:
    return [values or [] for values in requests(run)["chunk_gaps_us"].to_pylist()]


def test_null_stays_null_and_integers_stay_exact(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    failed = syn.request(2.0, ttft_ms=None, gaps_ms=(), outcome="TIMEOUT", end_s=3.0)
    syn.write_requests(run, [syn.request(1.0), failed])
    loaded = load(run)
    assert requests(loaded)["intended_ns"].to_pylist() == [syn.at(1.0), syn.at(2.0)]
    assert requests(loaded)["first_token_ns"].is_null().to_pylist() == [False, True]
    assert [len(values) for values in gaps(loaded)] == [9, 0]
    (part,) = parts(loaded, 1, lambda share: None)
    assert part.frame["ttft_ms"].tolist() == pytest.approx([100, np.nan], nan_ok=True)
    assert part.gap_row.tolist() == [0] * 9 and part.gap_itl_ms.tolist() == [10.0] * 9
    assert loaded.damage == []


def test_gaps_of_several_shards_and_batches_stay_with_their_requests(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    for worker in (0, 1):
        rows = [syn.request(k / 10, gaps_ms=[worker * 100 + k] * (k % 4), chunk_gaps_us=None) for k in range(7)]
        for k, row in enumerate(rows):
            row["chunk_gaps_us"] = None if k == 5 else [worker * 100 + k] * (k % 4)
        syn.write_requests(run, rows, worker, batch=3)
    assert gaps(load(run)) == [[] if k == 5 else [worker * 100 + k] * (k % 4) for worker in (0, 1) for k in range(7)]


def test_every_cut_of_a_shard_loses_its_tail_only(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    path = syn.write_requests(run, [syn.request(k / 10) for k in range(30)], batch=10)
    whole = path.read_bytes()
    rows = []
    for size in (*range(0, len(whole), 97), len(whole)):
        path.write_bytes(whole[:size])
        rows.append(len(requests(load(run))))
        assert rows[-1] % 10 == 0
    assert rows == sorted(rows) and rows[-1] == 30


def test_shards_of_an_unknown_schema_are_left_out_and_said_so(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [syn.request(1.0)], 0, schema="99")
    syn.write_requests(run, [syn.request(1.0)], 1, schema="0")
    syn.write_table(run, "here", "gpu_fast", [syn.gpu(1.0)], schema="99")
    loaded = load(run)
    assert len(requests(loaded)) == 0 and loaded.hosts == []
    assert len(loaded.damage) == 3


def test_shards_of_another_clock_wait_apart(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [syn.request(1.0)], 0)
    syn.write_requests(run, [syn.request(1.0)] * 3, 1, boot_id="another boot", host="far")
    loaded = load(run)
    assert len(requests(loaded)) == 1 and loaded.damage == []
    (shard,) = [shard for shard in loaded.shards if shard.clock is not None]
    assert (shard.file, shard.clock, shard.filled) == ("requests/worker-1.arrow", "worker:far", True)


def test_columns_that_a_shard_of_an_older_schema_lacks_are_null(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    columns = [column for column in syn.sample.TABLES["gpu_fast"] if column.name != "energy_mj"]
    path = run / rundir.TELEMETRY / "old" / "gpu_fast.arrow"
    path.parent.mkdir()
    syn._write(path, columns, [syn.gpu(1.0)], 10, {"schema": "1"})
    loaded = load(run)
    (part,) = samples(loaded, loaded.hosts[0], "gpu_fast", ["energy_mj"], [])
    assert np.isnan(part["energy_mj"]).tolist() == [True]


def test_the_cut_last_line_of_the_truth_is_left_out(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    path = syn.truth(run, [(1.0, 32, 0), (2.0, 32, 7)])
    path.write_bytes(path.read_bytes()[:-2])
    assert load(run).truth["late_tokens"].tolist() == [0]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2}', '{"schema": 1, "run_id": "x"}'])
def test_an_unusable_manifest_is_the_only_error(tmp_path: Path, text: str) -> None:
    run = syn.make(tmp_path / "run")
    (run / rundir.MANIFEST).write_text(text)
    with pytest.raises(RunDirError) as caught:
        load(run)
    assert str(run) in str(caught.value) and "\n" not in str(caught.value)


def test_a_manifest_and_nothing_else_is_a_run(tmp_path: Path) -> None:
    (tmp_path / rundir.MANIFEST).write_text(json.dumps(syn.manifest([1])))
    loaded = load(tmp_path)
    assert list(loaded.shards) == [] and loaded.truth.empty and loaded.hosts == []


def test_only_the_columns_that_are_asked_for_are_read(tmp_path: Path) -> None:
    run = load(syn.make(tmp_path / "run"))
    syn.write_requests(run.path, [syn.request(1.0, server_times_us=[1, 2])])
    ((_, table),) = read(run.shards, REQUESTS, span(run.manifest), run.damage, ["end_ns"])
    assert table.column_names == ["intended_ns", "end_ns", "outcome"]  # with the keys, without which a row says nothing
