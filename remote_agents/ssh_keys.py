"""The keys with which somebody may log in: those of the ssh agent, and identity files with their certificates.

    1  keys of the agent that the configuration names, in its order
    2  identity files that the agent does not hold; encrypted ones where a passphrase opens them
    3  the agent's other keys, unless IdentitiesOnly

A certificate goes before the key it is for. A key that cannot sign is refused by the server as any other is.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import io
import re
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    SSHCertificate,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_identity,
)

from remote_agents.host_keys import CERTIFICATE
from remote_agents.ssh_agent import KeyAgent
from remote_agents.ssh_config import Hop

_OPENSSH = re.compile(b"-----BEGIN OPENSSH PRIVATE KEY-----(.*?)-----END", re.DOTALL)
_MAGIC = b"openssh-key-v1\0"
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, paramiko.SSHException)
_opening = threading.Lock()  # hosts are connected to at once, and each derivation from a passphrase costs 0.1 s


class Offer(paramiko.PKey):
    """A public key or certificate that a server is asked to accept, and who signs for it."""

    public_blob = None

    def __init__(self, source: str, blob: bytes, sign: Callable[[bytes, str], bytes]) -> None:
        super().__init__()
        self._blob, self._sign = blob, sign
        what = " with a certificate" if self.get_name().endswith(CERTIFICATE) else ""
        digest = base64.b64encode(hashlib.sha256(plain_blob(blob)).digest()).decode().rstrip("=")
        self._label = f"{source}{what} (SHA256:{digest})"
        self._problem = ""

    def __str__(self) -> str:
        return self._label + self._problem

    def get_name(self) -> str:
        return _type(self._blob)

    def asbytes(self) -> bytes:
        return self._blob

    def sign_ssh_data(self, data: bytes, algorithm: str | None = None) -> paramiko.Message:
        """Called by paramiko's thread, which an exception would end, and the connection with it."""
        try:
            return paramiko.Message(self._sign(data, algorithm or self.get_name()))
        except OSError as error:
            self._problem = f", not signed: {error.strerror or error}"
            return paramiko.Message()


@dataclass(frozen=True)
class Identity:
    """An identity file; `private` is empty where there is only its public half."""

    path: Path
    private: bytes = field(repr=False)
    public: bytes | None
    encrypted: bool


def offers(hop: Hop, agent: KeyAgent, passphrases: tuple[str, ...], skipped: list[str]) -> Iterator[Offer]:
    """What to try, in order. Keys that are there and cannot be tried are added to `skipped`."""
    identities = read_identities(hop)
    certificates = [blob for blob in _read_certificates(hop) if blob not in agent.keys]
    held = {blob: plain_blob(blob) for blob in agent.keys}

    def of_agent(publics: Collection[bytes | None]) -> Iterator[Offer]:
        for blob, public in sorted(held.items(), key=lambda item: item[0] == item[1]):  # certificates first
            if public in publics:
                source = f"the agent's key {agent.keys[blob]!r}"
                yield from with_certificates(source, blob, functools.partial(agent.sign, blob))

    def with_certificates(source: str, public: bytes, sign: Callable[[bytes, str], bytes]) -> Iterator[Offer]:
        for certificate in certificates:
            if plain_blob(certificate) == public:
                yield Offer(source, certificate, sign)
        yield Offer(source, public, sign)

    named = dict.fromkeys(identity.public for identity in identities)
    for public in named:
        yield from of_agent((public,))
    for identity in identities:
        if identity.private and identity.public not in held.values():
            key = _opened(identity, passphrases)
            if isinstance(key, str):
                skipped.append(f"{identity.path}, {key}")
            else:
                yield from with_certificates(str(identity.path), key.asbytes(), functools.partial(_sign, key))
    if not hop.identities_only:
        yield from of_agent(held.values() - named.keys())


def _sign(key: paramiko.PKey, data: bytes, algorithm: str) -> bytes:
    return key.sign_ssh_data(data, algorithm).asbytes()


