"""`SimulatorConfig`: what the simulator is asked to be, and its validation, which reports every problem at once.

No clock, no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loadgen.errors import UsageError
from loadgen.simulator import profiles


@dataclass(frozen=True)
class SimulatorConfig:
    host: str = "127.0.0.1"
    port: int = 0  # 0: any free one
    replicas: int = 8
    gpu: str = "L4"
    model: str = "8b"
    dtype: str = "bf16"
    slots: int = 128
    seed: int = 0
    jitter: float = 0.02  # sigma of the lognormal factor on an iteration's time
    truth: Path | None = None
    gpus_per_host: int = 8


def validate(config: SimulatorConfig) -> profiles.Engine:
    """The engine of each replica. Raises UsageError with every problem."""
    problems = []
    if not 0 <= config.port <= 65_535:
        problems.append(f"simulator port is {config.port}: give 1 to 65535, or 0 for any free one")
    if not 1 <= config.replicas <= 1024:
        problems.append(f"simulator replicas are {config.replicas}: give 1 to 1024")
    if not 0 <= config.jitter <= 0.5:
        problems.append(f"simulator jitter is {config.jitter}: give 0 to 0.5")
    if config.gpus_per_host < 1:
        problems.append(f"simulator GPUs per host are {config.gpus_per_host}: give 1 or more")
    if config.truth is not None and config.truth.exists():
        problems.append(f"the truth log {config.truth} exists already: name another file")
    try:
        engine = profiles.engine(config.gpu, config.model, config.dtype, config.slots)
    except UsageError as error:
        problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))
    return engine
