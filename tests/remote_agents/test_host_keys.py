"""Host keys of real servers against known_hosts files: who is let in, who is refused, what is pinned."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from ssh_client import connected, nothing_left, refusal, said
from sshd import Sshd, keygen, public
from test_ssh_keys import fingerprint

from remote_agents.host_keys import parse_known_hosts

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


def knowing(server: Sshd, *lines: str, **more: Any) -> Path:
    """An ssh_config whose known_hosts file has these lines, with NAME for the server's name in it."""
    folder = server.folder.parent
    path = folder / f"known-{len(list(folder.iterdir()))}"
    name = f"[{server.address}]:{server.port}"
    path.write_text("".join(line.replace("NAME", name) + "\n" for line in lines))
    return server.client_config(path.with_suffix(".config"), UserKnownHostsFile=path, **more)


def test_an_unknown_host_is_refused_with_what_it_shows_and_how_to_accept_it(server: Sshd) -> None:
    config = knowing(server)
    error = refusal(config)
    assert str(error) == (
        f"the host key of gpu1 ({server.peer}) is not known: it shows ED25519 "
        f"{fingerprint(server.host_key)}; compare that with the host's own, then accept it with "
        f"`ssh -F {config} gpu1 true`, or with --accept-new-host-keys"
    )
    assert not error.passing
    config.write_text(config.read_text().replace("Host gpu1", "Host *"))
    place = f"{server.user}@127.0.0.1:{server.port}"
    assert f"`ssh -F {config} -p {server.port} {server.user}@127.0.0.1 true`" in str(refusal(config, place))


def test_the_command_for_a_host_behind_others_has_the_way_there(server: Sshd, tmp_path: Path) -> None:
    config = server.client_config(tmp_path / "config", "first")
    server.client_config(config, "second", UserKnownHostsFile="/dev/null")
    server.client_config(config, ProxyJump="first,second")
    assert f"accept it with `ssh -F {config} -J first second true`" in str(refusal(config))


def test_strict_host_key_checking_cannot_be_turned_off(server: Sshd) -> None:
    assert "is not known" in str(refusal(knowing(server, StrictHostKeyChecking="no")))


def test_a_changed_host_key_is_refused_with_the_line_that_knows_another(server: Sshd, tmp_path: Path) -> None:
    other = public(keygen(tmp_path / "other"))
    config = knowing(server, "# a comment", f"NAME {other}")
    (known_hosts,) = tmp_path.glob("known-?")
    for accept in (False, True):
        error = refusal(config, accept_new_host_keys=accept)
        assert (
            f"has changed: it shows ED25519 {fingerprint(server.host_key)}, {known_hosts}, line 2 has another"
            in str(error)
        )
        assert not error.passing
    assert not (tmp_path / "pins").exists()


def test_a_host_known_by_another_kind_of_key_that_it_has_no_more_has_changed(server: Sshd, tmp_path: Path) -> None:
    config = knowing(server, f"NAME {public(keygen(tmp_path / 'rsa', kind='rsa'))}")
    assert "has changed" in str(refusal(config, accept_new_host_keys=True))


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_a_server_is_asked_for_the_kind_of_key_that_is_known(tmp_path: Path, kind: str) -> None:
    keys = [keygen(tmp_path / name, kind=name) for name in ("ed25519", "rsa", "ecdsa")]
    with Sshd(tmp_path / "sshd", HostKey=keys) as server:
        assert said(connected(knowing(server, f"NAME {public(tmp_path / kind)}"))) == "here"


