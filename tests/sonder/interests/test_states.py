"""The state of an interest: its edges, and the whole rule against a plain reading of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonder.interests.states import INTEREST_STATES, interest_trends

HALF_LIFE = 10.0
Interest = tuple[int, int, float, float]  # events, recent ones, age of the first, age of the last


def states(*users: list[Interest]) -> list[list[str]]:
    flat = [interest for user in users for interest in user]
    rows = np.repeat(np.arange(len(users)), [len(user) for user in users])
    columns = [np.array(column) for column in zip(*flat, strict=True)]
    found = interest_trends(rows, *columns, half_life_days=HALF_LIFE).states
    names = [INTEREST_STATES[state] for state in found]
    ends = np.cumsum([len(user) for user in users])
    return [names[end - len(user) : end] for user, end in zip(users, ends, strict=True)]


@pytest.mark.parametrize(
    ("interests", "expected"),
    [
        ([(1, 1, 10.0, 10.0)], ["new"]),
        ([(1, 0, 10.1, 10.1)], ["stable"]),
        ([(1, 0, 19.9, 19.9)], ["stable"]),
        ([(1, 0, 20.0, 20.0)], ["fading"]),
        ([(9, 9, 5.0, 0.1), (9, 0, 90.0, 15.0)], ["new", "fading"]),
        ([(10, 5, 90.0, 1.0), (10, 5, 90.0, 1.0)], ["stable", "stable"]),
        ([(10, 8, 90.0, 1.0), (10, 2, 90.0, 1.0)], ["growing", "fading"]),
        ([(4, 1, 90.0, 1.0), (1, 0, 90.0, 12.0)], ["stable", "fading"]),  # shares of 0.9 then 0.76, and 0.1 then 0.24
        ([(9, 0, 90.0, 15.0), (1, 0, 90.0, 12.0)], ["stable", "stable"]),  # nothing recent, no trend
    ],
)
def test_each_state_at_its_edges(interests: list[Interest], expected: list[str]) -> None:
    assert states(interests) == [expected]


def by_hand(user: list[Interest]) -> list[str]:
    """The docstring of interests.states, interest by interest."""
    num, recent = sum(i[0] for i in user), sum(i[1] for i in user)
    found = []
    for events, recent_ones, age, recency in user:
        share_now = (recent_ones + events / num) / (recent + 1)
        share_then = (events - recent_ones + events / num) / (num - recent + 1)
        if age <= HALF_LIFE:
            found.append("new")
        elif recency >= 2 * HALF_LIFE or share_now / share_then <= 1 / 1.5:
            found.append("fading")
        else:
            found.append("growing" if share_now / share_then >= 1.5 else "stable")
    return found


@st.composite
def interests(draw: st.DrawFn) -> Interest:
    events = draw(st.integers(1, 30))
    ages = sorted(draw(st.lists(st.floats(0, 60), min_size=2, max_size=2)))
    return events, draw(st.integers(0, events)), ages[1], ages[0]


@given(st.lists(st.lists(interests(), min_size=1, max_size=4), min_size=1, max_size=5))
def test_users_are_judged_each_by_their_own_interests(users: list[list[Interest]]) -> None:
    found = states(*users)
    assert found == [by_hand(user) for user in users]
    for user in users:
        assert states(user) == [by_hand(user)]


def test_a_trend_of_one_interest_is_against_the_others_of_the_user() -> None:
    alone, beside = states([(10, 8, 90.0, 1.0)], [(10, 8, 90.0, 1.0), (30, 2, 90.0, 1.0)])
    assert (alone[0], beside[0]) == ("stable", "growing")


def test_no_interests_have_no_states() -> None:
    nothing = np.zeros(0)
    found = interest_trends(nothing.astype(np.int64), nothing, nothing, nothing, nothing, half_life_days=1.0)
    assert found.states.shape == found.recent_shares.shape == (0,)
