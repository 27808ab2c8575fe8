"""ssh_config as OpenSSH's own client reads it, and as paramiko does where there is none."""

from __future__ import annotations

import getpass
import os
import pwd
import socket
import time
from pathlib import Path

import pytest

from remote_agents.hosts import parse_agent
from remote_agents.ssh_config import Hop, route
from remote_agents.ssh_options import SshError, SshOptions, default_pins

HOME = Path(pwd.getpwuid(os.getuid()).pw_dir)
ME = getpass.getuser()


def hops(folder: Path, text: str, name: str = "gpu1", deadline: float | None = None) -> list[Hop]:
    config = folder / "config"
    config.write_text(text)
    return route(parse_agent(name), SshOptions(config_file=config), deadline)


@pytest.fixture(params=["OpenSSH", "paramiko"])
def reader(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who reads the configuration: without a program named ssh it is paramiko."""
    if request.param == "paramiko":
        monkeypatch.setenv("PATH", str(tmp_path))
    return str(request.param)


def test_what_is_honoured(tmp_path: Path, reader: str) -> None:
    (hop,) = hops(
        tmp_path,
        """
Host gpu1
  HostName gpu1.example.com
  User joe
  Port 2222
  IdentityFile ~/.ssh/%h
  IdentityFile /keys/%r-%p-%n-%%
  CertificateFile ~/certificate
  IdentitiesOnly yes
  IdentityAgent /run/agent
  ProxyCommand nc %h %p %r %n %%
  HostKeyAlias Node
  UserKnownHostsFile /known/a /known/b
  GlobalKnownHostsFile /known/c
  ConnectTimeout 7
  AddressFamily inet6
  BindAddress 198.18.0.1
""",
    )
    assert (hop.name, hop.host, hop.port, hop.user) == ("gpu1", "gpu1.example.com", 2222, "joe")
    assert hop.identity_files[0] == HOME / ".ssh/gpu1.example.com"
    if reader == "OpenSSH":
        assert hop.identity_files[1] == Path("/keys/joe-2222-gpu1-%")
        assert hop.proxy_command == "nc gpu1.example.com 2222 joe gpu1 %"
    assert hop.certificate_files == (HOME / "certificate",)
    assert (hop.identities_only, hop.agent_socket) == (True, "/run/agent")
    assert hop.key_names == ("node",)
    assert hop.known_hosts == (Path("/known/a"), Path("/known/b"), Path("/known/c"))
    assert (hop.step_s, hop.family, hop.bind_address) == (7, socket.AF_INET6, "198.18.0.1")
    assert hop.trust_command == f"ssh -F {tmp_path}/config gpu1 true"
    assert str(hop) == "gpu1 (joe@gpu1.example.com:2222)"


def test_what_holds_where_nothing_is_said(tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/mine")
    (hop,) = hops(tmp_path, "")
    assert (hop.host, hop.port, hop.user, hop.key_names) == ("gpu1", 22, ME, ("gpu1",))
    assert HOME / ".ssh/id_ed25519" in hop.identity_files
    assert HOME / ".ssh/known_hosts" in hop.known_hosts
    assert Path("/etc/ssh/ssh_known_hosts") in hop.known_hosts
    assert (hop.identities_only, hop.agent_socket, hop.proxy_command) == (False, "/run/mine", None)
    assert (hop.step_s, hop.family, hop.bind_address) == (10, socket.AF_UNSPEC, None)
    assert str(hop) == f"{ME}@gpu1:22"


def test_what_is_given_goes_before_what_is_configured(tmp_path: Path, reader: str) -> None:
    text = "Host *\n  User joe\n  Port 2222\n  IdentityAgent none\n  ProxyCommand none\n  ProxyJump none\n"
    (hop,) = hops(tmp_path, text, "ann@[2001:db8::1]:22")
    assert (hop.user, hop.host, hop.port, hop.key_names) == ("ann", "2001:db8::1", 22, ("2001:db8::1",))
    assert (hop.agent_socket, hop.proxy_command) == (None, None)
    assert hop.trust_command == f"ssh -F {tmp_path}/config -p 22 ann@2001:db8::1 true"
    (hop,) = hops(tmp_path, text, "2001:db8::1")
    assert (hop.peer, hop.key_names) == ("joe@[2001:db8::1]:2222", ("[2001:db8::1]:2222", "2001:db8::1"))


def test_a_chain_of_jumps(tmp_path: Path, reader: str) -> None:
    text = """
Host gpu1
  ProxyJump first,ann@second:2222,[2001:db8::1]:33
Host first
  ProxyJump zeroth
  ProxyCommand never
Host zeroth
  ProxyCommand nc %h %p
Host second
  ProxyJump never
"""
    found = hops(tmp_path, text)
    assert [hop.name for hop in found] == ["zeroth", "first", "ann@second:2222", "[2001:db8::1]:33", "gpu1"]
    assert [hop.proxy_command for hop in found] == ["nc zeroth 22", None, None, None, None]
    assert (found[2].user, found[2].port, found[3].host) == ("ann", 2222, "2001:db8::1")
    ssh = f"ssh -F {tmp_path}/config"
    assert [hop.trust_command for hop in found[2:]] == [
        f"{ssh} -p 2222 -J first ann@second true",
        f"{ssh} -p 33 -J first,ann@second:2222 2001:db8::1 true",
        f"{ssh} gpu1 true",
    ]


def test_a_jump_as_a_url(tmp_path: Path, reader: str) -> None:
    jump, _ = hops(tmp_path, "Host gpu1\n  ProxyJump ssh://ann@hub:2222\n")
    assert jump.peer == "ann@hub:2222"


def test_a_loop_of_jumps_is_refused(tmp_path: Path, reader: str) -> None:
    said = r"leads back to it \(gpu1 -> a -> b -> a\): except it in ssh's configuration"
    with pytest.raises(SshError, match=said):
        hops(tmp_path, "Host gpu1\n  ProxyJump a\nHost a\n  ProxyJump b\nHost b\n  ProxyJump a\n")
    with pytest.raises(SshError, match=r"jumphost loop via hub|gpu1 -> hub -> hub"):
        hops(tmp_path, "Host *\n  ProxyJump hub\n")
    found = hops(tmp_path, "Host gpu1\n  ProxyJump a,hub\nHost * !a\n  ProxyJump hub\n")
    assert [hop.name for hop in found] == ["a", "hub", "gpu1"]  # what hub's own configuration says is not asked


def test_a_jump_host_that_is_none_is_refused(tmp_path: Path, reader: str) -> None:
    with pytest.raises(SshError, match="gpu1"):
        hops(tmp_path, "Host gpu1\n  ProxyJump a;b\n")


def test_includes_commands_and_tokens_are_openssh_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS", "/keys")
    (tmp_path / "more").write_text("Host gpu1\n  HostName %h.example.com\n")
    (hop,) = hops(
        tmp_path,
        f"""Include {tmp_path}/more
Match host gpu1.example.com exec "test -d {tmp_path}"
  IdentityFile "${{KEYS}}/of %u"
  UserKnownHostsFile "/known hosts/a b" /known/c
  GlobalKnownHostsFile none
  IdentityAgent ~/%i
Match exec "false"
  User nobody
""",
    )
    assert (hop.host, hop.user) == ("gpu1.example.com", ME)
    assert hop.identity_files == (Path(f"/keys/of {ME}"),)
    assert hop.known_hosts == (Path("/known hosts/a b"), Path("/known/c"))
    assert hop.agent_socket == f"{HOME}/{os.getuid()}"


def test_a_bad_configuration_is_said_as_ssh_says_it(tmp_path: Path) -> None:
    with pytest.raises(SshError, match=r"of gpu1 cannot be used \(.*config: line 2: .*\): try `ssh -G gpu1`"):
        hops(tmp_path, "Host *\n  Prot 22\n")
    with pytest.raises(SshError, match=r"cannot be used \(Can't open user config file /nowhere: "):
        route(parse_agent("gpu1"), SshOptions(config_file=Path("/nowhere")), None)


def test_a_bad_configuration_is_said_without_openssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SshError, match=r"of gpu1 cannot be used \(.*nowhere'\): correct it"):
        route(parse_agent("gpu1"), SshOptions(config_file=Path("/nowhere")), None)
    with pytest.raises(SshError, match="connecttimeout of gpu1 in ssh's configuration is no number"):
        hops(tmp_path, "Host *\n  ConnectTimeout soon\n")


def test_a_command_in_the_configuration_that_hangs_is_ended_in_time(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(SshError, match="was not read in time: look at its Match exec"):
        hops(tmp_path, 'Match exec "sleep 60"\n  User joe\n', deadline=started + 0.3)
    assert time.monotonic() - started < 2


def test_our_own_file_of_host_keys_is_where_state_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_pins() == Path("/state/loadgen/known_hosts")
    monkeypatch.setenv("XDG_STATE_HOME", "relative is not allowed")
    monkeypatch.setenv("HOME", "/home/joe")
    assert default_pins() == SshOptions().pins == Path("/home/joe/.local/state/loadgen/known_hosts")
    assert "secret" not in repr(SshOptions(passphrases=("secret",)))
