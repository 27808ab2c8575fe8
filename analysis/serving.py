"""Which GPUs of a run count: those of one kind, each once, and those that serve. Pure; made of a summary's steps.

of_kind        no real GPU beside simulated ones
counted        no MIG device beside its GPU: those of the totals
idle_gpus      those that ran nothing in any step while others did: they stand beside the server
only_serving   what is left: the server's
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.caveat import Caveat, caveat

# An entry of a step's `gpus`.
Gpu = Mapping[str, Any]
Steps = Sequence[Mapping[str, Any]]

# What tells whether a GPU ran anything.
RAN = ("util_pct", "sm_pct")
# One that ran kernels for less than this in every step, and for less than such a share of the busiest one's, is idle.
_IDLE_PCT = 3.0
_IDLE_SHARE = 0.1


def of_kind(gpus: Sequence[Gpu]) -> list[Gpu]:
    """The simulated entries, or the real ones where none is simulated."""
    simulated = any(gpu["simulated"] for gpu in gpus)
    return [gpu for gpu in gpus if gpu["simulated"] == simulated]


def counted(gpus: Sequence[Gpu]) -> list[Gpu]:
    """Those that totals have: of one kind, and without MIG devices beside their GPU."""
    whole = {(gpu["host"], gpu["index"]) for gpu in gpus if gpu["gi_id"] is None}
    return [gpu for gpu in of_kind(gpus) if gpu["gi_id"] is None or (gpu["host"], gpu["index"]) not in whole]


def how_many(steps: Steps) -> int:
    """The most GPUs that a step has; the MIG devices of one are one."""
    return max((len({(gpu["host"], gpu["index"]) for gpu in of_kind(step["gpus"])}) for step in steps), default=0)


def busy_pct(gpu: Gpu) -> float | None:
    """For how much of the time it ran something; None where that is not known."""
    return max((float(gpu[name]["mean"]) for name in RAN if gpu[name]), default=None)


def idle_gpus(steps: Steps) -> list[Gpu]:
    """The entries, one each, of the GPUs that ran nothing in any of a summary's steps while others of them did.

    They stand beside those that serve. One whose utilisation is not known may serve; a GPU in MIG devices runs what
    they run.
    """
    found = {gpu["uuid"]: gpu for step in steps for gpu in of_kind(step["gpus"])}
    most: dict[str, float] = {}
    for gpu in (gpu for step in steps for gpu in of_kind(step["gpus"])):
        if (busy := busy_pct(gpu)) is not None:
            most[gpu["uuid"]] = max(most.get(gpu["uuid"], 0.0), busy)
    least = min(_IDLE_PCT, _IDLE_SHARE * max(most.values(), default=0.0))
    idle = {uuid for uuid, busy in most.items() if busy < least}
    for uuid in found.keys() - most.keys():
        parts = {part["uuid"] for part in found.values() if part["gi_id"] is not None and _same(part, found[uuid])}
        if found[uuid]["gi_id"] is None and parts and parts <= idle:
            idle.add(uuid)
    return [gpu for uuid, gpu in found.items() if uuid in idle]


def _same(part: Gpu, gpu: Gpu) -> bool:
    return bool((part["host"], part["index"]) == (gpu["host"], gpu["index"]))


def only_serving(steps: Steps, told: int = 0) -> list[dict[str, Any]]:
    """The steps with the GPUs of the server alone: those that totals have, without the idle ones.

    Where the server is told to have more than are left, idle ones are among them.
    """
    there = {gpu["uuid"] for step in steps for gpu in counted(step["gpus"])}
    idle = [gpu["uuid"] for gpu in idle_gpus(steps) if gpu["uuid"] in there]
    serving = there - set(idle[max(0, told - (len(there) - len(idle))) :])
    return [{**step, "gpus": [gpu for gpu in counted(step["gpus"]) if gpu["uuid"] in serving]} for step in steps]


def idle_caveats(steps: Steps) -> list[Caveat]:
    """Which GPUs were left out, and of what."""
    names: dict[str, list[str]] = {}
    for gpu in idle_gpus(steps):
        names.setdefault(gpu["host"], []).append(gpu_name(gpu))
    if not names:
        return []
    told = " and ".join(f"GPU {', '.join(numbers)} of {host}" for host, numbers in names.items())
    text = f"{told} ran nothing throughout: energy, MFU, MBU and what binds are of the other GPUs, sums are of all"
    return [caveat("idle_gpus", text, "if they should serve, look at how the server spreads its load over GPUs")]


def gpu_name(gpu: Gpu) -> str:
    """Among those of its host."""
    return str(gpu["index"]) if gpu["gi_id"] is None else f"{gpu['index']} MIG {gpu['gi_id']}"
