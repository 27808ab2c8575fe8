"""Connections to real OpenSSH servers, and every way in which they can fail."""

from __future__ import annotations

import concurrent.futures
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Site, until
from namespaces import Lan, available
from relay import Relay
from ssh_client import connected, nothing_left, options, refusal, said
from sshd import Sshd, keygen, public, ssh_hosts

from remote_agents.ssh import SshError

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
def config(server: Sshd, tmp_path: Path) -> Path:
    return server.client_config(tmp_path / "config")


def test_a_host_of_the_configuration_runs_a_command_and_takes_files(server: Sshd, config: Path, tmp_path: Path) -> None:
    connection = connected(config)
    assert connection.peer == server.peer
    assert connection.alive
    assert connection.pinned == []
    with connection.sftp() as files:
        files.putfo((tmp_path / "config").open("rb"), str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "config").read_bytes()
    channel = connection.execute("cat; echo error >&2; exit 3")
    data = os.urandom(1 << 20)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        sending = pool.submit(channel.sendall, data)
        came = b""
        while len(came) < len(data):
            came += channel.recv(65536)
        sending.result()
    channel.shutdown_write()
    assert (came, channel.recv_exit_status(), channel.recv_stderr(100)) == (data, 3, b"error\n")
    connection.close()
    assert not connection.alive
    connection.close()
    with pytest.raises(SshError, match="cannot run a command: the connection is gone"):
        connection.execute("true")


def test_user_host_and_port_go_before_the_configuration(server: Sshd, config: Path) -> None:
    text = config.read_text().replace("Host gpu1", "Host *").replace(f"Port {server.port}", "Port 1")
    config.write_text(text.replace(f"User {server.user}", "User nobody"))
    assert said(connected(config, f"{server.user}@127.0.0.1:{server.port}")) == "here"


def test_small_packets_are_not_delayed_and_a_silent_peer_is_noticed(config: Path) -> None:
    connection = connected(config)
    stream = connection._transports[0].sock
    assert isinstance(stream, socket.socket)
    assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000
    connection.close()


def test_ipv6(tmp_path: Path) -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").read_text():
        pytest.skip("this machine has no IPv6")
    with Sshd(tmp_path / "sshd", "::1") as server:
        config = server.client_config(tmp_path / "config", "*")
        config.write_text(config.read_text().replace("HostName ::1\n", "\n"))
        connection = connected(config, f"[::1]:{server.port}")
        assert connection.peer == server.peer
        assert said(connection) == "here"


def test_every_address_of_a_name_is_tried(server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = server.client_config(tmp_path / "config", HostName="it.invalid", HostKeyAlias="it")
    (known_hosts,) = tmp_path.glob("*known_hosts")
    known_hosts.write_text(f"it {public(server.host_key)}\n")
    # No resolver of ours can be put before the system's.
    addresses = [("127.0.0.1", 1), ("127.0.0.1", server.port)]
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: list(entries))
    assert said(connected(config)) == "here"
    if available() is None:
        lan = Lan(1)
        try:
            lan.host(0).blackhole()
            entries[0] = (*entries[0][:4], (lan.host(0).address, 22))
            started = time.monotonic()
            assert said(connected(config)) == "here"
            assert time.monotonic() - started < 2  # the silent one was not waited for
        finally:
            lan.close()


def test_through_one_jump_host(tmp_path: Path) -> None:
    with ssh_hosts(tmp_path, 2) as ((jump, _), (target, _)):
        config = jump.client_config(tmp_path / "config", "jump")
        target.client_config(config, "gpu1", ProxyJump="jump")
        connection = connected(config)
        assert connection.peer == f"{target.peer} via jump"
        assert (jump.sessions(), target.sessions()) == (1, 1)
        assert said(connection, "echo $SSH_CONNECTION").split()[2:] == [target.address, str(target.port)]
        until(lambda: (jump.sessions(), target.sessions()) == (0, 0))


