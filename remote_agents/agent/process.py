"""Rows of the model server's processes, once a second: /proc files kept open, and the control groups'.

Who is watched is server_processes.py's: a search is made at the start, when the processes that use a GPU change, when
one that listens or uses a GPU has gone, and every 30 s, or every 2 s while there is none. A process is its pid and its
start: one that comes later under the same pid is another. It is watched until it ends, and 32 are at most.
CLOCK_MONOTONIC ns of this host.
"""

import os
import time
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Set

from remote_agents.agent.cgroup import Cgroup
from remote_agents.agent.host import keep_open, number_after, read_kept
from remote_agents.agent.outbox import Outbox
from remote_agents.agent.server_processes import Finder, Process, Search, split_stat

MOST = 32
SEARCH_NS = 30_000_000_000
SEARCH_AGAIN_NS = 2_000_000_000
PATIENCE_NS = 10_000_000_000  # a problem that lasts so long is said

_FILES = ("stat", "statm", "status", "schedstat")
_PAGE_B = os.sysconf("SC_PAGE_SIZE")


class ProcessSampler:
    """The watched processes; `gpu_pids` gives those that use a watched GPU now, as NVML numbers them."""

    def __init__(
        self,
        server_port: Optional[int],
        gpu_pids: Callable[[], FrozenSet[int]],
        outbox: Outbox,
        proc_root: str = "/proc",
        cgroup_root: str = "/sys/fs/cgroup",
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._gpu_pids = gpu_pids
        self._outbox = outbox
        self._proc_root = proc_root
        self._cgroup_root = cgroup_root
        self._clock = clock
        self._finder = Finder(server_port, proc_root)
        self._watched: Dict[int, _Watched] = {}
        self._cgroups: Dict[str, Cgroup] = {}  # by what /proc/<pid>/cgroup says
        self._known_gpu_pids: FrozenSet[int] = frozenset()
        self._search_due_ns = clock()
        self._lost_one = False
        self._full = False  # it was said that there are more than we watch
        self._problems: Dict[str, int] = {}  # since when
        self._said: Set[str] = set()

    def rows(self) -> List[List[Any]]:
        """Rows of table `process`."""
        now_ns = self._clock()
        gpu_pids = self._gpu_pids()
        if now_ns >= self._search_due_ns or self._lost_one or gpu_pids != self._known_gpu_pids:
            self._search(now_ns, gpu_pids)
        counters: Dict[str, List[Optional[int]]] = {}
        table = []
        for process in tuple(self._watched.values()):
            row = process.row()
            if row is None:
                self._lose(process)
                continue
            if process.membership not in counters:
                counters[process.membership] = self._cgroups[process.membership].counters()
            table.append(row + counters[process.membership])
        return table

    def close(self) -> None:
        for process in self._watched.values():
            process.close()
        for cgroup in self._cgroups.values():
            cgroup.close()

    def _search(self, now_ns: int, gpu_pids: FrozenSet[int]) -> None:
        found = self._finder.find(gpu_pids)
        self._lost_one = False
        self._known_gpu_pids = gpu_pids
        new = [pid for pid in found.why if pid not in self._watched]
        room = MOST - len(self._watched)
        for pid in new[:room]:
            self._watch(pid, found.processes[pid], found.why[pid])
        if new[room:] and not self._full:
            self._full = True
            text = f"{len(new) - room} more processes of the server are left out: {MOST} are watched"
            self._outbox.event("server_process", text)
        self._renew_cgroups()
        self._tell_problems(now_ns, found)
        waiting = not self._watched or len(self._problems) > len(self._said)
        self._search_due_ns = now_ns + (SEARCH_AGAIN_NS if waiting else SEARCH_NS)

    def _watch(self, pid: int, process: Process, why: str) -> None:
        watched = _Watched(self._proc_root, pid, process)
        cgroup = self._cgroup(watched.membership)
        self._watched[pid] = watched
        self._outbox.event(
            "server_process",
            f"process {pid} ({process.name}) is watched: it {why}",
            pid=pid,
            name=process.name,
            starttime_ticks=process.start_ticks,
            cgroup=watched.membership,
            absent=cgroup.absent,
        )

    def _lose(self, process: "_Watched") -> None:
        process.close()
        del self._watched[process.pid]
        if self._finder.forget(process.pid):
            self._lost_one = True
        text = f"process {process.pid} ({process.name}) of the server is gone"
        self._outbox.event("server_process_gone", text, pid=process.pid, name=process.name)

    def _cgroup(self, membership: str) -> Cgroup:
        if membership not in self._cgroups:
            self._cgroups[membership] = Cgroup(membership, self._cgroup_root)
        return self._cgroups[membership]

    def _renew_cgroups(self) -> None:
        """A process may have been moved; groups that nobody watched is in are let go."""
        for process in self._watched.values():
            process.membership = _membership(self._proc_root, process.pid) or process.membership
            self._cgroup(process.membership)
        used = {process.membership for process in self._watched.values()}
        for membership in set(self._cgroups) - used:
            self._cgroups.pop(membership).close()

    def _tell_problems(self, now_ns: int, found: Search) -> None:
        self._problems = {text: self._problems.get(text, now_ns) for text in found.problems}
        self._said.intersection_update(self._problems)
        for text, since_ns in self._problems.items():
            if text not in self._said and now_ns - since_ns >= PATIENCE_NS:
                self._said.add(text)
                self._outbox.event("no_server_process", text)


class _Watched:
    """One process: its open files."""

    def __init__(self, root: str, pid: int, process: Process) -> None:
        self.pid = pid
        self.name = process.name
        self.membership = _membership(root, pid)
        self._start_ticks = process.start_ticks
        self._files = [keep_open(f"{root}/{pid}/{name}") for name in _FILES]

    def row(self) -> Optional[List[Any]]:
        """A row without the columns of its control group; None when the process has ended."""
        t0_ns = time.monotonic_ns()
        stat, statm, status, schedstat = (read_kept(file) for file in self._files)
        t1_ns = time.monotonic_ns()
        if not stat:
            return None
        name, fields = split_stat(stat)
        if fields[0] in ("Z", "X") or int(fields[19]) != self._start_ticks:
            return None
        utime, stime, threads = (int(fields[place]) for place in (11, 12, 17))
        return [
            *(t0_ns, t1_ns, self.pid, self._start_ticks, name, utime, stime),
            int(statm.split()[1]) * _PAGE_B if statm else None,
            threads,
            number_after(status, "voluntary_ctxt_switches:"),
            number_after(status, "nonvoluntary_ctxt_switches:"),
            int(schedstat.split()[1]) if schedstat else None,
        ]

    def close(self) -> None:
        for descriptor in self._files:
            if descriptor is not None:
                os.close(descriptor)


def _membership(root: str, pid: int) -> str:
    try:
        return Path(root, str(pid), "cgroup").read_text()
    except OSError:
        return ""