def test_hashed_names_patterns_ports_and_several_keys(server: Sshd, tmp_path: Path) -> None:
    key, other = public(server.host_key), public(keygen(tmp_path / "other"))
    hashed = tmp_path / "hashed"
    hashed.write_text(f"[127.0.0.1]:{server.port} {key}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", hashed], check=True, capture_output=True)
    assert hashed.read_text().startswith("|1|")
    for lines in (
        [hashed.read_text().strip()],
        [f"elsewhere,NAME {key} a comment"],
        [f"[127.0.*.?]:{server.port} {key}"],
        [f"127.0.0.1 {key}"],  # without a port: a yes, for any port
        [f"NAME {other}", f"NAME {key}"],
        [f"127.0.0.1 {other}", f"NAME {key}"],
        ["nonsense", "NAME ssh-ed25519", "NAME ssh-ed25519 ????", f"@unknown NAME {other}", f"NAME {key}"],
    ):
        assert said(connected(knowing(server, *lines))) == "here", lines
    for lines in ([f"127.0.0.1 {other}"], [f"!NAME,!127.0.0.1,* {key}"], [f"[127.0.0.1]:1 {key}"]):
        assert "is not known" in str(refusal(knowing(server, *lines))), lines


def test_a_host_key_alias_is_the_name(server: Sshd) -> None:
    assert said(connected(knowing(server, f"node-7 {public(server.host_key)}", HostKeyAlias="Node-7"))) == "here"


def test_a_revoked_key_is_refused(server: Sshd, tmp_path: Path) -> None:
    key = public(server.host_key)
    config = knowing(server, f"NAME {key}", f"@revoked * {key}")
    assert "is revoked by " in str(refusal(config))
    assert ", line 2: do not use this server" in str(refusal(config, accept_new_host_keys=True))
    for number, form in enumerate(("text", "binary")):
        revoked = tmp_path / f"revoked-{form}"
        listed = f"{server.host_key}.pub"
        if form == "text":
            revoked.write_text(key + "\n")
        else:
            subprocess.run(["ssh-keygen", "-q", "-k", "-f", revoked, listed], check=True)
        config = server.client_config(tmp_path / f"revoking-{number}", RevokedHostKeys=revoked)
        assert f"is revoked by {revoked}" in str(refusal(config))
        other = public(keygen(tmp_path / f"other-{number}"))
        if form == "text":
            revoked.write_text(other + "\n")
        else:
            subprocess.run(["ssh-keygen", "-q", "-k", "-f", revoked, tmp_path / f"other-{number}.pub"], check=True)
        assert said(connected(config)) == "here"
        revoked.unlink()
        assert "the RevokedHostKeys of gpu1" in str(refusal(config))


def test_a_new_host_is_pinned_then_known_then_refused_when_it_changes(server: Sshd, tmp_path: Path) -> None:
    config, pins = knowing(server), tmp_path / "state" / "pins"
    more = {"pins": pins, "accept_new_host_keys": True}
    connection = connected(config, **more)
    shown = f"ED25519 {fingerprint(server.host_key)}"
    assert connection.pinned == [f"the host key of gpu1 ({server.peer}) is new: {shown} is pinned in {pins}"]
    assert said(connection) == "here"
    assert pins.read_text() == f"[127.0.0.1]:{server.port} {public(server.host_key)}\n"
    assert stat.S_IMODE(pins.stat().st_mode) == 0o600
    assert stat.S_IMODE(pins.parent.stat().st_mode) == 0o700

    again = connected(config, **more)
    assert again.pinned == []
    again.close()
    assert said(connected(config, pins=pins)) == "here"  # without accepting new ones, too

    server.kill()
    server.host_key.unlink()
    keygen(server.host_key)
    server.start()
    assert f"{pins}, line 1 has another" in str(refusal(config, **more))


def test_nothing_is_pinned_of_a_host_that_does_not_let_us_in(server: Sshd, tmp_path: Path) -> None:
    server.authorized_keys.write_text("")
    refusal(knowing(server), accept_new_host_keys=True)
    assert not (tmp_path / "pins").exists()


PIN = """
import pathlib, sys
from remote_agents.hosts import parse_agent
from remote_agents.ssh import SshOptions, connect
config = pathlib.Path(sys.argv[1])
options = SshOptions(config, accept_new_host_keys=True, pins=config.with_name("pins"))
connect(parse_agent("gpu1"), options, None).close()
"""


