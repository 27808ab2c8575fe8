"""Which request gets a fault: seeded, at the asked rates, at most one each."""

from __future__ import annotations

from collections import Counter

import pytest

from loadgen.simulator.config import SimulatorConfig
from loadgen.simulator.faults import OUTCOMES, Faults, Kind


def test_the_same_seed_draws_the_same() -> None:
    def drawn(seed: int) -> list[str]:
        faults = Faults(SimulatorConfig(seed=seed, error_rate=0.2, stall_rate=0.3))
        return [str(faults.draw(10)) for _ in range(50)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_shares_are_the_rates() -> None:
    rates = {kind: 0.05 * index for index, kind in enumerate(Kind)}
    faults = Faults(SimulatorConfig(**{f"{kind}_rate": rate for kind, rate in rates.items()}))
    counts = Counter(fault.kind if (fault := faults.draw(5)) else None for _ in range(20_000))
    assert {kind: counts[kind] / 20_000 for kind in Kind} == pytest.approx(rates, abs=0.01)


def test_no_rates_no_faults_and_certain_ones() -> None:
    assert Faults(SimulatorConfig()).draw(5) is None
    faults = Faults(SimulatorConfig(reset_rate=1))
    drawn = [faults.draw(5) for _ in range(200)]
    assert {fault.kind for fault in drawn if fault} == {Kind.RESET} and None not in drawn
    assert {fault.at for fault in drawn if fault} == {1, 2, 3, 4}
    assert [fault.at for tokens in (1, 2) if (fault := faults.draw(tokens))] == [1, 1]


def test_only_what_lasts_has_a_length_and_the_rest_an_outcome() -> None:
    stall = Faults(SimulatorConfig(stall_rate=1, stall_s=6, speedup=4)).draw(5)
    delay = Faults(SimulatorConfig(delay_rate=1, delay_s=0.5)).draw(5)
    assert stall and stall.lasts_ns == 1_500_000_000
    assert delay and delay.lasts_ns == 500_000_000
    assert set(OUTCOMES) == set(Kind) - {Kind.STALL, Kind.DELAY}
