"""People who react to what they are shown: clicks, saves, purchases and hides of any recommender's lists.

The choice model is that of the world's own pages (`actions`): an item is relevant if its leaf is one of the user's
interests on that day, and then clicked with RELEVANT_CLICK times the user's factor, else with IRRELEVANT_CLICK times
it; saves and purchases follow clicks, hides fall on irrelevant items that were not clicked. A place of the list is
looked at with the chance that `examination` states, by default with 1 as on the world's pages; what is not looked at
is neither clicked nor hidden. Every place is decided by itself: neighbours, earlier lists and tiredness change nothing.
Legend: N lists, K places, U users, I items, E events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sonder.events.contract import TIMESTAMP_TYPE, Col
from sonder.events.synthetic.actions import (
    ACTIONS,
    IRRELEVANT_BUY_FACTOR,
    IRRELEVANT_CLICK,
    IRRELEVANT_SAVE,
    RELEVANT_CLICK,
    RELEVANT_SAVE,
    draw_seconds,
    time_order,
)
from sonder.events.synthetic.config import START
from sonder.events.synthetic.identifiers import padded_ids
from sonder.events.synthetic.visits import CHOICES_STREAM, NO_ITEM, Visits, World, draw_visits

SURFACE = "recommendations"
REACTIONS = ACTIONS[1:]  # click, save, hide, buy: an impression is nobody's choice

Recommender = Callable[[NDArray[np.int64], int], NDArray[np.int32]]  # users [N], day -> items [N, K], NO_ITEM for none


@dataclass(frozen=True)
class Shown:
    """N lists; users and items are rows of the world."""

    user: NDArray[np.int64]  # [N]
    day: NDArray[np.int64]  # [N] since the start of the log
    time_ms: NDArray[np.int64]  # [N] since the start of the log
    item: NDArray[np.int32]  # [N, K] NO_ITEM where a place is empty
    request: NDArray[np.int64]  # [N] number of the request that was answered


@dataclass(frozen=True)
class Chances:
    """True probability [N, K] of each reaction to what is at each place; 0 where nothing is."""

    is_relevant: NDArray[np.bool_]  # [N, K]
    click: NDArray[np.float64]
    save: NDArray[np.float64]
    hide: NDArray[np.float64]
    buy: NDArray[np.float64]

    def of(self, action: str) -> NDArray[np.float64]:
        """Of `click`, `save`, `hide` or `buy` [N, K]."""
        assert action in REACTIONS
        chance: NDArray[np.float64] = getattr(self, action)
        return chance


@dataclass(frozen=True)
class Choices:
    """What was done [N, K]."""

    click: NDArray[np.bool_]
    save: NDArray[np.bool_]
    hide: NDArray[np.bool_]
    buy: NDArray[np.bool_]
    is_relevant: NDArray[np.bool_]


@dataclass(frozen=True)
class LiveDay:
    """One day with a recommender: what it showed, how likely each reaction was, and what happened."""

    day: int
    shown: Shown
    chances: Chances
    events: pa.Table


def examination(num_places: int, decay: float = 0.0) -> NDArray[np.float64]:
    """Chance [K] that a place is looked at: its number, from 1, to the power of -decay; 1 everywhere at 0."""
    return np.arange(1.0, num_places + 1) ** -decay


def choice_chances(
    world: World,
    user: NDArray[np.int64],
    day: NDArray[np.int64],
    item_NK: NDArray[np.int32],
    *,
    decay: float = 0.0,
) -> Chances:
    """What each user [N] would do with each list on its day."""
    people = world.people
    leaf_NK = np.append(world.catalogue.leaf, -2)[item_NK]  # an empty place has a leaf that nobody likes
    is_relevant = (people.leaves_at(day, user)[:, None, :] == leaf_NK[:, :, None]).any(axis=2)
    looked_NK = np.where(item_NK == NO_ITEM, 0.0, examination(item_NK.shape[1], decay))
    if_looked = np.where(is_relevant, RELEVANT_CLICK, IRRELEVANT_CLICK) * people.click[user][:, None]
    click = looked_NK * if_looked
    return Chances(
        is_relevant=is_relevant,
        click=click,
        save=click * np.where(is_relevant, RELEVANT_SAVE, IRRELEVANT_SAVE),
        hide=looked_NK * np.where(is_relevant, 0.0, (1 - if_looked) * people.hide[user][:, None]),
        buy=click * np.where(is_relevant, 1.0, IRRELEVANT_BUY_FACTOR) * people.buy[user][:, None],
    )


def draw_choices(rng: np.random.Generator, chances: Chances) -> Choices:
    """One draw of what happens. A place takes one number in every draw: better lists can only gain clicks from it."""
    drawn = rng.random(chances.click.shape)
    click = drawn < chances.click
    hide = ~click & (drawn < chances.click + chances.hide)
    after = {}
    for action in ("save", "buy"):
        made = np.zeros_like(click)
        made[click] = rng.random(int(click.sum())) * chances.click[click] < chances.of(action)[click]
        after[action] = made
    return Choices(click, after["save"], hide, after["buy"], chances.is_relevant)


def choice_events(
    rng: np.random.Generator, world: World, shown: Shown, choices: Choices, *, has_impressions: bool = True
) -> pa.Table:
    """The events, by time, in the columns of the world's log; `request_id` is that of the list, `value` as there.

    Clicks, saves, hides and purchases follow the list after as many seconds as they do on the world's pages.
    """
    place = np.flatnonzero(shown.item.ravel() != NO_ITEM) if has_impressions else np.empty(0, dtype=np.int64)
    click, save, hide, buy = (np.flatnonzero(getattr(choices, action)) for action in REACTIONS)
    shown_ms = np.repeat(shown.time_ms, shown.item.shape[1])
    clicked_ms = np.zeros(shown.item.size, dtype=np.int64)
    clicked_ms[click] = shown_ms[click] + rng.integers(2_000, 25_000, len(click))
    times = (
        shown_ms[place],
        clicked_ms[click],
        clicked_ms[save] + rng.integers(1_000, 6_000, len(save)),
        shown_ms[hide] + rng.integers(2_000, 20_000, len(hide)),
        clicked_ms[buy] + rng.integers(20_000, 80_000, len(buy)),
    )
    kinds = (place, click, save, hide, buy)  # in the order of ACTIONS
    lengths = [len(kind) for kind in kinds]
    cell, time_ms = np.concatenate(kinds), np.concatenate(times)
    value = np.full(len(cell), np.nan)
    seconds = draw_seconds(rng, choices.is_relevant.ravel()[click])
    value[lengths[0] : lengths[0] + lengths[1]] = np.round(seconds, 1)
    value[len(cell) - lengths[4] :] = world.catalogue.price[shown.item.ravel()[buy]]
    action = np.repeat(np.arange(len(ACTIONS), dtype=np.int8), lengths)
    order = time_order(time_ms)
    return _table(world, shown, cell[order], time_ms[order], action[order], value[order])


def live(
    world: World,
    num_days: int,
    recommender: Recommender,
    *,
    seed: int,
    decay: float = 0.0,
    has_impressions: bool = True,
) -> Iterator[LiveDay]:
    """Let the people come for some days after the log's end, ask for a list at each visit, and yield day by day.

    The recommender is asked once a day, for all visits of the day in their order; it may have learnt from the days
    that were yielded before. The same seed and the same lists give the same events.
    """
    visits = draw_visits(world, num_days, seed=seed)
    rng = world.config.generator(CHOICES_STREAM, seed)
    first = world.config.num_days
    num_asked = 0
    for day in range(first, first + num_days):
        today = visits.of(visits.day == day)
        shown = show(today, recommender(today.user, day), first_request=num_asked)
        chances = choice_chances(world, shown.user, shown.day, shown.item, decay=decay)
        choices = draw_choices(rng, chances)
        events = choice_events(rng, world, shown, choices, has_impressions=has_impressions)
        num_asked += len(today)
        yield LiveDay(day, shown, chances, events)


def show(visits: Visits, item_NK: NDArray[np.int32], *, first_request: int = 0) -> Shown:
    """A list at every visit; ValueError unless there is one for each."""
    if len(item_NK) != len(visits):
        raise ValueError(f"found {len(item_NK)} lists for {len(visits)} visits, expected one for each")
    request = first_request + np.arange(len(visits))
    return Shown(visits.user, visits.day, visits.time_ms, item_NK, request)


def _table(
    world: World,
    shown: Shown,
    cell: NDArray[np.int64],
    time_ms: NDArray[np.int64],
    action: NDArray[np.int8],
    value: NDArray[np.float64],
) -> pa.Table:
    """The events [E] at cells of the lists, rows as in `WorldPart.events`: strings are dictionary-encoded."""
    encoded = pa.DictionaryArray.from_arrays
    row = cell // shown.item.shape[1]
    time_us = time_ms * 1_000 + int(START.timestamp()) * 1_000_000
    return pa.table(
        {
            Col.USER_ID: encoded(pa.array(shown.user[row].astype(np.int32)), world.user_ids),
            Col.ITEM_ID: encoded(pa.array(shown.item.ravel()[cell]), world.catalogue.item_ids),
            Col.ACTION: encoded(pa.array(action), pa.array(ACTIONS)),
            Col.TIMESTAMP: pa.array(time_us).cast(TIMESTAMP_TYPE),
            Col.SURFACE: encoded(pa.array(np.zeros(len(cell), dtype=np.int8)), pa.array([SURFACE])),
            Col.VALUE: pa.array(value, mask=np.isnan(value)),
            Col.REQUEST_ID: encoded(pa.array(row.astype(np.int32)), padded_ids("q", shown.request, 10)),
        }
    )
