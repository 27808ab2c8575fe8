"""Energy of a step against arithmetic."""

import pytest

from analysis.energy import step_energy

STEP = {"gpu_total": {"power_w": 600.0}, "output_tokens_per_s": 1200.0, "qps": 12.0}


def test_energy_is_power_by_what_it_brought() -> None:
    assert step_energy(STEP) == {"j_per_output_token": 0.5, "output_tokens_per_j": 2.0, "j_per_request": 50.0}


@pytest.mark.parametrize("power_w", [None, 0.0])
def test_without_the_power_of_every_gpu_there_is_none(power_w: float | None) -> None:
    assert step_energy(STEP | {"gpu_total": {"power_w": power_w}}) is None


def test_a_step_that_brought_nothing_has_no_energy_of_it() -> None:
    nothing = {"j_per_output_token": None, "output_tokens_per_j": None, "j_per_request": None}
    assert step_energy(STEP | {"output_tokens_per_s": 0.0, "qps": 0.0}) == nothing
    plain = step_energy(STEP | {"output_tokens_per_s": None})  # plain inference has no tokens
    assert plain == nothing | {"j_per_request": 50.0}
