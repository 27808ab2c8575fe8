"""Energy of a step against arithmetic."""

from typing import Any

import pytest

from analysis.energy import step_energy


def step(*watts: float | None, **changes: Any) -> dict[str, Any]:
    """Of the GPUs that serve, with so much each."""
    figures = dict.fromkeys(("vram_used_bytes", "vram_effective_bytes", "util_pct"))
    gpus = [figures | {"power_w": None if each is None else {"mean": each, "max": each}} for each in watts]
    return {"gpus": gpus, "output_tokens_per_s": 1200.0, "qps": 12.0} | changes


POWER = {"power_w": 600.0}


def test_energy_is_power_by_what_it_brought() -> None:
    assert step_energy(step(250.0, 350.0)) == POWER | {
        "j_per_output_token": 0.5,
        "output_tokens_per_j": 2.0,
        "j_per_request": 50.0,
    }


@pytest.mark.parametrize("watts", [(), (300.0, None), (0.0,)])
def test_without_the_power_of_every_gpu_there_is_none(watts: tuple[float | None, ...]) -> None:
    assert step_energy(step(*watts)) is None


def test_a_step_that_brought_nothing_has_no_energy_of_it() -> None:
    nothing = POWER | {"j_per_output_token": None, "output_tokens_per_j": None, "j_per_request": None}
    assert step_energy(step(600.0, output_tokens_per_s=0.0, qps=0.0)) == nothing
    plain = step_energy(step(600.0, output_tokens_per_s=None))  # plain inference has no tokens
    assert plain == nothing | {"j_per_request": 50.0}