def test_through_a_chain_of_which_the_first_has_a_jump_host_itself(tmp_path: Path) -> None:
    with ssh_hosts(tmp_path, 3) as ((first, _), (second, _), (target, _)):
        config = first.client_config(tmp_path / "config", "first")
        second.client_config(config, "second", ProxyJump="first")
        second.client_config(config, "again", ProxyJump="nowhere.invalid")
        target.client_config(config, "gpu1", ProxyJump="second,again")
        connection = connected(config)  # first, second, then the second again: its own jump host is not asked
        assert connection.peer.endswith(" via first, second, again")
        assert said(connection) == "here"


def test_a_jump_that_leads_back_is_refused(config: Path) -> None:
    config.write_text("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\nHost *\n")
    assert str(refusal(config, "a")) == (
        "the ProxyJump of a leads back to it (a -> b -> a): except it in ssh's configuration"
    )


def test_a_jump_host_that_forbids_forwarding_is_named(tmp_path: Path, server: Sshd) -> None:
    with Sshd(tmp_path / "jump", AllowTcpForwarding="no") as jump:
        config = jump.client_config(tmp_path / "config", "jump")
        server.client_config(config, ProxyJump="jump")
        error = refusal(config)
    assert f"the jump host jump ({jump.peer}) does not lead to gpu1" in str(error)
    assert "allow TCP forwarding in its sshd_config" in str(error)
    assert not error.passing


def test_a_jump_host_that_cannot_reach_the_target_is_named(tmp_path: Path, server: Sshd) -> None:
    config = server.client_config(tmp_path / "config", "jump")
    server.client_config(config, ProxyJump="jump", Port=1)
    error = refusal(config)
    assert "does not lead to gpu1" in str(error)
    assert "connect failed" in str(error)
    assert error.passing


@pytest.mark.parametrize("how", ["ssh", "python"])
def test_through_a_proxy_command(server: Sshd, tmp_path: Path, how: str) -> None:
    if how == "ssh":
        command = f"ssh -F {tmp_path}/config -W %h:%p jump"
    else:
        (tmp_path / "proxy.py").write_text(PROXY)
        command = f"{sys.executable} {tmp_path}/proxy.py %h %p %r %n %%"
    config = server.client_config(tmp_path / "config", "jump")
    server.client_config(config, ProxyCommand=command)
    assert said(connected(config)) == "here"
    if how == "python":
        assert (tmp_path / "asked").read_text() == f"127.0.0.1 {server.port} {server.user} gpu1 %"


PROXY = """
import os, pathlib, socket, sys, threading
pathlib.Path(__file__).with_name("asked").write_text(" ".join(sys.argv[1:]))
there = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def up():
    while data := os.read(0, 65536):
        there.sendall(data)
    there.shutdown(socket.SHUT_WR)
threading.Thread(target=up, daemon=True).start()
while data := there.recv(65536):
    os.write(1, data)
"""


def test_a_proxy_command_that_fails_says_why_and_not_with_which_secret(server: Sshd, tmp_path: Path) -> None:
    command = "sh -c 'echo no such tunnel >&2; exit 4' --password hunter2"
    error = refusal(server.client_config(tmp_path / "config", ProxyCommand=command))
    assert "the ProxyCommand ended with 4 and says 'no such tunnel'" in str(error)
    assert "hunter2" not in str(error)
    error = refusal(server.client_config(tmp_path / "other", ProxyCommand="no-such-program %h"))
    assert "not found" in str(error)


def test_a_proxy_command_that_hangs_is_ended_with_what_it_started(server: Sshd, tmp_path: Path) -> None:
    config = server.client_config(tmp_path / "config", ProxyCommand="sh -c 'trap : TERM; sleep 600 & wait; wait'")
    started = time.monotonic()
    error = refusal(config, deadline=started + 0.5)
    assert "its banner does not come in time" in str(error)
    assert "the ProxyCommand still runs" in str(error)
    assert time.monotonic() - started < 3


def test_a_port_where_nothing_listens(server: Sshd, tmp_path: Path) -> None:
    error = refusal(server.client_config(tmp_path / "config", Port=1))
    assert str(error) == (
        f"gpu1 ({server.user}@127.0.0.1:1) cannot be reached (127.0.0.1: connection refused): "
        "start sshd there, or correct the port"
    )
    assert error.passing


