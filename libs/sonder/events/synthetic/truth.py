"""What is true about the people, by the process that made them; nothing here is counted from the events.

interests   user_id, category, weight, from, to: the share of an interest at a time is its weight over the sum of the
            weights of the user's interests that hold at that time
lifecycle   user_id, tier, state (active, away, left), began (before, joined, returned, lapsed, left), from, to,
            sessions_per_day, events_per_day (expected, as of the start of the period): one row per period
scores      user_id, cutoff, state, buy_7d, churn_14d: probabilities given the hidden state when the day before the
            cutoff ended, for everyone who has joined by then. No model can rank better than these, on average
attainable  user_id, cutoff, buy_7d, churn_14d: what can be known of that from the events before the cutoff, for the
            people of the first part (observer.py)

The probabilities come from a forward pass over the window's days through the states active, away, left. A day in the
active state has a Poisson number of sessions, so a day without (a buying) session has probability
exp(-rate * (1 - g)), g being the chance that a session has none; the day of a return has one more session, a factor g.
Approximation: interests are taken as they are at the cutoff; those that turn within the window are not foreseen.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sonder.events.contract import TIMESTAMP_TYPE, Col
from sonder.events.synthetic.actions import (
    FROM_FOCUS,
    IRRELEVANT_BUY_FACTOR,
    IRRELEVANT_CLICK,
    IRRELEVANT_SAVE,
    ITEMS_PER_PAGE,
    RELEVANT_CLICK,
    RELEVANT_SAVE,
)
from sonder.events.synthetic.catalogue import Catalogue
from sonder.events.synthetic.config import DAY_MS, START, WorldConfig
from sonder.events.synthetic.people import (
    ABSENT,
    ACTIVE,
    AWAY,
    LEFT,
    RETURN_PER_DAY,
    SHARE_LAPSING_FOR_GOOD,
    TIERS,
    People,
)
from sonder.events.synthetic.sessions import MEAN_PAGES, PAGES_SHARES, SURFACE_SHARES
from sonder.events.synthetic.taxonomy import LEAVES

STATES = ("absent", "active", "away", "left")
BUY_DAYS, CHURN_DAYS = 7, 14
CUTOFF_DAYS_BEFORE_END = (7, 14, 21, 28, 30)


def interests_table(config: WorldConfig, people: People, user_ids: pa.Array) -> pa.Table:
    """One row per interest that held for at least a day of the log."""
    turns = people.leaf[:, :, 0] != people.leaf[:, :, 1]
    start = np.zeros(people.leaf.shape, dtype=np.int64)
    start[:, :, 1] = people.change_day
    end = np.full(people.leaf.shape, config.num_days, dtype=np.int64)
    end[:, :, 0] = np.where(turns, people.change_day, config.num_days)
    holds = people.leaf >= 0
    holds[:, :, 1] &= turns  # a steady slot is one row
    user, slot, phase = np.nonzero(holds)
    return pa.table(
        {
            Col.USER_ID: user_ids.take(pa.array(user)),
            Col.CATEGORY: pa.array(LEAVES).take(pa.array(people.leaf[user, slot, phase])),
            "weight": pa.array(people.weight[user, slot]),
            "from": midnights(start[user, slot, phase]),
            "to": midnights(end[user, slot, phase]),
        }
    )


def lifecycle_table(config: WorldConfig, catalogue: Catalogue, people: People, user_ids: pa.Array) -> pa.Table:
    """One row per period of a user in one state, by user, then time; people who join later have no row before."""
    state = people.state
    begins = np.ones(state.shape, dtype=np.bool_)
    begins[:, 1:] = state[:, 1:] != state[:, :-1]
    user, day = np.nonzero(begins & (state != ABSENT))
    is_last = np.append(user[1:] != user[:-1], True)
    end = np.where(is_last, config.num_days, np.append(day[1:], config.num_days))
    kind = state[user, day]
    is_active = kind == ACTIVE
    joined = people.joined_day[user]
    began = np.select(
        [is_active & (day == joined), is_active & (day == 0) & (joined < 0), is_active, kind == AWAY],
        ["joined", "before", "returned", "lapsed"],
        "left",
    )
    sessions_per_day = np.where(is_active, people.rate[user], 0.0)
    return pa.table(
        {
            Col.USER_ID: user_ids.take(pa.array(user)),
            "tier": pa.array(TIERS).take(pa.array(people.tier[user])),
            "state": pa.array(STATES).take(pa.array(kind)),
            "began": pa.array(began),
            "from": midnights(day),
            "to": midnights(end),
            "sessions_per_day": pa.array(sessions_per_day),
            "events_per_day": pa.array(sessions_per_day * events_per_session(catalogue, people, day, user)),
        }
    )


def scores_table(config: WorldConfig, catalogue: Catalogue, people: People, user_ids: pa.Array) -> pa.Table:
    """One row per cutoff and user who had joined by then."""
    parts = []
    for cutoff in cutoff_days(config):
        buying = chance_of_buying_session(catalogue, people, cutoff)
        no_buy = chance_of_none(people, cutoff, BUY_DAYS, 1 - buying)
        no_visit = chance_of_none(people, cutoff, CHURN_DAYS, np.zeros(people.num_users))
        row = np.flatnonzero(people.state[:, cutoff - 1] != ABSENT)
        parts.append(
            pa.table(
                {
                    Col.USER_ID: user_ids.take(pa.array(row)),
                    "cutoff": midnights(np.full(len(row), cutoff)),
                    "state": pa.array(STATES).take(pa.array(people.state[row, cutoff - 1])),
                    f"buy_{BUY_DAYS}d": pa.array(1 - no_buy[row]),
                    f"churn_{CHURN_DAYS}d": pa.array(no_visit[row]),
                }
            )
        )
    return pa.concat_tables(parts)


def cutoff_days(config: WorldConfig) -> list[int]:
    """Days of the log at whose start the scores are asked for, ascending."""
    return sorted(config.num_days - days for days in CUTOFF_DAYS_BEFORE_END if days < config.num_days)


def chance_of_none(
    people: People, cutoff_day: int, num_days: int, none_in_session: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Chance [U] that no session of the window has it, given the state of the day before the cutoff."""
    before = people.state[:, cutoff_day - 1]
    active, away, left = (np.where(before == state, 1.0, 0.0) for state in (ACTIVE, AWAY, LEFT))
    for day in range(cutoff_day, cutoff_day + num_days):
        none_today = np.exp(-people.daily_rate(day) * (1 - none_in_session))
        lapses, returns = active * people.lapse, away * RETURN_PER_DAY
        active = (active - lapses + returns * none_in_session) * none_today
        away = away - returns + lapses * (1 - SHARE_LAPSING_FOR_GOOD)
        left = left + lapses * SHARE_LAPSING_FOR_GOOD
    return active + away + left


