"""What loads the reference server: the floor, ours by a real `loadgen run`, and the peers. A function a client.

Each runs its client to the end and returns what it recorded, in the columns that figures.py knows, and its CPU time.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks import peers
from benchmarks.figures import Row, Window
from benchmarks.processes import Client
from benchmarks.reference import Binaries, Certificate, Server
from loadgen.histogram import bucket_ns
from loadgen.shards import read_shard

MODEL, TOKENS = "ref-model", 100
CHAT, PREDICT = "/v1/chat/completions", "/predict"
_PROMPT = "hello there"
_CHAT_BODY = json.dumps(
    {
        "model": MODEL,
        "stream": True,
        "max_tokens": TOKENS,
        "messages": [{"role": "user", "content": _PROMPT}],
    },
    separators=(",", ":"),
)
_CSV = ("id", "sent_ns", "first_ns", "last_ns", "end_ns", "tokens", "ok")
_AFTER_S = 180.0  # for the last answers, a report and whatever else a client does at its end
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Load:
    """A closed loop of `users`, or, with a rate, arrivals a second. `measured_s` of it are a steady window.

    `folder` is for the client's files.
    """

    folder: Path
    server: Server
    users: int
    path: str
    measured_s: float
    rate: float | None = None
    tls: Certificate | None = None

    @property
    def body(self) -> str:
        return _CHAT_BODY if self.path == CHAT else "{}"

    @property
    def stagger_s(self) -> float:
        """Over one answer of a stream, so that the users do not march in step; at once where answers are."""
        return 5.0 if self.path == CHAT else 0.0

    @property
    def lead_s(self) -> float:
        """From the first request to the steady window: the starts, and a while for what they stirred up."""
        return self.stagger_s + 3.0

    @property
    def seconds(self) -> float:
        """Longer than lead and window by one answer: what was due in the window is then answered too."""
        return self.lead_s + self.measured_s + self.stagger_s + 2.0


@dataclass(frozen=True)
class Result:
    """`records` is None for a client that keeps none; `said` is what it says of itself then."""

    records: pd.DataFrame | None
    cpu_s: Callable[[Window], float]
    said: Row = field(default_factory=dict)
    run: Path | None = None


@dataclass(frozen=True)
class Cores:
    server: int
    client: int


Runner = Callable[[Load, Cores, Binaries], Result]


def floor(load: Load, cores: Cores, binaries: Binaries) -> Result:
    """The least that a client can do, in C."""
    numbers = map(str, (load.server.port, load.users, load.seconds, load.stagger_s, load.lead_s))
    with Client([binaries.client, *numbers, load.path, load.body], cores.client, load.folder / "floor.out") as client:
        said = json.loads(client.wait(load.seconds + _AFTER_S))
    return Result(
        None,
        lambda window: client.cpu_s(*window),
        {"ttft_p50": said["ttft_p50_ms"], "ttft_p99": said["ttft_p99_ms"], "itl_mean": said["itl_mean_ms"]},
    )


def ours_all(load: Load, cores: Cores, binaries: Binaries) -> Result:
    """Conductor, master, worker and recorder on the client's core."""
    return _ours(load, cores.client, lambda _: None, lambda _: True)


def ours_worker(load: Load, cores: Cores, binaries: Binaries) -> Result:
    """The worker alone on the client's core, the rest beside the server; CPU time is the worker's."""
    return _ours(load, cores.server, lambda line: cores.client if _is_worker(line) else None, _is_worker)


def _is_worker(line: str) -> bool:
    return "--worker" in line.split()


def _ours(load: Load, core: int, elsewhere: Callable[[str], int | None], counted: Callable[[str], bool]) -> Result:
    scenario = "chat" if load.path == CHAT else "predict"
    command = [sys.executable, "-m", "loadgen.cli", "run", scenario, "--host", load.server.url, "--model", MODEL]
    command += ["--workers", "1", "--agents", "none", "--runs-dir", str(load.folder), "--step-time", f"{load.seconds}s"]
    command += ["--prompt-tokens", "8", "--output-tokens", str(TOKENS)]
    command += ["--steps", str(load.users)] if load.rate is None else ["--rate", f"{load.rate:g}"]
    if load.rate is None:
        command += ["--ramp", f"{load.stagger_s}s"]
    if load.path == PREDICT:
        command += ["--body-template", load.body]
    if load.tls is not None:
        command += ["--ca-file", str(load.tls.cert)]
    with Client(command, core, load.folder / "loadgen.out", elsewhere=elsewhere) as client:
        client.wait(load.seconds + _AFTER_S)
    run = (load.folder / "latest").resolve()
    return Result(_recorded(run), lambda window: client.cpu_s(*window, counted), run=run)


