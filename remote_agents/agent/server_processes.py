"""Which processes are the model server's.

    use a GPU, as NVML says                    listen on the server's port: /proc/net/tcp -> socket -> /proc/<pid>/fd
         |  above it, while the program is the same      |
         '---------------------- + ----------------------'
                                                         |  below it, whatever the program is

Nothing of the agent's own line of parents counts as above or below. The search through all open files is done when the
sockets that listen have changed, or who held one has ended; what else a search costs is a line of each process.
"""

import os
from typing import Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Set, Tuple

_LISTENING = "0A"
_PIECE_B = 4096
_GPU_FILES = ("/dev/nvidia", "/dev/nvhost", "/dev/nvmap", "/dev/dxg")
# They start servers, and are none.
_STARTERS = frozenset(
    "systemd init tini dumb-init docker-init catatonit s6-svscan s6-supervise runsv supervisord "
    "sh bash dash zsh fish ash ksh csh tcsh busybox su sudo login screen tmux nohup setsid "
    "containerd-shim conmon runc crun dockerd containerd podman kubelet slurmstepd "
    "sshd sshd-session sshd-auth".split()
)
# They take a port for a server that is elsewhere.
_GO_BETWEENS = frozenset(
    "docker-proxy rootlessport rootlesskit slirp4netns pasta pasta.avx2 systemd init sshd sshd-session ssh".split()
)


class Process(NamedTuple):
    name: str
    parent: int
    start_ticks: int


class Search(NamedTuple):
    """`why`: pid -> why it is one of the server's, the most certain first. `problems`: sentences."""

    why: Dict[int, str]
    processes: Dict[int, Process]
    problems: List[str]


class Finder:
    """Knows who listened when it last looked."""

    def __init__(self, port: Optional[int], root: str = "/proc") -> None:
        self._port = port
        self._root = root
        self._sockets: Optional[FrozenSet[str]] = None
        self._holders: Set[int] = set()
        self._certain: FrozenSet[int] = frozenset()

    def find(self, gpu_pids: FrozenSet[int]) -> Search:
        problems = self._look_for_listeners(bool(gpu_pids))
        if not self._holders and not gpu_pids:
            return Search({}, {}, problems)
        processes = read_processes(self._root)
        why = dict.fromkeys(self._listeners(processes, problems), f"listens on port {self._port}")
        for pid in self._gpu_users(processes, gpu_pids, problems):
            why.setdefault(pid, "uses a GPU")
        self._certain = frozenset(why)
        self._add_kin(why, processes)
        return Search(why, processes, problems)

    def forget(self, pid: int) -> bool:
        """It has ended; whether it was more than kin, so that others are to be looked for at once."""
        if pid in self._holders:
            self._sockets = None  # someone else may hold the same by now
        return pid in self._certain

    def _look_for_listeners(self, gpu_in_use: bool) -> List[str]:
        """Brings `_holders` up to date."""
        sockets = dict(listening(self._root, self._port)) if self._port is not None else {}
        if frozenset(sockets) != self._sockets:
            self._sockets = frozenset(sockets)
            self._holders = holders(self._root, self._sockets) if sockets else set()
        if sockets and not self._holders:
            user, ours = min(sockets.values()), os.geteuid()
            return [
                f"the process that listens on port {self._port} is not seen: it is that of user {user}, or in another "
                f"pid namespace; start the agent as that user or as root (it is that of user {ours}), and on the host"
            ]
        if self._port is not None and not sockets and not gpu_in_use:
            return [f"nothing listens on port {self._port} here, and no process uses a watched GPU"]
        return []

    def _listeners(self, processes: Dict[int, Process], problems: List[str]) -> List[int]:
        found = [pid for pid in sorted(self._holders) if pid in processes]
        servers = [pid for pid in found if processes[pid].name not in _GO_BETWEENS]
        if found and not servers:
            problems.append(
                f"port {self._port} is held by {processes[found[0]].name}, which passes it on: only processes that use "
                "a GPU are watched; start the agent where the server runs"
            )
        return servers

    def _gpu_users(self, processes: Dict[int, Process], gpu_pids: FrozenSet[int], problems: List[str]) -> List[int]:
        """A number that NVML gives may be that of another process here."""
        users = [pid for pid in sorted(gpu_pids) if pid in processes and self._may_use_gpu(pid)]
        others = sorted(gpu_pids.difference(users))
        if others:
            problems.append(
                f"NVML names processes that are not seen here as users of a GPU ({', '.join(map(str, others))}): they "
                "are in another pid namespace or another user's; start the agent on the host, as a user who sees them"
            )
        return users

    def _may_use_gpu(self, pid: int) -> bool:
        """Whether a device of a GPU is among its open files, or they cannot be seen."""
        try:
            return any(target.startswith(_GPU_FILES) for target in _open_files(f"{self._root}/{pid}/fd"))
        except PermissionError:
            return True
        except OSError:
            return False

    def _add_kin(self, why: Dict[int, str], processes: Dict[int, Process]) -> None:
        mine = {os.getpid(), *_above(os.getpid(), processes)}
        for pid in sorted(self._certain):
            for parent in _above(pid, processes):
                is_other = parent <= 1 or parent in mine or processes[parent].name in _STARTERS
                if is_other or not self._same_program(pid, parent, processes):
                    break
                why.setdefault(parent, f"is above {pid}")
        for pid in sorted(self._certain.intersection(self._holders)):
            for child in _below(pid, processes, mine):
                why.setdefault(child, f"is below {pid}")

    def _same_program(self, pid: int, other: int, processes: Dict[int, Process]) -> bool:
        one, two = (_target(f"{self._root}/{number}/exe") for number in (pid, other))
        return one == two if one and two else processes[pid].name == processes[other].name


