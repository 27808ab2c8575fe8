"""The way to the endpoint: its name, TCP connects, TLS. The same calls as `transport.connection` makes, without gevent.

Times are milliseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import ssl
import statistics
import time
from datetime import UTC, datetime

from loadgen.doctor.check import Case, Finding, failed, not_applicable, ok, warning

_CONNECTS = 8
_CONNECT_TIMEOUT_S = 5.0
_SLOW_NAME_MS = 100.0
_LOST_PACKET_MS = 200.0  # beyond the median: a connect whose first packet was lost takes a second more
_FEW_DAYS = 14
_VERIFY_REMEDIES = {
    10: "renew the server's certificate, and check the clock of this machine",
    18: "name a file with the server's certificate with --ca-file, or give --insecure",
    19: "name a file with the authority's certificate with --ca-file",
    20: "name a file with the authority's certificate with --ca-file",
    62: "use a name in --host that the certificate has",
    64: "use a name in --host that the certificate has",
}


def name(case: Case) -> Finding:
    host, port = case.address
    started = time.monotonic()
    try:
        found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # the latter for a name that is none
        reason = error.strerror if isinstance(error, OSError) else "not a name"
        return failed(f"the name {host} cannot be resolved ({reason})", "correct --host, or the resolver")
    took_ms = (time.monotonic() - started) * 1e3
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if _is_address(host):
        return ok(f"{host} is an address, nothing to resolve")
    text = f"{host} is {', '.join(addresses[:4])}{' …' if addresses[4:] else ''}, resolved in {took_ms:.1f} ms"
    if took_ms > _SLOW_NAME_MS:
        return warning(text, "every new connection asks again: give an address in --host, or run a caching resolver")
    return ok(text)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def connect(case: Case) -> Finding:
    times_ms, local = [], False
    problem: OSError | None = None
    sources = case.settings.source_addresses or ("",)
    for number in range(max(_CONNECTS, len(sources))):
        source = sources[number % len(sources)]
        started = time.monotonic()
        try:
            with socket.create_connection(case.address, _CONNECT_TIMEOUT_S, (source, 0) if source else None) as made:
                times_ms.append((time.monotonic() - started) * 1e3)
                local = made.getsockname()[0] == made.getpeername()[0]
        except OSError as error:
            if source and error.errno in (errno.EADDRNOTAVAIL, errno.EINVAL):
                found = f"nothing can be sent from {source} to {case.address[0]} ({_reason(error)})"
                return failed(found, "give addresses of this machine with --source-addresses")
            problem = error
            if not times_ms:
                break
    if problem is not None:
        reason = "no answer within 5 s" if isinstance(problem, TimeoutError) else _reason(problem)
        if not times_ms:
            return failed(f"{case.url} cannot be reached ({reason})", "start the server, or correct --host")
        found = f"{number + 1 - len(times_ms)} of {number + 1} TCP connects failed ({reason})"
        return warning(found, "look for a full accept queue on the server, or a firewall that limits connections")
    low, middle, high = min(times_ms), statistics.median(times_ms), max(times_ms)
    where = "on this machine, which server and load generator share" if local else "on another machine"
    found = f"{len(times_ms)} TCP connects took {low:.2f} / {middle:.2f} / {high:.2f} ms (min / p50 / max); {where}"
    if high > middle + _LOST_PACKET_MS:
        return warning(found, "a packet was lost or delayed on the way: expect such delays in the latencies too")
    return ok(found)


def tls(case: Case) -> Finding:
    if not case.url.startswith("https:"):
        return not_applicable("plain HTTP")
    host, _ = case.address
    try:
        with (
            socket.create_connection(case.address, timeout=_CONNECT_TIMEOUT_S) as plain,
            case.tls_context().wrap_socket(plain, server_hostname=host) as secured,
        ):
            version = secured.version() or "TLS"
            certificate = secured.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        text = (error.verify_message or str(error)).rstrip(".")
        remedy = _VERIFY_REMEDIES.get(error.verify_code, "give the server a certificate that this machine trusts")
        return failed(f"the certificate of {host} is not accepted ({text})", remedy)
    except ssl.SSLError as error:
        remedy = "if it speaks plain HTTP, write http:// in --host"
        return failed(f"{case.url} does not speak TLS as we do ({error.reason or 'handshake failed'})", remedy)
    except OSError as error:
        return failed(f"the TLS handshake with {host} broke off ({_reason(error)})", "look into the server's log")
    if not certificate:
        return ok(f"{version}; the certificate is not verified (--insecure)")
    days = int((ssl.cert_time_to_seconds(str(certificate["notAfter"])) - datetime.now(UTC).timestamp()) // 86400)
    found = f"{version}, certificate verified, its name matches {host}, {days} days left"
    return warning(found, "renew the server's certificate soon") if days < _FEW_DAYS else ok(found)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error) or type(error).__name__).lower()
