"""The people of one part of the world: how often they come, what they like, when they join, lapse and return.

Lifecycle is a chain of days. A person joins (or was there before the log), is *active*, lapses with a small chance
every day, either for good (*left*) or for a while (*away*) with a constant chance of returning each day. An active
person has a Poisson number of sessions a day; the day of joining and each day of return have one more for certain.
Interests are up to four slots with a weight; a slot keeps its leaf, turns to another, begins or ends on its change day.
Legend: U users, D days, J = 4 slots, 2 phases (before and after the change day), P = 4 parts of the day.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sonder.events.synthetic.catalogue import Catalogue
from sonder.events.synthetic.config import START_WEEKDAY, WorldConfig
from sonder.events.synthetic.taxonomy import LEAVES_PER_DEPARTMENT, NUM_LEAVES

ABSENT, ACTIVE, AWAY, LEFT = 0, 1, 2, 3
TIERS = ("core", "casual", "marginal")
TIER_SHARES = (0.2, 0.4, 0.4)
SESSIONS_PER_DAY = (0.42, 0.14, 0.045)  # medians; the lognormal spread makes the tail heavy
MAX_SESSIONS_PER_DAY = 8.0
LAPSE_PER_DAY = (0.004, 0.009, 0.013)
SHARE_LAPSING_FOR_GOOD = 0.45
RETURN_PER_DAY = 0.03
SHARE_JOINED_BEFORE = 0.55
NUM_SLOTS = 4
SLOTS_SHARES = (0.2, 0.35, 0.3, 0.15)  # one to four interests
STEADY, TURNS, BEGINS, ENDS = 0, 1, 2, 3
CHANGE_SHARES = (0.4, 0.25, 0.2, 0.15)
HOME_DEPARTMENT_BONUS = 4.0
WORKDAY_RHYTHM = np.array([1.15, 1.1, 1.1, 1.05, 1.0, 0.8, 0.8])  # Monday first, mean 1
WEEKEND_RHYTHM = np.array([0.7, 0.6, 0.6, 0.7, 1.1, 1.7, 1.6])


@dataclass(frozen=True)
class People:
    """U people of one part."""

    number: NDArray[np.int64]  # [U]
    tier: NDArray[np.int8]  # [U]
    rate: NDArray[np.float64]  # [U] sessions on an average active day
    weekendness: NDArray[np.float64]  # [U] 0 all workday rhythm, 1 all weekend rhythm
    day_parts: NDArray[np.float64]  # [U, P] preferred part of the day, sums to 1
    lapse: NDArray[np.float64]  # [U] chance per active day
    state: NDArray[np.int8]  # [U, D]
    arrives: NDArray[np.bool_]  # [U, D] joins or returns on this day
    joined_day: NDArray[np.int64]  # [U] negative: before the log
    leaf: NDArray[np.int32]  # [U, J, 2] before and after the change day, -1 for none
    weight: NDArray[np.float64]  # [U, J]
    change_day: NDArray[np.int32]  # [U, J]
    click: NDArray[np.float64]  # [U] multiplier of the chance to click
    buy: NDArray[np.float64]  # [U] chance to buy a relevant item that was clicked
    hide: NDArray[np.float64]  # [U] chance to hide an irrelevant impression

    @property
    def num_users(self) -> int:
        return len(self.number)

    def daily_rate(self, day: int) -> NDArray[np.float64]:
        """Expected sessions [U] of an active person on a day, counted from the start (or beyond the end) of the log."""
        weekday = (START_WEEKDAY + day) % 7
        workday = (1 - self.weekendness) * WORKDAY_RHYTHM[weekday]
        rate: NDArray[np.float64] = self.rate * (workday + self.weekendness * WEEKEND_RHYTHM[weekday])
        return rate

    def leaves_at(self, day: NDArray[np.int64], user: NDArray[np.int64]) -> NDArray[np.int32]:
        """Leaves [N, J] that each user likes on each day; -1 for an empty slot."""
        phase = (day[:, None] >= self.change_day[user]).astype(np.int64)
        picked: NDArray[np.int32] = np.take_along_axis(self.leaf[user], phase[:, :, None], axis=2)[:, :, 0]
        return picked


def build_people(config: WorldConfig, catalogue: Catalogue, part: int) -> People:
    """The people of one part."""
    rng = config.generator(1, part)
    number = np.asarray(config.users_of(part), dtype=np.int64)
    num = len(number)
    tier = rng.choice(len(TIERS), num, p=TIER_SHARES).astype(np.int8)
    rate = np.asarray(SESSIONS_PER_DAY)[tier] * np.exp(0.6 * rng.standard_normal(num))
    lapse = np.asarray(LAPSE_PER_DAY)[tier] * np.exp(0.4 * rng.standard_normal(num))
    state, arrives, joined_day = _live(rng, config.num_days, lapse)
    leaf, weight, change_day = _interests(rng, config.num_days, catalogue.leaf_weight, num)
    day_parts = rng.standard_gamma(0.4, (num, 4)) + 0.02
    return People(
        number=number,
        tier=tier,
        rate=np.minimum(rate, MAX_SESSIONS_PER_DAY),
        weekendness=rng.beta(0.8, 0.8, num),
        day_parts=day_parts / day_parts.sum(axis=1, keepdims=True),
        lapse=lapse,
        state=state,
        arrives=arrives,
        joined_day=joined_day,
        leaf=leaf,
        weight=weight,
        change_day=change_day,
        click=np.clip(np.exp(0.35 * rng.standard_normal(num)), 0.3, 2.0),
        buy=np.clip(0.06 * np.exp(0.9 * rng.standard_normal(num)), 0.0, 0.6),
        hide=np.clip(0.04 * np.exp(0.8 * rng.standard_normal(num)), 0.0, 0.5),
    )


def pass_day(rng: np.random.Generator, state: NDArray[np.int8], lapse: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Move the states [U] of people by one day, in place -> who returned [U]."""
    chance, kind = rng.random(len(state)), rng.random(len(state))
    lapses = (state == ACTIVE) & (chance < lapse)
    returns: NDArray[np.bool_] = (state == AWAY) & (chance < RETURN_PER_DAY)
    state[lapses] = np.where(kind[lapses] < SHARE_LAPSING_FOR_GOOD, LEFT, AWAY)
    state[returns] = ACTIVE
    return returns


