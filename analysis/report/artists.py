"""Processes that draw figures: drawing is Python's own work, so that a core does one figure at a time.

They start while a run is read, and are gone when their figures are drawn, or when whoever started them is: their input
ends. Not by multiprocessing, which runs the caller's main module again, and whose processes outlive a killed caller.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analysis.plots import canvas

# More would wait for the one with the largest figure; each takes 0.15 GB.
MOST = 4

# With the modules that are ours here: not those of the directory where we are.
_BEGIN = "import sys; sys.path[:] = sys.argv[1:]; from analysis.report.artists import work; work()"

# A function of plots/ and its arguments; it returns None when there are no data for the figure.
Job = tuple[Callable[..., Figure | None], *tuple[Any, ...]]


class Artists:
    """`processes` draw one part of the figures each, `threads` wait for them."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], threads: ThreadPoolExecutor) -> None:
        self.processes = processes
        self._threads = threads

    def draw(self, folder: Path, jobs: Mapping[str, Job]) -> Callable[[], set[str]]:
        """Begin to save each figure in the folder by its name, as PNG and SVG; once only.

        What is returned waits for them, and has the names of those that there are data for. It raises what a function
        or saving raised, and ChildProcessError when a process was ended by somebody else.
        """
        parts = [list(jobs.items())[number :: len(self.processes)] for number in range(len(self.processes))]
        drawn = [self._threads.submit(_drawn, *each, folder) for each in zip(self.processes, parts, strict=True)]
        return lambda: set(chain.from_iterable(part.result() for part in drawn))


@contextlib.contextmanager
def artists() -> Iterator[Artists]:
    """One a core, up to MOST."""
    command = [sys.executable, "-c", _BEGIN, *sys.path]
    count = min(MOST, len(os.sched_getaffinity(0)))
    with contextlib.ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(count))
        processes = []
        for _ in range(count):
            # A group of its own: Ctrl-C is for whoever waits for the figures.
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
            processes.append(stack.enter_context(process))
            stack.callback(process.terminate)
        yield Artists(processes, threads)


def _drawn(process: subprocess.Popen[bytes], jobs: Sequence[tuple[str, Job]], folder: Path) -> list[str]:
    told, _ = process.communicate(pickle.dumps((folder, jobs)))
    if process.returncode:
        raise ChildProcessError(f"a process that draws figures ended with {process.returncode}")
    done: list[str] | Exception = pickle.loads(told)
    if isinstance(done, Exception):
        raise done
    return done


def _save(folder: Path, name: str, function: Callable[..., Figure | None], *arguments: Any) -> bool:
    figure = function(*arguments)
    if figure is not None:
        canvas.save(figure, folder, name)
    return figure is not None


def work() -> None:
    """The process that draws: draw what the input asks for, when it is there as a whole."""
    asked = sys.stdin.buffer.read()
    if not asked:
        return
    folder, jobs = pickle.loads(asked)
    done: list[str] | Exception
    try:
        with canvas.styled():
            done = [name for name, job in jobs if _save(folder, name, *job)]
    except Exception as error:  # is raised where it is waited for
        done = error
    with contextlib.suppress(BrokenPipeError):  # nobody waits any more
        os.write(sys.stdout.fileno(), pickle.dumps(done))
