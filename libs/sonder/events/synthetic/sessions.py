"""Sessions of one part: when each begins, which interest and which line of items it is about, and its pages.

A session stays with the interest of the session before with probability 1/2 and with the line last looked at in its
leaf with probability 3/4; otherwise both are drawn afresh, the interest by its weight, the line by its popularity.
A session lasts at most 36 minutes and ends on the day it began.
Legend: S sessions (by user, then time), P pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sonder.events.synthetic.catalogue import Catalogue
from sonder.events.synthetic.config import DAY_MS, WorldConfig
from sonder.events.synthetic.people import ACTIVE, NUM_SLOTS, People
from sonder.events.synthetic.taxonomy import NUM_LEAVES

STAY_WITH_INTEREST = 0.5
STAY_WITH_LINE = 0.75
PAGES_SHARES = (0.45, 0.25, 0.14, 0.08, 0.05, 0.03)  # one to six pages a session
MEAN_PAGES = sum((pages + 1) * share for pages, share in enumerate(PAGES_SHARES))
SURFACES = ("home", "search", "related")
SURFACE_SHARES = (0.5, 0.25, 0.25)
DAY_PARTS = ((7.5, 1.5), (12.5, 1.5), (20.0, 2.0), (23.5, 1.5))  # centre and spread in hours
EVEN_SHARE = 0.06  # of a day part's sessions that fall on any hour
HOUR_QUANTILES = 512
SHORTEST_PAGE_MS, LONGEST_PAGE_MS = 30_000, 240_000


@dataclass(frozen=True)
class Sessions:
    """S sessions and their P pages."""

    user: NDArray[np.int64]  # [S] row in the part
    day: NDArray[np.int64]  # [S]
    leaves: NDArray[np.int32]  # [S, J] what the user likes on this day, -1 for none
    focus_leaf: NDArray[np.int32]  # [S]
    focus_line: NDArray[np.int32]  # [S]
    page_session: NDArray[np.int64]  # [P] row of the session
    page_surface: NDArray[np.int8]  # [P] index in SURFACES
    page_ms: NDArray[np.int64]  # [P] when the page was shown, since the start of the log


def draw_sessions(rng: np.random.Generator, config: WorldConfig, catalogue: Catalogue, people: People) -> Sessions:
    """The sessions of a part, by user, then time."""
    rate_UD = np.stack([people.daily_rate(day) for day in range(config.num_days)], axis=1)
    count_UD = rng.poisson(np.where(people.state == ACTIVE, rate_UD, 0.0)) + people.arrives
    cell = np.repeat(np.arange(count_UD.size), count_UD.ravel())
    user, day = np.divmod(cell, config.num_days)
    start_ms = draw_start_ms(rng, people.day_parts[user])
    order = np.lexsort((start_ms, cell))  # user and day already ascend
    start_ms = start_ms[order] + day * DAY_MS

    leaves = people.leaves_at(day, user)
    slot = _slots(rng, leaves, people.weight[user], user)
    focus_leaf = leaves[np.arange(len(user)), slot]
    focus_line = _lines(rng, catalogue, user, focus_leaf, day // 7)

    num_pages = 1 + rng.choice(len(PAGES_SHARES), len(user), p=PAGES_SHARES)
    page_session = np.repeat(np.arange(len(user)), num_pages)
    is_first = np.append(True, page_session[1:] != page_session[:-1])
    dwell = SHORTEST_PAGE_MS + (60_000 * rng.standard_exponential(len(page_session))).astype(np.int64)
    elapsed = np.cumsum(np.minimum(dwell, LONGEST_PAGE_MS))
    page_ms = start_ms[page_session] + elapsed - elapsed[is_first][page_session]
    surface = rng.choice(len(SURFACES), len(page_session), p=SURFACE_SHARES).astype(np.int8)
    return Sessions(user, day, leaves, focus_leaf, focus_line, page_session, surface, page_ms)


def hour_quantiles() -> NDArray[np.int64]:
    """Hour of the day at each quantile of each part of the day [P, M]."""
    hours = np.arange(24)
    tables = []
    for centre, spread in DAY_PARTS:
        distance = np.minimum(np.abs(hours + 0.5 - centre), 24 - np.abs(hours + 0.5 - centre))
        share = np.exp(-0.5 * (distance / spread) ** 2)
        share = EVEN_SHARE / 24 + (1 - EVEN_SHARE) * share / share.sum()
        middles = (np.arange(HOUR_QUANTILES) + 0.5) / HOUR_QUANTILES
        tables.append(np.searchsorted(np.cumsum(share), middles).clip(0, 23))
    return np.stack(tables)


def draw_start_ms(rng: np.random.Generator, day_parts_SP: NDArray[np.float64]) -> NDArray[np.int64]:
    """Milliseconds since midnight [S]; late enough to end before the next."""
    num = len(day_parts_SP)
    part = (rng.random(num)[:, None] >= np.cumsum(day_parts_SP, axis=1)[:, :-1]).sum(axis=1)
    hour = hour_quantiles()[part, rng.integers(0, HOUR_QUANTILES, num)]
    minutes = rng.random(num) * np.where(hour == 23, 20.0, 60.0)
    start_ms: NDArray[np.int64] = hour * 3_600_000 + (minutes * 60_000).astype(np.int64)
    return start_ms


def _slots(
    rng: np.random.Generator, leaves_SJ: NDArray[np.int32], weight_SJ: NDArray[np.float64], user: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Slot of the interest of each session [S]."""
    num = len(user)
    cumulative = np.cumsum(np.where(leaves_SJ >= 0, weight_SJ, 0.0), axis=1)
    fresh = (rng.random(num)[:, None] * cumulative[:, -1:] >= cumulative[:, :-1]).sum(axis=1)
    stays = rng.random(num) < STAY_WITH_INTEREST
    stays &= np.append(False, user[1:] == user[:-1])
    kept = fresh[_last_fresh(stays)]
    assert kept.size == 0 or kept.max() < NUM_SLOTS
    still_liked = leaves_SJ[np.arange(num), kept] >= 0
    slot: NDArray[np.int64] = np.where(still_liked, kept, fresh)
    return slot


def _lines(
    rng: np.random.Generator,
    catalogue: Catalogue,
    user: NDArray[np.int64],
    leaf: NDArray[np.int32],
    week: NDArray[np.int64],
) -> NDArray[np.int32]:
    """Line of each session [S]: a chain over the sessions of one user in one leaf."""
    item = catalogue.by_leaf[week, leaf, rng.integers(0, catalogue.by_leaf.shape[2], len(user))]
    chain = user * NUM_LEAVES + leaf
    order = np.argsort(chain, kind="stable")
    stays = (rng.random(len(user)) < STAY_WITH_LINE)[order]
    stays &= np.append(False, chain[order][1:] == chain[order][:-1])
    line = np.empty(len(user), dtype=np.int32)
    line[order] = catalogue.line[item][order][_last_fresh(stays)]
    return line


def _last_fresh(stays: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each row, the newest row up to it that does not stay [S]."""
    newest: NDArray[np.int64] = np.maximum.accumulate(np.where(stays, 0, np.arange(len(stays))))
    return newest
