"""Plain inference: templates, answers, and the server's own times in headers and fields."""

from __future__ import annotations

import json

import pytest

from loadgen.endpoints import Call, plain, server_times
from loadgen.errors import UsageError
from loadgen.options import parse_settings
from tests.loadgen.driven import answered, client_of, drive
from tests.loadgen.scripted import Script, send, serving

VALUES: dict[str, str | int] = {"prompt": 'say "hi"\n€', "id": "0f", "seed": 7, "n": 3}


def answer(body: bytes, headers: bytes = b"", status: bytes = b"200 OK") -> Script:
    return send(b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, headers, len(body), body))


def a_call() -> Call:
    return plain.call("POST", "/predict", b"{}")


def test_templates_are_filled_in_as_json() -> None:
    template = '{"inputs": [{"text": "{{prompt}}!", "id": "{{ id }}"}], "seed": {{seed}}, "nested": {"n": {{n}}}}'
    plain.check_template(template)
    assert json.loads(plain.render(template, VALUES.__getitem__)) == {
        "inputs": [{"text": 'say "hi"\n€!', "id": "0f"}],
        "seed": 7,
        "nested": {"n": 3},
    }
    assert plain.render("[1]", VALUES.__getitem__) == b"[1]"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ('{"a": "{{promt}}"}', "{{promt}} is no placeholder: give {{prompt}}, {{id}}, {{seed}}, {{n}}"),
        ('{"a": {{prompt}}}', "in quotes"),
        ("{a}", "no JSON"),
    ],
)
def test_templates_that_are_wrong(template: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem.replace("{", r"\{")):
        plain.check_template(template)


def test_what_is_sent() -> None:
    with serving(answer(b"[1]"), answer(b"[2]")) as server:
        client = client_of(server.port)
        drive(client, plain.call("POST", "/v2/models/m/infer?x=1", b'{"a": 1}'))
        drive(client, plain.call("GET", "/predict"))
        client.close()
        post, get = server.requests
    assert post.startswith(b"POST /v2/models/m/infer?x=1 HTTP/1.1\r\n")
    assert post.endswith(b'\r\n\r\n{"a": 1}')
    assert get.endswith(b"Content-Length: 0\r\n\r\n")
    assert dict(plain.call("GET", "/").headers).keys() == {"Accept"}


def test_an_answer_has_no_tokens() -> None:
    record = answered(send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"[1,", b"2]", gap_s=0.03), a_call())
    assert (record["outcome"], record["status"]) == ("OK", 200)
    assert record["end_ns"] - record["first_byte_ns"] > 40e6
    tokens = ("first_token_ns", "last_token_ns", "finish_reason", "prompt_tokens", "output_tokens", "token_source")
    for name in (*tokens, "output_events", "chunk_gaps_us", "coalesced_reads", "server_times_us"):
        assert record[name] is None, name


@pytest.mark.parametrize(
    ("script", "outcome", "error"),
    [
        (answer(b"not JSON, but whole"), "OK", None),
        (answer(b"[1]", status=b"201 Created"), "OK", None),
        (answer(b""), "EMPTY", "an empty answer"),
        (answer(b'{"error": "no such model 3"}', status=b"404 Not Found"), "HTTP_ERROR", "HTTP 404: no such model <n>"),
        (send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[1", keep=False), "TRUNCATED", None),
    ],
)
def test_a_whole_body_is_well(script: Script, outcome: str, error: str | None) -> None:
    record = answered(script, a_call())
    assert record["outcome"] == outcome
    assert error is None or record["error"] == error


TIMES = "header:X-Queue-Ms, header:x-compute-us,header:x-upstream,field:timings.preprocess_ms,field:took_s,field:a.b_ns"


def test_the_servers_own_times() -> None:
    settings = parse_settings({"server_time": TIMES}, simulated=False, steps_required=True)
    assert settings.server_times == tuple(name.strip() for name in TIMES.split(","))
    times = [server_times.parse(name) for name in settings.server_times]
    body = json.dumps({"timings": {"preprocess_ms": 1.5}, "took_s": 0.25, "a": {"b_ns": 9000}, "data": [1]}).encode()
    headers = b"X-Queue-ms: 12\r\nx-compute-us: 3400\r\nX-Upstream: 5.5\r\n"
    record = answered(answer(body, headers), a_call(), server_times=times)
    assert record["server_times_us"] == [12_000, 3400, 5500, 1500, 250_000, 9]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"t_ms": null}', b'{"t_ms": "soon"}', b'{"t_ms": NaN}', b'{"t_ms": 1e300}', b'{"t_ms": -1}']
)
def test_times_that_are_none_are_null(body: bytes) -> None:
    times = [server_times.parse("field:t_ms"), server_times.parse("header:t_ms")]
    record = answered(answer(body or b"{", b"T_ms: later\r\n"), a_call(), server_times=times)
    assert record["server_times_us"] == [None, None]


def test_failed_requests_have_times_too() -> None:
    times = [server_times.parse("header:x-queue-ms"), server_times.parse("field:t_ms")]
    record = answered(answer(b"{}", b"X-Queue-Ms: 7\r\n", b"503 Busy"), a_call(), server_times=times)
    assert (record["outcome"], record["server_times_us"]) == ("HTTP_ERROR", [7000, None])


def test_every_problem_at_once() -> None:
    texts = {"method": "HEAD", "url_path": "predict", "body_template": "{", "server_time": "x-queue,header:,field:a"}
    with pytest.raises(UsageError) as caught:
        parse_settings(texts, simulated=False, steps_required=True)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        *("--method", "--url-path", "--body-template", "--server-time", "--server-time")
    ]


def test_a_get_has_no_body() -> None:
    assert parse_settings({"method": "get"}, simulated=False, steps_required=True).body_template is None
    with pytest.raises(UsageError, match="a GET sends no body"):
        parse_settings({"method": "GET", "body_template": "{}"}, simulated=False, steps_required=True)
