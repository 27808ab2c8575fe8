"""What a run directory may look like after a crash."""

import json
from pathlib import Path

import pytest

from analysis.load import load
from loadgen import record, rundir
from loadgen.errors import RunDirError
from tests.analysis import synthetic as syn


def test_null_stays_null_and_integers_stay_exact(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    failed = syn.request(2.0, ttft_ms=None, gaps_ms=(), outcome="TIMEOUT", end_s=3.0)
    syn.write_requests(run, [syn.request(1.0), failed])
    loaded = load(run)
    assert loaded.requests["intended_ns"].tolist() == [syn.at(1.0), syn.at(2.0)]
    assert loaded.requests["first_token_ns"].isna().tolist() == [False, True]
    assert loaded.gaps.offsets.tolist() == [0, 9, 9]
    assert loaded.damage == []


def test_gaps_of_several_shards_and_batches_stay_with_their_requests(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    for worker in (0, 1):
        rows = [syn.request(k / 10, gaps_ms=[worker * 100 + k] * (k % 4), chunk_gaps_us=None) for k in range(7)]
        for k, row in enumerate(rows):
            row["chunk_gaps_us"] = None if k == 5 else [worker * 100 + k] * (k % 4)
        syn.write_requests(run, rows, worker, batch=3)
    loaded = load(run)
    lists = [
        loaded.gaps.values[begin:end].tolist()
        for begin, end in zip(loaded.gaps.offsets[:-1], loaded.gaps.offsets[1:], strict=True)
    ]
    assert lists == [[] if k == 5 else [worker * 100 + k] * (k % 4) for worker in (0, 1) for k in range(7)]


def test_every_cut_of_a_shard_loses_its_tail_only(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    path = syn.write_requests(run, [syn.request(k / 10) for k in range(30)], batch=10)
    whole = path.read_bytes()
    rows = []
    for size in (*range(0, len(whole), 97), len(whole)):
        path.write_bytes(whole[:size])
        loaded = load(run)
        assert len(loaded.requests) == len(loaded.gaps.offsets) - 1
        assert len(loaded.requests) % 10 == 0
        rows.append(len(loaded.requests))
    assert rows == sorted(rows) and rows[-1] == 30


def test_shards_of_an_unknown_schema_are_left_out_and_said_so(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [syn.request(1.0)], 0, schema="99")
    syn.write_requests(run, [syn.request(1.0)], 1, schema="0")
    syn.write_table(run, "here", "gpu_fast", [syn.gpu(1.0)], schema="99")
    loaded = load(run)
    assert loaded.requests.empty and loaded.hosts == []
    assert len(loaded.damage) == 3


def test_shards_of_another_clock_wait_apart(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [syn.request(1.0)], 0)
    syn.write_requests(run, [syn.request(1.0)] * 3, 1, boot_id="another boot", host="far")
    loaded = load(run)
    assert len(loaded.requests) == 1 and loaded.damage == []
    (shard,) = loaded.foreign
    assert (shard.file, shard.clock, shard.table.num_rows) == ("requests/worker-1.arrow", "worker:far", 3)


def test_columns_that_a_shard_of_an_older_schema_lacks_are_null(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    columns = [column for column in syn.sample.TABLES["gpu_fast"] if column.name != "energy_mj"]
    path = run / rundir.TELEMETRY / "old" / "gpu_fast.arrow"
    path.parent.mkdir()
    syn._write(path, columns, [syn.gpu(1.0)], 10, {"schema": "1"})
    assert load(run).hosts[0].tables["gpu_fast"]["energy_mj"].isna().all()


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
    assert loaded.requests.empty and loaded.health.empty and loaded.truth.empty and loaded.hosts == []


def test_lists_of_gaps_are_flat_arrays_only(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [syn.request(1.0, server_times_us=[1, 2])])
    columns = set(load(run).requests.columns)
    assert columns == {column.name for column in record.REQUEST_COLUMNS} - {"chunk_gaps_us"}
