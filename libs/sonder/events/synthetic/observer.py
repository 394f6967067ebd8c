"""What the log itself can tell: the probabilities of an observer who knows how people are made, but none of them.

The truth's scores know each person's hidden state and habits; no reader of a log can. This observer sees the events
before a cutoff and knows the process: it weighs K people drawn from the same population by how likely each would have
left these events, runs a forward filter over the hidden states for each of them, and averages what they would do next.
A model that read everything out of the log would be about as good, so a score is measured against these numbers.

Shapes: U users, K drawn people, D days.
Source: forward filtering of a hidden Markov chain with Poisson emissions; the habits by importance weights.
Limits: it counts sessions as they were, where a log shows pages; habits of visiting and of buying are weighed apart,
the first by the sessions of each day, the second by impressions, clicks and purchases in all; categories, hours and
surfaces are not looked at. Importance weights over 400 people are coarse for somebody unusual.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import gammaln

from sonder.events.contract import Col
from sonder.events.synthetic.actions import (
    ACTIONS,
    IRRELEVANT_BUY_FACTOR,
    IRRELEVANT_CLICK,
    RELEVANT_CLICK,
    Actions,
)
from sonder.events.synthetic.catalogue import Catalogue
from sonder.events.synthetic.config import DAY_MS, WorldConfig
from sonder.events.synthetic.people import (
    RETURN_PER_DAY,
    SHARE_JOINED_BEFORE,
    SHARE_LAPSING_FOR_GOOD,
    People,
    build_people,
)
from sonder.events.synthetic.sessions import SURFACE_SHARES, Sessions
from sonder.events.synthetic.truth import (
    BUY_DAYS,
    CHURN_DAYS,
    chance_of_buying_session,
    cutoff_days,
    midnights,
    relevant_share,
)

NUM_DRAWN = 400  # people that stand for the population of visiting habits
NUM_BUYERS = 3_000  # and of buying habits
BLOCK_USERS = 512


def attainable_table(
    config: WorldConfig, catalogue: Catalogue, sessions: Sessions, actions: Actions, user_ids: pa.Array
) -> pa.Table:
    """user_id, cutoff, buy_7d, churn_14d: one row per cutoff and user with a session before it."""
    num_users = len(user_ids)
    counts_UD = np.zeros((num_users, config.num_days), dtype=np.int64)
    np.add.at(counts_UD, (sessions.user, sessions.day), 1)
    drawn = build_people(WorldConfig(NUM_DRAWN, config.num_days, config.seed + 1), catalogue, 0)
    buyers = build_people(WorldConfig(NUM_BUYERS, config.num_days, config.seed + 2), catalogue, 0)
    cutoffs = cutoff_days(config)
    no_buy_CU = np.stack([_no_buy_in_session(catalogue, buyers, actions, num_users, day) for day in cutoffs])
    chances = np.empty((2, len(cutoffs), num_users))
    for start in range(0, num_users, BLOCK_USERS):
        block = slice(start, start + BLOCK_USERS)
        chances[:, :, block] = chances_of_none(drawn, counts_UD[block], cutoffs, no_buy_CU[:, block])
    parts = []
    for place, day in enumerate(cutoffs):
        row = np.flatnonzero(counts_UD[:, :day].sum(axis=1))
        columns = {
            Col.USER_ID: user_ids.take(pa.array(row)),
            "cutoff": midnights(np.full(len(row), day)),
            f"buy_{BUY_DAYS}d": pa.array(1 - chances[0, place, row]),
            f"churn_{CHURN_DAYS}d": pa.array(chances[1, place, row]),
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def chances_of_none(
    drawn: People, counts_UD: NDArray[np.int64], cutoffs: list[int], no_buy_CU: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Chances [2, C, U] that no session of the window buys, and that there is none, at ascending cutoffs.

    `counts_UD` are the sessions of each day; what lies at or after a cutoff does not change its numbers.
    """
    num_users = len(counts_UD)
    first_U = np.where(counts_UD.any(axis=1), (counts_UD > 0).argmax(axis=1), counts_UD.shape[1])
    told, weighed = np.zeros((2, len(cutoffs), num_users)), np.zeros((len(cutoffs), num_users))
    filters = [_Filter(drawn, np.full(num_users, -1)), _Filter(drawn, first_U)]  # was there before, or came that day
    priors = (SHARE_JOINED_BEFORE, (1 - SHARE_JOINED_BEFORE) / counts_UD.shape[1])
    for day in range(cutoffs[-1] + 1):
        if day in cutoffs:
            place = cutoffs.index(day)
            logs = [np.log(prior) + filtered.log_likely for prior, filtered in zip(priors, filters, strict=True)]
            highest = np.maximum(*(log.max(axis=1, keepdims=True) for log in logs))
            for log, filtered in zip(logs, filters, strict=True):
                weights = np.exp(log - highest)
                weighed[place] += weights.sum(axis=1)
                for score, (num_days, none) in enumerate(((BUY_DAYS, no_buy_CU[place]), (CHURN_DAYS, None))):
                    told[score, place] += (weights * filtered.none_within(day, num_days, none)).sum(axis=1)
        if day < cutoffs[-1]:
            for filtered in filters:
                filtered.step(day, counts_UD[:, day])
    return told / weighed


