"""Memberships by rules on one profile: what is kept of the stored ones, and what is not."""

from __future__ import annotations

from typing import Any

from sonder.profiles.memberships import Membership, SavedRules
from sonder.segments.audience_index import AudienceIndex, IndexedAudience
from sonder.segments.rules.schema import RuleSchema
from tests.tiny_log import ACTIONS, timelines_of

DAY_5, DAY_9, DAY_20 = (f"1970-01-{day:02d}T00:00:00+00:00" for day in (6, 10, 21))
PROFILE: dict[str, Any] = {"user_id": "one", "as_of": DAY_9, "is_cold": False, "num_events": 3, "attributes": None}
TIMELINE = timelines_of({"one": [(1, 0, "buy"), (8, 0, "buy"), (12, 0, "buy")]})


def found_by(rules: dict[str, str], *stored: Membership) -> list[Membership]:
    index = AudienceIndex(tuple(IndexedAudience(name, 3, rule, None) for name, rule in rules.items()))
    saved = SavedRules.of(index, RuleSchema(scores=frozenset({"buy"})), ACTIONS)
    return saved.memberships(PROFILE, TIMELINE, stored)


def stored(name: str, entered_at: str) -> Membership:
    return Membership(name, 2, entered_at, DAY_20, "refresh")


def test_only_whose_rule_is_true_is_in_and_unknown_is_not_true() -> None:
    rules = {"b": "num_events = 3", "a": "count(buy, 28d) = 2", "cold": "is_cold", "odd": "attribute.x = 'y'"}
    assert [membership.name for membership in found_by(rules)] == ["a", "b"]


def test_who_was_in_keeps_when_it_entered_and_who_was_not_enters_now() -> None:
    found = found_by(
        {"a": "num_events = 3", "b": "num_events = 3", "left": "is_cold"}, stored("a", DAY_5), stored("left", DAY_5)
    )
    assert found == [Membership("a", 3, DAY_5, DAY_9, "fresh"), Membership("b", 3, DAY_9, DAY_9, "fresh")]


def test_nobody_has_entered_after_the_moment_of_the_answer() -> None:
    assert found_by({"a": "num_events = 3"}, stored("a", DAY_20))[0].entered_at == DAY_9


def test_what_the_release_cannot_evaluate_stays_as_it_is_stored() -> None:
    kept = stored("gone", DAY_5)
    assert found_by({"gone": "score.gone > 0", "other": "score.gone > 0"}, kept) == [kept]
