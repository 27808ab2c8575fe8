"""The errors that end a command, and their exit codes. docs/exit-codes.md explains them; a test holds the two together.

    LoadgenError             1
    |- UsageError            2
    |- TargetError           3
    |- RunDirError           4
    |- RunAborted            5
    |- AgentError            6
    |- GateFailed            7
    |- Incomparable          8
    '- Interrupted         130

A request's failure is data (`record.Outcome`), never one of these.
"""

from __future__ import annotations


class LoadgenError(Exception):
    """Its text is one sentence for the user: what is wrong, where, and what to do."""

    exit_code = 1
    meaning = "something of ours failed"


class UsageError(LoadgenError):
    """Its text may be several problems, one a line."""

    exit_code = 2
    meaning = "bad input: an option, a scenario or a plan"


class TargetError(LoadgenError):
    exit_code = 3
    meaning = "the endpoint cannot be used: unreachable, wrong key, or no request succeeded"


class RunDirError(LoadgenError):
    exit_code = 4
    meaning = "the run directory cannot be made, written or read"


class RunAborted(LoadgenError):
    exit_code = 5
    meaning = "the run ended early by a fault; what was measured is kept"


class AgentError(LoadgenError):
    exit_code = 6
    meaning = "a host cannot be watched"

    def __init__(self, text: str, *, passing: bool = False) -> None:
        """`passing`: it may be otherwise in a while."""
        super().__init__(text)
        self.passing = passing


class GateFailed(LoadgenError):
    exit_code = 7
    meaning = "a gate of a comparison failed, or could not be judged"


class Incomparable(LoadgenError):
    """Its text may be several reasons, one a line."""

    exit_code = 8
    meaning = "the runs cannot be compared"


class Interrupted(LoadgenError):
    exit_code = 130
    meaning = "interrupted; what was measured is kept"


EXIT_CODES: dict[int, str] = {0: "success"} | {
    error.exit_code: error.meaning
    for error in (
        *(LoadgenError, UsageError, TargetError, RunDirError, RunAborted, AgentError),
        *(GateFailed, Incomparable, Interrupted),
    )
}