def test_processes_that_pin_at_once_write_one_line(server: Sshd, tmp_path: Path) -> None:
    config = knowing(server)
    pins = config.with_name("pins")
    pins.write_text(f"other {public(server.host_key)}")  # of somebody who left out the end of the line
    processes = [subprocess.Popen([sys.executable, "-c", PIN, str(config)]) for _ in range(4)]
    assert [process.wait(30) for process in processes] == [0] * 4
    key = public(server.host_key)
    assert pins.read_text() == f"other {key}\n[127.0.0.1]:{server.port} {key}\n"
    assert not list(pins.parent.glob("tmp*"))


def test_a_file_that_cannot_be_written_is_said(server: Sshd, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    pins = tmp_path / "file" / "pins"
    error = refusal(knowing(server), accept_new_host_keys=True, pins=pins)
    assert f"cannot be pinned in {pins} (" in str(error)


def certify(server: Sshd, authority: Path, names: str, *more: str) -> None:
    sign = ["ssh-keygen", "-q", "-s", authority, "-I", "host", "-h", "-n", names, *more, f"{server.host_key}.pub"]
    subprocess.run(sign, check=True)
    server.kill()
    (server.folder / "sshd_config").open("a").write(f"HostCertificate {server.host_key}-cert.pub\n")
    server.start()


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_a_certificate_of_a_known_authority_is_accepted(server: Sshd, tmp_path: Path, kind: str) -> None:
    authority = keygen(tmp_path / "authority", kind=kind)
    certify(server, authority, "127.0.0.1,gpu1")
    assert said(connected(knowing(server, f"@cert-authority * {public(authority)}"))) == "here"
    old = public(keygen(tmp_path / "old"))
    assert said(connected(knowing(server, f"@cert-authority 127.* {public(authority)}", f"NAME {old}"))) == "here"
    assert "is not known: it shows" in str(refusal(knowing(server, f"@cert-authority other {public(authority)}")))


@pytest.mark.parametrize(
    ("names", "more", "doubt"),
    [
        ("other", (), "its certificate is for other"),
        ("127.0.0.1", ("-V", "-2d:-1d"), "its certificate has expired, or is not valid yet"),
        ("127.0.0.1", ("-O", "critical:no-such@example.com=1"), "its certificate has critical options"),
    ],
)
def test_a_certificate_that_is_not_for_this_is_refused(
    server: Sshd, tmp_path: Path, names: str, more: tuple[str, ...], doubt: str
) -> None:
    authority = keygen(tmp_path / "authority")
    certify(server, authority, names, *more)
    line = f"@cert-authority * {public(authority)}"
    assert f"is not known ({doubt}): it shows ED25519" in str(refusal(knowing(server, line)))
    assert said(connected(knowing(server, line, f"NAME {public(server.host_key)}"))) == "here"


def test_a_certificate_of_another_authority_is_refused(server: Sshd, tmp_path: Path) -> None:
    authority, other = keygen(tmp_path / "authority"), keygen(tmp_path / "other")
    certify(server, authority, "127.0.0.1")
    doubt = "is not known (its certificate is of an authority that no @cert-authority line names)"
    assert doubt in str(refusal(knowing(server, f"@cert-authority * {public(other)}")))
    trusting = f"@cert-authority * {public(authority)}"
    revoking = f"@revoked * {public(authority)}"
    assert "the authority of the host certificate of gpu1" in str(refusal(knowing(server, trusting, revoking)))
    revoking = f"@revoked * {public(server.host_key)}"
    assert "is revoked by" in str(refusal(knowing(server, trusting, revoking)))


def test_lines_are_counted_and_matched_as_ssh_does() -> None:
    text = "\n# no line\n*.example.com,!bad.example.com ssh-ed25519 AAAA\n[*]:22 ssh-rsa AAAA\n"
    first, second = parse_known_hosts(Path("known"), text)
    assert str(first) == "known, line 3"
    assert [first.matches(name) for name in ("a.example.com", "bad.example.com", "example.com")] == [True, False, False]
    assert [second.matches(name) for name in ("[x]:22", "x", "]:22")] == [True, False, False]
