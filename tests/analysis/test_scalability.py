"""The laws of throughput by curves whose parameters are known, exact and with noise."""

import numpy as np
import pytest

from analysis import scalability
from analysis.scalability import BATCH, USL, Floats, fit

LEVELS = np.array([1, 5, 10, 25, 50, 100, 200, 400, 800, 1600], dtype=float)
TRUE_USL = np.array([100.0, 0.02, 0.0001])
TRUE_BATCH = np.array([1.8, 0.0012, 512.0])


def rates(law: scalability.Law, parameters: Floats, noise: float = 0.0, seed: int = 0) -> Floats:
    (seconds,) = law.residence(parameters[None], LEVELS)
    return np.asarray(LEVELS / seconds * np.exp(noise * np.random.default_rng(seed).standard_normal(len(LEVELS))))


@pytest.mark.parametrize(("law", "parameters"), [(USL, TRUE_USL), (BATCH, TRUE_BATCH)])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_the_law_and_its_parameters_are_found(law: scalability.Law, parameters: Floats, noise: float) -> None:
    curve = fit(LEVELS, rates(law, parameters, noise))
    assert curve.law is law
    assert curve.parameters == pytest.approx(parameters, rel=0.05 if noise == 0 else 0.15)
    other = next(name for name in curve.cross_validation if name != law.name)
    assert curve.cross_validation[law.name] < curve.cross_validation[other] / 3


def test_knee_and_limit_are_those_of_the_formulas() -> None:
    usl, batch = fit(LEVELS, rates(USL, TRUE_USL)), fit(LEVELS, rates(BATCH, TRUE_BATCH))
    for curve, top in ((usl, None), (batch, 512.0)):
        fine = np.geomspace(1, 1600, 20_000)
        (seconds,) = curve.law.residence(curve.parameters[None], fine)
        power = fine / seconds**2
        assert curve.figure(curve.law.knee)[0] == pytest.approx(fine[np.argmax(power)], rel=0.01)
        assert curve.figure(curve.law.limit)[0] == pytest.approx((fine / seconds).max(), rel=0.01)
        if top is not None:
            assert curve.figure(curve.law.knee)[0] == pytest.approx(top, rel=0.05)


def test_throughput_that_still_grows_has_no_limit() -> None:
    curve = fit(LEVELS[:6], LEVELS[:6] / 2.0)
    assert curve.figure(curve.law.knee)[0] >= LEVELS[5]
    fitted, low, high = curve.qps(np.array([50.0]))
    assert fitted[0] == pytest.approx(25) and low[0] < 25 < high[0]


def test_three_steps_are_fitted_and_two_are_refused_with_a_reason() -> None:
    curve = fit(LEVELS[[2, 5, 9]], rates(BATCH, TRUE_BATCH)[[2, 5, 9]])
    assert curve.error_assumed and curve.cross_validation == {}
    for too_few in (LEVELS[:2], LEVELS[:1], np.array([5.0, 5.0, 5.0])):
        with pytest.raises(ValueError, match="at least 3 levels"):
            fit(too_few, too_few)


def test_the_same_steps_give_the_same_intervals() -> None:
    first, second = (fit(LEVELS, rates(BATCH, TRUE_BATCH, 0.03)) for _ in range(2))
    assert (first.sampled == second.sampled).all()


@pytest.mark.parametrize(("law", "parameters"), [(USL, TRUE_USL), (BATCH, TRUE_BATCH)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(law: scalability.Law, parameters: Floats) -> None:
    """Of 30 curves: 95 % would hold fewer than 25 less than once in 300 times."""
    (true_s,) = law.residence(parameters[None], np.array([300.0]))
    true_limit, true_knee = law.limit(parameters[None])[0], law.knee(parameters[None])[0]
    held = np.zeros(3)
    for seed in range(30):
        curve = fit(LEVELS, rates(law, parameters, 0.04, seed), samples=200)
        _, low, high = (float(figure[0]) for figure in curve.residence_s(np.array([300.0])))
        held += [
            low <= true_s[0] <= high,
            curve.figure(curve.law.limit)[1] <= true_limit <= curve.figure(curve.law.limit)[2],
            curve.figure(curve.law.knee)[1] <= true_knee <= curve.figure(curve.law.knee)[2],
        ]
    assert (held >= 25).all(), held
