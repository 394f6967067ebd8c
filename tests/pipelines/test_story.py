"""What a story says of a profile: leanings, attributes, consent; and what it keeps to itself."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pipelines import terminal
from pipelines.story import Leaning, Story, strongest, told_attributes

NOW = datetime(2025, 3, 31, tzinfo=UTC)


def affinity(category: str, strength: float, against: float = 0.0) -> dict[str, object]:
    return {"category": category, "share": 0.3, "lift": 2.0, "strength": strength, "evidence": 1.0, "against": against}


AFFINITIES = [
    affinity("a", 0.2),
    affinity("b", 0.3),
    affinity("a/x", 0.9),
    affinity("c", -0.1),
    affinity("ab", -0.4, 2.0),
]


def test_the_strongest_leaning_of_a_branch_stands_for_it() -> None:
    assert [like.category for like in strongest(AFFINITIES, 5, is_liked=True)] == ["a/x", "b"]
    assert [like.category for like in strongest(AFFINITIES, 1, is_liked=True)] == ["a/x"]
    assert strongest([affinity("a", 0.5), affinity("ab", 0.4)], 5, is_liked=True)[1].category == "ab"  # no part of a


def test_refused_is_more_than_wanted_less() -> None:
    assert strongest(AFFINITIES, 5, is_liked=False) == (Leaning("ab", 0.3, 2.0, True), Leaning("c", 0.3, 2.0, False))


def test_of_a_sensitive_attribute_only_the_name_is_told() -> None:
    pairs = [{"name": "country", "value": "FR"}, {"name": "age_band", "value": "65+"}]
    assert told_attributes(pairs, ["age_band"]) == (("country", "FR"), ("age_band", "(sensitive)"))


def test_the_terminal_shows_cluster_leanings_attributes_and_consent(capsys: pytest.CaptureFixture[str]) -> None:
    segments = {"lifecycle": "core", "cluster_id": 3, "cluster": "night owls"}
    profile = {"segments": segments, "num_events": 2, "first_seen": NOW, "last_seen": NOW, "as_of": NOW}
    story = Story(
        user_id="ada",
        release="r-1",
        protocol="temporal",
        profile=profile | {"interests": [], "scores": []},
        likes=strongest(AFFINITIES, 5, is_liked=True),
        dislikes=strongest(AFFINITIES, 5, is_liked=False),
        attributes=(("country", "FR"), ("age_band", "(sensitive)")),
        consent=(("ads", False),),
        timeline=(),
        recommendations=(),
    )
    terminal.show_story(story)
    shown = capsys.readouterr().out
    for told in ("night owls", "country FR, age_band (sensitive)", "ads no", "a/x", "30.0%", "2.00", "refused", "less"):
        assert told in shown
