"""The doctor against scripted servers: what it finds, what it says, and what it skips."""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
import resource
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from loadgen.doctor import CHECKS, Check, Verdict, as_json, diagnose, find_model, machine, quick_checks, raise_for
from loadgen.errors import LoadgenError, RunDirError, TargetError
from loadgen.options import Settings, parse_settings
from tests.conftest import ROOT
from tests.loadgen.scripted import CHUNKED, END, HEAD, Script, chunk, serving

KEY = "s3cret-Of-The-Test"
METRICS = b'vllm:num_requests_running{engine="0"} 1\nvllm:num_requests_waiting{engine="1"} 0\n'
Fields = dict[str, Any]


def whole(status: str, body: bytes, head: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body


def event(message: Fields) -> bytes:
    return b"data: " + json.dumps(message).encode() + b"\n\n"


def choice(content: str | None, reason: str | None = None) -> Fields:
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": reason}]}


def answer(fields: Fields) -> bytes:
    """A model that would count for ever, and whose short answer has three tokens."""
    short = "one word" in fields["messages"][0]["content"] and not fields.get("ignore_eos")
    limit = fields.get("max_tokens") or fields.get("max_completion_tokens") or 1000
    count = min(limit, 3 if short else 1000)
    events = [event(choice("w ")) for _ in range(count)] + [event(choice(None, "length" if count == limit else "stop"))]
    if fields.get("stream_options"):
        events.append(event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": count}}))
    return b"".join([*events, b"data: [DONE]\n\n"])


def chunked(fields: Fields) -> bytes:
    return CHUNKED + chunk(answer(fields)) + END


class Api:
    """One script that answers by path; `asked` are the fields of the chat requests."""

    def __init__(
        self,
        *,
        models: Sequence[str] = ("m1", "m2"),
        chat: Callable[[Fields], bytes] = chunked,
        metrics: bytes = whole("404 Not Found", b"{}"),
        key_for: Sequence[str] = (),
        refusal: bytes = whole("401 Unauthorized", b'{"error": "no"}'),
        close: bool = False,
    ) -> None:
        self.models, self.chat, self.metrics = models, chat, metrics
        self.key_for, self.refusal, self.close = key_for, refusal, close
        self.asked: list[Fields] = []

    def __call__(self, connection: socket.socket, request: bytes) -> bool:
        head, _, body = request.partition(b"\r\n\r\n")
        path = head.split()[1].decode()
        reply = self.refusal
        if path not in self.key_for or b"Bearer " + KEY.encode() in head:
            reply = self._reply(path, body)
        connection.sendall(reply)
        return not self.close and not reply.startswith(HEAD + b"\r\n")

    def _reply(self, path: str, body: bytes) -> bytes:
        if path == "/metrics":
            return self.metrics
        if path == "/v1/models":
            return whole("200 OK", json.dumps({"data": [{"id": name} for name in self.models]}).encode())
        fields = json.loads(body)
        if "messages" not in fields:
            return whole("400 Bad Request", b'{"error": "messages is missing"}')
        self.asked.append(fields)
        return self.chat(fields)


def settings_for(port: int | None, *, scheme: str = "http", workers: int = 1, **texts: str) -> Settings:
    host = {} if port is None else {"host": f"{scheme}://127.0.0.1:{port}"}
    load = {} if {"steps", "rate"} & texts.keys() else {"concurrency": "10"}
    given = {**load, "agents": "none", "timeout": "5", **host, **texts}
    return replace(parse_settings(given, simulated=port is None, steps_required=True), workers=workers)


def examined(script: Script, tls: ssl.SSLContext | None = None, **texts: str) -> dict[str, Check]:
    scheme = "http" if tls is None else "https"
    with serving(*[script] * 60, tls=tls) as server:
        return {check.name: check for check in diagnose(settings_for(server.port, scheme=scheme, **texts))}


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_sound_server() -> None:
    api = Api(metrics=whole("200 OK", METRICS))
    checks = examined(api, agents="local")
    endpoint = {name: (check.verdict.value, check.found) for name, check in checks.items()}
    assert endpoint["name"] == ("ok", "127.0.0.1 is an address, nothing to resolve")
    assert re.fullmatch(r"8 TCP connects took [\d.]+ / [\d.]+ / [\d.]+ ms .*on this machine.*", endpoint["connect"][1])
    assert endpoint["TLS"] == ("not applicable", "plain HTTP")
    assert endpoint["key"] == ("ok", "none given, and none is asked for")
    assert endpoint["model"] == ("ok", "m1, the first of 2 listed: m1, m2")
    assert re.fullmatch(r"32 tokens of output in .* finish_reason 'length'", endpoint["streamed chat"][1])
    assert endpoint["usage"] == ("ok", "the server counts tokens: 9 of the prompt, 32 of output")
    assert endpoint["max_tokens"] == ("ok", "honoured: the answer ended at 32 of 32 tokens")
    assert endpoint["max_completion_tokens"] == ("ok", "honoured: the answer ended at 8 of 8 tokens")
    assert endpoint["ignore_eos"] == ("ok", "honoured: an answer ran to 32 tokens that ends after 3 without it")
    assert endpoint["end of stream"] == ("ok", "[DONE], then the end of the HTTP message; a finish_reason is given")
    assert endpoint["tokens per event"] == ("ok", "1.00 (32 tokens in 32 events)")
    assert endpoint["keep-alive"] == ("ok", "2 requests went over one connection; the server names no limit")
    assert endpoint["server metrics"][1].startswith("vLLM of 2 engines at http://127.0.0.1:")
    assert endpoint["agents"][1].startswith("local: ")
    assert {fields["model"] for fields in api.asked} == {"m1"}
    assert len(api.asked) == 6


def test_a_closed_port_and_what_depends_on_it() -> None:
    settings = settings_for(closed_port())
    checks = {check.name: check for check in diagnose(settings)}
    assert checks["connect"].verdict is Verdict.FAILED
    assert "cannot be reached (connection refused)" in checks["connect"].found
    assert checks["keep-alive"].verdict is Verdict.SKIPPED
    assert checks["keep-alive"].found == "not tried, because connect failed"
    assert checks["open files"].verdict is Verdict.OK
    with pytest.raises(TargetError, match=r"cannot be reached \(connection refused\): start the server"):
        raise_for(checks.values())
    with pytest.raises(TargetError, match="cannot be reached"):
        find_model(settings)


def test_a_name_that_is_none() -> None:
    settings = settings_for(None, host="http://no..name:1")
    with pytest.raises(TargetError, match=r"the name no\.\.name cannot be resolved"):
        raise_for(diagnose(settings))


def test_a_server_that_does_not_answer_in_time() -> None:
    def slow(fields: Fields) -> bytes:
        time.sleep(1)
        return chunked(fields)

    check = examined(Api(chat=slow), timeout="200ms")["streamed chat"]
    assert check.verdict is Verdict.FAILED
    assert check.found.endswith("did not answer within 0.2 s")


def test_a_server_of_another_protocol() -> None:
    def banner(connection: socket.socket, request: bytes) -> bool:
        connection.sendall(b"SSH-2.0-x\r\n")
        return False

    with serving(banner, banner) as server, pytest.raises(TargetError, match="gave no whole HTTP answer"):
        find_model(settings_for(server.port))


# -- TLS


def certificate(folder: Path, address: str) -> Path:
    """Self-signed, for one more day."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    until = now + datetime.timedelta(days=1, hours=1)
    signed = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number(), now, until)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(private, hashes.SHA256())
    )
    encoding, pkcs8, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file = folder / f"{address}.pem"
    file.write_bytes(signed.public_bytes(encoding) + private.private_bytes(encoding, pkcs8, plain))
    return file


def context_of(file: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def test_a_self_signed_certificate_and_its_remedies(tmp_path: Path) -> None:
    file = certificate(tmp_path, "127.0.0.1")
    check = examined(Api(), context_of(file))["TLS"]
    assert (check.verdict, check.found) == (
        Verdict.FAILED,
        "the certificate of 127.0.0.1 is not accepted (self-signed certificate)",
    )
    assert check.remedy is not None
    assert "--ca-file" in check.remedy
    checks = examined(Api(), context_of(file), ca_file=str(file))
    assert (checks["TLS"].verdict, checks["TLS"].found) == (
        Verdict.WARNING,
        "TLSv1.3, certificate verified, its name matches 127.0.0.1, 1 days left",
    )
    assert checks["streamed chat"].verdict is Verdict.OK
    checks = examined(Api(), context_of(file), insecure="true")
    assert (checks["TLS"].verdict, checks["TLS"].found) == (
        Verdict.OK,
        "TLSv1.3; the certificate is not verified (--insecure)",
    )
    assert checks["streamed chat"].verdict is Verdict.OK


def test_an_address_that_is_not_ours() -> None:
    check = examined(Api(), source_addresses="127.0.0.1,203.0.113.7")["connect"]
    assert check.verdict is Verdict.FAILED
    assert check.found.startswith("nothing can be sent from 203.0.113.7 to 127.0.0.1")
    assert examined(Api(), source_addresses="127.0.0.1,127.0.0.2")["connect"].verdict is Verdict.OK


def test_limits_of_the_open_model() -> None:
    checks = examined(Api(), rate="10,20", max_in_flight="300")
    assert "a worker needs 400 for 300 requests in flight" in checks["open files"].found
    assert "for 300 requests in flight" in checks["local ports"].found
    assert "300 requests in flight at" in checks["memory"].found


def test_a_certificate_of_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = certificate(tmp_path, "127.0.0.2")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    check = examined(Api(), context_of(file))["TLS"]
    assert "mismatch" in check.found
    assert check.remedy == "use a name in --host that the certificate has"


def test_https_to_a_plain_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer_plainly() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    if connection.recv(4096):
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer_plainly, daemon=True).start()
        check = next(check for check in diagnose(settings_for(port, scheme="https")) if check.name == "TLS")
        listener.shutdown(socket.SHUT_RDWR)
    assert check.verdict is Verdict.FAILED
    assert check.remedy == "if it speaks plain HTTP, write http:// in --host"


# -- key and model

EVERYWHERE = ("/v1/models", "/v1/chat/completions")


@pytest.mark.parametrize(
    ("key_for", "given", "verdict", "found"),
    [
        (EVERYWHERE, None, "failed", "asks for a key (HTTP 401)"),
        (EVERYWHERE[1:], None, "failed", "asks for a key (HTTP 401)"),
        (EVERYWHERE, "wrong-key", "failed", "refused the key (HTTP 401)"),
        (EVERYWHERE, KEY, "ok", "accepted, and needed"),
        (EVERYWHERE[1:], KEY, "ok", "accepted, and needed; the models are listed without it"),
        ((), KEY, "ok", "accepted, but not needed: requests without it are taken too"),
    ],
)
def test_the_key(
    key_for: Sequence[str], given: str | None, verdict: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {} if given is None else {"api_key_env": "TEST_KEY"}
    monkeypatch.setenv("TEST_KEY", given or "")
    check = examined(Api(key_for=key_for), **texts)["key"]
    assert check.verdict.value == verdict
    assert check.found.endswith(found)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (KEY + "\n", "the key in TEST_KEY has characters that HTTP cannot carry: take line ends"),
        ("", r"the environment variable TEST_KEY \(--api-key-env\) is not set"),
    ],
)
def test_a_key_that_cannot_be_sent(given: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", given)
    settings = settings_for(closed_port(), api_key_env="TEST_KEY")
    checks, _ = quick_checks(settings)
    assert checks[0].name == "credentials"
    with pytest.raises(TargetError, match=sentence):
        raise_for(checks)
    with pytest.raises(TargetError, match=sentence):
        find_model(settings)


def test_a_secret_that_the_server_repeats_is_hidden() -> None:
    def repeat(fields: Fields) -> bytes:
        return whole("500 Oops", json.dumps({"error": f"key {KEY} is odd"}).encode())

    checks = examined(Api(chat=repeat), header=f"Authorization: Bearer {KEY}")
    assert "HTTP 500: key (hidden) is odd" in checks["streamed chat"].found
    assert KEY not in json.dumps(as_json(checks.values()))


def test_models() -> None:
    many = [f"m{number}" for number in range(8)]
    check = examined(Api(models=many), model="gpt")["model"]
    assert (check.verdict, check.remedy) == (Verdict.WARNING, "give one of these with --model")
    assert check.found == "gpt is not among those listed: m0, m1, m2, m3, m4 and 3 more"
    missing = Api(models=many, chat=lambda _: whole("404 Not Found", b'{"error": {"message": "no such model"}}'))
    check = examined(missing, model="gpt")["model"]
    assert (check.verdict, check.found.rpartition("; ")[2]) == (Verdict.FAILED, "HTTP 404")
    check = examined(Api(models=()))["model"]
    assert (check.verdict, check.remedy) == (Verdict.WARNING, "give one with --model")
    check = examined(Api(models=()), model="gpt")["model"]
    assert (check.verdict, check.found) == (Verdict.OK, "gpt; /v1/models lists none to compare it with")


def test_find_model() -> None:
    with serving(*[Api()] * 9) as server:
        assert find_model(settings_for(server.port)) == "m1"
        assert find_model(settings_for(server.port, model="gpt")) == "gpt"
    with serving(*[Api(models=())] * 9) as server:
        assert find_model(settings_for(server.port)) is None


# -- the streamed chat


def strict(*unknown: str) -> Callable[[Fields], bytes]:
    """A server that answers 422 to fields it does not know."""

    def reply(fields: Fields) -> bytes:
        odd = [field for field in fields if field in unknown]
        if odd:
            detail = [{"loc": ["body", odd[0]], "msg": "Extra inputs are not permitted"}]
            return whole("422 Unprocessable Entity", json.dumps({"detail": detail}).encode())
        return chunked(fields)

    return reply


def test_a_field_that_the_server_refuses() -> None:
    check = examined(Api(chat=strict("stream_options")))["streamed chat"]
    assert check.verdict is Verdict.FAILED
    assert "HTTP_ERROR: HTTP 422: body.stream_options: Extra inputs are not permitted" in check.found
    assert check.remedy == """give --extra-body '{"stream_options": null}'"""
    checks = examined(Api(chat=strict("stream_options")), extra_body='{"stream_options": null}')
    assert checks["streamed chat"].verdict is Verdict.OK
    assert (checks["usage"].verdict, checks["usage"].found) == (
        Verdict.WARNING,
        "no token counts come with the answer",
    )
    assert checks["tokens per event"].verdict is Verdict.NOT_APPLICABLE
    check = examined(Api(chat=strict("max_tokens")), output_tokens="64")["streamed chat"]
    assert check.remedy == """give --extra-body '{"max_tokens": null, "max_completion_tokens": 64}'"""
    check = examined(Api(chat=strict("top_k")), extra_body='{"top_k": 1}')["streamed chat"]
    assert check.remedy == "leave top_k out of --extra-body"


def test_options_that_the_server_does_not_take() -> None:
    checks = examined(Api(chat=strict("ignore_eos", "max_completion_tokens")))
    for name in ("ignore_eos", "max_completion_tokens"):
        assert checks[name].verdict is Verdict.OK
        assert checks[name].found.startswith(f"not taken (HTTP 422: body.{name}: Extra inputs are not permitted)")


def test_options_that_the_server_ignores() -> None:
    def ignoring(fields: Fields) -> bytes:
        return chunked({"messages": fields["messages"], "max_tokens": 2000})

    checks = examined(Api(chat=ignoring))
    assert checks["max_tokens"].verdict is Verdict.WARNING
    ignored = r"ignored: more than \d+ events of output where {} tokens were allowed"
    assert re.match(ignored.format(32), checks["max_tokens"].found)
    assert re.match(ignored.format(8), checks["max_completion_tokens"].found)
    assert checks["ignore_eos"].found == "ignored: an answer ended by itself after 3 of 32 tokens"
    assert checks["keep-alive"].verdict is Verdict.NOT_APPLICABLE
    assert examined(Api(chat=ignoring), extra_body='{"ignore_eos": true}')["ignore_eos"].verdict is Verdict.WARNING


@pytest.mark.parametrize(
    ("chat", "verdict", "found"),
    [
        (
            lambda fields: CHUNKED + chunk(answer(fields).replace(b"data: [DONE]\n\n", b"")) + END,
            Verdict.OK,
            "no [DONE], then the end of the HTTP message; a finish_reason is given",
        ),
        (
            lambda fields: HEAD + b"\r\n" + answer(fields),
            Verdict.WARNING,
            "[DONE], then the end of the connection; a finish_reason is given",
        ),
    ],
    ids=["without [DONE]", "until the connection closes"],
)
def test_ends_of_streams(chat: Callable[[Fields], bytes], verdict: Verdict, found: str) -> None:
    checks = examined(Api(chat=chat))
    assert (checks["end of stream"].verdict, checks["end of stream"].found) == (verdict, found)


def test_streams_that_a_run_would_count_as_failed() -> None:
    def endless(fields: Fields) -> bytes:
        return CHUNKED + chunk(answer(fields).replace(b'"length"', b"null")) + END

    checks = examined(Api(chat=endless))
    assert checks["streamed chat"].verdict is Verdict.FAILED
    assert "TRUNCATED" in checks["streamed chat"].found
    assert "(32 events of output, ended after [DONE])" in checks["streamed chat"].found
    assert checks["usage"].verdict is Verdict.SKIPPED
    cut = examined(Api(chat=lambda fields: CHUNKED + chunk(answer(fields)[:500]), close=True))["streamed chat"]
    assert "TRUNCATED: connection closed before the end of the answer" in cut.found


def test_tokens_per_event() -> None:
    def paired(fields: Fields) -> bytes:
        one = event(choice("w "))
        return CHUNKED + chunk(answer(fields).replace(one + one, one)) + END

    found = examined(Api(chat=paired))["tokens per event"].found
    assert found == "2.00 (32 tokens in 16 events): gaps between events are not gaps between tokens"


def test_keep_alive() -> None:
    def limited(fields: Fields) -> bytes:
        return chunked(fields).replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=5, max=100\r\n\r\n", 1)

    said = "the server says that it closes one after 5 s without a request and after 100 requests"
    check = examined(Api(chat=limited))["keep-alive"]
    assert (check.verdict, check.found) == (Verdict.OK, f"2 requests went over one connection; {said}")
    check = examined(Api(chat=limited, close=True))["keep-alive"]
    assert (check.verdict, check.found) == (
        Verdict.WARNING,
        f"the connection is closed after a streamed answer, though {said}",
    )


# -- metrics


@pytest.mark.parametrize(
    ("page", "texts", "verdict", "found"),
    [
        (whole("404 Not Found", b""), {}, "warning", "/metrics gives none (HTTP 404)"),
        (whole("200 OK", b"<html>"), {}, "warning", "/metrics has no series of a server that we know"),
        (whole("200 OK", b"llamacpp:requests_processing 1\n"), {}, "ok", "llama.cpp at "),
        (whole("200 OK", METRICS + b"simulator_emissions_total 1\n"), {}, "ok", "our simulator of 2 engines at "),
        (whole("200 OK", METRICS), {"metrics_url": "http://127.0.0.1:9/m"}, "warning", "http://127.0.0.1:9/m gives no"),
    ],
)
def test_metrics(page: bytes, texts: dict[str, str], verdict: str, found: str) -> None:
    check = examined(Api(metrics=page), agents="local", **texts)["server metrics"]
    assert (check.verdict.value, found in check.found) == (verdict, True), check.found


def test_metrics_behind_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api(metrics=whole("200 OK", METRICS), key_for=("/metrics",))
    check = examined(api, agents="local")["server metrics"]
    assert check.found.endswith("/metrics asks for a key (HTTP 401)")
    monkeypatch.setenv("TEST_KEY", KEY)
    check = examined(api, agents="local", api_key_env="TEST_KEY")["server metrics"]
    assert check.found.endswith("/metrics with the key: running, waiting")


# -- this machine


def test_without_a_host_this_machine_is_checked() -> None:
    checks = list(diagnose(settings_for(None)))
    assert checks[0].found == "no --host: a run would start its embedded simulator"
    assert [check.name for check in checks[1:]] == [row.name for row in CHECKS if row.error is not TargetError]
    assert not [check for check in checks if check.verdict is Verdict.FAILED]
    with pytest.raises(LoadgenError, match="the simulator needs"):
        raise_for(diagnose(settings_for(None, concurrency="100000000", workers=100_000)))


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("local ports", {"concurrency": "70000"}),
        ("memory", {"concurrency": "1000000000"}),
        ("runs directory", {"runs_dir": str(ROOT / "README.md" / "runs")}),
    ],
)
def test_a_run_that_this_machine_cannot_hold(name: str, texts: dict[str, str]) -> None:
    checks = {check.name: check for check in diagnose(settings_for(closed_port(), **texts))}
    assert checks[name].verdict is Verdict.FAILED
    assert checks[name].remedy
    assert checks[name].error is (RunDirError if name == "runs directory" else LoadgenError)


def test_warnings_of_this_machine() -> None:
    checks = {
        check.name: check for check in diagnose(settings_for(closed_port(), concurrency="100000", step_time="9h"))
    }
    assert checks["disk"].verdict is Verdict.WARNING
    checks = {check.name: check for check in diagnose(settings_for(closed_port(), workers=10_000))}
    assert checks["CPUs"].verdict is Verdict.WARNING
    checks = {check.name: check for check in diagnose(settings_for(closed_port(), agents="local", gpus="GPU-none"))}
    assert checks["agents"].verdict is Verdict.WARNING
    assert "GPU-none" in checks["agents"].found
    (other,) = machine.differing([("click", "0.0"), ("no-such-package", "1")])
    assert other.endswith(" instead of 0.0")


def test_requests_are_estimated_from_above() -> None:
    requests, a_request, total = machine.estimate(settings_for(None, steps="10,20", step_requests="50"))
    assert requests == 100
    assert a_request > 200
    assert total > requests * a_request


# -- the command


def command(loadgen: str, *options: str, files: int | None = None) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    return subprocess.run([loadgen, "doctor", *options], capture_output=True, text=True, preexec_fn=limit)


def test_the_command_as_text_and_json(loadgen: str) -> None:
    with serving(*[Api()] * 60) as server:
        options = ("--host", f"http://127.0.0.1:{server.port}", "--concurrency", "10", "--agents", "none")
        text = command(loadgen, *options)
        done = command(loadgen, *options, "--format", "json", "--metrics-url", f"http://127.0.0.1:{server.port}/m")
    assert text.returncode == 0, text.stderr
    assert "\x1b" not in text.stdout
    lines = [line for line in text.stdout.splitlines() if "  -> " not in line]
    assert [line[9:30].strip() for line in lines] == [row.name for row in CHECKS]
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert (report["schema"], report["ok"]) == (1, True)
    assert [check["name"] for check in report["checks"]] == [row.name for row in CHECKS]
    assert set(report["checks"][0]) == {"name", "verdict", "found", "remedy"}


def test_exit_codes(loadgen: str) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    unreachable = command(loadgen, "--host", url, "--agents", "none")
    assert (unreachable.returncode, unreachable.stderr) == (3, "error: failed checks: connect\n")
    few = command(loadgen, "--concurrency", "1000", "--agents", "none", "--format", "json", files=300)
    assert (few.returncode, few.stderr) == (1, "error: failed checks: open files\n")
    assert json.loads(few.stdout)["ok"] is False
    assert command(loadgen, "--concurrency", "many").returncode == 2
    assert command(loadgen, "--runs-dir", str(ROOT / "README.md"), "--agents", "none").returncode == 4


def test_quick_checks() -> None:
    with serving(*[Api()] * 9) as server:
        checks, model = quick_checks(settings_for(server.port))
    assert model == "m1"
    names = ["credentials", "name", "connect", "TLS", "key", "model", "open files", "disk", "runs directory"]
    assert [check.name for check in checks] == names
    raise_for(checks)
    checks, model = quick_checks(settings_for(None))
    assert ([check.name for check in checks], model) == (names[6:], None)


def test_every_check_is_documented() -> None:
    text = (ROOT / "docs" / "doctor.md").read_text()
    assert re.findall(r"^\| ([^|`-][^|]*?) \|", text, re.MULTILINE)[1:] == [row.name for row in CHECKS]
