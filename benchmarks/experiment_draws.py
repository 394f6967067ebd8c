"""Users of experiments that are simulated: one kind of metric each, many runs at once, and their moments at each look.

Shapes: R runs, L looks, M users of an arm between two looks. `up` multiplies what the treatment is about.
tea-tasting's Aggregates are arithmetic all through, so that arrays [R, L] in them are all runs and looks at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad
from tea_tasting.aggr import Aggregates

from sonder.experiments.moments import Columns
from sonder.experiments.specification import Kind

Array = NDArray[np.float64]
Shape = tuple[int, ...]
Draw = Callable[[np.random.Generator, Shape, float], dict[str, Array]]
_WINDOW = 3.0


def value(rng: np.random.Generator, shape: Shape, up: float) -> dict[str, Array]:
    return {"m": rng.lognormal(0, 1, shape) * up}


def heavy(rng: np.random.Generator, shape: Shape, up: float) -> dict[str, Array]:
    """One user in a hundred has half of everything: what caps are for."""
    return {"m": rng.lognormal(0, 2, shape) * up}


def count_with_past(rng: np.random.Generator, shape: Shape, up: float) -> dict[str, Array]:
    habit = rng.gamma(2, 1, shape)
    return {"m": rng.poisson(2 * habit * up).astype(float), "m.pre": rng.poisson(4 * habit).astype(float)}


def ratio_with_past(rng: np.random.Generator, shape: Shape, up: float) -> dict[str, Array]:
    """Clicks over views: who views more clicks less often, so users' own ratios have another mean."""
    habit = rng.gamma(2, 1, shape)
    rate = rng.beta(2, 8, shape) / (1 + 0.2 * habit)
    views, before = rng.poisson(5 * habit) + 1, rng.poisson(10 * habit) + 1
    return {
        "m": rng.binomial(views, np.minimum(1.0, rate * up)).astype(float),
        "m.per": views.astype(float),
        "m.pre": rng.binomial(before, rate).astype(float),
        "m.pre.per": before.astype(float),
    }


def conversion(rng: np.random.Generator, shape: Shape, up: float) -> dict[str, Array]:
    return {"m": (rng.random(shape) < 0.05 * up).astype(float)}


def retention(rng: np.random.Generator, shape: Shape, up: float) -> dict[str, Array]:
    return {"m": (rng.random(shape) < 0.3 * up).astype(float)}


def days_until(rng: np.random.Generator, shape: Shape, up: float) -> dict[str, Array]:
    return {"m": np.minimum(rng.exponential(6 / up, shape), _WINDOW)}


@dataclass(frozen=True)
class World:
    """A metric, how its users are drawn, and its true mean in an arm."""

    kind: Kind
    draw: Draw
    columns: Columns
    cap: float | None = None

    def aggregates(self, users: dict[str, Array]) -> Aggregates:
        """Of arrays [..., M], over M."""
        return _aggregates({name: users[name] for name in self.columns.names})


PAST = Columns("m", None, "m.pre", None)
RATIO = Columns("m", "m.per", None, None)
WORLDS = {
    "mean": World("value", value, Columns("m")),
    "mean, CUPED": World("count", count_with_past, PAST),
    "mean, capped at 99 %": World("value", heavy, Columns("m"), 0.99),
    "ratio": World("ratio", ratio_with_past, RATIO),
    "ratio, CUPED": World("ratio", ratio_with_past, Columns("m", "m.per", "m.pre", "m.pre.per")),
    "conversion": World("conversion", conversion, Columns("m")),
    "retention": World("retention", retention, Columns("m")),
    "time to event": World("time_to_event", days_until, Columns("m")),
}


def true_difference(world: World, up: float) -> tuple[float, float]:
    """Absolute and relative, of a draw that nobody capped."""
    if world.kind == "time_to_event":
        means = [(1 - np.exp(-_WINDOW * rate)) / rate for rate in (1 / 6, up / 6)]
        return means[1] - means[0], means[1] / means[0] - 1
    if world.kind == "ratio":
        clicks, _ = quad(lambda h: h * np.exp(-h) * (5 * h + 1) * 0.2 / (1 + 0.2 * h), 0, np.inf)
        return clicks / 11 * (up - 1), up - 1
    mean = {value: np.exp(0.5), conversion: 0.05, retention: 0.3, count_with_past: 4.0}[world.draw]
    return float(mean * (up - 1)), up - 1


def capped(parts: list[Array], quantile: float) -> list[Array]:
    """Both arms' users [R, N] at the quantile of each run's users together, as `moments.capped` has it."""
    limit = np.quantile(np.concatenate(parts, axis=-1), quantile, axis=-1, method="higher", keepdims=True)
    return [np.minimum(part, limit) for part in parts]