def test_a_name_that_is_none(server: Sshd, tmp_path: Path) -> None:
    error = refusal(server.client_config(tmp_path / "config", HostName="no-such-host.invalid"))
    assert f"the name of gpu1 ({server.user}@no-such-host.invalid:{server.port}) cannot be resolved" in str(error)


def test_an_address_that_swallows_packets_costs_no_more_than_the_deadline(tmp_path: Path) -> None:
    with ssh_hosts(tmp_path, 1) as ((server, host),):
        if host is None:
            pytest.skip("there can be no network of our own here")
        config = server.client_config(tmp_path / "config")
        host.blackhole()
        started = time.monotonic()
        error = refusal(config, deadline=started + 0.5)
        assert 0.5 <= time.monotonic() - started < 1.5
        assert f"cannot be reached ({host.address}: no answer in time)" in str(error)
        started = time.monotonic()
        assert refusal(config, connect_timeout_s=0.3).passing
        assert 0.3 <= time.monotonic() - started < 1.5
        host.restore()
        assert said(connected(config)) == "here"


def test_a_silent_server_costs_no_more_than_the_deadline(server: Sshd, tmp_path: Path) -> None:
    with Relay("127.0.0.1", server.port) as relay:
        config = server.client_config(tmp_path / "config", Port=relay.port)
        (known_hosts,) = tmp_path.glob("*known_hosts")
        known_hosts.write_text(f"[127.0.0.1]:{relay.port} {public(server.host_key)}\n")
        relay.stall()
        started = time.monotonic()
        error = refusal(config, deadline=started + 0.4)
        assert 0.4 <= time.monotonic() - started < 1.5
        assert "is reached, and its banner does not come in time" in str(error)
        assert error.passing
        relay.restore()
        relay.delay(down_s=0.25)  # the banner comes, the answer to ours does not
        assert "the key exchange does not come in time" in str(refusal(config, deadline=time.monotonic() + 0.4))
        relay.delay(down_s=0.1)
        assert said(connected(config)) == "here"


def test_a_server_of_another_kind(site: Site, server: Sshd, tmp_path: Path) -> None:
    config = server.client_config(tmp_path / "config", Port=site.url.rpartition(":")[2])
    error = refusal(config)
    assert "is no SSH server: it begins with '" in str(error)
    assert not error.passing


def test_a_server_with_nothing_but_sha_1(tmp_path: Path) -> None:
    with Sshd(tmp_path / "sshd", KexAlgorithms="diffie-hellman-group14-sha1") as server:
        error = refusal(server.client_config(tmp_path / "config"))
    assert "has no algorithms in common with us (incompatible ssh peer" in str(error).lower()
    assert "bring its OpenSSH up to date" in str(error)


def test_a_server_that_is_busy_is_asked_again(tmp_path: Path) -> None:
    with Sshd(tmp_path / "sshd", MaxStartups="2:100:2") as server:
        config = server.client_config(tmp_path / "config")
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: said(connected(config)), range(6)))
        assert answers == ["here"] * 6
        assert "MaxStartups" in server.log.read_text()
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        error = refusal(config, deadline=time.monotonic() + 1)
        assert "is not let in at this time" in str(error)
        assert error.passing
        for connection in idle:
            connection.close()
        until(lambda: server.sessions() == 0)


def test_a_server_that_allows_one_session(tmp_path: Path) -> None:
    with Sshd(tmp_path / "sshd", MaxSessions=1) as server:
        connection = connected(server.client_config(tmp_path / "config"))
        channel = connection.execute("cat")
        with pytest.raises(SshError, match=r"refused to run a command .*: look at MaxSessions"):
            connection.execute("true")
        with pytest.raises(SshError, match="refused to open SFTP"):
            connection.sftp()
        channel.sendall(b"still there")
        assert channel.recv(100) == b"still there"
        connection.close()


def test_a_server_without_sftp(tmp_path: Path) -> None:
    with Sshd(tmp_path / "sshd", Subsystem="other /bin/true") as server:
        connection = connected(server.client_config(tmp_path / "config"))
        with pytest.raises(SshError, match="refused to open SFTP: look at its sshd_config"):
            connection.sftp()
        assert said(connection) == "here"


