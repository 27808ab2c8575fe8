"""A /proc and a /sys/fs/cgroup in a folder: what the kernel would say of made-up processes."""

from __future__ import annotations

from pathlib import Path

FIRST_PID = 1 << 23  # above any that the kernel gives: ours is not among them

_TCP = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


class Tree:
    """`proc` and `cgroup` are its roots."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.cgroup = folder / "cgroup"
        (self.proc / "net").mkdir(parents=True)
        self.cgroup.mkdir()
        self.sockets()

    def sockets(self, *listening: tuple[int, int, int], connected: int = 0) -> None:
        """(port, inode, user) of those that listen, and how many connections there are to port 8000."""
        lines = [
            f"{number:4d}: 0100007F:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000 "
            f"{user:5d}        0 {inode} 1 0000000000000000 100 0 0 10 0\n"
            for number, (port, inode, user) in enumerate(listening)
        ]
        lines += [
            f"{number:4d}: 0100007F:1F40 0100007F:{number:04X} 01 00000000:00000000 00:00000000 00000000 "
            f"    0        0 {900_000 + number} 1 0000000000000000 20 4 30 10 -1\n"
            for number in range(connected)
        ]
        (self.proc / "net/tcp").write_text(_TCP + "".join(lines))

    def process(
        self,
        pid: int,
        parent: int = 1,
        name: str = "python3",
        *,
        exe: str | None = "/usr/bin/python3.12",
        start_ticks: int = 1000,
        files: tuple[str, ...] = ("/dev/null",),
        cgroup: str = "0::/server\n",
        state: str = "S",
        ticks: tuple[int, int] = (50, 7),
    ) -> None:
        folder = self.proc / str(pid)
        (folder / "fd").mkdir(parents=True, exist_ok=True)
        fields = [state, parent, pid, pid, 0, -1, 4194304, 900, 0, 3, 0, *ticks, 0, 0, 20, 0, 12, 0, start_ticks, 1, 2]
        self.write(folder / "stat", f"{pid} ({name}) {' '.join(map(str, fields))}\n")
        self.write(folder / "statm", "5000 2500 300 1 0 4000 0\n")
        self.write(folder / "status", "Name:\tx\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t25\n")
        self.write(folder / "schedstat", "5000000 321 99\n")
        self.write(folder / "cgroup", cgroup)
        for link in (*(folder / "fd").iterdir(), folder / "exe"):
            link.unlink(missing_ok=True)
        for number, target in enumerate(files):
            (folder / f"fd/{number}").symlink_to(target)
        if exe is not None:
            (folder / "exe").symlink_to(exe)

    def end(self, pid: int) -> None:
        """As the kernel does: what is open says nothing any more."""
        folder = self.proc / str(pid)
        for name in ("stat", "statm", "status", "schedstat"):
            (folder / name).write_text("")
        folder.rename(folder.with_name(f"gone-{pid}"))

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
