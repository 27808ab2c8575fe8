"""Logging in with keys of every kind: files, passphrases, a real ssh-agent, certificates."""

from __future__ import annotations

import concurrent.futures
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import until
from relay import Relay
from ssh_client import connected, nothing_left, options, refusal, said
from sshd import Sshd, keygen, public, ssh_add, ssh_agent

from remote_agents.hosts import parse_agent
from remote_agents.ssh import check_passphrase, encrypted_keys

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path / "sshd") as server:
        yield server
        until(lambda: server.sessions() == 0)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Path]:
    with ssh_agent(tmp_path) as agent:
        yield agent


def fingerprint(key: Path) -> str:
    return subprocess.run(["ssh-keygen", "-lf", str(key)], check=True, capture_output=True, text=True).stdout.split()[1]


def authorize(server: Sshd, *keys: Path) -> None:
    server.authorized_keys.write_text("".join(public(key) + "\n" for key in keys))


def with_key(server: Sshd, key: Path, **more: object) -> Path:
    return server.client_config(server.folder.parent / "config", IdentityFile=key, **more)


@pytest.mark.parametrize("form", ["RFC4716", "PEM", "PKCS8"])
@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_keys_of_every_kind_and_form_with_and_without_a_passphrase(
    server: Sshd, tmp_path: Path, kind: str, form: str
) -> None:
    plain = keygen(tmp_path / "plain", kind=kind, form=form)
    locked = keygen(tmp_path / "locked", kind=kind, form=form, passphrase="secret")
    authorize(server, plain, locked)
    assert said(connected(with_key(server, plain))) == "here"
    config = server.client_config(tmp_path / "other", IdentityFile=locked)
    assert said(connected(config, passphrases=("wrong", "secret"))) == "here"
    assert check_passphrase(locked, "secret")
    assert not check_passphrase(locked, "wrong")
    assert not check_passphrase(locked, "")


def test_a_key_that_no_passphrase_opens_is_named(server: Sshd, tmp_path: Path) -> None:
    locked = keygen(tmp_path / "locked", passphrase="secret")
    authorize(server, locked)
    config = with_key(server, locked)
    assert str(refusal(config)) == (
        f"gpu1 ({server.peer}) accepts no key of ours (there is none to try; skipped {locked}, "
        "which is encrypted: add it to the ssh agent, or give its passphrase): add one of them to the authorized_keys "
        f"of {server.user}, or name another with IdentityFile in ssh's configuration; passwords are not used here"
    )
    assert f"skipped {locked}, which none of the passphrases opens" in str(refusal(config, passphrases=("wrong",)))


def test_a_key_that_the_server_does_not_know_is_named_with_its_fingerprint(server: Sshd, tmp_path: Path) -> None:
    other = keygen(tmp_path / "other")
    error = refusal(with_key(server, other))
    assert f"accepts no key of ours (tried {other} ({fingerprint(other)}))" in str(error)
    assert not error.passing