def test_a_command_that_is_not_answered_ends_the_connection_in_time(server: Sshd, tmp_path: Path) -> None:
    with Relay("127.0.0.1", server.port) as relay:
        config = server.client_config(tmp_path / "config", Port=relay.port, HostKeyAlias="it")
        (known_hosts,) = tmp_path.glob("*known_hosts")
        known_hosts.write_text(f"it {public(server.host_key)}\n")
        connection = connected(config)
        relay.stall()
        started = time.monotonic()
        with pytest.raises(SshError, match="did not run a command in time"):
            connection.execute("true", deadline=started + 0.3)
        assert 0.3 <= time.monotonic() - started < 1.5
        assert not connection.alive
        relay.restore()


def test_a_connection_that_is_reset_is_not_alive(server: Sshd, tmp_path: Path) -> None:
    with Relay("127.0.0.1", server.port) as relay:
        config = server.client_config(tmp_path / "config", Port=relay.port, HostKeyAlias="it")
        (known_hosts,) = tmp_path.glob("*known_hosts")
        known_hosts.write_text(f"it {public(server.host_key)}\n")
        connection = connected(config)
        channel = connection.execute("cat")
        relay.reset()
        until(lambda: not connection.alive, 2)
        assert channel.recv(1) == b""
        with pytest.raises(SshError, match="the connection is gone"):
            connection.execute("true")
        connection.close()


def test_a_server_that_dies_is_noticed(server: Sshd, config: Path) -> None:
    connection = connected(config)
    server.kill()
    until(lambda: not connection.alive, 2)
    connection.close()
    server.start()
    assert said(connected(config)) == "here"


def test_a_jump_host_that_dies_takes_along_what_is_behind_it(server: Sshd, tmp_path: Path) -> None:
    with Sshd(tmp_path / "jump") as jump:
        config = jump.client_config(tmp_path / "config", "jump")
        server.client_config(config, ProxyJump="jump")
        connection = connected(config)
        channel = connection.execute("cat")
        jump.kill()
        assert channel.recv(1) == b""
        until(lambda: not any(transport.is_active() for transport in connection._transports), 2)
        assert not connection.alive
        connection.close()


def test_a_target_that_swallows_packets_is_not_waited_for_by_its_jump_host(tmp_path: Path) -> None:
    with ssh_hosts(tmp_path, 2) as ((jump, _), (target, host)):
        if host is None:
            pytest.skip("there can be no network of our own here")
        config = jump.client_config(tmp_path / "config", "jump")
        target.client_config(config, ProxyJump="jump")
        host.blackhole()
        started = time.monotonic()
        error = refusal(config, deadline=started + 0.6)
        assert time.monotonic() - started < 1.5
    assert f"the jump host jump ({jump.peer}) did not reach gpu1 ({target.peer}) in time" in str(error)
    assert error.passing


def test_secrets_are_in_no_error_log_or_representation(
    server: Sshd, config: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    secret = "correct horse battery staple"
    server.client_key.unlink()
    keygen(server.client_key, passphrase="another passphrase altogether")
    error = refusal(config, passphrases=(secret, "another passphrase altogether"))
    shown = [repr(options(config, passphrases=(secret,))), str(error), repr(error), caplog.text, *capfd.readouterr()]
    cause: BaseException | None = error
    while cause is not None:
        shown.append(repr(cause))
        cause = cause.__cause__ or cause.__context__
    assert "accepts no key of ours" in str(error)
    assert caplog.text  # paramiko has logged
    for text in shown:
        assert "horse" not in text
        assert "altogether" not in text
        assert "PRIVATE KEY" not in text


def test_nothing_is_written_to_standard_error_when_it_fails(
    tmp_path: Path, server: Sshd, capfd: pytest.CaptureFixture[str]
) -> None:
    refusal(server.client_config(tmp_path / "config", IdentityFile=keygen(tmp_path / "other")))
    refusal(server.client_config(tmp_path / "closed", Port=1))
    assert capfd.readouterr() == ("", "")
