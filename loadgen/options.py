"""One table of options: read by click, by Locust's parser and by `make help`. Free of Locust and of click.

Every option travels as text, from the command line or from the environment variable `LOADGEN_<NAME>`;
`parse_settings` turns the texts into one `Settings` and reports every problem at once.
`python -m loadgen.options make` prints the Makefile's variables, `… help` the text of `make help`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from loadgen.endpoints import plain, server_times
from loadgen.errors import UsageError
from loadgen.plan import LoadPlan, closed_plan, default_levels, parse_duration, parse_levels
from remote_agents.hosts import NONE, check_agents

T = TypeVar("T")

ENV_PREFIX = "LOADGEN_"
HIDDEN = "(hidden)"
_SECRET = re.compile("auth|key|token|secret|cookie|password|credential|signature", re.IGNORECASE)


def is_secret(header: str) -> bool:
    """Whether a header of this name may hold a secret: its value is then never written down."""
    return _SECRET.search(header) is not None


class Option(NamedTuple):
    """`name` is the flag without its dashes; `default` is text, as the user would type it."""

    name: str
    metavar: str
    default: str | None
    help: str
    many: bool = False

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.key.upper()


# Known to Locust's parser too, so that a scenario run by hand takes the same options.
SCENARIO_OPTIONS = (
    Option("model", "NAME", None, "model to ask for; default: the first one that the endpoint lists"),
    Option("concurrency", "N", None, "users of the last step; the steps are 1/50, 1/10, 1/5, 1/2 and 1 of it"),
    Option("steps", "N,N,…", None, "users of each step, instead of --concurrency"),
    Option("step-time", "TIME", None, "length of a step; default: 20 s, or none when --step-requests is given"),
    Option("step-requests", "N", None, "end a step after this many requests"),
    Option("prompt-tokens", "N", None, "words of a prompt; default: 512, or 32 with the simulator"),
    Option("output-tokens", "N", None, "tokens to ask for; default: 128, or 32 with the simulator"),
    Option("timeout", "TIME", "120s", "longest a request may take"),
    Option("header", "K:V", None, "a header to send with each request; may be repeated", many=True),
    Option("extra-body", "JSON", None, "fields to add to the body, such as '{\"ignore_eos\": true}'"),
    Option("api-key-env", "NAME", None, "environment variable that holds the API key"),
    Option("method", "NAME", "POST", "of scenario predict: GET, POST or PUT; GET sends no body"),
    Option("url-path", "PATH", "/predict", "of scenario predict: path below the endpoint, with its query"),
    Option("body-template", "JSON", None, f"of scenario predict: the body; default: {plain.DEFAULT_TEMPLATE}"),
    Option("server-time", "LIST", None, "the server's own times: header:x-queue-ms,field:timings.prompt_ms,…"),
    Option("agents", "NAMES", "local", "hosts to watch: local or none"),
    Option("metrics-url", "URL", None, "the server's Prometheus metrics; default: /metrics of the endpoint"),
    Option("gpus", "0,1", None, "GPUs to watch, by index or UUID; default: all"),
    Option("label", "TEXT", None, "name of the run, part of its directory's name"),
    Option("notes", "TEXT", None, "kept with the run, and shown in its report"),
    Option("runs-dir", "DIR", "runs", "where run directories are made"),
    Option("seed", "N", "0", "seed of prompts and start offsets"),
)
# Only `loadgen run` knows these.
RUN_OPTIONS = (
    Option("host", "URL", None, "the endpoint; default: the embedded simulator"),
    *SCENARIO_OPTIONS,
    Option("workers", "auto|N", "auto", "load-generating processes; auto: one a core but one, at least one"),
)
DEFAULT_CONCURRENCY = 1000
DEFAULT_STEP_TIME_S = 20.0


@dataclass(frozen=True)
class Settings:
    """The options of a run, checked. Headers hold secrets: `public_texts` is what may be written down."""

    host: str | None
    model: str | None
    plan: LoadPlan
    prompt_tokens: int
    output_tokens: int
    headers: tuple[tuple[str, str], ...]
    extra_body: Mapping[str, Any]
    api_key_env: str | None
    method: str
    url_path: str
    body_template: str | None
    server_times: tuple[str, ...]
    agents: tuple[str, ...]
    metrics_url: str | None
    gpus: tuple[str, ...] | None
    label: str | None
    notes: str | None
    runs_dir: str
    workers: int | None

    def texts(self) -> dict[str, str]:
        """The option texts that `parse_settings` would make these settings of, defaults spelt out. Holds secrets."""
        steps = self.plan.steps
        first = steps[0] if steps else None
        values = {
            "host": self.host,
            "model": self.model,
            "steps": ",".join(str(step.level) for step in steps) or None,
            "step_time": f"{first.duration_s:.12g}s" if first and first.duration_s is not None else None,
            "step_requests": first.requests if first else None,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "timeout": f"{self.plan.timeout_s:.12g}s",
            "header": "\n".join(f"{name}:{value}" for name, value in self.headers) or None,
            "extra_body": json.dumps(dict(self.extra_body)) if self.extra_body else None,
            "api_key_env": self.api_key_env,
            "method": self.method,
            "url_path": self.url_path,
            "body_template": self.body_template,
            "server_time": ",".join(self.server_times) or None,
            "agents": ",".join(self.agents) or NONE,
            "metrics_url": self.metrics_url,
            "gpus": ",".join(self.gpus) if self.gpus is not None else None,
            "label": self.label,
            "notes": self.notes,
            "runs_dir": self.runs_dir,
            "seed": self.plan.seed,
            "workers": self.workers,
        }
        return {key: str(value) for key, value in values.items() if value is not None}

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
    problems: list[str] = []
    defaults = {option.key: option.default for option in RUN_OPTIONS}

    def take(key: str, convert: Callable[[Any], T], fallback: T) -> T:
        value = texts.get(key) or defaults.get(key)
        if value is None:
            return fallback
        try:
            return convert(value)
        except UsageError as error:
            problems.extend(f"--{key.replace('_', '-')}: {line}" for line in str(error).splitlines())
            return fallback

    size = 32 if simulated else None
    concurrency = take("concurrency", _count, None)
    levels = take("steps", parse_levels, None)
    if concurrency is not None and levels is not None:
        problems.append("--concurrency and --steps: give one of them")
    if levels is None and (concurrency is not None or steps_required):
        levels = default_levels(concurrency or DEFAULT_CONCURRENCY)
    requests = take("step_requests", _count, None)
    duration = take("step_time", parse_duration, None if requests else DEFAULT_STEP_TIME_S)
    timeout = take("timeout", parse_duration, 120.0)
    seed = take("seed", _natural, 0)
    try:
        plan = closed_plan(levels or (), duration, requests, timeout, seed)
    except UsageError as error:
        problems.extend(str(error).splitlines())
    method = take("method", _method, "POST")
    if method == "GET" and texts.get("body_template"):
        problems.append("--body-template: a GET sends no body; leave it out, or give --method POST")
    settings = Settings(
        host=take("host", _url, None),
        model=texts.get("model") or None,
        plan=plan if not problems else closed_plan((), 1.0, None, 1.0, 0),
        prompt_tokens=take("prompt_tokens", _count, size or 512),
        output_tokens=take("output_tokens", _count, size or 128),
        headers=take("header", _headers, ()),
        extra_body=take("extra_body", _json_object, {}),
        api_key_env=texts.get("api_key_env") or None,
        method=method,
        url_path=take("url_path", _url_path, "/"),
        body_template=take("body_template", _template, plain.DEFAULT_TEMPLATE if method != "GET" else None),
        server_times=take("server_time", _server_times, ()),
        agents=take("agents", _agents, ()),
        metrics_url=take("metrics_url", _url, None),
        gpus=take("gpus", _names, None),
        label=texts.get("label") or None,
        notes=texts.get("notes") or None,
        runs_dir=texts.get("runs_dir") or "runs",
        workers=take("workers", _workers, None),
    )
    if problems:
        raise UsageError("\n".join(problems))
    return settings


def _count(text: str) -> int:
    number = _natural(text)
    if number < 1:
        raise UsageError(f"{text!r} must be 1 or more")
    return number


def _natural(text: str) -> int:
    if not str(text).isdecimal():
        raise UsageError(f"{text!r} is no whole number")
    return int(text)


def _workers(text: str) -> int | None:
    return None if text == "auto" else _count(text)


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"{text!r} is no URL: give http://host:port or https://host:port")
    if parts.username or parts.password:
        raise UsageError("a URL with a user name or password would end up in files: use --api-key-env")
    return text.rstrip("/")


def _headers(lines: str | list[str] | tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    headers = []
    for line in lines.splitlines() if isinstance(lines, str) else lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip() or any(c in name for c in " \t\r\n") or any(c in value for c in "\r\n"):
            raise UsageError("a header is written Name: value, on one line")
        if value.strip() == HIDDEN:
            raise UsageError(f"the value of {name} was not written down: give it again with --header '{name}: …'")
        headers.append((name, value.strip()))
    return tuple(headers)


def _json_object(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{text!r} is no JSON object: give one such as '{{\"ignore_eos\": true}}'")
    return value


def _method(text: str) -> str:
    if text.upper() not in plain.METHODS:
        raise UsageError(f"{text!r} is none of {', '.join(plain.METHODS)}")
    return text.upper()


def _url_path(text: str) -> str:
    if not re.fullmatch(r"/[!-~]*", text) or "#" in text:
        raise UsageError(f"{text!r} is no path: give one such as /predict, with other characters as %20")
    return text


def _template(text: str) -> str:
    try:
        plain.check_template(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return text


def _server_times(text: str) -> tuple[str, ...]:
    names = _names(text)
    problems = []
    for name in names:
        try:
            server_times.parse(name)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))
    return names


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _agents(text: str) -> tuple[str, ...]:
    names = _names(text)
    if problems := check_agents(names):
        raise UsageError("\n".join(problems))
    return tuple(dict.fromkeys(name for name in names if name != NONE))


def _make_variables() -> str:
    return " ".join(option.key.upper() for option in RUN_OPTIONS)


def _make_help() -> str:
    lines = ["", "Variables of `make load`, given on its command line (make load CONCURRENCY=5000):", ""]
    for option in RUN_OPTIONS:
        default = str(DEFAULT_CONCURRENCY) if option.name == "concurrency" else option.default
        text = option.help + (f" (default {default})" if default else "")
        lines.append(f"  {option.key.upper():<14} {text}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write({"make": _make_variables, "help": _make_help}[sys.argv[1]]() + "\n")
