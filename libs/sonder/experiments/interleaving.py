"""Show two rankers in one list and see whose items are taken: team-draft interleaving.

Shapes: K items of a list.
As captains pick teams: in every round a coin decides who picks first, and each ranker picks its best item that is not
in the list yet. Both teams are of equal size up to one slot that the coin gives, and an item that both rankers like
goes to whoever picks it first, so that it favours neither in expectation.
Source: Radlinski, Kurup & Joachims, How Does Clickthrough Data Reflect Retrieval Quality?, CIKM 2008, algorithm 2;
analysed in Chapelle, Joachims, Radlinski & Yue, Large-Scale Validation and Analysis of Interleaved Search Evaluation,
TOIS 2012.
Limits: tells which ranker is preferred, not by how much a product would gain. An item's credit is the item's alone:
what a list earns as a whole is not seen. Nor is every better place: of A = 1 2 3 and B = 2 3 1 each list has item 3
last, for either team alike (Radlinski & Craswell, WSDM 2013, on such blind spots). Analysis: `interleaving_analysis`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Literal

import orjson

from sonder.core.ids import unit_draw

__all__ = ["InterleavedList", "Team", "coins_of_request", "interleave"]

Team = Literal["a", "b", "none"]

_KEY = "sonder/interleaving/1/"


@dataclass(frozen=True)
class InterleavedList:
    """What is shown, and which ranker put each item there. `none` are items that earn nobody credit."""

    items: tuple[str, ...]
    teams: tuple[Team, ...]


def coins_of_request(salt: str) -> Callable[[str, str], Callable[[int], float]]:
    """Coins of an experiment: coins_of_request(salt)(user_id, request_id)(round) in [0, 1).

    The same request always gets the same coins, so a page that is loaded again shows the same list; another salt
    or another request draws independently.
    """
    draw = unit_draw(f"{_KEY}{salt}/")

    def of_request(user_id: str, request_id: str) -> Callable[[int], float]:
        # A JSON list has one reading: ("a", "bc") and ("ab", "c") never meet.
        return lambda number: draw(orjson.dumps([user_id, request_id, number]).decode())

    return of_request


def interleave(
    ranking_a: Sequence[str], ranking_b: Sequence[str], k: int, coin: Callable[[int], float]
) -> InterleavedList:
    """Draft a list of `k` items, best first, from two rankings without duplicates; `coin(round)` is in [0, 1).

    A list of k is the beginning of the list of k + 1. When one ranking has no more to give the draft is over, as in
    the source; what the other still holds then fills the list up to `k` for no team.
    """
    for ranking in (ranking_a, ranking_b):
        if len(set(ranking)) != len(ranking):
            raise ValueError(f"a ranking of {len(ranking)} holds {len(set(ranking))} different items")
    drafted: dict[str, Team] = {}
    place_a = place_b = 0
    while len(drafted) < k:
        place_a, place_b = _next_place(ranking_a, place_a, drafted), _next_place(ranking_b, place_b, drafted)
        if place_a == len(ranking_a) or place_b == len(ranking_b):
            drafted |= dict.fromkeys((item for item in (*ranking_a, *ranking_b) if item not in drafted), "none")
            break
        if _is_turn_of_a(len(drafted), coin):
            drafted[ranking_a[place_a]] = "a"
        else:
            drafted[ranking_b[place_b]] = "b"
    return InterleavedList(tuple(drafted)[:k], tuple(drafted.values())[:k])


def _next_place(ranking: Sequence[str], place: int, drafted: Container[str]) -> int:
    while place < len(ranking) and ranking[place] in drafted:
        place += 1
    return place


def _is_turn_of_a(num_drafted: int, coin: Callable[[int], float]) -> bool:
    """The coin of the round says who picks first in it, the other picks second."""
    picks_second = bool(num_drafted % 2)
    return (coin(num_drafted // 2) < 0.5) != picks_second