def at_looks(world: World, users: list[dict[str, Array]]) -> list[Aggregates]:
    """Aggregates [R, L] of all users of an arm until each look, of arrays [R, L, M]."""
    if world.cap is None:
        return [_cumulative({name: arm[name] for name in world.columns.names}) for arm in users]
    num_looks = users[0]["m"].shape[1]
    looks: list[list[Aggregates]] = [[], []]
    for look in range(1, num_looks + 1):
        flat = [arm["m"][:, :look].reshape(len(arm["m"]), -1) for arm in users]
        for found, part in zip(looks, capped(flat, world.cap), strict=True):
            found.append(_aggregates({"m": part}))
    return [_stacked(found) for found in looks]


def errors_of(control: Aggregates, treatment: Aggregates, columns: Columns) -> tuple[Array, Array, Array]:
    """Difference, its standard error and users of both arms [R, L]: tea-tasting's formulas, on arrays."""
    total = control + treatment
    if columns.pre is None:
        slope: Any = 0.0
    else:
        names = columns.value, columns.per, columns.pre, columns.pre_per
        slope = total.ratio_cov(*names) / total.ratio_var(columns.pre, columns.pre_per)
    means, variances = zip(*(_adjusted(arm, total, columns, slope) for arm in (control, treatment)), strict=True)
    error = np.sqrt(variances[0] / control.count() + variances[1] / treatment.count())
    return means[1] - means[0], error, np.asarray(total.count(), dtype=float)


def one_of(aggregates: Aggregates, *index: int) -> Aggregates:
    """Of one run (at one look)."""
    count: Any = aggregates.count_
    return Aggregates(
        int(count[index] if np.ndim(count) else count),
        {name: float(array[index]) for name, array in aggregates.mean_.items()},  # type: ignore[index]
        {name: float(array[index]) for name, array in aggregates.var_.items()},  # type: ignore[index]
        {pair: float(array[index]) for pair, array in aggregates.cov_.items()},  # type: ignore[index]
    )


def _adjusted(arm: Aggregates, total: Aggregates, columns: Columns, slope: Any) -> tuple[Array, Array]:
    mean = arm.mean(columns.value) / arm.mean(columns.per)
    variance = arm.ratio_var(columns.value, columns.per)
    if columns.pre is None:
        return mean, variance
    past = arm.mean(columns.pre) / arm.mean(columns.pre_per)
    of_all = total.mean(columns.pre) / total.mean(columns.pre_per)
    both = arm.ratio_cov(columns.value, columns.per, columns.pre, columns.pre_per)
    spread = arm.ratio_var(columns.pre, columns.pre_per)
    return mean - slope * (past - of_all), variance + slope * slope * spread - 2 * slope * both


def _aggregates(users: dict[str, Array]) -> Aggregates:
    count = next(iter(users.values())).shape[-1]
    centred = {name: array - array.mean(-1, keepdims=True) for name, array in users.items()}
    return _made(
        count,
        {name: array.mean(-1) for name, array in users.items()},
        lambda left, right: (centred[left] * centred[right]).sum(-1) / (count - 1),
    )


def _cumulative(users: dict[str, Array]) -> Aggregates:
    per_look = next(iter(users.values())).shape[-1]
    num_looks = next(iter(users.values())).shape[1]
    count = np.arange(1, num_looks + 1) * float(per_look)
    sums = {name: array.sum(-1).cumsum(1) for name, array in users.items()}

    def covariance(left: str, right: str) -> Array:
        product = (users[left] * users[right]).sum(-1).cumsum(1)
        return np.asarray((product - sums[left] * sums[right] / count) / (count - 1))

    return _made(np.broadcast_to(count, sums["m"].shape), {name: one / count for name, one in sums.items()}, covariance)


def _made(count: Any, means: dict[str, Array], covariance: Callable[[str, str], Array]) -> Aggregates:
    names = sorted(means)
    pairs = [(left, right) for left in names for right in names if left < right]
    return Aggregates(
        count, means, {name: covariance(name, name) for name in names}, {pair: covariance(*pair) for pair in pairs}
    )


def _stacked(found: list[Aggregates]) -> Aggregates:
    count = np.array([one.count() for one in found], dtype=float)
    mean = np.stack([np.asarray(one.mean("m")) for one in found], axis=1)
    variance = np.stack([np.asarray(one.var("m")) for one in found], axis=1)
    return Aggregates(np.broadcast_to(count, mean.shape), {"m": mean}, {"m": variance})  # type: ignore[arg-type]
