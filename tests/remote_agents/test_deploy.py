"""How an agent gets onto a host: through any login shell, into memory or a folder, or not at all."""

from __future__ import annotations

import io
import shutil
import stat
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_process import DEFAULTS, new_token
from conftest import running, until
from sshd import Sshd

from loadgen.errors import AgentError
from remote_agents.agent.protocol import ACK, BYE, HELLO, MAGIC, SAMPLE, START, STOP, Decoder, Frame, encode
from remote_agents.agent.sample import TABLES
from remote_agents.deploy import archive, bootstrapped, start_remote
from remote_agents.hosts import parse_agent
from remote_agents.smi import SmiRows
from remote_agents.ssh import SshOptions, connect
from remote_agents.wire import PipeWire, Wire

SMI = """#!/bin/sh
echo "$@" > {folder}/asked
while true; do
    echo "0, GPU-smi-0, NVIDIA L4, 550.54.15, 37, 23034, 1200, 21500, 334, 41.50, 72.00, 2040, 6251, 55
1, GPU-smi-1, NVIDIA L4, 550.54.15, [N/A], 23034, 0, 22700, 334, [N/A], 72.00, 210, 405, 31"
    sleep 0.2
done
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path / "sshd") as server:
        yield server


def started_on(host: Sshd, tmp_path: Path, folder: str | None = None, limit_s: float = 15, **start: object) -> Wire:
    options = SshOptions(config_file=host.client_config(tmp_path / f"config-{new_token()[:8]}"))
    deadline = time.monotonic() + limit_s
    connection = connect(parse_agent("gpu1"), options, deadline)
    return start_remote(connection, {**DEFAULTS, "name": "gpu1", **start}, tmp_path / "agent.log", folder, deadline)


class Heard:
    """What an agent said over a wire."""

    def __init__(self, wire: Wire) -> None:
        self.frames: list[Frame] = []
        self._wire = wire
        self._decoder = Decoder()

    def until(self, kind: int, count: int = 1) -> list[Any]:
        """The bodies of the frames of a kind, once there are so many."""
        end = time.monotonic() + 10
        while len(bodies := [frame.body for frame in self.frames if frame.kind == kind]) < count:
            data = self._wire.read(0.1)
            assert data != b"", f"the link ended: {self._wire.close()}"
            assert time.monotonic() < end
            self.frames += self._decoder.feed(data or b"")
        return bodies


@pytest.mark.parametrize("shell", ["sh", "bash", "fish", "tcsh"])
def test_any_login_shell_starts_it(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    assert program, f"{shell} is not installed: run `make system-deps`"
    command, before = bootstrapped()
    wire = PipeWire([program, "-c", command], tmp_path / "log")
    wire.write(before + MAGIC + encode(START, DEFAULTS))
    heard = Heard(wire)
    assert heard.until(HELLO)[0]["python"].startswith("3.")
    heard.until(SAMPLE)
    wire.write(encode(STOP, {}))
    heard.until(BYE)
    assert wire.close() == "exit code 0"


def test_nothing_is_left_on_the_host(host: Sshd, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o500)  # cannot be written, unless one is root
    before = set(Path("/tmp").glob("*agent*"))  # a host's files may appear there
    wire = started_on(host, tmp_path)
    pid = Heard(wire).until(HELLO)[0]["pid"]
    assert "remote_agents" not in Path(f"/proc/{pid}/cmdline").read_text()
    assert not any(str(link.readlink()).startswith("/tmp") for link in Path(f"/proc/{pid}/fd").iterdir())
    wire.close()
    until(lambda: not running(pid), 2)
    until(lambda: host.sessions() == 0)
    assert set(Path("/tmp").glob("*agent*")) == before
    assert not list(home.iterdir())


@pytest.mark.parametrize("lease_s", [0, 20])
def test_a_folder_holds_the_agent_only_while_it_runs(host: Sshd, tmp_path: Path, lease_s: float) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    wire = started_on(host, tmp_path, str(folder), lease_s=lease_s, token=new_token())
    pid = Heard(wire).until(HELLO)[0]["pid"]
    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    wire.write(encode(STOP, {}))
    wire.close()
    until(lambda: not running(pid), 2)
    assert list(folder.iterdir()) == []


def test_a_link_that_finds_the_agent_there_leaves_no_second_archive(host: Sshd, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    start = {"lease_s": 20, "token": new_token()}
    first = started_on(host, tmp_path, str(folder), **start)
    pid = Heard(first).until(HELLO)[0]["pid"]
    first.write(encode(ACK, {"received": 0}))
    second = started_on(host, tmp_path, str(folder), **start)
    assert Heard(second).until(HELLO)[0]["pid"] == pid
    assert len(list(folder.iterdir())) == 1
    second.write(encode(STOP, {}))
    until(lambda: not running(pid), 2)
    assert list(folder.iterdir()) == []
    first.close()
    second.close()


def test_a_start_that_is_cut_short_may_be_tried_again(tmp_path: Path) -> None:
    with (
        Sshd(tmp_path / "sshd", ForceCommand="kill -9 $$") as host,
        pytest.raises(AgentError, match="cannot be started") as error,
    ):
        started_on(host, tmp_path)
    assert error.value.passing


def test_a_host_that_trickles_is_not_waited_for_beyond_the_deadline(tmp_path: Path) -> None:
    with (
        Sshd(tmp_path / "sshd", ForceCommand="while true; do echo .; sleep 0.02; done") as host,
        pytest.raises(AgentError, match="did not answer in time") as error,
    ):
        started_on(host, tmp_path, limit_s=1)
    assert error.value.passing


def test_an_error_output_without_end_holds_nothing_up_and_fills_no_disk(tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.write_text("yes 'a line of noise' >&2 &\neval \"$SSH_ORIGINAL_COMMAND\"\nkill $!\n")
    with Sshd(tmp_path / "sshd", ForceCommand=f"/bin/sh {noise}") as host:
        wire = started_on(host, tmp_path)
        Heard(wire).until(SAMPLE, 4)
        assert wire.close().count("noise") <= 1
    assert (tmp_path / "agent.log").stat().st_size <= 1 << 20


def test_a_folder_that_is_not_there_is_said(host: Sshd, tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=r"cannot be put into /nowhere of .*No such file.*--agent-dir"):
        started_on(host, tmp_path, "/nowhere")
    until(lambda: host.sessions() == 0)


def test_noise_of_a_login_shell_does_no_harm(tmp_path: Path) -> None:
    banner = tmp_path / "banner"
    banner.write_text("echo 'Welcome to gpu1!'; echo 'Disk quota: 91 %' >&2; eval \"$SSH_ORIGINAL_COMMAND\"\n")
    with Sshd(tmp_path / "sshd", ForceCommand=f"/bin/sh {banner}") as host:
        wire = started_on(host, tmp_path)
        assert Heard(wire).until(SAMPLE)
        wire.close()
    assert "Disk quota" in (tmp_path / "agent.log").read_text()


def test_a_forced_command_that_is_none_of_ours_is_said(tmp_path: Path) -> None:
    with (
        Sshd(tmp_path / "sshd", ForceCommand="echo this account is for rsync only") as host,
        pytest.raises(AgentError, match="exit code 0; what came instead begins with 'this account is for rsync only'"),
    ):
        started_on(host, tmp_path)


def without_python(tmp_path: Path) -> str:
    """A forced command for a host whose shells find no Python, but an nvidia-smi."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sleep", "cat"):
        (programs / name).symlink_to(shutil.which(name) or "")
    hide = programs / "sh"
    hide.write_text(
        '#!/bin/sh\nscript=$(echo "$2" | /bin/sed "s#/[a-z/]*python[a-z0-9-]*##g"); exec /bin/sh -c "$script"\n'
    )
    hide.chmod(0o755)
    return f'export PATH={programs}; eval "$SSH_ORIGINAL_COMMAND"'


