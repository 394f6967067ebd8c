"""The true effect of one policy instead of another: expectations under the choice model, nothing counted from events.

A user's number in an experiment is a function of the visits in a window that begins with the first of them. Visits do
not depend on what is shown, so given the visits the expectation under each policy is exact; `true_effect` averages it
over as many draws of visits as it is handed, and both policies see the same ones, so the ratio is known to far more
digits than either number.
Legend: U users, K places, M lists of which each visit sees one at random, R draws of visits.
Limits: conversion, count, value and ratio. Retention and times to an event rest on visits, which no policy changes.
An action counts with its list, although it follows seconds later: the few that pass the end of a window count too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sonder.events.synthetic.actions import IRRELEVANT_SECONDS, RELEVANT_SECONDS, SECONDS_SPREAD
from sonder.events.synthetic.choices import Chances, choice_chances
from sonder.events.synthetic.config import DAY_MS
from sonder.events.synthetic.people import ACTIVE, AWAY, RETURN_PER_DAY, SHARE_LAPSING_FOR_GOOD
from sonder.events.synthetic.visits import NO_ITEM, Visits, World

Policy = NDArray[np.int32]  # [U, K] what each user is shown, or [U, M, K]: one of M lists, drawn anew at each visit


class Metric(Protocol):
    """What is read of an experiment's metric (sonder.experiments.specification.MetricSpec is one)."""

    @property
    def kind(self) -> str: ...
    @property
    def action(self) -> str | None: ...
    @property
    def per(self) -> str | None: ...
    @property
    def within_days(self) -> float | None: ...


@dataclass(frozen=True)
class TrueEffect:
    """Expected means over the exposed users; of a ratio, the ratio of the sums."""

    a: float
    b: float
    num_users: float  # with a full window, on average over the draws of visits

    @property
    def difference(self) -> float:
        return self.b - self.a

    @property
    def relative(self) -> float:
        return self.b / self.a - 1


def true_effect(
    world: World,
    policy_a: Policy,
    policy_b: Policy,
    metric: Metric,
    visits: Iterable[Visits],
    *,
    start_ms: int,
    until_ms: int,
    decay: float = 0.0,
) -> TrueEffect:
    """Of showing B instead of A to everybody whose first visit after `start_ms` has its window over at `until_ms`."""
    assert metric.within_days is not None, "the kinds below have a window"
    per_visit = [expected_per_visit(world, policy, metric, decay=decay) for policy in (policy_a, policy_b)]
    sums, num_exposed, num_draws = np.zeros((2, 2)), 0, 0
    for drawn in visits:
        count_U = visits_in_window(drawn, world.people.num_users, start_ms, until_ms, metric.within_days)
        num_exposed, num_draws = num_exposed + int((count_U > 0).sum()), num_draws + 1
        for arm, (number_U, per_U) in enumerate(per_visit):
            sums[arm] += _sum(metric, count_U, number_U), float(count_U @ per_U)
    below = sums[:, 1] if metric.kind == "ratio" else np.full(2, num_exposed)
    a, b = (sums[:, 0] / below).tolist()
    return TrueEffect(a, b, num_exposed / num_draws)


def expected_per_visit(
    world: World, policy: Policy, metric: Metric, *, decay: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of one visit after the log's end [U], and the same of a ratio's denominator (0 for the other kinds).

    Of a conversion it is the chance that the visit has none.
    """
    lists = policy if policy.ndim == 3 else policy[:, None, :]
    num_users, num_lists, num_places = lists.shape
    user = np.repeat(np.arange(num_users), num_lists)
    day = np.full(len(user), world.config.num_days)
    item = lists.reshape(-1, num_places)
    chances = choice_chances(world, user, day, item, decay=decay)

    def mean(each_N: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(each_N.reshape(num_users, num_lists).mean(axis=1))

    none = np.zeros(num_users)
    assert metric.action is not None
    expected = _expected(chances, item, metric.action)
    match metric.kind:
        case "count":
            return mean(expected.sum(axis=1)), none
        case "value":
            return mean((expected * _worth(world, chances, item, metric.action)).sum(axis=1)), none
        case "conversion":
            return mean((1 - expected).prod(axis=1)), none
        case "ratio":
            assert metric.per is not None
            return mean(expected.sum(axis=1)), mean(_expected(chances, item, metric.per).sum(axis=1))
    raise ValueError(f"found a {metric.kind} metric, expected conversion, count, value or ratio")


def visits_in_window(
    visits: Visits, num_users: int, start_ms: int, until_ms: int, within_days: float
) -> NDArray[np.int64]:
    """Visits [U] in the window that begins with the first from `start_ms` on; 0 if none, or not over at `until_ms`."""
    after = visits.of(visits.time_ms >= start_ms)
    first_U = np.full(num_users, np.iinfo(np.int64).max)
    np.minimum.at(first_U, after.user, after.time_ms)
    length_ms = round(within_days * DAY_MS)
    counts = after.time_ms - first_U[after.user] < length_ms
    is_mature = first_U <= until_ms - length_ms
    found: NDArray[np.int64] = np.where(is_mature, np.bincount(after.user[counts], minlength=num_users), 0)
    return found


def expected_visits(world: World, num_days: int) -> NDArray[np.float64]:
    """Visits [U] in all on the days after the log's end: the forward pass of the chain that `draw_visits` draws."""
    people = world.people
    last = people.state[:, -1]
    active, away = (np.where(last == state, 1.0, 0.0) for state in (ACTIVE, AWAY))
    expected = np.zeros(people.num_users)
    for day in range(world.config.num_days, world.config.num_days + num_days):
        lapses, returns = active * people.lapse, away * RETURN_PER_DAY
        active = active - lapses + returns
        away = away - returns + lapses * (1 - SHARE_LAPSING_FOR_GOOD)
        expected += active * people.daily_rate(day) + returns
    return expected


def _sum(metric: Metric, count_U: NDArray[np.int64], number_U: NDArray[np.float64]) -> float:
    if metric.kind == "conversion":
        return float((1 - number_U**count_U).sum())
    return float(count_U @ number_U)


def _expected(chances: Chances, item_NK: NDArray[np.int32], action: str) -> NDArray[np.float64]:
    """Chance of an action at each place [N, K]; an impression is there wherever an item is."""
    return np.where(item_NK == NO_ITEM, 0.0, 1.0) if action == "impression" else chances.of(action)


def _worth(world: World, chances: Chances, item_NK: NDArray[np.int32], action: str) -> NDArray[np.float64]:
    """Expected value of an action at each place [N, K]: prices, or the mean of the lognormal seconds of a click."""
    if action == "buy":
        return world.catalogue.price[item_NK]
    if action == "click":
        median = np.where(chances.is_relevant, RELEVANT_SECONDS, IRRELEVANT_SECONDS)
        return np.asarray(median * np.exp(SECONDS_SPREAD**2 / 2))
    return np.zeros(item_NK.shape)
