"""CPU time, throttling and memory of a control group, of version 1, 2 or both: files kept open and read in place.

A process is in one group of version 2 and in one of each controller of version 1; where a controller is of version 1,
its files are there. The group itself counts, not those above it. No clock.
"""

import os
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

from remote_agents.agent.host import keep_open, number_after, read_kept


class File(NamedTuple):
    name: str
    key: str  # of the line; "": the file is the number
    divisor: int = 1


class Counter(NamedTuple):
    column: str
    v2: File
    controller: str
    v1: File


COUNTERS = (
    Counter("cg_usage_us", File("cpu.stat", "usage_usec"), "cpuacct", File("cpuacct.usage", "", 1000)),
    Counter("cg_nr_throttled", File("cpu.stat", "nr_throttled"), "cpu", File("cpu.stat", "nr_throttled")),
    Counter("cg_throttled_us", File("cpu.stat", "throttled_usec"), "cpu", File("cpu.stat", "throttled_time", 1000)),
    Counter("cg_mem_b", File("memory.current", ""), "memory", File("memory.usage_in_bytes", "")),
    Counter("cg_oom_kill", File("memory.events", "oom_kill"), "memory", File("memory.oom_control", "oom_kill")),
)


class Cgroup:
    """The groups of one `/proc/<pid>/cgroup`."""

    def __init__(self, membership: str, root: str) -> None:
        self.absent: Dict[str, str] = {}  # column -> why
        self._files: List[Tuple[Optional[int], File]] = []
        self._open: Dict[str, Optional[int]] = {}
        v1, unified = _memberships(membership)
        for counter in COUNTERS:
            file = counter.v1 if counter.controller in v1 else counter.v2
            folder = _folder(root, *v1[counter.controller]) if counter.controller in v1 else _unified(root, unified)
            path = f"{folder}/{file.name}"
            if path not in self._open:
                self._open[path] = keep_open(path) if folder else None
            self._files.append((self._open[path], file))
            if self.counters()[-1] is None:
                missing = f"{path} has no {file.key}" if self._open[path] is not None else f"there is no {path}"
                self.absent[counter.column] = missing if folder else "its group is not of those that are seen here"

    def counters(self) -> List[Optional[int]]:
        """In the order of COUNTERS."""
        texts = {descriptor: read_kept(descriptor) for descriptor, _ in self._files}
        return [_number(texts[descriptor], file) for descriptor, file in self._files]

    def close(self) -> None:
        for descriptor in self._open.values():
            if descriptor is not None:
                os.close(descriptor)


def _memberships(text: str) -> Tuple[Dict[str, Tuple[str, str]], str]:
    """Controller of version 1 -> (all that are mounted with it, path); path of version 2, or ""."""
    v1: Dict[str, Tuple[str, str]] = {}
    unified = ""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            unified = path
        for controller in controllers.split(","):
            v1[controller] = (controllers, path)
    return v1, unified


def _folder(root: str, controllers: str, path: str) -> str:
    """Of a group of version 1, or "" when it is outside of what is mounted."""
    mounted = next((name for name in (controllers, *controllers.split(",")) if Path(root, name).exists()), controllers)
    return "" if _is_outside(path) else f"{root}/{mounted}{path.rstrip('/')}"


def _unified(root: str, path: str) -> str:
    mounted = root if Path(root, "cgroup.controllers").exists() else f"{root}/unified"
    return "" if not path or _is_outside(path) else f"{mounted}{path.rstrip('/')}"


def _is_outside(path: str) -> bool:
    return path.startswith("/..")


def _number(text: str, file: File) -> Optional[int]:
    text = text if file.key else f" {text}"
    number = number_after(text, file.key + " ") if text.strip() else None
    return None if number is None else number // file.divisor
