"""Which hosts a run watches: the names given with --agents, and what is wrong with them. Pure; speaks no clock."""

from __future__ import annotations

from collections.abc import Sequence

LOCAL = "local"
NONE = "none"


def check_agents(names: Sequence[str]) -> list[str]:
    """One sentence a problem; empty when the names can be used."""
    unknown = [name for name in names if name not in (LOCAL, NONE)]
    problems = [
        f"agent {name!r} is not known: agents on other hosts come with a later version, "
        f"only {LOCAL!r} and {NONE!r} are known"
        for name in unknown
    ]
    if NONE in names and len(set(names)) > 1:
        problems.append(f"agent {NONE!r} cannot be combined with others: give it alone, or leave it out")
    return problems