class _Filter:
    """Posterior of active and away [U, K] after each day, for people who came on `joined` (-1: before the log)."""

    def __init__(self, drawn: People, joined_U: NDArray[np.int64]) -> None:
        shape = (len(joined_U), drawn.num_users)
        self.drawn, self.joined = drawn, joined_U
        self.active = np.broadcast_to((joined_U < 0)[:, None], shape).astype(np.float64)
        self.away = np.zeros(shape)
        self.log_likely = np.zeros(shape)

    def step(self, day: int, counts_U: NDArray[np.int64]) -> None:
        """Take in the sessions of one day."""
        rate = self.drawn.daily_rate(day)[None, :]
        counts = counts_U[:, None]
        usual = np.exp(counts * np.log(rate) - rate - gammaln(counts + 1))  # of an active day
        arriving = usual * counts / rate  # of a day that has one more for certain
        lapses, returns = self.active * self.drawn.lapse, self.away * RETURN_PER_DAY
        is_silent = counts == 0
        active = (self.active - lapses) * usual + returns * arriving
        away = (self.away - returns + lapses * (1 - SHARE_LAPSING_FOR_GOOD)) * is_silent
        left = (1 - self.active - self.away + lapses * SHARE_LAPSING_FOR_GOOD) * is_silent
        joins, is_here = (self.joined == day)[:, None], (self.joined <= day)[:, None]
        active, away = np.where(joins, arriving, active), np.where(joins, 0.0, away)
        total = np.where(is_here, np.maximum(active + away + np.where(joins, 0.0, left), 1e-300), 1.0)
        self.active, self.away = np.where(is_here, active / total, 0.0), np.where(is_here, away / total, 0.0)
        self.log_likely += np.log(total)

    def none_within(
        self, day: int, num_days: int, none_in_session_U: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """Chance [U, K] that no session of the days from `day` on has it; None: that there is no session."""
        none = 0.0 if none_in_session_U is None else none_in_session_U[:, None]
        active, away = self.active, self.away
        left = 1 - active - away
        for later in range(day, day + num_days):
            lapses, returns = active * self.drawn.lapse, away * RETURN_PER_DAY
            active = (active - lapses + returns * none) * np.exp(-self.drawn.daily_rate(later) * (1 - none))
            away = away - returns + lapses * (1 - SHARE_LAPSING_FOR_GOOD)
            left = left + lapses * SHARE_LAPSING_FOR_GOOD
        return active + away + left


def _no_buy_in_session(
    catalogue: Catalogue, buyers: People, actions: Actions, num_users: int, day: int
) -> NDArray[np.float64]:
    """Expected chance [U] that a session ends without a purchase, from what each user did with what it was shown."""
    seen = actions.time_ms < day * DAY_MS
    count = {
        name: np.bincount(actions.user[seen & (actions.action == ACTIONS.index(name))], minlength=num_users)[:, None]
        for name in ("impression", "click", "buy")
    }
    everyone = np.arange(buyers.num_users)
    relevant = relevant_share(catalogue, buyers, np.full(buyers.num_users, day), everyone) @ np.asarray(SURFACE_SHARES)
    liked, odd = relevant * RELEVANT_CLICK, (1 - relevant) * IRRELEVANT_CLICK
    clicks = np.clip(buyers.click * (liked + odd), 1e-12, 1 - 1e-12)
    buys = np.clip(buyers.buy * (liked + odd * IRRELEVANT_BUY_FACTOR) / (liked + odd), 1e-12, 1 - 1e-12)
    likely = count["click"] * np.log(clicks) + (count["impression"] - count["click"]) * np.log1p(-clicks)
    likely = likely + count["buy"] * np.log(buys) + (count["click"] - count["buy"]) * np.log1p(-buys)
    weights = np.exp(likely - likely.max(axis=1, keepdims=True))
    none = 1 - chance_of_buying_session(catalogue, buyers, day)
    expected: NDArray[np.float64] = (weights @ none) / weights.sum(axis=1)
    return expected
