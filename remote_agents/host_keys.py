"""Host keys: is the server the one that known_hosts files know? Never "yes" without a line that says so.

    @revoked line           refused
    @cert-authority line    its certificates are accepted for the names and the time they are made for
    the same key            accepted
    another key             refused, with the file and line that know it otherwise
    no line                 refused, or pinned in a file of our own where the caller asked for that

Reads OpenSSH's format (hashed names, patterns, markers); writes to our own file alone, under a lock.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import fnmatch
import hashlib
import hmac
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import paramiko
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    SSHCertificate,
    SSHCertificateType,
    load_ssh_public_identity,
)

from remote_agents.ssh_config import Hop
from remote_agents.ssh_options import SshError, SshOptions

CERTIFICATE = "-cert-v01@openssh.com"
_REVOKED, _AUTHORITY = "@revoked", "@cert-authority"
# Of a key's type, the names by which a server may be asked to prove it; those that paramiko can verify.
_ALGORITHMS = {
    "ssh-ed25519": ("ssh-ed25519",),
    "ecdsa-sha2-nistp256": ("ecdsa-sha2-nistp256",),
    "ecdsa-sha2-nistp384": ("ecdsa-sha2-nistp384",),
    "ecdsa-sha2-nistp521": ("ecdsa-sha2-nistp521",),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
}
_REVOCATION_S = 10.0
_BINARY_LIST = b"SSHKRL\n\0"


@dataclass(frozen=True)
class Line:
    """One line of a known_hosts file."""

    path: Path
    number: int
    marker: str
    names: tuple[str, ...]
    key_type: str
    blob: bytes

    def matches(self, name: str) -> bool:
        found = False
        for pattern in self.names:
            if pattern.startswith("|1|"):
                found |= _is_hash_of(pattern, name)
            elif pattern.startswith("!") and _is_like(name, pattern[1:]):
                return False
            else:
                found |= _is_like(name, pattern)
        return found

    def __str__(self) -> str:
        return f"{self.path}, line {self.number}"


def _is_hash_of(pattern: str, name: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part) for part in pattern[3:].split("|"))
    except ValueError:
        return False
    return hmac.compare_digest(digest, hmac.digest(salt, name.encode(), hashlib.sha1))


def _is_like(name: str, pattern: str) -> bool:
    """ssh's patterns know * and ?; brackets are those of [host]:port."""
    return fnmatch.fnmatchcase(name, pattern.lower().replace("[", "[[]"))


def parse_known_hosts(path: Path, text: str) -> Iterator[Line]:
    """Lines that are none are left out, as ssh does it."""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        marker = words.pop(0) if words[0].startswith("@") else ""
        if len(words) < 3 or marker not in ("", _REVOKED, _AUTHORITY):
            continue
        try:
            blob = base64.b64decode(words[2], validate=True)
        except binascii.Error:
            continue
        yield Line(path, number, marker, tuple(words[0].split(",")), words[1], blob)