def _recorded(run: Path) -> pd.DataFrame:
    """The records of a run of ours; its monotonic stamps by the pair of clocks that each shard names."""
    frames = []
    for path in sorted((run / "requests").glob("*.arrow")):
        table, problem = read_shard(path)
        if table is None or problem is not None:
            raise RuntimeError(problem)
        clocks = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        offset = int(clocks["realtime_ns"]) - int(clocks["monotonic_ns"])
        rows = table.to_pandas()
        frames.append(
            pd.DataFrame(
                {
                    "id": rows["request_id"],
                    "due_ns": rows["intended_ns"] + offset,
                    "sent_ns": rows["sent_ns"] + offset,
                    "first_ns": rows["first_token_ns"] + offset,
                    "last_ns": rows["last_token_ns"] + offset,
                    "end_ns": rows["end_ns"] + offset,
                    "tokens": rows["output_tokens"],
                    "ok": rows["outcome"] == "OK",
                    "outcome": rows["outcome"],
                }
            )
        )
    return pd.concat(frames)


def lags(run: Path, window: Window) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The read lags of a run of ours in a window: middles of the histogram's buckets in ms, and their counts."""
    values, counts = [], []
    for path in sorted((run / "workers").glob("*.histograms.arrow")):
        table, _ = read_shard(path)
        assert table is not None
        clocks = table.schema.metadata
        offset = int(clocks[b"realtime_ns"]) - int(clocks[b"monotonic_ns"])
        for row in table.to_pylist():
            if row["name"] == "read_lag" and window.begin_ns <= row["t_ns"] + offset < window.end_ns:
                values += [bucket_ns(bucket) / 1e6 for bucket in row["buckets"]]
                counts += row["counts"]
    if not values:
        raise RuntimeError(f"{run} has no histograms of read lags")
    return np.array(values), np.array(counts)


def aiohttp(load: Load, cores: Cores, binaries: Binaries) -> Result:
    return _aiohttp(load, cores, [])


def aiohttp_uvloop(load: Load, cores: Cores, binaries: Binaries) -> Result:
    return _aiohttp(load, cores, ["--uvloop"])


def _aiohttp(load: Load, cores: Cores, options: list[str]) -> Result:
    out = load.folder / "aiohttp.csv"
    command: list[str | Path] = [
        peers.environment("aiohttp") / "python",
        _HERE / "peers/aiohttp_client.py",
        load.server.url + load.path,
    ]
    command += [*map(str, (load.users, load.seconds, load.stagger_s)), load.body, out, *options]
    if load.tls is not None:
        command += ["--ca-file", load.tls.cert]
    with Client(command, cores.client, load.folder / "aiohttp.out") as client:
        client.wait(load.seconds + _AFTER_S)
    return Result(_from_csv(out), lambda window: client.cpu_s(*window))


def locust(load: Load, cores: Cores, binaries: Binaries) -> Result:
    """One process, as plain as Locust's documentation has it, without our plugin."""
    out = load.folder / "locust.csv"
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        _HERE / "peers/locust_client.py",
        "--headless",
        "--only-summary",
    ]
    command += ["-u", str(load.users), "-r", str(max(load.users / max(load.stagger_s, 1), 1))]
    command += ["-t", f"{load.seconds:.0f}s", "--host", load.server.url, "--exit-code-on-error", "0"]
    env = {"BENCH_PATH": load.path, "BENCH_BODY": load.body, "BENCH_OUT": str(out)}
    with Client(command, cores.client, load.folder / "locust.out", env=env) as client:
        client.wait(load.seconds + _AFTER_S)
    return Result(_from_csv(out), lambda window: client.cpu_s(*window))


