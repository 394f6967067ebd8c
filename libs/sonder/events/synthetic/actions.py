"""What people do on the pages they see: impressions, and the clicks, saves, purchases and hides that follow.

A page shows four items. Each comes from the session's focus (its line or its leaf) or from anywhere, by the surface's
habit. An item is *relevant* if its leaf is one of the user's interests on that day. Relevant items are clicked with
probability `RELEVANT_CLICK` times the user's own factor, others with `IRRELEVANT_CLICK`; saves and purchases follow
clicks; hides fall on irrelevant items that were not clicked. `value` is the price of a purchase and the seconds of a
click. All impressions of a page carry the page's own time; an item may be shown twice on a page, though rarely.
Legend: S sessions, P pages, K = 4 items a page, N = P * K impressions, E events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sonder.events.synthetic.catalogue import Catalogue
from sonder.events.synthetic.people import People
from sonder.events.synthetic.sessions import Sessions

ITEMS_PER_PAGE = 4
ACTIONS = ("impression", "click", "save", "hide", "buy")
FROM_FOCUS = np.array([0.45, 0.85, 0.75])  # share of a page's items that come from the focus, by surface
FROM_LINE = np.array([0.40, 0.35, 0.80])  # share of those that come from the focus line
RELEVANT_CLICK, IRRELEVANT_CLICK = 0.38, 0.02
RELEVANT_SAVE, IRRELEVANT_SAVE = 0.20, 0.02
IRRELEVANT_BUY_FACTOR = 0.1
RELEVANT_SECONDS, IRRELEVANT_SECONDS, SECONDS_SPREAD = 25.0, 6.0, 0.8  # median, and sigma of the lognormal


@dataclass(frozen=True)
class Actions:
    """E events of one part, by time, ties in the order in which they were made."""

    time_ms: NDArray[np.int64]  # [E] since the start of the log
    user: NDArray[np.int64]  # [E] row in the part
    item: NDArray[np.int32]  # [E] row in the catalogue
    action: NDArray[np.int8]  # [E] index in ACTIONS
    page: NDArray[np.int64]  # [E]
    surface: NDArray[np.int8]  # [E] index in SURFACES
    value: NDArray[np.float64]  # [E] NaN where none


def draw_actions(rng: np.random.Generator, catalogue: Catalogue, people: People, sessions: Sessions) -> Actions:
    """Everything that happens in the sessions of a part."""
    item, session = _impressions(rng, catalogue, sessions)
    is_relevant = (sessions.leaves[session] == catalogue.leaf[item][:, None]).any(axis=1)
    user = sessions.user[session]
    chance = rng.random(len(item))
    clicked = chance < np.where(is_relevant, RELEVANT_CLICK, IRRELEVANT_CLICK) * people.click[user]
    hides = ~clicked & ~is_relevant & (rng.random(len(item)) < people.hide[user])
    click, hide = np.flatnonzero(clicked), np.flatnonzero(hides)
    liked, buyer = is_relevant[click], people.buy[user[click]]
    save = rng.random(len(click)) < np.where(liked, RELEVANT_SAVE, IRRELEVANT_SAVE)
    buy = rng.random(len(click)) < np.where(liked, buyer, IRRELEVANT_BUY_FACTOR * buyer)

    shown_ms = np.repeat(sessions.page_ms, ITEMS_PER_PAGE)
    click_ms = shown_ms[click] + rng.integers(2_000, 25_000, len(click))
    save_ms = click_ms[save] + rng.integers(1_000, 6_000, int(save.sum()))
    buy_ms = click_ms[buy] + rng.integers(20_000, 80_000, int(buy.sum()))
    hide_ms = shown_ms[hide] + rng.integers(2_000, 20_000, len(hide))
    seconds = draw_seconds(rng, liked)

    shown = np.arange(len(item))
    kinds = (shown, click, click[save], hide, click[buy])  # in the order of ACTIONS
    impression = np.concatenate(kinds)
    time_ms = np.concatenate((shown_ms, click_ms, save_ms, hide_ms, buy_ms))
    value = np.full(len(impression), np.nan)
    value[len(shown) : len(shown) + len(click)] = np.round(seconds, 1)
    value[len(impression) - int(buy.sum()) :] = catalogue.price[item[click[buy]]]
    action = np.repeat(np.arange(len(ACTIONS), dtype=np.int8), [len(kind) for kind in kinds])

    order = time_order(time_ms)
    impression = impression[order]
    page = impression // ITEMS_PER_PAGE
    return Actions(
        time_ms=time_ms[order],
        user=user[impression],
        item=item[impression],
        action=action[order],
        page=page,
        surface=sessions.page_surface[page],
        value=value[order],
    )


def draw_seconds(rng: np.random.Generator, is_relevant: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How long a click on each item [E] lasts, in seconds."""
    median = np.where(is_relevant, RELEVANT_SECONDS, IRRELEVANT_SECONDS)
    return np.asarray(median * np.exp(SECONDS_SPREAD * rng.standard_normal(len(is_relevant))))


def _impressions(
    rng: np.random.Generator, catalogue: Catalogue, sessions: Sessions
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Items shown [N] and the session of each [N]."""
    session = np.repeat(sessions.page_session, ITEMS_PER_PAGE)
    surface = np.repeat(sessions.page_surface, ITEMS_PER_PAGE)
    week = sessions.day[session] // 7
    chance, quantile = rng.random(len(session)), rng.random(len(session))
    from_focus = chance < FROM_FOCUS[surface]
    from_line = chance < (FROM_FOCUS * FROM_LINE)[surface]

    item = np.empty(len(session), dtype=np.int32)
    anywhere, in_leaf, in_line = ~from_focus, from_focus & ~from_line, from_line
    item[anywhere] = _draw(catalogue.everywhere, (week[anywhere],), quantile[anywhere])
    item[in_leaf] = _draw(catalogue.by_leaf, (week[in_leaf], sessions.focus_leaf[session[in_leaf]]), quantile[in_leaf])
    item[in_line] = _draw(catalogue.by_line, (week[in_line], sessions.focus_line[session[in_line]]), quantile[in_line])

    # A page rarely shows an item twice: a repeated one from the focus is drawn once more from the focus leaf, which
    # keeps it relevant and so leaves the probabilities of `truth` exact.
    again = _repeats(item) & from_focus
    focus = sessions.focus_leaf[session[again]]
    item[again] = _draw(catalogue.by_leaf, (week[again], focus), rng.random(int(again.sum())))
    return item, session


def _draw(
    quantiles: NDArray[np.int32], group: tuple[NDArray[np.integer], ...], uniform: NDArray[np.float64]
) -> NDArray[np.int32]:
    drawn: NDArray[np.int32] = quantiles[(*group, (uniform * quantiles.shape[-1]).astype(np.int64))]
    return drawn


def _repeats(item_N: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Impressions [N] whose item stands earlier on the same page."""
    pages = item_N.reshape(-1, ITEMS_PER_PAGE)
    repeats = np.zeros(pages.shape, dtype=np.bool_)
    for position in range(1, ITEMS_PER_PAGE):
        repeats[:, position] = (pages[:, :position] == pages[:, position : position + 1]).any(axis=1)
    return repeats.ravel()


def time_order(time_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order by time, ties by position: unique keys, so that numpy's fastest sort is stable (26 bits of position)."""
    bits = 26
    assert len(time_ms) < 1 << bits
    return np.sort((time_ms << bits) | np.arange(len(time_ms))) & ((1 << bits) - 1)
