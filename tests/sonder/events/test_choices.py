"""Users that react to recommendations: by the chances that are declared, reproducibly, in the contract's columns."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from sonder.events.synthetic import WorldConfig
from sonder.events.synthetic.actions import IRRELEVANT_BUY_FACTOR, IRRELEVANT_CLICK, RELEVANT_CLICK, RELEVANT_SAVE
from sonder.events.synthetic.choices import (
    REACTIONS,
    Choices,
    Shown,
    choice_chances,
    choice_events,
    draw_choices,
    examination,
    live,
    show,
)
from sonder.events.synthetic.config import USERS_PER_PART
from sonder.events.synthetic.people import ACTIVE
from sonder.events.synthetic.true_effect import expected_per_visit, expected_visits, true_effect, visits_in_window
from sonder.events.synthetic.visits import NO_ITEM, Visits, World, draw_visits

DAY_MS = 86_400_000
CONFIG = WorldConfig(num_users=1_500, num_days=30, seed=3)
FIVE_ERRORS = 5.0  # beyond it chance goes in less than one of a million comparisons


@pytest.fixture(scope="module")
def world() -> World:
    return World.of(CONFIG)


def random_lists(world: World, num_places: int = 6) -> NDArray[np.int32]:
    draw = np.random.default_rng(1)
    return draw.integers(0, world.catalogue.num_items, (world.people.num_users, num_places), dtype=np.int32)


def liked_lists(world: World, num_places: int = 6) -> NDArray[np.int32]:
    """Items of the first interest of everybody."""
    leaf = world.people.leaf[:, 0, 1]
    return world.catalogue.by_leaf[-1, leaf][:, :: world.catalogue.by_leaf.shape[2] // num_places][:, :num_places]


def metric(kind: str, action: str, per: str | None = None, days: float = 3.0) -> SimpleNamespace:
    return SimpleNamespace(kind=kind, action=action, per=per, within_days=days)


def everyone(world: World) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    num = world.people.num_users
    return np.arange(num), np.full(num, CONFIG.num_days)


def test_the_people_of_a_world_are_those_of_its_parts_in_order() -> None:
    config = WorldConfig(num_users=USERS_PER_PART + 40, num_days=14, seed=3)
    whole, second = World.of(config), World.of(config, parts=[1])
    assert second.people.num_users == 40
    assert np.array_equal(whole.people.leaf[-40:], second.people.leaf)
    assert whole.user_ids.to_pylist()[-1] == second.user_ids.to_pylist()[-1] == f"u{config.num_users:07d}"


def test_chances_are_those_of_the_worlds_own_pages(world: World) -> None:
    user, day = everyone(world)
    items = random_lists(world)
    chances = choice_chances(world, user, day, items)
    likes = [set(row.tolist()) for row in world.people.leaves_at(day, user)]
    for place in ((0, 0), (17, 3), (99, 5), *zip(*np.nonzero(chances.is_relevant), strict=True)):
        row, column = int(place[0]), int(place[1])
        is_liked = int(world.catalogue.leaf[items[row, column]]) in likes[row]
        assert chances.is_relevant[row, column] == is_liked
        click = (RELEVANT_CLICK if is_liked else IRRELEVANT_CLICK) * world.people.click[row]
        buy = click * world.people.buy[row] * (1 if is_liked else IRRELEVANT_BUY_FACTOR)
        hide = 0 if is_liked else (1 - click) * world.people.hide[row]
        assert chances.click[row, column] == pytest.approx(click)
        assert chances.buy[row, column] == pytest.approx(buy)
        assert chances.hide[row, column] == pytest.approx(hide)
        assert is_liked is False or chances.save[row, column] == pytest.approx(click * RELEVANT_SAVE)


def test_each_reaction_is_drawn_as_often_as_its_chance_says(world: World) -> None:
    user, day = everyone(world)
    chances = choice_chances(world, user, day, np.hstack([random_lists(world), liked_lists(world)]), decay=0.5)
    rng, draws = np.random.default_rng(5), 40
    counts = dict.fromkeys(REACTIONS, np.zeros(chances.click.shape))
    for _ in range(draws):
        choices = draw_choices(rng, chances)
        counts = {action: counts[action] + getattr(choices, action) for action in REACTIONS}
    for action in REACTIONS:
        chance = chances.of(action)
        for cells in (chances.is_relevant, ~chances.is_relevant):
            expected, spread = draws * chance[cells].sum(), np.sqrt(draws * (chance * (1 - chance))[cells].sum())
            assert abs(counts[action][cells].sum() - expected) <= FIVE_ERRORS * spread


def test_saves_and_purchases_follow_clicks_and_hides_exclude_them(world: World) -> None:
    user, day = everyone(world)
    choices = draw_choices(np.random.default_rng(2), choice_chances(world, user, day, random_lists(world)))
    assert not (choices.save & ~choices.click).any()
    assert not (choices.buy & ~choices.click).any()
    assert not (choices.hide & (choices.click | choices.is_relevant)).any()


def test_what_people_like_is_clicked_more(world: World) -> None:
    user, day = everyone(world)
    rng = np.random.default_rng(2)
    liked, random = (
        draw_choices(rng, choice_chances(world, user, day, lists)).click.sum()
        for lists in (liked_lists(world), random_lists(world))
    )
    assert liked > 3 * random


def test_lower_places_are_looked_at_less_where_a_decay_is_stated_and_alike_where_not() -> None:
    assert examination(4).tolist() == [1.0] * 4
    assert examination(4, decay=1.0).tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])


def test_an_empty_place_is_neither_shown_nor_chosen(world: World) -> None:
    user, day = everyone(world)
    items = np.full((len(user), 2), NO_ITEM, dtype=np.int32)
    chances = choice_chances(world, user, day, items)
    assert all(chances.of(action).sum() == 0 for action in REACTIONS)
    shown = Shown(user, day, day * DAY_MS, items, user)
    nothing = np.zeros(items.shape, dtype=np.bool_)
    choices = Choices(nothing, nothing, nothing, nothing, nothing)
    assert choice_events(np.random.default_rng(0), world, shown, choices).num_rows == 0


def test_events_name_their_list_and_come_in_the_columns_of_the_log(world: World) -> None:
    lists = np.hstack([liked_lists(world), random_lists(world)])
    today = next(live(world, 1, lambda user, day: lists[user], seed=1))
    frame = pl.from_arrow(today.events)
    assert isinstance(frame, pl.DataFrame)
    frame = frame.cast(dict.fromkeys(("user_id", "item_id", "action", "surface", "request_id"), pl.String))
    assert frame["timestamp"].is_sorted()
    assert set(frame["surface"]) == {"recommendations"}
    assert set(frame["action"]) == {"impression", *REACTIONS}
    users = world.user_ids.to_pylist()
    by_request = {f"q{n:010d}": row for row, n in enumerate(today.shown.request.tolist())}
    items = world.catalogue.item_ids.to_pylist()
    for event in frame.sample(200, seed=1).iter_rows(named=True):
        row = by_request[event["request_id"]]
        assert event["user_id"] == users[today.shown.user[row]]
        assert event["item_id"] in {items[item] for item in today.shown.item[row]}
    bought = frame.filter(pl.col("action") == "buy")
    price = dict(zip(items, world.catalogue.price.tolist(), strict=True))
    assert bought.height > 0
    assert bought["value"].to_list() == [price[item] for item in bought["item_id"]]


def test_the_same_seed_gives_the_same_events_and_another_seed_others(world: World) -> None:
    lists = random_lists(world)

    def run(seed: int) -> list[pl.DataFrame]:
        days = live(world, 3, lambda user, day: lists[user], seed=seed)
        return [pl.DataFrame(pl.from_arrow(day.events)) for day in days]

    one, same, other = run(1), run(1), run(2)
    assert all(left.equals(right) for left, right in zip(one, same, strict=True))
    assert not one[0].equals(other[0])


def test_visits_do_not_depend_on_what_is_shown_nor_on_how_many_days_follow(world: World) -> None:
    good, bad = liked_lists(world), random_lists(world)
    days = [list(live(world, 2, lambda user, day, lists=lists: lists[user], seed=4)) for lists in (good, bad)]
    for one, other in zip(*days, strict=True):
        assert np.array_equal(one.shown.time_ms, other.shown.time_ms)
    longer = draw_visits(world, 5, seed=4)
    assert np.array_equal(longer.time_ms[: len(draw_visits(world, 2, seed=4))], draw_visits(world, 2, seed=4).time_ms)


def test_people_come_as_often_as_their_chain_of_days_says(world: World) -> None:
    days, draws = 5, 60
    counts = np.stack([np.bincount(draw_visits(world, days, seed=seed).user, minlength=1_500) for seed in range(draws)])
    expected = expected_visits(world, days)
    was_active = world.people.state[:, -1] == ACTIVE
    for group in (was_active, ~was_active):
        totals = counts[:, group].sum(axis=1)
        assert abs(totals.mean() - expected[group].sum()) <= FIVE_ERRORS * totals.std(ddof=1) / np.sqrt(draws)


def test_a_window_begins_with_the_first_visit_and_counts_only_when_it_is_over() -> None:
    hour = DAY_MS // 24
    time_ms = np.array([1, 30, 31, 40, 53, 54, 70]) * hour
    visits = Visits(np.array([0, 0, 1, 0, 0, 0, 2]), time_ms // DAY_MS, time_ms)
    counted = visits_in_window(visits, 4, start_ms=24 * hour, until_ms=60 * hour, within_days=1.0)
    assert counted.tolist() == [3, 1, 0, 0]  # the visit of hour 1 is before the start, that of hour 54 after the window


@pytest.mark.parametrize(
    ("kind", "action", "per"),
    [("count", "click", None), ("value", "buy", None), ("value", "click", None), ("ratio", "buy", "click")],
)
def test_expected_numbers_are_the_means_of_many_draws(world: World, kind: str, action: str, per: str | None) -> None:
    asked = metric(kind, action, per)
    lists = np.stack([random_lists(world), liked_lists(world)], axis=1)  # each visit sees one of two
    number, below = expected_per_visit(world, lists, asked)
    rng, draws = np.random.default_rng(9), 150
    user, day = everyone(world)
    found = np.zeros((2, draws))
    for draw in range(draws):
        items = lists[user, rng.integers(0, 2, len(user))]
        shown = Shown(user, day, day * DAY_MS, items, user)
        choices = draw_choices(rng, choice_chances(world, user, day, items))
        events = pl.DataFrame(pl.from_arrow(choice_events(rng, world, shown, choices)))
        events = events.with_columns(pl.col("action").cast(pl.String))
        for row, name in enumerate((action, per)):
            chosen = events.filter(pl.col("action") == (name or "nothing"))
            found[row, draw] = chosen["value"].sum() if kind == "value" else chosen.height
    for row, expected in enumerate((number.sum(), below.sum())):
        assert abs(found[row].mean() - expected) <= FIVE_ERRORS * found[row].std(ddof=1) / np.sqrt(draws)


def test_the_expected_share_that_converts_is_the_mean_of_many_draws(world: World) -> None:
    lists = liked_lists(world)
    visits = draw_visits(world, 8, seed=2)
    start = CONFIG.num_days * DAY_MS
    until = start + 8 * DAY_MS
    effect = true_effect(
        world, lists, random_lists(world), metric("conversion", "click"), [visits], start_ms=start, until_ms=until
    )
    shown = show(visits, lists[visits.user])
    chances = choice_chances(world, shown.user, shown.day, shown.item)
    counts = visits_in_window(visits, 1_500, start, until, 3.0)
    first = np.full(1_500, np.iinfo(np.int64).max)
    np.minimum.at(first, visits.user, visits.time_ms)
    is_inside = visits.time_ms - first[visits.user] < 3 * DAY_MS
    rng, draws = np.random.default_rng(3), 60
    shares = []
    for _ in range(draws):
        has_click = draw_choices(rng, chances).click.any(axis=1) & is_inside
        converts = np.bincount(visits.user[has_click], minlength=1_500) > 0
        shares.append(converts[counts > 0].mean())
    assert abs(np.mean(shares) - effect.a) <= FIVE_ERRORS * np.std(shares, ddof=1) / np.sqrt(draws)
    assert effect.num_users == (counts > 0).sum()
    assert effect.b < effect.a


def test_a_policy_instead_of_itself_has_no_effect_and_a_metric_of_visits_none_to_ask_for(world: World) -> None:
    lists, visits = random_lists(world), [draw_visits(world, 6, seed=1)]
    start = CONFIG.num_days * DAY_MS
    bounds = {"start_ms": start, "until_ms": start + 6 * DAY_MS}
    same = true_effect(world, lists, lists, metric("count", "click"), visits, **bounds)
    assert same.difference == 0
    assert same.relative == 0
    with pytest.raises(ValueError, match="expected conversion, count, value or ratio"):
        true_effect(world, lists, lists, metric("time_to_event", "click"), visits, **bounds)


def test_lists_of_ids_become_rows_and_an_unknown_id_is_named(world: World) -> None:
    ids = world.catalogue.item_ids.to_pylist()
    rows = world.item_rows([[ids[4], ids[2]], [], [ids[7], ids[1], ids[0]]], 2)
    assert rows.tolist() == [[4, 2], [NO_ITEM, NO_ITEM], [7, 1]]
    with pytest.raises(ValueError, match="'i999999'"):
        world.item_rows([["i999999"]], 1)
    with pytest.raises(ValueError, match="found 1 lists for 2 visits"):
        show(Visits(np.array([0, 1]), np.array([0, 0]), np.array([0, 0])), rows[:1])