def _from_csv(path: Path) -> pd.DataFrame:
    frame = pd.read_csv(io.StringIO(path.read_text()), names=list(_CSV), dtype={"id": str, "ok": bool})
    return frame.assign(due_ns=frame["sent_ns"])


def guidellm(load: Load, cores: Cores, binaries: Binaries) -> Result:
    """Its own command line. It sends no request id; the id of the server's answer is the log's ordinal."""
    out, prompts = load.folder / "guidellm.json", _prompts(load.folder, "prompt")
    command: list[str | Path] = [peers.environment("guidellm") / "guidellm", "run", "--disable-console"]
    command += ["--backend", f"kind=openai_http,target={load.server.url},model={MODEL},request_format={CHAT}"]
    command += ["--profile", f"kind=concurrent,streams={load.users}"]
    command += ["--constraint", f"kind=max_duration,seconds={load.seconds:.0f}"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={_tokenizer(load.folder)}"]
    command += ["--data", f"kind=json_file,path={prompts}", "--output", f"kind=json,path={out}"]
    with Client(command, cores.client, load.folder / "guidellm.out") as client:
        client.wait(load.seconds + _AFTER_S)
    rows = []
    for request in json.loads(out.read_text())["benchmarks"][0]["requests"]["successful"]:
        times = request["info"]["timings"]
        sent, first, last, end = (
            int(times[key] * 1e9)
            for key in ("request_start", "first_token_iteration", "last_token_iteration", "request_end")
        )
        ordinal = request["response_id"].rpartition("-")[2]
        rows.append((ordinal, sent, sent, first, last, end, request["output_metrics"]["text_tokens"], True))
    return Result(_frame(rows), lambda window: client.cpu_s(*window), {"by_ordinal": True})


def aiperf(load: Load, cores: Cores, binaries: Binaries) -> Result:
    """Its own command line, token counts from the server."""
    folder, prompts = load.folder / "aiperf", _prompts(load.folder, "text")
    command: list[str | Path] = [
        peers.environment("aiperf") / "aiperf",
        "profile",
        "--ui",
        "none",
        "--streaming",
        "--model",
        MODEL,
    ]
    command += ["--url", load.server.url, "--endpoint-type", "chat", "--concurrency", str(load.users)]
    command += ["--benchmark-duration", f"{load.seconds:.0f}", "--benchmark-grace-period", "0"]
    command += ["--input-file", prompts, "--custom-dataset-type", "single_turn", "--extra-inputs"]
    command += [f"max_tokens:{TOKENS}", "--use-server-token-count", "--tokenizer", _tokenizer(load.folder)]
    command += ["--artifact-dir", folder]
    with Client(command, cores.client, load.folder / "aiperf.out") as client:
        client.wait(load.seconds + _AFTER_S)
    rows = []
    for line in (folder / "profile_export.jsonl").read_text().splitlines():
        request = json.loads(line)
        metadata, metrics = request["metadata"], request["metrics"]
        if "time_to_first_token" not in metrics:
            continue
        sent, tokens = metadata["request_start_ns"], metrics["output_sequence_length"]["value"]
        first = sent + int(metrics["time_to_first_token"]["value"] * 1e6)
        last = first + int(sum(metrics["inter_chunk_latency"]["value"]) * 1e6)
        rows.append((metadata["x_request_id"], sent, sent, first, last, metadata["request_end_ns"], tokens, True))
    return Result(_frame(rows), lambda window: client.cpu_s(*window))


def _frame(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["id", "due_ns", *_CSV[1:]])


def _prompts(folder: Path, column: str) -> Path:
    """More than a run can use: what has no next prompt ends early."""
    path = folder / f"prompts-{column}.jsonl"
    path.write_text(f"{json.dumps({column: _PROMPT})}\n" * 50_000)
    return path


def _tokenizer(folder: Path) -> Path:
    """A tokenizer of words, in Hugging Face's format: both peers want one before they count by the server's usage."""
    path = folder / "tokenizer"
    path.mkdir(exist_ok=True)
    vocabulary = {word: number for number, word in enumerate(["[UNK]", *_PROMPT.split(), "tok"])}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    (path / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model})
    )
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"})
    )
    return path