class HostKeys:
    """What the known_hosts files of a hop and our own say of it."""

    def __init__(self, hop: Hop, options: SshOptions) -> None:
        self._hop, self._options = hop, options
        lines = [line for path in (*hop.known_hosts, options.pins) for line in _read(path)]
        self._revoked = [line for line in lines if line.marker == _REVOKED and self._is_named(line, hop.key_names)]
        self._authorities = [
            line for line in lines if line.marker == _AUTHORITY and self._is_named(line, hop.key_names)
        ]
        plain = [line for line in lines if not line.marker]
        self._known = [line for line in plain if line.matches(hop.key_names[0])]
        # Of a server on another port ssh takes a line without one for a yes, never for a no.
        self._known_elsewhere = [line for line in plain if self._is_named(line, hop.key_names[1:])]

    @staticmethod
    def _is_named(line: Line, names: Iterable[str]) -> bool:
        return any(line.matches(name) for name in names)

    def algorithms(self) -> tuple[str, ...]:
        """To ask the server for, best first: what can be verified goes before what is unknown."""
        known = {line.key_type for line in self._known or self._known_elsewhere}
        in_order = sorted(_ALGORITHMS, key=lambda key_type: key_type not in known)
        plain = [name for key_type in in_order for name in _ALGORITHMS[key_type]]
        return (*(name + CERTIFICATE for name in plain), *plain) if self._authorities else tuple(plain)

    def is_new(self, key: paramiko.PKey) -> bool:
        """Whether an acceptable key is to be pinned: nothing is known of the host. Raises SshError for others."""
        blob = key.asbytes()
        for line in self._revoked:
            if line.blob == blob:
                raise SshError(
                    f"the host key of {self._hop}, {_text(key)}, is revoked by {line}: do not use this server before "
                    "its administrator has explained it"
                )
        self._check_revocations(key)
        doubt = ""
        if key.public_blob is not None:
            doubt = self._certificate_problem(key.public_blob)
            if not doubt:
                return False
        if any(line.blob == blob for line in (*self._known, *self._known_elsewhere)):
            return False
        for line in self._known:
            if line.key_type in _ALGORITHMS:
                raise SshError(
                    f"the host key of {self._hop} has changed: it shows {_text(key)}, {line} has another; somebody may "
                    "listen in, or the host was set up anew: ask its administrator, then remove that line"
                )
        if self._options.accept_new_host_keys:
            return True
        raise SshError(
            f"the host key of {self._hop} is not known{doubt}: it shows {_text(key)}; compare that with the host's "
            f"own, then accept it with `{self._hop.trust_command}`, or with --accept-new-host-keys"
        )

    def _certificate_problem(self, blob: paramiko.pkey.PublicBlob) -> str:
        """Why a host certificate is not believed, for the middle of a sentence; empty when it is."""
        try:
            certificate = load_ssh_public_identity(f"{blob.key_type} {_base64(blob.key_blob)}".encode())
            assert isinstance(certificate, SSHCertificate)  # the blob's type says so
            signer = certificate.signature_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        except (ValueError, UnsupportedAlgorithm) as error:
            return f" (its certificate cannot be read: {error})"
        authority = base64.b64decode(signer.split()[1])
        for line in self._revoked:
            if line.blob == authority:
                raise SshError(f"the authority of the host certificate of {self._hop} is revoked by {line}")
        if all(line.blob != authority for line in self._authorities):
            return " (its certificate is of an authority that no @cert-authority line names)"
        try:
            certificate.verify_cert_signature()
        except (InvalidSignature, ValueError, UnsupportedAlgorithm):
            return " (the signature of its certificate is wrong)"
        name = self._hop.key_names[-1]
        principals = [principal.decode(errors="replace") for principal in certificate.valid_principals]
        if certificate.type is not SSHCertificateType.HOST:
            return " (its certificate is a user's)"
        if principals and not any(_is_like(name, principal) for principal in principals):
            return f" (its certificate is for {', '.join(principals)})"
        if not certificate.valid_after <= time.time() < certificate.valid_before:
            return " (its certificate has expired, or is not valid yet)"
        return " (its certificate has critical options)" if certificate.critical_options else ""

    def _check_revocations(self, key: paramiko.PKey) -> None:
        """RevokedHostKeys lists keys, or is OpenSSH's binary form, which ssh-keygen knows. Unread, it refuses all."""
        path = self._hop.revoked_keys
        if path is None:
            return
        try:
            listed = path.read_bytes()
            if listed.startswith(_BINARY_LIST):
                with tempfile.NamedTemporaryFile("w", suffix=".pub") as file:
                    file.write(f"{key.get_name()} {key.get_base64()}\n")
                    file.flush()
                    asked = ["ssh-keygen", "-Q", "-f", str(path), file.name]
                    revoked = subprocess.run(asked, capture_output=True, timeout=_REVOCATION_S).returncode != 0
            else:
                revoked = key.get_base64().encode() in listed.split()
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SshError(f"the RevokedHostKeys of {self._hop} cannot be read ({error}): correct them") from error
        if revoked:
            raise SshError(f"the host key of {self._hop}, {_text(key)}, is revoked by {path}: do not use this server")

    def pin(self, key: paramiko.PKey, limit: float) -> str:
        """Write a new host's key into our own file; says so. Raises SshError."""
        path = self._options.pins
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(Path(f"{path}.lock"), limit):
                self._add(path.resolve(), key)
        except OSError as error:
            raise SshError(
                f"the host key of {self._hop} cannot be pinned in {path} ({error.strerror or error}): make it "
                f"writable, or accept the key with `{self._hop.trust_command}`"
            ) from error
        return f"the host key of {self._hop} is new: {_text(key)} is pinned in {path}"

    def _add(self, path: Path, key: paramiko.PKey) -> None:
        name = self._hop.key_names[0]
        known = [line for line in _read(path) if line.matches(name)]  # by another process, since we looked
        if known and all(line.blob != key.asbytes() for line in known):
            raise SshError(f"the host key of {self._hop} was just pinned as another in {known[0]}: remove one of them")
        if not known:
            text = path.read_text(errors="surrogateescape") if path.exists() else ""
            whole = "" if not text or text.endswith("\n") else "\n"
            with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, errors="surrogateescape") as file:
                file.write(f"{text}{whole}{name} {key.get_name()} {key.get_base64()}\n")
            Path(file.name).replace(path)


def _read(path: Path) -> Sequence[Line]:
    """What cannot be read knows no host."""
    try:
        return list(parse_known_hosts(path, path.read_text(errors="replace")))
    except OSError:
        return ()


@contextmanager
def _locked(path: Path, limit: float) -> Iterator[None]:
    """Among those who write; readers see the old file or the new one. Raises TimeoutError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # to be written: NFS wants that for a lock
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > limit:
                    raise TimeoutError("another process holds it") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _text(key: paramiko.PKey) -> str:
    return f"{key.algorithm_name} {key.fingerprint}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