def chance_of_buying_session(catalogue: Catalogue, people: People, day: int) -> NDArray[np.float64]:
    """Chance [U] that a session of an active person on this day ends in at least one purchase."""
    everyone = np.arange(people.num_users)
    relevant_UF = relevant_share(catalogue, people, np.full(people.num_users, day), everyone)
    buys_if_relevant = people.click * RELEVANT_CLICK * people.buy
    buys_otherwise = people.click * IRRELEVANT_CLICK * people.buy * IRRELEVANT_BUY_FACTOR
    buys_UF = relevant_UF * buys_if_relevant[:, None] + (1 - relevant_UF) * buys_otherwise[:, None]
    none_on_page = (1 - buys_UF) ** ITEMS_PER_PAGE @ np.asarray(SURFACE_SHARES)
    none = sum(share * none_on_page ** (pages + 1) for pages, share in enumerate(PAGES_SHARES))
    return np.asarray(1 - none)


def events_per_session(
    catalogue: Catalogue, people: People, day: NDArray[np.int64], user: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Expected events of a session [N] of each user on each day."""
    relevant = relevant_share(catalogue, people, day, user) @ np.asarray(SURFACE_SHARES)
    click, buy, hide = people.click[user], people.buy[user], people.hide[user]
    liked = relevant * click * RELEVANT_CLICK * (1 + RELEVANT_SAVE + buy)
    odd_click = click * IRRELEVANT_CLICK
    odd = (1 - relevant) * (odd_click * (1 + IRRELEVANT_SAVE + IRRELEVANT_BUY_FACTOR * buy) + (1 - odd_click) * hide)
    expected: NDArray[np.float64] = MEAN_PAGES * ITEMS_PER_PAGE * (1 + liked + odd)
    return expected


def relevant_share(
    catalogue: Catalogue, people: People, day: NDArray[np.int64], user: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Chance [N, surfaces] that an impression is relevant: all from the focus are, others by chance."""
    padded_WC = np.pad(catalogue.leaf_share, ((0, 0), (0, 1)))  # an empty slot (-1) reads the last column
    by_chance = padded_WC[(day // 7)[:, None], people.leaves_at(day, user)].sum(axis=1, keepdims=True)
    relevant: NDArray[np.float64] = FROM_FOCUS + (1 - FROM_FOCUS) * by_chance
    return relevant


def midnights(day: NDArray[np.integer]) -> pa.Array:
    """Midnight at the start of each day of the log."""
    us = int(START.timestamp()) * 1_000_000 + day.astype(np.int64) * (DAY_MS * 1_000)
    return pa.array(us).cast(TIMESTAMP_TYPE)