def listening(root: str, port: int) -> Iterator[Tuple[str, int]]:
    """(inode, user) of each socket that listens on a port. Those that listen come first, and no more is read."""
    wanted = f":{port:04X}"
    for name in ("net/tcp", "net/tcp6"):
        for line in _listening_lines(f"{root}/{name}"):
            words = line.split(None, 10)
            if words[1].endswith(wanted):
                yield words[9], int(words[7])


def _listening_lines(path: str) -> Iterator[str]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rest = ""
        while True:
            piece = os.read(descriptor, _PIECE_B).decode()
            *lines, rest = (rest + piece).split("\n")
            for line in lines:
                words = line.split(None, 4)
                if len(words) == 5 and words[3] == _LISTENING:
                    yield line
                elif words and words[0] != "sl":
                    return
            if not piece:
                return
    finally:
        os.close(descriptor)


def holders(root: str, inodes: FrozenSet[str]) -> Set[int]:
    """The processes that hold one of these sockets, of those whose files we may see."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    found = set()
    for pid in _pids(root):
        try:
            if any(target in wanted for target in _open_files(f"{root}/{pid}/fd")):
                found.add(pid)
        except OSError:  # it has ended, or is another user's
            continue
    return found


def read_processes(root: str) -> Dict[int, Process]:
    found = {}
    for pid in _pids(root):
        try:
            descriptor = os.open(f"{root}/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            name, fields = split_stat(os.read(descriptor, 4096).decode(errors="replace"))
        except (OSError, ValueError):
            continue
        finally:
            os.close(descriptor)
        found[pid] = Process(name, int(fields[1]), int(fields[19]))
    return found


def split_stat(text: str) -> Tuple[str, List[str]]:
    """(name, the fields from the state on) of a /proc/<pid>/stat; a name may hold anything. Raises ValueError."""
    begin, end = text.index("("), text.rindex(")")
    return text[begin + 1 : end], text[end + 2 :].split()


def _above(pid: int, processes: Dict[int, Process]) -> Iterator[int]:
    while pid in processes and processes[pid].parent in processes:
        pid = processes[pid].parent
        yield pid


def _below(pid: int, processes: Dict[int, Process], without: Set[int]) -> Iterator[int]:
    children: Dict[int, List[int]] = {}
    for number, process in processes.items():
        children.setdefault(process.parent, []).append(number)
    waiting = [pid]
    while waiting:
        for child in sorted(children.get(waiting.pop(0), [])):
            if child not in without:
                yield child
                waiting.append(child)


def _pids(root: str) -> List[int]:
    with os.scandir(root) as entries:
        return [int(entry.name) for entry in entries if entry.name.isdigit()]


def _open_files(folder: str) -> Iterator[str]:
    """What the descriptors of a process are. Raises OSError."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield _target(entry.path)


def _target(link: str) -> str:
    try:
        return os.readlink(link)  # noqa: PTH115  Path has none in Python 3.8
    except OSError:
        return ""