def _live(
    rng: np.random.Generator, num_days: int, lapse: NDArray[np.float64]
) -> tuple[NDArray[np.int8], NDArray[np.bool_], NDArray[np.int64]]:
    """Run the chain of days -> state [U, D], arrival [U, D], day of joining [U]."""
    num = len(lapse)
    was_there = rng.random(num) < SHARE_JOINED_BEFORE
    before = -1 - (200 * rng.standard_exponential(num)).astype(np.int64)
    joined_day = np.where(was_there, before, rng.integers(0, num_days, num))
    state_DU = np.empty((num_days, num), dtype=np.int8)
    arrives_DU = np.empty((num_days, num), dtype=np.bool_)
    state = np.where(was_there, ACTIVE, ABSENT).astype(np.int8)
    for day in range(num_days):
        arrives_DU[day] = pass_day(rng, state, lapse) | (joined_day == day)
        state[arrives_DU[day]] = ACTIVE
        state_DU[day] = state
    return np.ascontiguousarray(state_DU.T), np.ascontiguousarray(arrives_DU.T), joined_day


def _interests(
    rng: np.random.Generator, num_days: int, leaf_weight: NDArray[np.float64], num: int
) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.int32]]:
    """Leaves [U, J, 2], weights [U, J] and change days [U, J]; leaves of a user are distinct."""
    home = rng.integers(0, NUM_LEAVES // LEAVES_PER_DEPARTMENT, num)
    in_home = (np.arange(NUM_LEAVES) // LEAVES_PER_DEPARTMENT)[None, :] == home[:, None]
    taste = leaf_weight * np.where(in_home, HOME_DEPARTMENT_BONUS, 1.0)
    race = rng.standard_exponential((num, NUM_LEAVES)) / taste  # the first 8 to arrive: a draw without replacement
    first = np.argpartition(race, 2 * NUM_SLOTS, axis=1)[:, : 2 * NUM_SLOTS]
    first = np.take_along_axis(first, np.argsort(np.take_along_axis(race, first, axis=1), axis=1), axis=1)
    leaf = np.stack([first[:, :NUM_SLOTS], first[:, NUM_SLOTS:]], axis=2).astype(np.int32)

    kind = rng.choice(4, (num, NUM_SLOTS), p=CHANGE_SHARES)
    kind[:, 0] = np.where(kind[:, 0] <= TURNS, kind[:, 0], STEADY)  # the first slot is never empty
    leaf[:, :, 1] = np.where(kind == STEADY, leaf[:, :, 0], leaf[:, :, 1])
    leaf[:, :, 0][kind == BEGINS] = -1
    leaf[:, :, 1][kind == ENDS] = -1
    num_slots = rng.choice(np.arange(1, NUM_SLOTS + 1), num, p=SLOTS_SHARES)
    leaf[np.arange(NUM_SLOTS)[None, :] >= num_slots[:, None]] = -1
    weight = rng.standard_gamma(1.5, (num, NUM_SLOTS)) + 0.15
    change_day = rng.integers(int(0.15 * num_days), int(0.9 * num_days), (num, NUM_SLOTS), dtype=np.int32)
    return leaf, weight, change_day
