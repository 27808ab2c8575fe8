"""The reference server and the floor client, in C: built with gcc, run as processes of their own.

The server streams by an absolute schedule and logs what it really did; client and server share one clock on loopback,
so its log is the truth for a client's own numbers. All times of the log (`t_*`) are CLOCK_REALTIME ns; README.md says
what each is.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import pandas as pd
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_SOURCES = Path(__file__).parent
_START_S, _LOAD_S, _STOP_S = 10.0, 60.0, 60.0  # a log of a million requests takes its time
_REALTIME_PRIORITY = 20
_REMEDY = "`make system-deps` installs it (Debian: apt-get install gcc libc6-dev libssl-dev)"


class BuildError(Exception):
    """One sentence: what is missing, and what to do."""


class Binaries(NamedTuple):
    server: Path
    client: Path


class Certificate(NamedTuple):
    """PEM files; the certificate signs itself, so it is its own CA file."""

    cert: Path
    key: Path


def build(folder: Path) -> Binaries:
    """Compile both into `folder`. Raises BuildError."""
    gcc = shutil.which("gcc")
    if gcc is None:
        raise BuildError(f"the reference server needs gcc: {_REMEDY}")
    for name, libraries in (("refserver", ["-lm", "-lssl", "-lcrypto"]), ("refclient", [])):
        command = [gcc, "-std=c11", "-O2", "-Wall", "-Wextra", "-o", str(folder / name)]
        command += [str(_SOURCES / f"{name}.c"), *libraries]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
        if missing := re.search(r"[\w/]+\.h(?=: No such file)|(?<=cannot find )-l\w+", done.stderr):
            raise BuildError(f"the reference server needs {missing[0]}: {_REMEDY}")
        if done.returncode:
            raise BuildError(f"{name}.c does not compile: {done.stderr[:1000]}")
    return Binaries(folder / "refserver", folder / "refclient")


def self_signed(folder: Path) -> Certificate:
    """A certificate of 127.0.0.1, good for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "reference server")])
    now, hour = datetime.datetime.now(datetime.UTC), datetime.timedelta(hours=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - hour, now + 24 * hour)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    files = Certificate(folder / "cert.pem", folder / "key.pem")
    files.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


class Server:
    """A running reference server; at the end of the `with` block it is gone."""

    def __init__(
        self,
        binary: Path,
        log: Path | None,
        *options: str | float,
        tls: Certificate | None = None,
        core: int | None = None,
    ) -> None:
        """`options` as `refserver --help` says; `core` pins it there, with real-time priority where that is allowed.

        Without `log` there is none: it takes memory and time when requests are a hundred thousand a second.
        """
        self._log = log
        command = [binary, "--port", "0", *(("--log", log) if log else ()), *map(str, options)]
        if tls is not None:
            command += ["--tls-cert", tls.cert, "--tls-key", tls.key]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self.realtime = False
        if core is not None:
            os.sched_setaffinity(self.pid, {core})
            try:
                os.sched_setscheduler(self.pid, os.SCHED_FIFO, os.sched_param(_REALTIME_PRIORITY))
                self.realtime = True
            except PermissionError:
                pass
        assert self._process.stdout is not None
        announced = self._process.stdout.readline()
        if not announced:
            raise RuntimeError(f"the reference server did not start: exit status {self._process.wait()}")
        self.port = int(announced.rsplit(":", 1)[1])
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.stats: dict[str, Any] = {}

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait_for_requests(self, count: int) -> None:
        """Until it has got so many (HTTP only). Raises OSError when it is gone, or does not get them in a minute."""
        requests, deadline = 0, time.monotonic() + _LOAD_S
        while requests < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{requests} requests within {_LOAD_S:g} s")
            time.sleep(0.1)
            with urlopen(f"{self.url}/stats", timeout=_START_S) as answer:
                requests = json.load(answer)["requests"]

    def stop(self) -> pd.DataFrame:
        """End it; what it logged, a row a request in the order of arrival. `stats` then holds its counters."""
        if self._process.poll() is None:
            self._process.terminate()
            output, _ = self._process.communicate(timeout=_STOP_S)
            self.stats = json.loads(output)
        if self._log is None:
            return pd.DataFrame()
        return pd.read_csv(self._log, dtype={"id": str}, keep_default_na=False)
