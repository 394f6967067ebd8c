"""Team draft: fair to both teams, the same for the same request, exact against the algorithm of the paper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonder.experiments.interleaving import InterleavedList, coins_of_request, interleave

RANKINGS = st.lists(st.sampled_from([f"i{n}" for n in range(12)]), unique=True, max_size=10)
FLIPS = st.lists(st.floats(0, 1, exclude_max=True), min_size=12, max_size=12)
COIN = coins_of_request("experiment")


def team_draft_of_the_paper(a: Sequence[str], b: Sequence[str], flips: Sequence[float]) -> tuple[list[str], list[str]]:
    """Algorithm 2 of Radlinski, Kurup & Joachims, as it is written; one random bit each time the teams are even."""
    shown: list[str] = []
    team_a, team_b = set[str](), set[str]()
    bits = iter(flips)
    while set(a) - set(shown) and set(b) - set(shown):
        a_is_next = len(team_a) < len(team_b) or (len(team_a) == len(team_b) and next(bits) < 0.5)
        ranking, team = (a, team_a) if a_is_next else (b, team_b)
        item = next(item for item in ranking if item not in shown)
        shown.append(item)
        team.add(item)
    return shown, ["a" if item in team_a else "b" for item in shown]


@given(RANKINGS, RANKINGS, FLIPS)
def test_it_is_the_algorithm_of_the_paper(a: list[str], b: list[str], flips: list[float]) -> None:
    found = interleave(a, b, 40, flips.__getitem__)
    items, teams = team_draft_of_the_paper(a, b, flips)
    assert list(found.items[: len(items)]) == items
    assert list(found.teams[: len(items)]) == teams
    assert set(found.teams[len(items) :]) <= {"none"}
    assert sorted(found.items) == sorted(set(a) | set(b))


@given(RANKINGS, RANKINGS, FLIPS, st.integers(0, 12))
def test_a_shorter_list_is_the_beginning_of_a_longer_one(
    a: list[str], b: list[str], flips: list[float], k: int
) -> None:
    short, long = (interleave(a, b, size, flips.__getitem__) for size in (k, k + 3))
    assert short.items == long.items[:k]
    assert short.teams == long.teams[:k]


@given(RANKINGS, RANKINGS, FLIPS)
def test_every_beginning_is_made_of_the_best_of_both(a: list[str], b: list[str], flips: list[float]) -> None:
    """Each item is the best of its team's ranking that was not shown yet, and the teams differ by one at most."""
    found = interleave(a, b, 12, flips.__getitem__)
    for place, (item, team) in enumerate(zip(found.items, found.teams, strict=True)):
        if team != "none":
            ranking = a if team == "a" else b
            assert item == next(other for other in ranking if other not in found.items[:place])
            sizes = Counter(found.teams[: place + 1])
            assert abs(sizes["a"] - sizes["b"]) <= 1


def test_a_request_that_comes_again_sees_the_same_list_and_others_see_others() -> None:
    a, b = [f"i{n}" for n in range(10)], [f"i{n}" for n in reversed(range(10))]

    def shown(user: str, request: str, salt: str = "experiment") -> InterleavedList:
        return interleave(a, b, 8, coins_of_request(salt)(user, request))

    assert shown("u1", "r1") == shown("u1", "r1")
    assert len({shown("u1", f"r{n}") for n in range(300)}) == 16  # four rounds, four coins
    assert {shown(f"u{n}", "r1") for n in range(300)} == {shown("u1", f"r{n}", "another") for n in range(300)}
    assert [shown(f"u{n}", "r1") for n in range(9)] != [shown(f"u{n}", "r1", "another") for n in range(9)]
    coins = [COIN(user, request)(0) for user, request in (("a", "bc"), ("ab", "c"), ('a","b', "c"))]
    assert len(set(coins)) == 3


@pytest.mark.parametrize("k", [5, 8])
def test_each_team_gets_the_same_number_of_slots_in_expectation(k: int) -> None:
    """Over 4,000 requests; an even list is split evenly each time, an odd one by a fair coin."""
    a, b = [f"i{n}" for n in range(10)], [f"i{n}" for n in (3, 1, 4, 9, 5, 2, 6, 8, 7, 0)]
    more = [Counter(interleave(a, b, k, COIN(f"u{n % 400}", f"r{n}")).teams) for n in range(4_000)]
    excess = np.array([teams["a"] - teams["b"] for teams in more])
    assert set(excess) == ({-1, 1} if k % 2 else {0})
    assert abs(excess.mean()) <= 4 / 4_000**0.5


def test_an_item_that_both_like_goes_to_either_team_alike() -> None:
    a, b = ["both", "a2", "a3"], ["both", "b2", "b3"]
    teams = Counter(interleave(a, b, 3, COIN("u", f"r{n}")).teams[0] for n in range(4_000))
    assert abs(teams["a"] - 2_000) < 4 * 1_000**0.5


def test_the_known_blind_spot_is_there() -> None:
    """B shows item 3 second where A shows it last; no list does, and either team gets it in half of them."""
    found = [
        interleave(["1", "2", "3"], ["2", "3", "1"], 3, flips.__getitem__) for flips in product((0.0, 0.9), repeat=2)
    ]
    assert {shown.items[2] for shown in found} == {"3"}
    assert Counter(shown.teams[2] for shown in found) == {"a": 2, "b": 2}


def test_a_ranking_with_duplicates_is_refused() -> None:
    with pytest.raises(ValueError, match="a ranking of 3 holds 2 different items"):
        interleave(["x", "x", "y"], ["y"], 2, COIN("u", "r"))
