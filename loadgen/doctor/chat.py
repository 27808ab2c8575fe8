"""What a streamed chat request brings, and which of its options the server honours: a few small requests.

The requests are those of a run (`endpoints.openai`, --extra-body, --header), and they are judged by the same reader.
Stamps are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping
from typing import Any

import httpx

from loadgen.doctor.check import Case, Finding, Reply, failed, not_applicable, ok, warning
from loadgen.endpoints import Failure
from loadgen.endpoints.errors import body_words
from loadgen.endpoints.openai import chat
from loadgen.record import Outcome
from loadgen.sse import SseDecoder

_LONG = "Count from one to one thousand in words, one number a line, without a pause or a comment."
_SHORT = "Answer with the one word: yes"
_TOKENS = 32
_FEW_TOKENS = 8
_ENOUGH_EVENTS = 128  # of an answer that should have been shorter: it is cut there
_MAX_WORDS = 200
_REFUSED = (400, 415, 422, 500)  # what servers answer to a field that they do not know


def _ask(case: Case, prompt: str, max_tokens: int, fields: Mapping[str, Any] | None = None) -> Reply:
    """Raises httpx.TimeoutException, and httpx.TransportError when not even a status came."""
    extra = {**case.settings.extra_body, **(fields or {})}
    messages = [{"role": "user", "content": prompt}]
    call = chat(messages, model=case.model, max_tokens=max_tokens, extra=extra)
    answer = call.reader.answer
    failure: Failure | None = None
    events, done, cut = SseDecoder(), False, False
    started = time.monotonic_ns()
    with contextlib.closing(
        case.send(
            "POST",
            case.url + call.path,
            case.headers(call.headers),
            call.body,
            timeout_s=case.settings.plan.timeout_s,
            stream=True,
        )
    ) as response:
        connection = response.extensions["network_stream"].get_extra_info("client_addr")[1]
        try:
            if response.is_success:
                for piece in response.iter_raw():
                    call.reader.feed([piece], [time.monotonic_ns()])
                    for event in events.feed(piece):
                        done = event.strip() == b"[DONE]"
                    cut = len(answer.stamps_ns) >= _ENOUGH_EVENTS
                    if cut:
                        break
                else:
                    failure = call.reader.finish()
            else:
                words = body_words(response.read())[:_MAX_WORDS] or "no words"
                failure = Failure(Outcome.HTTP_ERROR, f"HTTP {response.status_code}: {words}")
        except ValueError as error:
            failure = Failure(Outcome.MALFORMED, str(error))
        except (httpx.RemoteProtocolError, httpx.ReadError):
            failure = Failure(Outcome.TRUNCATED, "connection closed before the end of the answer")
    return Reply(
        status=response.status_code,
        headers=response.headers,
        failure=failure,
        answer=answer,
        done=done,
        cut=cut,
        first_s=(answer.stamps_ns[0] - started) / 1e9 if answer.stamps_ns else None,
        total_s=(time.monotonic_ns() - started) / 1e9,
        connection=connection,
    )


def streamed_chat(case: Case) -> Finding:
    reply = _ask(case, _LONG, _TOKENS)
    if reply.failure is None:
        case.reply = reply
        first = f", the first after {reply.first_s * 1e3:.0f} ms" if reply.first_s is not None else ""
        return ok(f"{_amount(reply)} in {reply.total_s:.2f} s{first}; finish_reason {reply.answer.finish_reason!r}")
    found = f"a request as a run sends it ends as {reply.failure.outcome}: {_inline(reply.failure.text)}"
    if reply.status == 404 and case.models and case.model not in case.models:
        return failed(found, f"give a model with --model that it lists, such as {case.models[0]}")
    if reply.status in _REFUSED:
        return failed(found, _what_helps(case) or "look into its log, and shape the body with --extra-body")
    if reply.failure.outcome is Outcome.HTTP_ERROR:
        return failed(found, "look into the server's log")
    end = "after [DONE]" if reply.done else "without [DONE]"
    return failed(
        f"{found} ({reply.events} events of output, ended {end})",
        "look into the server's log: a run would count every such answer as failed",
    )


def _what_helps(case: Case) -> str | None:
    """How to do without one field, if that is what the server refused."""
    given = dict(case.settings.extra_body)
    limit = case.settings.output_tokens
    attempts: list[tuple[dict[str, Any], dict[str, Any]]] = [({"stream_options": None}, {"stream_options": None})]
    if "max_tokens" not in given:
        attempts.append(
            (
                {"max_tokens": None, "max_completion_tokens": _TOKENS},
                {"max_tokens": None, "max_completion_tokens": limit},
            )
        )
    for fields, advice in attempts:
        if _ask(case, _LONG, _TOKENS, fields).failure is None:
            return f"give --extra-body '{json.dumps({**given, **advice})}'"
    for field in given:
        if _ask(case, _LONG, _TOKENS, {field: None}).failure is None:
            return f"leave {field} out of --extra-body"
    return None


def usage(case: Case) -> Finding:
    reply = _chat_reply(case)
    if reply.cut:
        return not_applicable("the answer had to be cut, and usage comes at its end")
    if reply.answer.output_tokens is None:
        return warning(
            "no token counts come with the answer", "have the server send usage: until then events count as tokens"
        )
    return ok(
        f"the server counts tokens: {reply.answer.prompt_tokens} of the prompt, {reply.answer.output_tokens} of output"
    )


def max_tokens(case: Case) -> Finding:
    reply = _chat_reply(case)
    extra = case.settings.extra_body
    if "max_tokens" in extra:
        return not_applicable("--extra-body has a max_tokens of its own")
    if reply.tokens > _TOKENS:
        remedy = f"try --extra-body '{json.dumps({**extra, 'max_completion_tokens': case.settings.output_tokens})}'"
        return warning(f"ignored: {_amount(reply)} where {_TOKENS} tokens were allowed", remedy)
    return ok(_within(reply, _TOKENS))


def max_completion_tokens(case: Case) -> Finding:
    reply = _ask(case, _LONG, _FEW_TOKENS, {"max_tokens": None, "max_completion_tokens": _FEW_TOKENS})
    if reply.failure is not None:
        return ok(f"not taken ({_inline(reply.failure.text)}); a run sends max_tokens instead")
    if reply.tokens > _FEW_TOKENS:
        return ok(f"ignored: {_amount(reply)} where {_FEW_TOKENS} tokens were allowed; a run sends max_tokens instead")
    return ok(_within(reply, _FEW_TOKENS))


def ignore_eos(case: Case) -> Finding:
    wanted = bool(case.settings.extra_body.get("ignore_eos"))
    forced = _ask(case, _SHORT, _TOKENS, {"ignore_eos": True})
    if forced.failure is not None:
        return ok(f"not taken ({_inline(forced.failure.text)}); a run sends it only when --extra-body says so")
    if not forced.ran_on:
        found = f"ignored: an answer ended by itself after {forced.tokens} of {_TOKENS} tokens"
        remedy = "leave it out of --extra-body, and compare runs by tokens: answers end where the model ends them"
        return warning(found, remedy) if wanted else ok(found)
    free = _ask(case, _SHORT, _TOKENS, {"ignore_eos": None})
    if free.failure is None and free.ran_on:
        return ok("accepted; whether it is honoured cannot be told, answers run to max_tokens without it too")
    return ok(f"honoured: an answer ran to {forced.tokens} tokens that ends after {free.tokens} without it")


def end_of_stream(case: Case) -> Finding:
    reply = _chat_reply(case)
    if reply.cut:
        return not_applicable("the answer had to be cut")
    if not _streamed(case):
        return not_applicable("--extra-body switches streaming off")
    done = "[DONE]" if reply.done else "no [DONE]"
    if "chunked" in reply.headers.get("transfer-encoding", "") or "content-length" in reply.headers:
        return ok(f"{done}, then the end of the HTTP message; a finish_reason is given")
    return warning(
        f"{done}, then the end of the connection; a finish_reason is given",
        "use chunked encoding on the server: only the finish_reason tells a whole answer from a cut one",
    )


def tokens_per_event(case: Case) -> Finding:
    reply = _chat_reply(case)
    if not _streamed(case):
        return not_applicable("--extra-body switches streaming off")
    if reply.answer.output_tokens is None:
        return not_applicable("unknown without usage")
    ratio = reply.answer.output_tokens / reply.events
    found = f"{ratio:.2f} ({reply.answer.output_tokens} tokens in {reply.events} events)"
    if ratio > 1.2:
        found += ": gaps between events are not gaps between tokens"
    return ok(found)


def keep_alive(case: Case) -> Finding:
    """Whether a connection serves a second request after a stream, and when the server says that it closes one."""
    if _chat_reply(case).cut:
        return not_applicable("not tried: answers do not end where they should")
    first = _ask(case, _SHORT, 1)
    second = _ask(case, _SHORT, 1)
    limits = dict(re.findall(r"(timeout|max)=(\d+)", first.headers.get("keep-alive", "")))
    texts = [f"after {limits['timeout']} s without a request"] if "timeout" in limits else []
    texts += [f"after {limits['max']} requests"] if "max" in limits else []
    said = f"the server says that it closes one {' and '.join(texts)}" if texts else ""
    if first.connection != second.connection:
        return warning(
            f"the connection is closed after a streamed answer{', though ' + said if said else ''}",
            "allow keep-alive on server and proxy: until then each request pays for a handshake",
        )
    return ok(f"2 requests went over one connection; {said or 'the server names no limit'}")


def _chat_reply(case: Case) -> Reply:
    assert case.reply is not None, "the check of a streamed chat comes first"
    return case.reply


def _streamed(case: Case) -> bool:
    return bool(case.settings.extra_body.get("stream", True))


def _amount(reply: Reply) -> str:
    if reply.cut:
        return f"more than {reply.events} events of output"
    unit = "tokens" if reply.answer.output_tokens is not None else "events"
    return f"{reply.tokens} {unit} of output"


def _within(reply: Reply, limit: int) -> str:
    if reply.ran_on:
        return f"honoured: the answer ended at {reply.tokens} of {limit} tokens"
    return f"accepted; the answer ended by itself after {reply.tokens} of {limit} tokens"


def _inline(text: str) -> str:
    """As a part of a sentence."""
    return " ".join(text.split()).rstrip(".")
