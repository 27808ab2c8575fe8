"""One table of options: read by click, by Locust's parser and by `make help`. Free of Locust and of click.

Every option travels as text, from the command line or from the environment variable `LOADGEN_<NAME>`;
`parse_settings` turns the texts into one `Settings` and reports every problem at once.
`python -m loadgen.options make` prints the Makefile's variables, `… help` the text of `make help`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loadgen.endpoints import plain
from loadgen.errors import UsageError
from loadgen.option import Option, Reader
from loadgen.option_values import (
    HIDDEN,
    addresses,
    certificates,
    count,
    headers,
    is_secret,
    json_file,
    json_object,
    natural,
    number_text,
    server_time_names,
    share,
    some_time,
    switch,
    template,
    time_range,
    time_text,
    url,
    url_path,
    workers,
)
from loadgen.option_values import (
    method as method_name,
)
from loadgen.plan import (
    DEFAULT_MAX_IN_FLIGHT,
    Arrival,
    LoadPlan,
    closed_plan,
    default_levels,
    open_plan,
    parse_arrival,
    parse_duration,
    parse_levels,
    parse_rates,
)
from loadgen.slo import Objective, parse_slo
from loadgen.watching import HOST_OPTIONS, WATCH_OPTIONS, Watching, read_watching

# Known to Locust's parser too, so that a scenario run by hand takes the same options.
SCENARIO_OPTIONS = (
    Option("model", "NAME", None, "model to ask for; default: the first one that the endpoint lists"),
    Option("concurrency", "N", None, "users of the last step; the steps are 1/50, 1/10, 1/5, 1/2 and 1 of it"),
    Option("steps", "N,N,…", None, "users of each step, instead of --concurrency"),
    Option("rate", "N,N,…", None, "requests/s of each step, instead of users: they arrive whatever the answers do"),
    Option("arrival", "PROCESS", None, "of --rate: poisson (default), constant, gamma:CV, or a file of times in s"),
    Option("max-in-flight", "N", None, f"of --rate: what is due above it is dropped; default: {DEFAULT_MAX_IN_FLIGHT}"),
    Option("step-time", "TIME", None, "length of a step; default: 20 s, or none when --step-requests is given"),
    Option("step-requests", "N", None, "end a step after this many requests"),
    Option("ramp", "TIME", "0s", "before each step, go evenly from the users or the rate of the last to its own"),
    Option("think-time", "TIME", None, "pause of a user between its requests, as 2s, or at random, as 1s-3s"),
    Option("prompt-tokens", "N", None, "words of a prompt; default: 512, or 32 with the simulator"),
    Option("output-tokens", "N", None, "tokens to ask for; default: 128, or 32 with the simulator"),
    Option("timeout", "TIME", "120s", "longest a request may take"),
    Option("first-token-timeout", "TIME", None, "longest a request may wait for its first token; default: --timeout"),
    Option("cancel-rate", "SHARE", "0", "share of the requests, 0 to 1, that the client hangs up on half-way"),
    Option("reuse", "on|off", "on", "off: every request opens a connection of its own"),
    Option("source-addresses", "A,B", None, "local IP addresses to connect from, in turn: each has ports of its own"),
    Option("ca-file", "FILE", None, "PEM certificates to trust, instead of this machine's"),
    Option("insecure", None, None, "do not verify the server's certificate"),
    Option("header", "K:V", None, "a header to send with each request; may be repeated", many=True),
    Option("extra-body", "JSON", None, "fields to add to the body, such as '{\"ignore_eos\": true}'"),
    Option("api-key-env", "NAME", None, "environment variable that holds the API key"),
    Option("method", "NAME", "POST", "of scenario predict: GET, POST or PUT; GET sends no body"),
    Option("url-path", "PATH", "/predict", "of scenario predict: path below the endpoint, with its query"),
    Option("body-template", "JSON", None, f"of scenario predict: the body; default: {plain.DEFAULT_TEMPLATE}"),
    Option("server-time", "LIST", None, "the server's own times: header:x-queue-ms,field:timings.prompt_ms,…"),
    Option("slo", "LIST", None, "objectives of the report and its goodput, such as ttft_p99<1s,error_rate<2%"),
    Option("model-config", "FILE", None, "config.json of the model, for what the report says of VRAM and roofline"),
    *HOST_OPTIONS,
    *WATCH_OPTIONS,
    Option("require-agents", None, None, "do not begin unless every host can be watched"),
    Option("label", "TEXT", None, "name of the run, part of its directory's name"),
    Option("notes", "TEXT", None, "kept with the run, and shown in its report"),
    Option("runs-dir", "DIR", "runs", "where run directories are made"),
    Option("seed", "N", "0", "seed of prompts, arrivals and start offsets"),
)
# Only `loadgen run` knows these.
RUN_OPTIONS = (
    Option("host", "URL", None, "the endpoint; default: the embedded simulator"),
    *SCENARIO_OPTIONS,
    Option("workers", "auto|N", "auto", "load-generating processes; auto: one a core but one, at least one"),
    Option("repeat", "N", None, "run it N times, each with the next seed: loadgen compare takes them as one side"),
)
DEFAULT_CONCURRENCY = 1000
DEFAULT_STEP_TIME_S = 20.0
_OPEN_MODEL = ("rate", "arrival", "max_in_flight")
_CLOSED_MODEL = ("concurrency", "steps", "think_time")
# What of an earlier run makes no sense beside what is given now.
_REPLACES = {
    **dict.fromkeys(("concurrency", "steps"), (*_OPEN_MODEL, "concurrency", "steps")),
    "think_time": _OPEN_MODEL,
    **dict.fromkeys(_OPEN_MODEL, _CLOSED_MODEL),
    "insecure": ("ca_file",),
    "ca_file": ("insecure",),
}


@dataclass(frozen=True)
class Settings:
    """The options of a run, checked. Headers hold secrets: `public_texts` is what may be written down."""

    host: str | None
    model: str | None
    plan: LoadPlan
    think_time_s: tuple[float, float]
    first_token_timeout_s: float | None
    cancel_rate: float
    reuse: bool
    source_addresses: tuple[str, ...]
    ca_file: str | None
    insecure: bool
    prompt_tokens: int
    output_tokens: int
    headers: tuple[tuple[str, str], ...]
    extra_body: Mapping[str, Any]
    api_key_env: str | None
    method: str
    url_path: str
    body_template: str | None
    server_times: tuple[str, ...]
    slo: tuple[Objective, ...]
    model_config: str | None
    watching: Watching
    require_agents: bool
    label: str | None
    notes: str | None
    runs_dir: str
    workers: int | None
    repeat: int

    def texts(self) -> dict[str, str]:
        """The option texts that `parse_settings` would make these settings of, defaults spelt out. Holds secrets."""
        plan = self.plan
        first = plan.steps[0] if plan.steps else None
        levels = ",".join(number_text(step.level) for step in plan.steps) or None
        shortest, longest = self.think_time_s
        values = {
            "host": self.host,
            "model": self.model,
            "rate" if plan.is_open else "steps": levels,
            "arrival": self._arrival,
            "max_in_flight": plan.max_in_flight,
            "step_time": time_text(first.duration_s) if first else None,
            "step_requests": first.requests if first else None,
            "ramp": time_text(plan.ramp_s),
            "think_time": f"{time_text(shortest)}-{time_text(longest)}" if longest else None,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "timeout": time_text(plan.timeout_s),
            "first_token_timeout": time_text(self.first_token_timeout_s),
            "cancel_rate": number_text(self.cancel_rate),
            "reuse": "on" if self.reuse else "off",
            "source_addresses": ",".join(self.source_addresses) or None,
            "ca_file": self.ca_file,
            "insecure": "true" if self.insecure else None,
            "header": "\n".join(f"{name}:{value}" for name, value in self.headers) or None,
            "extra_body": json.dumps(dict(self.extra_body)) if self.extra_body else None,
            "api_key_env": self.api_key_env,
            "method": self.method,
            "url_path": self.url_path,
            "body_template": self.body_template,
            "server_time": ",".join(self.server_times) or None,
            "slo": ",".join(map(str, self.slo)) or None,
            "model_config": self.model_config,
            **self.watching.texts(),
            "require_agents": "true" if self.require_agents else None,
            "label": self.label,
            "notes": self.notes,
            "runs_dir": self.runs_dir,
            "seed": plan.seed,
            "workers": self.workers,
            "repeat": self.repeat if self.repeat > 1 else None,
        }
        return {key: str(value) for key, value in values.items() if value is not None}

    @property
    def _arrival(self) -> str | None:
        plan = self.plan
        if plan.cv is not None:
            return f"gamma:{number_text(plan.cv)}"
        return plan.trace or (plan.arrival if plan.is_open else None)

    def public_texts(self) -> dict[str, str]:
        """`texts` for writing down: the values of headers that hold secrets are left out."""
        lines = [f"{name}:{HIDDEN if is_secret(name) else value}" for name, value in self.headers]
        return {**self.texts(), **({"header": "\n".join(lines)} if lines else {})}


def parse_settings(texts: Mapping[str, Any], *, simulated: bool, steps_required: bool) -> Settings:
    """Settings of option texts by key; an option that is absent, None or "" has its default.

    `simulated` chooses the defaults that differ for the simulator. Without `steps_required` a plan may be without
    steps: the number of users then comes from Locust.

    Raises UsageError with every problem, one a line.
    """
    reader = Reader(RUN_OPTIONS, texts)
    take, problems = reader.take, reader.problems
    size = 32 if simulated else None
    plan = _plan(reader, steps_required=steps_required)
    method = take("method", method_name, "POST")
    if method == "GET" and texts.get("body_template"):
        problems.append("--body-template: a GET sends no body; leave it out, or give --method POST")
    ca_file, insecure = take("ca_file", certificates, None), take("insecure", switch, False)
    if ca_file is not None and insecure:
        problems.append("--ca-file and --insecure: give one of them")
    settings = Settings(
        host=take("host", url, None),
        model=texts.get("model") or None,
        plan=plan,
        think_time_s=take("think_time", time_range, (0.0, 0.0)),
        first_token_timeout_s=take("first_token_timeout", some_time, None),
        cancel_rate=take("cancel_rate", share, 0.0),
        reuse=take("reuse", switch, True),
        source_addresses=take("source_addresses", addresses, ()),
        ca_file=ca_file,
        insecure=insecure,
        prompt_tokens=take("prompt_tokens", count, size or 512),
        output_tokens=take("output_tokens", count, size or 128),
        headers=take("header", headers, ()),
        extra_body=take("extra_body", json_object, {}),
        api_key_env=texts.get("api_key_env") or None,
        method=method,
        url_path=take("url_path", url_path, "/"),
        body_template=take("body_template", template, plain.DEFAULT_TEMPLATE if method != "GET" else None),
        server_times=take("server_time", server_time_names, ()),
        slo=take("slo", parse_slo, ()),
        model_config=take("model_config", json_file, None),
        watching=read_watching(reader),
        require_agents=take("require_agents", switch, False),
        label=texts.get("label") or None,
        notes=texts.get("notes") or None,
        runs_dir=texts.get("runs_dir") or "runs",
        workers=take("workers", workers, None),
        repeat=take("repeat", count, 1),
    )
    if problems:
        raise UsageError("\n".join(problems))
    return settings


def without_replaced(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Option texts of an earlier run, less what those given now stand in the place of."""
    replaced = {key for given in now for key in _REPLACES.get(given, ())}
    if str(now.get("method", "")).upper() == "GET":
        replaced.add("body_template")
    return {key: text for key, text in then.items() if key not in replaced}


