"""Two laws of throughput over the requests in flight, fitted to a run's steps: pure, numpy only, no clock.

n requests are in flight, X(n) of them end a second, and by Little's law each takes R(n) = n / X(n). With think time Z
a closed model of N users has n = N - Z X(n): the interactive response time law, R = N / X - Z.

    usl      R(n) = 1/lambda (1 + sigma (n - 1) + kappa n (n - 1))          Universal Scalability Law, X = n / R
    batch    R(n) = n/m (s0 + s1 m),  m = min(n, c)                         batch service with c slots

Of the second: a server works on m <= c requests at once, in iterations over the whole batch. One takes as long as
reading the weights plus what each member adds, so a request that needs a fixed number of iterations is served in
s0 + s1 m seconds; m of them leave in that time: X = m / (s0 + s1 m). Whoever is above c waits: X stays at its limit
c / (s0 + s1 c) and R grows by 1 / X a request. Below c it is the USL with kappa = 0.

Both R are linear in all parameters but c, which is searched on a grid: a fit is exact, deterministic, and done for all
bootstrap samples at once. What is minimised is the squared relative error of R, with parameters that are not negative.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST_STEPS = 3
SAMPLES = 1000
SEED = 6
# No measured rate is taken to be better known than this.
LEAST_ERROR = 0.01
# With as many parameters as steps there are no residuals to tell: this is taken.
ASSUMED_ERROR = 0.05
_GRID = 160
# Fits that are solved at once: few enough for the processor's cache.
_ROWS = 8000
# A limit c that explains the steps no better than this (share of the sum of squares) is not taken to be there.
_WORTH = 1e-6


class Law(NamedTuple):
    """`fit` takes n (K) and R (B, K), and gives parameters (B, p); `residence` takes those and n (M): R (B, M).

    `knee` is the n with the highest power X / R, and `limit` the highest X; each of parameters (B, p), infinite when
    there is none.
    """

    name: str
    title: str
    formula: str
    parameters: tuple[tuple[str, str, str], ...]  # name, unit, meaning
    fit: Callable[[Floats, Floats], Floats]
    residence: Callable[[Floats, Floats], Floats]
    knee: Callable[[Floats], Floats]
    limit: Callable[[Floats], Floats]


@dataclass(frozen=True)
class Curve:
    """`parameters` (p) of the fit, `sampled` (B, p) of the bootstrap; `error` is the relative one of a step's R.

    `cross_validation` has the root mean square of the relative error, by law, of each step predicted from the others;
    it is empty with too few steps.
    """

    law: Law
    parameters: Floats
    sampled: Floats
    error: float
    error_assumed: bool
    cross_validation: dict[str, float]

    def residence_s(self, in_flight: Floats) -> tuple[Floats, Floats, Floats]:
        """R at each n, with the ends of its 95 % interval."""
        (fitted,) = self.law.residence(self.parameters[None], in_flight)
        low, high = np.quantile(self.law.residence(self.sampled, in_flight), (0.025, 0.975), axis=0)
        return fitted, np.minimum(low, fitted), np.maximum(high, fitted)

    def rate(self, in_flight: float) -> float:
        """X at one n."""
        return in_flight / float(self.law.residence(self.parameters[None], np.array([in_flight]))[0, 0])

    def qps(self, in_flight: Floats) -> tuple[Floats, Floats, Floats]:
        """X at each n, with the ends of its 95 % interval."""
        fitted, low, high = self.residence_s(in_flight)
        return in_flight / fitted, in_flight / high, in_flight / low

    def figure(self, of: Callable[[Floats], Floats]) -> tuple[float, float, float]:
        """A figure of the parameters, with the ends of its 95 % interval."""
        value = float(of(self.parameters[None])[0])
        # An infinite end is one: it is not interpolated.
        low, high = np.quantile(of(self.sampled), (0.025, 0.975), method="inverted_cdf")
        return value, min(float(low), value), max(float(high), value)


def fit(in_flight: Floats, qps: Floats, samples: int = SAMPLES) -> Curve:
    """The law that predicts left-out steps better, its intervals from so many `samples`.

    Raises ValueError with the reason when the steps are too few."""
    distinct = len(set(in_flight))
    if distinct < LEAST_STEPS:
        raise ValueError(
            f"a curve has three parameters, and {distinct} usable {'step is' if distinct == 1 else 'steps are'} "
            f"too few: at least {LEAST_STEPS} levels are needed"
        )
    residence = (in_flight / qps)[None]
    fits = {law.name: law.fit(in_flight, residence)[0] for law in LAWS}
    apart = {law.name: law.residence(fits[law.name][None], in_flight)[0] / residence[0] - 1 for law in LAWS}
    crossed = {law.name: _left_out(law, in_flight, residence) for law in LAWS} if distinct > LEAST_STEPS else {}
    scores = crossed or {name: float(np.sqrt(np.mean(error**2))) for name, error in apart.items()}
    law = min(LAWS, key=lambda law: (round(scores[law.name], 6), law is not BATCH))
    free = len(in_flight) - len(law.parameters)
    spread = float(np.sqrt(np.sum(np.log1p(apart[law.name]) ** 2) / free)) if free else ASSUMED_ERROR
    error = max(spread, LEAST_ERROR)
    sampled = _bootstrap(law, fits[law.name], in_flight, error, free, samples)
    return Curve(law, fits[law.name], sampled, error, not free, crossed)


def _left_out(law: Law, in_flight: Floats, residence: Floats) -> float:
    """Root mean square of the relative error of R of each step, predicted from the other levels."""
    errors = []
    for level in dict.fromkeys(in_flight.tolist()):
        kept = in_flight != level
        parameters = law.fit(in_flight[kept], residence[:, kept])
        errors.append(np.log(law.residence(parameters, in_flight[~kept]) / residence[:, ~kept]).ravel())
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))


def _bootstrap(law: Law, parameters: Floats, in_flight: Floats, error: float, free: int, samples: int) -> Floats:
    """Parameters of so many runs like this one: each step's R moved by noise as large as the residuals.

    Few residuals tell little of the noise, so its size is drawn too (chi square): normal noise becomes Student's t.
    """
    random = np.random.default_rng(SEED)
    (fitted,) = law.residence(parameters[None], in_flight)
    size = error * np.sqrt(free / random.chisquare(free, samples)) if free else np.full(samples, error)
    noise = random.standard_normal((samples, len(in_flight))) * size[:, None]
    return law.fit(in_flight, fitted * np.exp(noise.clip(-1, 1)))


def _usl_fit(in_flight: Floats, residence: Floats) -> Floats:
    columns = np.stack([np.ones_like(in_flight), in_flight - 1, in_flight * (in_flight - 1)], axis=1)
    found, _ = _not_negative(columns, residence)
    return np.concatenate([1 / found[:, :1], found[:, 1:] / found[:, :1]], axis=1)


def _usl_residence(parameters: Floats, in_flight: Floats) -> Floats:
    rate, sigma, kappa = (parameters[:, [column]] for column in range(3))
    grown = 1 + sigma * (in_flight - 1) + kappa * in_flight * (in_flight - 1)
    return np.asarray(np.maximum(grown, 1e-9) / rate)


def _usl_knee(parameters: Floats) -> Floats:
    """X / R = X^2 / n is highest where 3 kappa n^2 + (sigma - kappa) n = 1 - sigma."""
    _, sigma, kappa = parameters.T
    rest = np.maximum(1 - sigma, 0)
    root = np.sqrt((sigma - kappa) ** 2 + 12 * kappa * rest)
    # The same root in the form that has no difference of like numbers, and no division by kappa.
    with np.errstate(divide="ignore"):
        return np.asarray(np.maximum(2 * rest / (sigma - kappa + root), 1.0))


def _usl_limit(parameters: Floats) -> Floats:
    """X at n = sqrt((1 - sigma) / kappa), where it turns back; without kappa lambda / sigma."""
    rate, sigma, kappa = parameters.T
    with np.errstate(divide="ignore", invalid="ignore"):
        peak = np.maximum(np.sqrt(np.maximum(1 - sigma, 0) / kappa), 1.0)
        finite = np.where(np.isfinite(peak), peak, 1.0)
        turned = finite / (1 + sigma * (finite - 1) + kappa * finite * (finite - 1))
        return np.asarray(rate * np.where(np.isfinite(peak), turned, 1 / sigma))


def _batch_fit(in_flight: Floats, residence: Floats) -> Floats:
    """c from a grid over the measured range, then from a finer one; infinite when no limit was reached."""
    grid = np.geomspace(in_flight.min(), in_flight.max(), _GRID)
    best, errors = _search(in_flight, residence, np.tile(grid, (len(residence), 1)))
    step = grid[1] / grid[0]
    finer = best[:, [2]] * step ** np.linspace(-1, 1, 41)
    best, errors = _search(in_flight, residence, np.minimum(finer, in_flight.max()))
    unlimited, unlimited_errors = _search(in_flight, residence, np.full((len(residence), 1), np.inf))
    worth = errors < unlimited_errors - _WORTH * len(in_flight)
    return np.where(worth[:, None], best, unlimited)


def _search(in_flight: Floats, residence: Floats, limits: Floats) -> tuple[Floats, Floats]:
    """The best (s0, s1, c) of each row's candidates for c (B, G), and its sum of squares."""
    best = np.full((len(residence), 3), np.nan)
    least = np.full(len(residence), np.inf)
    rows = np.arange(len(residence))
    at_once = max(1, _ROWS // len(residence))
    for begin in range(0, limits.shape[1], at_once):
        part = limits[:, begin : begin + at_once]
        served = np.minimum(in_flight, part.reshape(-1, 1))
        columns = np.stack([in_flight / served, np.broadcast_to(in_flight, served.shape)], axis=2)
        found, errors = _not_negative(columns, np.repeat(residence, part.shape[1], axis=0))
        errors = errors.reshape(part.shape)
        pick = errors.argmin(axis=1)
        better = errors[rows, pick] < least
        chosen = np.column_stack([found.reshape(*part.shape, 2)[rows, pick], part[rows, pick]])
        least[better], best[better] = errors[rows, pick][better], chosen[better]
    return best, least


def _batch_residence(parameters: Floats, in_flight: Floats) -> Floats:
    base, each, slots = (parameters[:, [column]] for column in range(3))
    served = np.minimum(in_flight, slots)
    return np.asarray(in_flight / served * (base + each * served))


def _batch_knee(parameters: Floats) -> Floats:
    """Below c power is n / (s0 + s1 n)^2, highest at s0 / s1; above it falls."""
    base, each, slots = parameters.T
    with np.errstate(divide="ignore", invalid="ignore"):
        free = np.where(each > 0, base / each, np.inf)
    return np.asarray(np.maximum(np.minimum(free, slots), 1.0))


def _batch_limit(parameters: Floats) -> Floats:
    base, each, slots = parameters.T
    with np.errstate(divide="ignore"):
        return np.asarray(1 / (base / slots + each))


def _not_negative(columns: Floats, target: Floats) -> tuple[Floats, Floats]:
    """Least squares of the relative error with coefficients that are not negative, the first above 0.

    `columns` is (K, p) or (B, K, p), `target` (B, K); coefficients (B, p) and sums of squares (B). With at most three
    coefficients each choice of those that are not 0 is solved, and the best that is allowed is taken.
    """
    relative = columns / target[:, :, None]
    scale = np.sqrt(np.sum(relative**2, axis=1))
    relative = relative / scale[:, None, :]
    product = np.einsum("bki,bkj->bij", relative, relative)
    ones = relative.sum(axis=1)
    count, width = target.shape
    best = np.zeros((count, relative.shape[2]))
    least = np.full(count, np.inf)
    for size in range(relative.shape[2]):
        for others in combinations(range(1, relative.shape[2]), size):
            chosen = [0, *others]
            part = product[:, chosen][:, :, chosen] + 1e-12 * np.eye(len(chosen))
            solved = np.linalg.solve(part, ones[:, chosen, None])[:, :, 0]
            errors = width - np.einsum("bi,bi->b", solved, ones[:, chosen])
            better = (errors < least) & (solved[:, 0] > 0) & (solved >= 0).all(axis=1)
            least[better] = errors[better]
            rows = np.zeros_like(best)
            rows[:, chosen] = solved
            best[better] = rows[better]
    return best / scale, np.maximum(least, 0.0)


BATCH = Law(
    "batch",
    "batch service with c slots",
    "X(n) = m / (s0 + s1 m), m = min(n, c); R(n) = n / X(n)",
    (
        ("s0", "s", "service time of a request that is alone"),
        ("s1", "s", "what each other request of the batch adds to it"),
        ("c", "requests", "slots: requests that are served at once, those above wait"),
    ),
    _batch_fit,
    _batch_residence,
    _batch_knee,
    _batch_limit,
)
USL = Law(
    "usl",
    "Universal Scalability Law",
    "X(n) = lambda n / (1 + sigma (n - 1) + kappa n (n - 1)); R(n) = n / X(n)",
    (
        ("lambda", "1/s", "rate of one request at a time"),
        ("sigma", "", "contention: the share of the work that is done one after the other"),
        ("kappa", "", "coherence: what each pair of requests costs; above 0 throughput falls again"),
    ),
    _usl_fit,
    _usl_residence,
    _usl_knee,
    _usl_limit,
)
LAWS = (BATCH, USL)
