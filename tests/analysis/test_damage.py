"""Whatever happens to a run directory, there is a report, and it says what is wrong; but for run.json, see below."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from analysis.analyse import summarise
from analysis.report.build import build
from loadgen import rundir
from loadgen.errors import RunDirError
from loadgen.shards import read_shard
from tests.analysis import synthetic as syn

FILES = [
    *("run.json", "steps.jsonl", "events.jsonl", "clocks.jsonl", "simulator/truth.csv"),
    *(f"{folder}/worker-{worker}.arrow" for folder in ("requests", "workers") for worker in (0, 1)),
    *(f"workers/worker-{worker}.histograms.arrow" for worker in (0, 1)),
    *(f"telemetry/here/{name}" for name in ("hello.json", "host.arrow", "agent.arrow", "server.arrow")),
    *(f"telemetry/sim-0/{name}" for name in ("hello.json", "gpu_fast.arrow", "gpu_slow.arrow")),
]
SHARDS = [file for file in FILES if file.endswith(".arrow")]
FOLDERS = ["requests", "workers", "telemetry", "telemetry/here", "telemetry/sim-0", "simulator", "logs"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return syn.whole(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def steps(original: Path) -> list[dict[str, Any]]:
    return list(summarise(original)["steps"])


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def damage(run: Path) -> dict[str, str]:
    """File -> what is wrong with it; there is a caveat of the whole run when there is any."""
    summary = summarise(run)
    assert ("damage" in [caveat["code"] for caveat in summary["caveats"]]) == bool(summary["damage"])
    return {finding["file"]: finding["text"] for finding in summary["damage"]}


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table, _ = read_shard(path)
    assert table is not None
    changed = change(table)
    with pa.ipc.new_stream(path, changed.schema) as stream:
        stream.write_table(changed, max_chunksize=20)


def test_a_whole_run_has_no_damage_and_every_file_is_tried_here(original: Path) -> None:
    assert damage(original) == {}
    files = {str(path.relative_to(original)) for path in original.rglob("*") if path.is_file()}
    assert files - set(FILES) == {
        *(f"requests/worker-{worker}.errors.jsonl" for worker in (0, 1)),  # there are none without failures
        "telemetry/sim-0/host.arrow",  # a host of the simulator has what its model gives
    }


def test_a_host_that_could_not_be_watched_is_no_damage_and_one_that_left_nothing_is(run: Path) -> None:
    manifest = json.loads((run / "run.json").read_text())
    manifest["options"]["agents"] = "local,gpu1,gpu2"
    (run / "run.json").write_text(json.dumps(manifest))
    for kind, agent in (("agent_failed", "gpu1"), ("agent_failed", "gpu2"), ("agent_started", "gpu2")):
        line = {"t_ns": syn.at(1.0), "kind": kind, "text": f"{kind}: {agent}", "agent": agent}
        rundir.append_line(run / rundir.EVENTS, line)
    assert damage(run) == {"telemetry": "1 of 2 hosts that were watched left nothing"}
    (caveat,) = [caveat for caveat in summarise(run)["caveats"] if caveat["code"] == "not_watched"]
    assert caveat["text"] == "agent_failed: gpu1"
    assert "loadgen agents check gpu1" in caveat["remedy"]


def test_a_host_that_only_nvidia_smi_tells_of_lacks_nothing(run: Path) -> None:
    manifest = json.loads((run / "run.json").read_text())
    manifest["options"]["agents"] = "local,gpu1"
    (run / "run.json").write_text(json.dumps(manifest))
    syn.hello(run, "gpu1", gpus=1)
    path = run / "telemetry" / "gpu1" / "hello.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"nvml": {"state": "nvidia-smi"}}))
    for table in ("gpu_fast", "gpu_slow"):
        shutil.copy(run / "telemetry" / "sim-0" / f"{table}.arrow", path.with_name(f"{table}.arrow"))
    assert damage(run) == {}


@pytest.mark.parametrize("name", [*FILES[1:], *FOLDERS])
def test_what_is_missing_is_named(run: Path, name: str) -> None:
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = damage(run)
    assert [file for file in found if file.startswith(name.split("/")[0])], found


@pytest.mark.parametrize("name", [*FILES[1:], *FOLDERS])
def test_a_file_in_place_of_a_folder_and_a_folder_in_place_of_a_file_are_damage(run: Path, name: str) -> None:
    path = run / name
    if path.is_dir():
        shutil.rmtree(path)
        path.touch()
    else:
        path.unlink()
        path.mkdir()
    assert name == "logs" or damage(run)


GARBAGE = [b"", b"\x00" * 400, b"\xffgarbage\n" * 40, b'[1, 2]\n{"t_ns": 1e400}\n"x"\n7\n']


@pytest.mark.parametrize("number", range(1, len(FILES)))
def test_garbage_is_named(run: Path, number: int) -> None:
    (run / FILES[number]).write_bytes(GARBAGE[number // 3 % len(GARBAGE)])  # each on a JSON file and on a shard
    assert FILES[number] in damage(run)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b'{"schema": 1}', b'{"schema": 2, "run_id": "x"}'])
def test_without_a_manifest_there_is_no_report(run: Path, content: bytes) -> None:
    (run / rundir.MANIFEST).write_bytes(content)
    with pytest.raises(RunDirError) as caught:
        summarise(run)
    assert "\n" not in str(caught.value)
    assert str(run) in str(caught.value)


NONSENSE = [None, 7, "x", [], {}, ["x"], {"x": {}}, float("inf"), 2**80, True]


def test_a_manifest_with_a_nonsense_value_gives_one_sentence_or_a_report(tmp_path: Path) -> None:
    plan = {"options": {"agents": "none"}, "recorded": {"requests": 1}, "ended_ns": syn.at(3.0)}
    run = syn.make(tmp_path / "run", (1,), 2.0, **plan)
    syn.write_requests(run, [syn.request(1.0)])
    manifest = json.loads((run / rundir.MANIFEST).read_text())
    parts = ("target", "plan", "clock", "options", "recorded")
    places = [*((key,) for key in manifest), *((part, key) for part in parts for key in manifest[part])]
    for number, (*outer, key) in enumerate(places):
        changed = json.loads(json.dumps(manifest))
        (changed[outer[0]] if outer else changed)[key] = NONSENSE[number % len(NONSENSE)]
        rundir.write_manifest(run, changed)
        try:
            build(run, figures=False)
        except RunDirError as error:
            assert "\n" not in str(error) and key in str(error)


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_of_an_unknown_schema_is_named(run: Path, name: str) -> None:
    rewrite(run / name, lambda table: table.replace_schema_metadata(table.schema.metadata | {b"schema": b"99"}))
    assert "schema 99" in damage(run)[name]


@pytest.mark.parametrize("name", SHARDS)
def test_columns_of_other_types_are_named(run: Path, name: str) -> None:
    def as_text(table: pa.Table) -> pa.Table:
        texts = [pa.array(["nonsense"] * table.num_rows) for _ in table.column_names]
        return pa.table(texts, names=table.column_names).replace_schema_metadata(table.schema.metadata)

    rewrite(run / name, as_text)
    assert name in damage(run)


def test_a_shard_that_was_cut_between_two_batches_is_told_by_the_count(run: Path) -> None:
    rewrite(run / "requests" / "worker-1.arrow", lambda table: table.slice(0, 60))
    assert damage(run) == {"requests": "140 requests are here, and 160 were recorded"}


@pytest.mark.parametrize(
    "values",
    [
        {"t_ns": "now"},
        {"t_ns": 5},
        {"t_ns": 2**70},
        {"level": 0},
        {"level": "many"},
        {"level": float("inf")},
        {"step": None},
        {"what": "dance"},
        {"unit": 3},
        {"t_ns": syn.at(1.0), "what": "end", "step": 1},  # before its ramp
    ],
)
def test_a_nonsense_line_of_the_steps_costs_that_line_only(
    run: Path, steps: list[dict[str, Any]], values: dict[str, Any]
) -> None:
    path = run / rundir.STEPS
    lines = path.read_text().splitlines(keepends=True)
    nonsense = {"step": 0, "level": 10, "unit": "users", "what": "end", "t_ns": syn.at(9.0)} | values
    path.write_text("".join([*lines[:4], json.dumps(nonsense) + "\n", *lines[4:]]))
    summary = summarise(run)
    assert [finding["file"] for finding in summary["damage"]] == [rundir.STEPS]
    assert summary["steps"] == steps


def test_rows_with_nonsense_are_left_out_and_counted(run: Path) -> None:
    def spoil(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[3]["end_ns"] = 2**62
        rows[4]["outcome"] = "DANCED"
        rows[5]["intended_ns"] = None
        return pa.Table.from_pylist(rows, schema=table.schema)

    rewrite(run / "requests" / "worker-0.arrow", spoil)
    assert damage(run)["requests/worker-0.arrow"] == "3 of 80 rows are nonsense: they are left out"


def test_the_report_has_a_section_and_the_figures_that_there_are_data_for(run: Path) -> None:
    (run / "workers" / "worker-1.arrow").unlink()
    (run / rundir.STEPS).unlink()
    page = build(run).html.read_text()
    assert [path.stem for path in sorted((run / "report" / "figures").glob("*.png"))] == [
        "errors",
        "latency_heat",
        "timeline",
    ]
    assert "<h2>Damage</h2>" in page
    assert "<code>workers/worker-1.arrow</code>" in page
    assert page.index("missing or damaged") < page.index("<h2>Steps</h2>")


def _mutate(random_: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    match random_.randrange(5):
        case 0:
            path.unlink()
        case 1:
            path.write_bytes(data[: random_.randrange(len(data))])
        case 2:
            begin = random_.randrange(len(data))
            data[begin : begin + random_.choice((1, 8, 200))] = random_.randbytes(random_.choice((1, 8, 200)))
            path.write_bytes(data)
        case 3:
            for _ in range(random_.choice((1, 20, 300))):
                data[random_.randrange(len(data))] = random_.randrange(256)
            path.write_bytes(data)
        case 4:
            path.write_bytes(data + random_.randbytes(random_.randrange(1, 100)))


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_cut_deleted_or_overwritten_there_is_a_report(run: Path, seed: int) -> None:
    random_ = random.Random(seed)
    names = random_.sample([name for name in FILES if name != rundir.MANIFEST or seed % 10 == 9], random_.randint(1, 4))
    for name in names:
        _mutate(random_, run / name)
    try:
        built = build(run, figures=False)  # drawing takes seconds
    except RunDirError as error:
        assert rundir.MANIFEST in names and "\n" not in str(error)
    else:
        missing = {name.split("/")[0] for name in names if not (run / name).exists()}
        assert built.html.exists()
        assert {finding["file"].split("/")[0] for finding in built.summary["damage"]} >= missing