def _plan(reader: Reader, *, steps_required: bool) -> LoadPlan:
    """The plan of the options; with problems one without steps."""
    take, problems = reader.take, reader.problems
    concurrency = take("concurrency", count, None)
    levels = take("steps", parse_levels, None)
    rates = take("rate", parse_rates, None)
    arrival = take("arrival", parse_arrival, Arrival("poisson"))
    max_in_flight = take("max_in_flight", count, DEFAULT_MAX_IN_FLIGHT)
    requests = take("step_requests", count, None)
    duration = take("step_time", parse_duration, None)
    ramp = take("ramp", parse_duration, 0.0)
    timeout = take("timeout", parse_duration, 120.0)
    seed = take("seed", natural, 0)
    chosen = reader.given("concurrency", "steps", "rate")
    if arrival.trace is not None and "--rate" not in chosen:
        chosen += reader.given("arrival")
    if len(chosen) > 1:
        problems.append(f"{' and '.join(chosen)}: give one of them")
    is_open = "--rate" in chosen or "--arrival" in chosen
    if is_open:
        problems.extend(f"{flag}: users have one, not --rate or --arrival" for flag in reader.given("think_time"))
    else:
        problems.extend(f"{flag}: needs --rate" for flag in reader.given("arrival", "max_in_flight"))
    if levels is None and (concurrency is not None or steps_required):
        levels = default_levels(concurrency or DEFAULT_CONCURRENCY)
    if duration is None and requests is None and (rates is not None or not is_open):
        duration = DEFAULT_STEP_TIME_S
    try:
        if not is_open:
            return closed_plan(levels or (), duration, requests, timeout, seed, ramp_s=ramp)
        if not problems:
            return open_plan(
                rates or (),
                duration,
                requests,
                timeout,
                seed,
                arrival=arrival,
                ramp_s=ramp,
                max_in_flight=max_in_flight,
            )
    except UsageError as error:
        problems.extend(str(error).splitlines())
    return closed_plan((), 1.0, None, 1.0, 0)


def _make_variables() -> str:
    return " ".join(option.key.upper() for option in RUN_OPTIONS)


def _make_help() -> str:
    lines = ["", "Variables of `make load`, given on its command line (make load CONCURRENCY=5000):", ""]
    for option in RUN_OPTIONS:
        default = str(DEFAULT_CONCURRENCY) if option.name == "concurrency" else option.default
        text = option.help + (f" (default {default})" if default else "") + ("" if option.metavar else " (=1)")
        lines.append(f"  {option.key.upper():<19} {text}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write({"make": _make_variables, "help": _make_help}[sys.argv[1]]() + "\n")
