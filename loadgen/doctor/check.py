"""A check as a value, what the checks of one examination share, and the loop over a table of them.

A check function takes the `Case` and returns a `Finding`; one whose predecessor failed is skipped and says so. No check
raises for what a server, a network or this machine does. Durations come from CLOCK_MONOTONIC.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from loadgen.endpoints import Answer, Failure
from loadgen.errors import LoadgenError, TargetError
from loadgen.failures import secrets_of
from loadgen.option_values import HIDDEN, is_secret
from loadgen.options import Settings

CONTROL_TIMEOUT_S = 10.0
_SHORTEST_SECRET = 6  # a placeholder such as EMPTY may show, and must not blot out words of ours


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"
    NOT_APPLICABLE = "not applicable"


class Finding(NamedTuple):
    """`found` is one sentence with figures, `remedy` one more when the verdict is a warning or failed."""

    verdict: Verdict
    found: str
    remedy: str | None = None


def ok(found: str) -> Finding:
    return Finding(Verdict.OK, found)


def warning(found: str, remedy: str) -> Finding:
    return Finding(Verdict.WARNING, found, remedy)


def failed(found: str, remedy: str) -> Finding:
    return Finding(Verdict.FAILED, found, remedy)


def not_applicable(found: str) -> Finding:
    return Finding(Verdict.NOT_APPLICABLE, found)


@dataclass(frozen=True)
class Check:
    """What came of one check. `error` is what its failure is to the command that made it."""

    name: str
    verdict: Verdict
    found: str
    remedy: str | None
    error: type[LoadgenError]


@dataclass(frozen=True)
class Reply:
    """What one chat request brought. `cut`: we closed the connection, because the answer went on and on."""

    status: int
    headers: Mapping[str, str]
    failure: Failure | None
    answer: Answer
    done: bool  # the last event was [DONE]
    cut: bool
    first_s: float | None
    total_s: float
    connection: int  # local port

    @property
    def events(self) -> int:
        return len(self.answer.stamps_ns)

    @property
    def tokens(self) -> int:
        """As the server's usage says, else events; of a cut answer those that were read."""
        return self.answer.output_tokens if self.answer.output_tokens is not None else self.events

    @property
    def ran_on(self) -> bool:
        """It ended at a limit, not where the model ended it."""
        return self.cut or self.answer.finish_reason == "length"


class Case:
    """The settings, one HTTP client as the run's own requests go (no proxy, the same TLS), and what earlier checks
    found out for later ones."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.model = settings.model
        self.models: tuple[str, ...] = ()
        self.reply: Reply | None = None  # to the first chat request, when it went well

    def __enter__(self) -> Case:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if "client" in self.__dict__:
            self.client.close()

    @property
    def url(self) -> str:
        assert self.settings.host is not None, "checks of an endpoint are made only of one"
        return self.settings.host

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the endpoint."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)

    @cached_property
    def client(self) -> httpx.Client:
        return httpx.Client(verify=self.tls_context(), trust_env=False)

    def tls_context(self) -> ssl.SSLContext:
        """As --ca-file and --insecure say."""
        context = ssl.create_default_context(cafile=self.settings.ca_file)
        if self.settings.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def send(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[bytes, bytes]] = (),
        content: bytes | None = None,
        *,
        timeout_s: float = CONTROL_TIMEOUT_S,
        stream: bool = False,
    ) -> httpx.Response:
        """One request; once more when the server closed the kept connection meanwhile, as a run does.

        Raises httpx.HTTPError.
        """
        request = self.client.build_request(method, url, headers=headers, content=content, timeout=timeout_s)
        try:
            return self.client.send(request, stream=stream)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            return self.client.send(request, stream=stream)

    @property
    def key(self) -> str | None:
        """The key of --api-key-env. Raises TargetError when it cannot be sent, and never shows it."""
        name = self.settings.api_key_env
        if name is None:
            return None
        key = os.environ.get(name)
        if not key:
            raise TargetError(f"the environment variable {name} (--api-key-env) is not set")
        if not (key.isascii() and key.isprintable()):
            raise TargetError(
                f"the key in {name} has characters that HTTP cannot carry: take line ends and the like out of it"
            )
        return key

    def headers(self, call: Iterable[tuple[str, str]] = (), *, secrets: bool = True) -> list[tuple[bytes, bytes]]:
        """As a run sends them: a later one of the same name wins, and --header is last. Raises TargetError."""
        named = {"accept-encoding": ("Accept-Encoding", "identity")}
        if secrets and self.key is not None:
            named["authorization"] = ("Authorization", f"Bearer {self.key}")
        for name, value in (*call, *self.settings.headers):
            if secrets or not is_secret(name):
                named[name.lower()] = (name, value)
        try:
            return [(name.encode("ascii"), value.encode("latin-1")) for name, value in named.values()]
        except UnicodeEncodeError:
            raise TargetError("a header of --header has characters that HTTP cannot carry: leave them out") from None

    @property
    def has_secrets(self) -> bool:
        return self.settings.api_key_env is not None or any(is_secret(name) for name, _ in self.settings.headers)

    def hide(self, text: str) -> str:
        """Without what must not be shown, should a server or a library repeat it."""
        for secret in secrets_of(self.settings):
            if len(secret) >= _SHORTEST_SECRET:
                text = text.replace(secret, HIDDEN)
        return text


class Row(NamedTuple):
    """`needs` names the checks without which this one makes no sense; `quick`: every run begins with it."""

    name: str
    examine: Callable[[Case], Finding]
    needs: tuple[str, ...]
    quick: bool
    error: type[LoadgenError]


def examine(case: Case, rows: Iterable[Row]) -> Iterator[Check]:
    """Each check as soon as it is made."""
    roots: dict[str, str] = {}
    for row in rows:
        root = next((roots[need] for need in row.needs if need in roots), None)
        if root is not None:
            roots[row.name] = root
            finding = Finding(Verdict.SKIPPED, f"not tried, because {root} failed")
        else:
            finding = _find(case, row)
            if finding.verdict is Verdict.FAILED:
                roots[row.name] = row.name
        remedy = finding.remedy and case.hide(finding.remedy)
        yield Check(row.name, finding.verdict, case.hide(finding.found), remedy, row.error)


def _find(case: Case, row: Row) -> Finding:
    try:
        return row.examine(case)
    except TargetError as error:
        found, _, remedy = str(error).partition(": ")
        return failed(found, remedy or "set it, or leave the option out")
    except httpx.TimeoutException as error:
        limit = error.request.extensions["timeout"]["read"]
        return failed(
            f"{case.url} did not answer within {limit:g} s", "see whether the server is up, and not overloaded"
        )
    except httpx.HTTPError as error:
        return failed(
            f"{case.url} gave no whole HTTP answer ({error})", "see whether it is an HTTP server, and its log"
        )


def as_json(checks: Iterable[Check]) -> dict[str, Any]:
    listed = list(checks)
    return {
        "schema": 1,
        "checks": [
            {"name": check.name, "verdict": check.verdict.value, "found": check.found, "remedy": check.remedy}
            for check in listed
        ],
        "ok": all(check.verdict is not Verdict.FAILED for check in listed),
    }


def raise_for(checks: Iterable[Check]) -> None:
    """Raise the first failure as the error that it is: TargetError, RunDirError or LoadgenError."""
    for check in checks:
        if check.verdict is Verdict.FAILED:
            raise check.error(f"{check.found}: {check.remedy}")