def read_identities(hop: Hop) -> list[Identity]:
    """Those of the hop's identity files that exist."""
    found = []
    for path in dict.fromkeys(hop.identity_files):
        private, public = _read(path), _read(Path(f"{path}.pub"))
        if b"PRIVATE KEY" not in private:  # IdentityFile may name the public half of a key that the agent holds
            private, public = b"", private or public
        if private or public:
            kind, inner = _header(private)
            blob = inner or _first_blob(public)
            found.append(Identity(path, private, blob, kind != "none" or b"ENCRYPTED" in private[:200]))
    return found


def locked_files(hop: Hop, agent: KeyAgent) -> list[Path]:
    """Encrypted identity files whose key the agent does not hold."""
    held = {plain_blob(blob) for blob in agent.keys}
    return [identity.path for identity in read_identities(hop) if identity.encrypted and identity.public not in held]


def check_passphrase(path: Path, text: str) -> bool:
    """Whether it opens the identity file."""
    return not isinstance(_load(_read(path), text), str)


def _opened(identity: Identity, passphrases: tuple[str, ...]) -> paramiko.PKey | str:
    """The key, or why there is none. Opened once for all hosts."""
    with _opening:
        return _open(identity, passphrases if identity.encrypted else ("",))


@functools.lru_cache(maxsize=64)
def _open(identity: Identity, passphrases: tuple[str, ...]) -> paramiko.PKey | str:
    if not passphrases:
        return "which is encrypted: add it to the ssh agent, or give its passphrase"
    for text in passphrases:
        key = _load(identity.private, text)
        if not isinstance(key, str):
            return key
    return "which none of the passphrases opens" if identity.encrypted else key


def _load(data: bytes, passphrase: str) -> paramiko.PKey | str:
    load = load_ssh_private_key if _OPENSSH.search(data) else load_pem_private_key
    try:
        key = load(data, passphrase.encode() or None)
        if isinstance(key, RSAPrivateKey):
            return paramiko.RSAKey(key=key)
        if isinstance(key, Ed25519PrivateKey | EllipticCurvePrivateKey):
            text = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
            of = paramiko.Ed25519Key if isinstance(key, Ed25519PrivateKey) else paramiko.ECDSAKey
            return of.from_private_key(io.StringIO(text))
    except UnsupportedAlgorithm:
        return "which is used through the ssh agent only: add it there"  # a token's
    except _UNREADABLE:
        return "which cannot be read: it is damaged, or of a kind that is not supported"
    return "which is of a kind that is not supported"


def _header(private: bytes) -> tuple[str, bytes | None]:
    """Cipher and public half, which OpenSSH's format has in clear; "none" and None of others."""
    body = _OPENSSH.search(private)
    data = _decoded(body[1]) if body else b""
    if not data.startswith(_MAGIC):
        return "none", None
    message = paramiko.Message(data[len(_MAGIC) :])
    cipher = message.get_binary().decode(errors="replace")
    message.get_binary()  # key derivation: name, options
    message.get_binary()
    return cipher, message.get_binary() if message.get_int() else None


def _read_certificates(hop: Hop) -> list[bytes]:
    paths = (*hop.certificate_files, *(Path(f"{path}-cert.pub") for path in hop.identity_files))
    blobs = [_first_blob(_read(path)) for path in dict.fromkeys(paths)]
    return [blob for blob in dict.fromkeys(blobs) if blob is not None]


def plain_blob(blob: bytes) -> bytes:
    """The public key in a certificate; any other, and a certificate that cannot be read, as it is."""
    kind = _type(blob)
    if not kind.endswith(CERTIFICATE):
        return blob
    try:
        certificate = load_ssh_public_identity(f"{kind} {base64.b64encode(blob).decode()}".encode())
    except _UNREADABLE:
        return blob
    assert isinstance(certificate, SSHCertificate)
    text = certificate.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return base64.b64decode(text.split()[1])


def _first_blob(line: bytes) -> bytes | None:
    """Of a .pub file."""
    words = line.split()
    return _decoded(words[1]) or None if len(words) > 1 else None


def _type(blob: bytes) -> str:
    return paramiko.Message(blob).get_binary().decode(errors="replace")


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(text)
    except binascii.Error:
        return b""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