def test_without_python_nvidia_smi_is_read(tmp_path: Path) -> None:
    command = without_python(tmp_path)
    smi = tmp_path / "programs" / "nvidia-smi"
    smi.write_text(SMI.format(folder=tmp_path))
    smi.chmod(0o755)
    with Sshd(tmp_path / "sshd", ForceCommand=command) as host:
        wire = started_on(host, tmp_path)
        heard = Heard(wire)
        samples = heard.until(SAMPLE, 4)
        hello = heard.until(HELLO)[-1]
        wire.close()
        until(lambda: host.sessions() == 0)
    assert [gpu["uuid"] for gpu in hello["gpus"]] == ["GPU-smi-0", "GPU-smi-1"]
    assert hello["nvml"]["state"] == "nvidia-smi"
    assert "there is no Python 3.8 or later" in hello["warnings"][0]
    assert [(table, name) for table, name, _ in samples[:2]] == [("gpu_fast", "gpu1"), ("gpu_slow", "gpu1")]
    fast = [dict(zip((column.name for column in TABLES["gpu_fast"]), row, strict=True)) for row in samples[0][2]]
    assert [(row["gpu_uuid"], row["util_pct"], row["mem_used_b"], row["power_mw"]) for row in fast] == [
        ("GPU-smi-0", 37, 1200 << 20, 41_500),
        ("GPU-smi-1", None, 0, None),
    ]
    assert fast[0]["t1_mono_ns"] - fast[0]["t0_mono_ns"] == 1_000_000_000  # it was read some time in that second
    assert "--format=csv,noheader,nounits -lms 1000" in (tmp_path / "asked").read_text()
    until(lambda: not any(smi_runs(process, smi) for process in Path("/proc").glob("[0-9]*")))


def test_each_stream_of_nvidia_smi_is_an_agent_of_its_own() -> None:
    line = b"0, GPU-smi-0, NVIDIA L4, 550.54.15, 37, 23034, 1200, 21500, 334, 41.50, 72.00, 2040, 6251, 55\n"
    streams = [list(Decoder().feed(SmiRows("gpu1").feed(line, 1))) for _ in range(2)]
    ids = [frames[0].body["agent"] for frames in streams]
    assert ids[0] != ids[1]  # else the numbers of the second would go on from those of the first
    assert [frames[1].number for frames in streams] == [1, 1]


def smi_runs(process: Path, smi: Path) -> bool:
    try:
        return str(smi) in (process / "cmdline").read_text()
    except OSError:
        return False


def test_neither_python_nor_nvidia_smi_is_said(tmp_path: Path) -> None:
    with (
        Sshd(tmp_path / "sshd", ForceCommand=without_python(tmp_path)) as host,
        pytest.raises(AgentError, match=r"has neither Python 3\.8 or later nor a working nvidia-smi"),
    ):
        started_on(host, tmp_path)


def test_the_archive_holds_the_agent_and_nothing_else_of_ours() -> None:
    with zipfile.ZipFile(io.BytesIO(archive())) as packed:
        names = packed.namelist()
    assert {"__main__.py", "pynvml.py", "remote_agents/__init__.py", "remote_agents/agent/gpu.py"} <= set(names)
    assert not [name for name in names if name.startswith("remote_agents/") and name.count("/") < 2][1:]
    assert len(archive()) < 200_000