def test_a_key_that_is_damaged_is_skipped(server: Sshd, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n")
    assert f"skipped {damaged}, which cannot be read" in str(refusal(with_key(server, damaged)))
    config = server.client_config(tmp_path / "both", IdentityFile=[damaged, server.client_key])
    assert said(connected(config)) == "here"


def test_what_a_front_end_has_to_ask_for(server: Sshd, agent: Path, tmp_path: Path) -> None:
    locked, held, pem = (tmp_path / name for name in ("locked", "held", "pem"))
    for path in (locked, pem):
        keygen(path, kind="rsa" if path == pem else "ed25519", form="PEM", passphrase="secret")
    keygen(held)
    ssh_add(agent, held)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", held], check=True, capture_output=True)
    config = server.client_config(
        tmp_path / "config", IdentityFile=[locked, held, pem, tmp_path / "none", server.client_key], IdentityAgent=agent
    )
    server.client_config(config, "jump", IdentityFile=[locked])
    server.client_config(config, "behind", IdentityFile=[], ProxyJump="jump")
    agents = [parse_agent(name) for name in ("gpu1", "behind", "local")]
    assert encrypted_keys(agents, options(config)) == [locked, pem]
    assert encrypted_keys(agents[1:], options(config)) == [locked]
    assert encrypted_keys(agents, options(config, passphrases=("secret",))) == []


def test_a_key_that_only_the_agent_holds(server: Sshd, agent: Path, tmp_path: Path) -> None:
    ssh_add(agent, server.client_key)
    server.client_key.unlink()
    config = with_key(server, server.client_key, IdentityAgent=agent)
    assert said(connected(config)) == "here"  # by its public half, with IdentitiesOnly
    Path(f"{server.client_key}.pub").unlink()
    assert "there is none to try" in str(refusal(config))
    config = server.client_config(tmp_path / "any", IdentityAgent=agent, IdentitiesOnly="no")
    assert said(connected(config)) == "here"


def test_the_agent_of_the_environment(
    server: Sshd, agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh_add(agent, server.client_key)
    server.client_key.unlink()
    monkeypatch.setenv("SSH_AUTH_SOCK", str(agent))
    monkeypatch.setenv("OTHER_SOCK", str(agent))
    for number, name in enumerate(("SSH_AUTH_SOCK", "$OTHER_SOCK", "${OTHER_SOCK}", f"{tmp_path}/%%/../agent")):
        (tmp_path / "%").mkdir(exist_ok=True)
        config = server.client_config(tmp_path / f"config{number}", IdentityAgent=name)
        assert said(connected(config)) == "here"


def test_many_keys_and_a_server_that_looks_at_two(agent: Path, tmp_path: Path) -> None:
    with Sshd(tmp_path / "sshd", MaxAuthTries=2) as server:
        others = [keygen(tmp_path / f"other-{number}") for number in range(4)]
        ssh_add(agent, *others, server.client_key)
        config = server.client_config(tmp_path / "config", IdentitiesOnly="no", IdentityFile=[], IdentityAgent=agent)
        error = refusal(config)
        assert "had too many keys to look at and hung up (tried the agent's key 'other-0' (SHA256:" in str(error)
        assert "add IdentitiesOnly yes" in str(error)
        assert not error.passing
        for wanted in ("yes", "no"):  # a key that is named goes first
            named = server.client_config(tmp_path / wanted, IdentityAgent=agent, IdentitiesOnly=wanted)
            assert said(connected(named)) == "here"


def test_an_agent_that_does_not_sign_costs_one_try(server: Sshd, agent: Path, tmp_path: Path) -> None:
    asking = keygen(tmp_path / "asking")
    ssh_add(agent, "-c", asking)  # whoever should be asked is not there
    authorize(server, asking, server.client_key)
    config = server.client_config(tmp_path / "config", IdentityFile=[asking, server.client_key], IdentityAgent=agent)
    assert said(connected(config)) == "here"
    server.client_key.unlink()
    assert f"(tried the agent's key 'asking' ({fingerprint(asking)}), not signed: the agent refused)" in str(
        refusal(config)
    )


@pytest.mark.parametrize("what", ["hangs", "is gone", "is none"])
def test_an_agent_that_cannot_be_used_is_said_and_files_are_tried(server: Sshd, tmp_path: Path, what: str) -> None:
    path = tmp_path / "agent"
    with socket.socket(socket.AF_UNIX) as listener, concurrent.futures.ThreadPoolExecutor(1) as pool:
        if what != "is gone":
            listener.bind(str(path))
            listener.listen()
        if what == "is none":
            pool.submit(lambda: listener.accept()[0].sendall(b"HTTP/1.1 400 no"))
        config = with_key(server, server.client_key, IdentityAgent=path)
        server.authorized_keys.write_text("")
        error = refusal(config, deadline=time.monotonic() + 20)
    assert f"(tried {server.client_key} (" in str(error)
    assert f"; skipped the ssh agent at {path}, which does not answer (" in str(error)


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
@pytest.mark.parametrize("where", ["beside the key", "named", "agent", "agent and file"])
def test_a_user_certificate(agent: Path, tmp_path: Path, kind: str, where: str) -> None:
    authority = keygen(tmp_path / "authority")
    with Sshd(tmp_path / "sshd", TrustedUserCAKeys=f"{authority}.pub") as server:
        server.authorized_keys.write_text("")
        key = keygen(tmp_path / "key", kind=kind)
        sign = ["ssh-keygen", "-q", "-s", authority, "-I", "me", "-n", server.user, "-V", "-1m:+5m", f"{key}.pub"]
        subprocess.run(sign, check=True)
        certificate = tmp_path / "key-cert.pub"
        more: dict[str, object] = {}
        if where == "named":
            more["CertificateFile"] = certificate.rename(tmp_path / "certificate")
        if where == "agent":
            ssh_add(agent, key)  # takes the certificate along
            certificate.unlink()
            key.unlink()
        if where == "agent and file":
            moved = certificate.rename(tmp_path / "elsewhere")
            ssh_add(agent, key)
            key.unlink()
            more["CertificateFile"] = moved
        if where.startswith("agent"):
            more["IdentityAgent"] = agent
        config = server.client_config(tmp_path / "config", IdentityFile=key, **more)
        assert said(connected(config)) == "here"
        assert "Accepted certificate ID" in server.log.read_text()


def test_a_certificate_that_is_not_accepted_is_named(server: Sshd, tmp_path: Path) -> None:
    authority, key = keygen(tmp_path / "authority"), keygen(tmp_path / "key")
    subprocess.run(["ssh-keygen", "-q", "-s", authority, "-I", "me", "-n", "me", f"{key}.pub"], check=True)
    mark = fingerprint(key)
    assert f"(tried {key} with a certificate ({mark}), {key} ({mark}))" in str(refusal(with_key(server, key)))


def test_two_keys_where_the_server_asks_for_two(tmp_path: Path) -> None:
    with Sshd(tmp_path / "sshd", AuthenticationMethods="publickey,publickey") as server:
        second = keygen(tmp_path / "second")
        authorize(server, server.client_key, second)
        config = server.client_config(tmp_path / "config", IdentityFile=[server.client_key, second])
        assert said(connected(config)) == "here"


def test_a_server_that_asks_for_more_than_a_key(tmp_path: Path) -> None:
    with Sshd(tmp_path / "sshd", PasswordAuthentication="yes", AuthenticationMethods="publickey,password") as server:
        error = refusal(server.client_config(tmp_path / "config"))
        assert f"accepted {server.client_key} (" in str(error)
        assert "and asks for password besides: let a key alone be enough" in str(error)


def test_a_server_that_takes_passwords_only(tmp_path: Path) -> None:
    with Sshd(tmp_path / "sshd", PasswordAuthentication="yes", PubkeyAuthentication="no") as server:
        error = refusal(server.client_config(tmp_path / "config"))
        assert "takes no keys, only password: allow PubkeyAuthentication there" in str(error)
        assert "passwords are not used here" in str(error)


def test_a_login_is_not_waited_for_beyond_the_deadline(server: Sshd, tmp_path: Path) -> None:
    with Relay("127.0.0.1", server.port) as relay:
        config = server.client_config(tmp_path / "config", Port=relay.port, HostKeyAlias="it")
        (known_hosts,) = tmp_path.glob("*known_hosts")
        known_hosts.write_text(f"it {public(server.host_key)}\n")
        relay.delay(down_s=0.25)  # banner, key exchange, then two answers to the first request
        started = time.monotonic()
        error = refusal(config, deadline=started + 0.9)
        assert 0.9 <= time.monotonic() - started < 2
    assert "did not complete the login (no answer in time): look into its log" in str(error)
    assert error.passing
