"""Energy of a step against arithmetic."""

from typing import Any

import pytest

from analysis.energy import step_energy

STEP = {"gpu_total": {"power_w": 600.0}, "output_tokens_per_s": 1200.0, "qps": 12.0}
POWER = {"power_w": 600.0}


def test_energy_is_power_by_what_it_brought() -> None:
    assert step_energy(STEP) == POWER | {"j_per_output_token": 0.5, "output_tokens_per_j": 2.0, "j_per_request": 50.0}


@pytest.mark.parametrize("power_w", [None, 0.0])
def test_without_the_power_of_every_gpu_there_is_none(power_w: float | None) -> None:
    assert step_energy(STEP | {"gpu_total": {"power_w": power_w}}) is None


def test_a_step_that_brought_nothing_has_no_energy_of_it() -> None:
    nothing = POWER | {"j_per_output_token": None, "output_tokens_per_j": None, "j_per_request": None}
    assert step_energy(STEP | {"output_tokens_per_s": 0.0, "qps": 0.0}) == nothing
    plain = step_energy(STEP | {"output_tokens_per_s": None})  # plain inference has no tokens
    assert plain == nothing | {"j_per_request": 50.0}


def entry(index: int, watts: float, **changes: Any) -> dict[str, Any]:
    figures = dict.fromkeys(("vram_used_bytes", "vram_effective_bytes", "util_pct"))
    facts = {"host": "h", "uuid": f"GPU-{index}", "index": index, "gi_id": None, "simulated": False}
    return facts | figures | {"power_w": {"mean": watts, "max": watts}} | changes


def test_what_idle_gpus_draw_is_in_no_answer() -> None:
    """Nor is a MIG device that its GPU counts already."""
    gpus = [entry(0, 300), entry(1, 200), entry(2, 100), entry(0, 50, uuid="MIG-a", gi_id=1)]
    found = step_energy(STEP | {"gpus": gpus}, {"GPU-1", "GPU-2"})
    assert found == {"power_w": 300, "j_per_output_token": 0.25, "output_tokens_per_j": 4, "j_per_request": 25}
