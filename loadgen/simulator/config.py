"""`SimulatorConfig`: what the simulator is asked to be, and its validation, which reports every problem at once.

`OPTIONS` is the one table of what may be asked for on a command line: the flag, its meaning, its range. No clock.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

from loadgen.errors import UsageError
from loadgen.simulator import profiles


@dataclass(frozen=True)
class SimulatorConfig:
    """The meanings are in OPTIONS. Times are what is modelled: `speedup` divides them all."""

    host: str = "127.0.0.1"
    port: int = 0
    replicas: int = 8
    gpu: str = "L4"
    model: str = "8b"
    dtype: str = "bf16"
    slots: int = 128
    seed: int = 0
    jitter: float = 0.02
    truth: Path | None = None
    gpus_per_host: int = 8
    max_batched_tokens: int = profiles.MAX_BATCHED_TOKENS
    prefix_cache: bool = False
    power_limit_w: float | None = None
    temp_limit_c: float | None = None
    speedup: float = 1.0
    preprocess_ms: float = 0.0
    preprocess_workers: int = 8
    io_wait_ms: float = 0.0
    io_places: int = 0
    network_ms: float = 0.0
    network_mbit_s: float = 0.0
    predict_tokens: int = profiles.PREDICT_TOKENS
    leak_b_per_s: float = 0.0
    leak_b_per_request: float = 0.0
    error_rate: float = 0.0
    error_status: int = 500
    stream_error_rate: float = 0.0
    reset_rate: float = 0.0
    truncate_rate: float = 0.0
    stall_rate: float = 0.0
    stall_s: float = 5.0
    delay_rate: float = 0.0
    delay_s: float = 1.0
    api_key: str | None = field(default=None, repr=False)


class Option(NamedTuple):
    """A flag without its dashes. A range is checked by `validate`; `type` makes a value of the flag's text."""

    name: str
    type: type
    help: str
    low: float | None = None
    high: float | None = None

    @property
    def field(self) -> str:
        """Where its value goes: a field of SimulatorConfig, but for `api_key_env`."""
        return "host" if self.name == "bind" else self.name.replace("-", "_")

    @property
    def default(self) -> Any:
        return getattr(SimulatorConfig, self.field, None)


OPTIONS = (
    Option("bind", str, "address to listen on"),
    Option("port", int, "port to listen on; 0: any free one", 0, 65_535),
    Option("replicas", int, "replicas, one simulated GPU each", 1, 1024),
    Option("gpu", str, ", ".join(profiles.GPUS)),
    Option("model", str, ", ".join(profiles.MODELS)),
    Option("dtype", str, ", ".join(profiles.DTYPES)),
    Option("slots", int, "sequences that a replica runs at once"),
    Option("max-batched-tokens", int, "decoded and prefilled tokens of one iteration", 2, 1 << 20),
    Option("prefix-cache", bool, "keep the KV blocks of prompts for requests that begin alike"),
    Option("predict-tokens", int, "compute of one /predict item, as tokens of a prompt", 1, 1 << 20),
    Option("power-limit-w", float, "power limit of each GPU, which slows it; without: the GPU's own"),
    Option("temp-limit-c", float, "temperature of each GPU at which it slows down; without: never"),
    Option("speedup", float, "divides every modelled time", 0.1, 1000),
    Option("jitter", float, "sigma of the lognormal factor on an iteration's time", 0, 0.5),
    Option("seed", int, "seed of tokens, jitter and faults"),
    Option("truth", Path, "file for the truth log, one line a request"),
    Option("gpus-per-host", int, "GPUs of each simulated host", 1, 1024),
    Option("network-ms", float, "network delay each way", 0, 60_000),
    Option("network-mbit-s", float, "bandwidth of each host's link for requests, one after the other; 0: any", 0, 1e6),
    Option("preprocess-ms", float, "CPU time of each request before the GPU's queue", 0, 60_000),
    Option("preprocess-workers", int, "CPU workers of each host that share the preprocessing", 1, 64),
    Option("io-wait-ms", float, "wait for I/O of each request before the GPU's queue", 0, 60_000),
    Option("io-places", int, "such waits of each host at once; 0: any number", 0, 1024),
    Option("leak-b-per-s", float, "VRAM that each GPU loses a second, bytes", 0, 1e12),
    Option("leak-b-per-request", float, "VRAM that a GPU loses a request, bytes", 0, 1e12),
    Option("error-rate", float, "share of requests answered with --error-status", 0, 1),
    Option("error-status", int, "HTTP status of those"),
    Option("stream-error-rate", float, "share of requests with an error event in a 200", 0, 1),
    Option("reset-rate", float, "share of requests whose connection is reset in the middle", 0, 1),
    Option("truncate-rate", float, "share of requests whose connection is closed in the middle", 0, 1),
    Option("stall-rate", float, "share of requests with a silence in the middle", 0, 1),
    Option("stall-s", float, "length of that silence", 0, 86_400),
    Option("delay-rate", float, "share of requests that are held up before the GPU's queue", 0, 1),
    Option("delay-s", float, "how long those are held up", 0, 86_400),
    Option("api-key-env", str, "environment variable with the API key that requests must bear"),
)


def from_options(values: Mapping[str, Any]) -> SimulatorConfig:
    """The config of values by `Option.field`, checked. Raises UsageError with every problem."""
    fields = dict(values)
    name = fields.pop("api_key_env", None)
    config = SimulatorConfig(**fields, api_key=os.environ.get(name) or None if name else None)
    problems = []
    if name and config.api_key is None:
        problems.append(f"the environment variable {name} (--api-key-env) is not set")
    try:
        validate(config)
    except UsageError as error:
        problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))
    return config


def to_options(config: SimulatorConfig) -> list[str]:
    """The command line that asks for it, without what is the default; it has no API key."""
    words = []
    for option in OPTIONS:
        value = getattr(config, option.field, None)
        if value not in (None, option.default):
            words += [f"--{option.name}"] if option.type is bool else [f"--{option.name}", str(value)]
    return words


def validate(config: SimulatorConfig) -> profiles.Engine:
    """The engine of each replica. Raises UsageError with every problem."""
    problems = []
    for option in OPTIONS:
        if option.low is None or option.high is None:
            continue
        value = getattr(config, option.field)
        if not option.low <= value <= option.high:
            problems.append(f"simulator {option.name} is {value}: give {option.low:g} to {option.high:.15g}")
    if config.error_status not in set(HTTPStatus) or config.error_status < 400:
        problems.append(f"simulator error-status is {config.error_status}: give an HTTP status from 400 to 511")
    rates = [option.field for option in OPTIONS if option.name.endswith("-rate")]
    if sum(getattr(config, name) for name in rates) > 1 + 1e-9:
        problems.append("the simulator's fault rates add up to more than 1: a request gets one fault at most")
    if config.truth is not None and config.truth.exists():
        problems.append(f"the truth log {config.truth} exists already: name another file")
    try:
        engine = profiles.engine(
            config.gpu,
            config.model,
            config.dtype,
            config.slots,
            max_batched_tokens=config.max_batched_tokens,
            prefix_cache=config.prefix_cache,
            predict_tokens=config.predict_tokens,
            power_limit_w=config.power_limit_w,
            temp_limit_c=config.temp_limit_c,
            speedup=config.speedup,
        )
    except UsageError as error:
        problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))
    return engine
