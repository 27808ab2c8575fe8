"""What the endpoint says of itself, at the cost of a token at most: key, models, metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import httpx

from loadgen.doctor.check import Case, Finding, failed, not_applicable, ok, warning
from loadgen.endpoints.openai import chat
from remote_agents.agent.server_metrics import SLOW_RENDER_US
from remote_agents.agent.server_series import read_text, server_values
from remote_agents.hosts import LOCAL, metrics_urls

_MODELS = "/v1/models"
_REFUSALS = (401, 403)
_UNKNOWN = (400, 404)  # what servers answer to a model that they do not serve; some serve one under any name
_A_FEW = 5
_ENGINES = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "tgi": "TGI",
    "nv": "Triton",
    "trtllm": "TensorRT-LLM",
    "llamacpp": "llama.cpp",
}


def none_given(case: Case) -> Finding:
    return not_applicable("no --host: a run would start its embedded simulator")


def credentials(case: Case) -> Finding:
    """Whether what is to be sent can be; nothing is sent yet."""
    case.headers()
    if not case.has_secrets:
        return not_applicable("no key and no secret header given")
    name = case.settings.api_key_env
    return ok(f"a key in {name}" if name else "in a header of --header")


def key(case: Case) -> Finding:
    """Some servers list their models to anyone: a chat request without messages is refused too, and costs nothing."""
    listed = _get(case, _MODELS)
    asked = _post_nothing(case)
    refused = next((answer for answer in (listed, asked) if answer.status_code in _REFUSALS), None)
    if refused is not None:
        status = f"HTTP {refused.status_code}"
        if case.has_secrets:
            return failed(
                f"{case.url} refused the key ({status})", "give the right one with --api-key-env NAME, or --header"
            )
        return failed(f"{case.url} asks for a key ({status})", "give it with --api-key-env NAME, or --header")
    case.models = _model_names(listed)
    if not case.has_secrets:
        return ok("none given, and none is asked for")
    if _get(case, _MODELS, secrets=False).status_code in _REFUSALS:
        return ok("accepted, and needed")
    if _post_nothing(case, secrets=False).status_code in _REFUSALS:
        return ok("accepted, and needed; the models are listed without it")
    return ok("accepted, but not needed: requests without it are taken too")


def model(case: Case) -> Finding:
    few = ", ".join(case.models[:_A_FEW]) + (f" and {len(case.models) - _A_FEW} more" if case.models[_A_FEW:] else "")
    if case.settings.model is None:
        if not case.models:
            return warning(f"{_MODELS} lists none, so requests name none", "give one with --model")
        case.model = case.models[0]
        others = "the only one listed" if len(case.models) == 1 else f"the first of {len(case.models)} listed: {few}"
        return ok(f"{case.model}, {others}")
    if not case.models:
        return ok(f"{case.settings.model}; {_MODELS} lists none to compare it with")
    if case.settings.model not in case.models:
        found = f"{case.settings.model} is not among those listed: {few}"
        remedy = "give one of these with --model"
        call = chat([{"role": "user", "content": "hi"}], model=case.settings.model, max_tokens=1, stream=False)
        status = case.send("POST", case.url + call.path, case.headers(call.headers), call.body).status_code
        return failed(f"{found}; HTTP {status}", remedy) if status in _UNKNOWN else warning(found, remedy)
    return ok(f"{case.settings.model}, among {len(case.models)} listed")


def _model_names(answer: httpx.Response) -> tuple[str, ...]:
    try:
        return tuple(str(entry["id"]) for entry in answer.json()["data"])
    except (ValueError, KeyError, TypeError):
        return ()


def server_metrics(case: Case) -> Finding:
    """As an agent reads them: with the key of --api-key-env, without --header."""
    watching = case.settings.watching
    url = metrics_urls(watching.agents, case.url, watching.metrics_url).get(LOCAL)
    if url is None:
        return not_applicable("no agent of this host would read them; `loadgen agents check` tells of other hosts")
    remedy = "switch them on (llama.cpp: --metrics, SGLang: --enable-metrics), or say where with --metrics-url"
    started = time.monotonic()
    try:
        answer = case.send("GET", url)
        needs_key = answer.status_code in _REFUSALS and case.key is not None
        if needs_key:
            answer = case.send("GET", url, [(b"Authorization", f"Bearer {case.key}".encode())])
    except httpx.HTTPError as error:
        return warning(f"{url} gives none ({error or type(error).__name__})", remedy)
    took_ms = (time.monotonic() - started) * 1e3
    if answer.status_code in _REFUSALS:
        return warning(f"{url} asks for a key (HTTP {answer.status_code})", "give it with --api-key-env NAME")
    if answer.status_code != 200:
        return warning(f"{url} gives none (HTTP {answer.status_code})", remedy)
    try:
        values = server_values(answer.text)
    except ValueError:
        values = {}
    if not values:
        return warning(f"{url} has no series of a server that we know", remedy)
    return _describe_metrics(url, answer.text, values, took_ms, needs_key)


def _describe_metrics(
    url: str, text: str, values: Mapping[str, Mapping[str, Any]], took_ms: float, needs_key: bool
) -> Finding:
    columns = sorted({column for row in values.values() for column in row})
    ranks = f" of {len(values)} engines" if len(values) > 1 else ""
    found = f"{_engine(text)}{ranks} at {url}{' with the key' if needs_key else ''}: {', '.join(columns)}"
    if took_ms > SLOW_RENDER_US / 1e3:
        found += f"; read in {took_ms:.0f} ms, and less often than every second if that lasts"
    return ok(found)


def _engine(text: str) -> str:
    if "\nsimulator_" in text:
        return "our simulator"
    prefixes = {name.partition(":")[0].partition("_")[0] for name, _, _ in read_text(text)}
    return " and ".join(engine for prefix, engine in _ENGINES.items() if prefix in prefixes)


def _get(case: Case, path: str, *, secrets: bool = True) -> httpx.Response:
    return case.send("GET", case.url + path, case.headers(secrets=secrets))


def _post_nothing(case: Case, *, secrets: bool = True) -> httpx.Response:
    call = chat([], model=None, max_tokens=1, stream=False, extra={"messages": None})
    headers = case.headers(call.headers, secrets=secrets)
    return case.send("POST", case.url + call.path, headers, call.body)
