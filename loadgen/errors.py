"""The errors that end a command, and the exit code of each. docs/exit-codes.md explains them; a test holds the two together.

    LoadgenError             1   something of ours failed
    |- UsageError            2   bad input: option, scenario, plan (every problem at once)
    |- TargetError           3   the endpoint cannot be used
    |- RunDirError           4   the run directory cannot be written, or cannot be read
    |- RunAborted            5   the run ended early by a fault; what was measured is kept and reported
    '- Interrupted         130   Ctrl-C; what was measured is kept and reported

A request's failure is data (`record.Outcome`), never one of these.
"""

from __future__ import annotations


class LoadgenError(Exception):
    """One sentence for the user: what is wrong, where, and what to do."""

    exit_code = 1


class UsageError(LoadgenError):
    """Bad input. Several problems are joined by newlines."""

    exit_code = 2


class TargetError(LoadgenError):
    """The endpoint cannot be used: unreachable, wrong key, unknown model."""

    exit_code = 3


class RunDirError(LoadgenError):
    """A run directory that cannot be made, written or read."""

    exit_code = 4


class RunAborted(LoadgenError):
    """The run ended before its plan did; the data up to then are kept."""

    exit_code = 5


class Interrupted(LoadgenError):
    """Ctrl-C."""

    exit_code = 130


EXIT_CODES: dict[int, str] = {0: "success"} | {
    error.exit_code: (error.__doc__ or "").splitlines()[0]
    for error in (LoadgenError, UsageError, TargetError, RunDirError, RunAborted, Interrupted)
}
