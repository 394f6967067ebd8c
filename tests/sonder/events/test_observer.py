"""The observer of a synthetic world: right where everything can be counted out, and blind to what comes later."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import exp, factorial

import numpy as np
import polars as pl
import pytest

from sonder.core.storage import Folder
from sonder.events.synthetic import WorldConfig, write_world
from sonder.events.synthetic.catalogue import build_catalogue
from sonder.events.synthetic.observer import chances_of_none
from sonder.events.synthetic.people import (
    RETURN_PER_DAY,
    SHARE_JOINED_BEFORE,
    SHARE_LAPSING_FOR_GOOD,
    People,
    build_people,
)

ACTIVE, AWAY, LEFT = range(3)
CUTOFF, LOG_DAYS = 4, 6


@pytest.fixture(scope="module")
def two_people() -> People:
    config = WorldConfig(2, 14, 3)
    people = build_people(config, build_catalogue(config), 0)
    return replace(people, rate=np.array([1.5, 0.3]), lapse=np.array([0.2, 0.4]), weekendness=np.array([0.0, 1.0]))


def moves(state: int, lapse: float) -> list[tuple[int, float, bool]]:
    """Next state, its chance, whether somebody comes back."""
    if state == ACTIVE:
        gone = lapse * SHARE_LAPSING_FOR_GOOD
        return [(ACTIVE, 1 - lapse, False), (AWAY, lapse - gone, False), (LEFT, gone, False)]
    return (
        [(ACTIVE, RETURN_PER_DAY, True), (AWAY, 1 - RETURN_PER_DAY, False)] if state == AWAY else [(LEFT, 1.0, False)]
    )


def paths(person: People, row: int, joined: int, counts: list[int], num_days: int) -> list[tuple[float, int]]:
    """Likelihood of each way through the days with these session counts, and the state it ends in; counts None-free."""

    def chance(day: int, state: int, arrives: bool) -> float:
        usual = counts[day] - arrives
        if state != ACTIVE:
            return float(counts[day] == 0)
        rate = float(person.daily_rate(day)[row])
        return exp(-rate) * rate**usual / factorial(usual) if usual >= 0 else 0.0

    found = [(1.0, ACTIVE)] if joined < 0 else [(chance(joined, ACTIVE, True), ACTIVE)]
    for day in range(max(joined + 1, 0), num_days):
        steps = product(found, range(3))
        told = []
        for (likely, state), place in steps:
            options = moves(state, float(person.lapse[row]))
            if place < len(options):
                following, share, arrives = options[place]
                told.append((likely * share * chance(day, following, arrives), following))
        found = told
    return found


def counted_out(people: People, counts: list[int], window: int) -> float:
    """The chance of no session in `window` days after CUTOFF, by every way through all days."""
    first = next(day for day, count in enumerate(counts) if count)
    hypotheses = [(SHARE_JOINED_BEFORE, -1), ((1 - SHARE_JOINED_BEFORE) / LOG_DAYS, first)]
    silent, seen = 0.0, 0.0
    for prior, joined in hypotheses:
        for row in range(people.num_users):
            likely = sum(p for p, _ in paths(people, row, joined, counts, CUTOFF))
            later = sum(p for p, _ in paths(people, row, joined, counts + [0] * window, CUTOFF + window))
            seen, silent = seen + prior * likely, silent + prior * later
    return silent / seen


@pytest.mark.parametrize("counts", [[1, 0, 0, 0], [0, 2, 0, 1], [3, 1, 0, 0], [0, 0, 0, 1]])
def test_the_filter_agrees_with_every_way_through_the_days_counted_out(
    two_people: People, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sonder.events.synthetic.observer.CHURN_DAYS", 3)
    days = np.array([counts + [0] * (LOG_DAYS - CUTOFF)])
    found = chances_of_none(two_people, days, [CUTOFF], np.zeros((1, 1)))
    assert found[1, 0, 0] == pytest.approx(counted_out(two_people, counts, 3), rel=1e-9)


def test_no_session_that_buys_is_as_likely_as_no_session_where_every_session_buys(two_people: People) -> None:
    days = np.array([[0, 2, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]])
    always, never = (chances_of_none(two_people, days, [CUTOFF], np.full((1, 2), none))[0, 0] for none in (0.0, 1.0))
    assert never == pytest.approx([1.0, 1.0])
    assert (always < 1).all()
    assert always[1] > always[0]  # who came once and not again comes less


def test_later_sessions_change_nothing(two_people: People) -> None:
    days = np.array([[0, 2, 0, 1, 0, 0]])
    later = days.copy()
    later[0, CUTOFF:] = 5
    first, second = (chances_of_none(two_people, counts, [2, CUTOFF], np.full((2, 1), 0.7)) for counts in (days, later))
    assert (first == second).all()


def test_a_written_world_says_what_can_be_known_and_the_hidden_truth_knows_more(tmp_path) -> None:
    write_world(WorldConfig(600, 60, 5), Folder.at(str(tmp_path)))
    told = pl.read_parquet(tmp_path / "truth" / "attainable.parquet")
    true = pl.read_parquet(tmp_path / "truth" / "scores.parquet")
    both = told.join(true, on=["user_id", "cutoff"], suffix="_true")
    assert both.height == told.height
    for score in ("buy_7d", "churn_14d"):
        assert told[score].is_between(0, 1).all()
        assert both[score].mean() == pytest.approx(both[f"{score}_true"].mean(), abs=0.03)  # right on average
        assert both[score].std() < both[f"{score}_true"].std()  # and less sure
        assert np.corrcoef(both[score], both[f"{score}_true"])[0, 1] > 0.6
