"""Traits of hand-made profiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from sonder.profiles.record import PROFILE_SCHEMA
from sonder.profiles.traits import TraitSpec, compute_traits, derive_traits
from sonder.segments.lifecycle import STATES


def profile(user_id: str, **parts: Any) -> dict[str, Any]:
    segments = {"lifecycle": "core", "active_days": 1, "tenure_days": 3.0, "recency_days": 0.0}
    row = {"user_id": user_id, "as_of": 0, "is_cold": False, "num_events": 1, "segments": segments}
    return row | {"interests": [], "scores": []} | parts


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=PROFILE_SCHEMA)


RICH = profile(
    "rich",
    num_events=7,
    interests=[{"category": "a", "weight": 0.64}, {"category": None, "weight": 0.2}, {"category": "b", "weight": 0.16}],
    scores=[{"name": "buy", "value": 0.75}],
)


def test_the_spec_lists_categories_by_weight_and_scores_by_name() -> None:
    assert derive_traits(table(RICH, profile("plain"))) == TraitSpec(("a", "b"), ("buy",))


def test_traits_say_what_the_profile_says_and_nothing_for_what_it_does_not() -> None:
    spec = TraitSpec(("a", "b"), ("buy",))
    rich, plain = compute_traits(table(RICH, profile("plain")), spec)
    assert len(rich) == spec.num_traits
    assert np.allclose(rich[:5], np.log1p([7, 1, 3, 0, 3]))
    assert np.allclose(rich[-4:], [0.8, 0.4, np.log(3), 1])
    assert plain[5:12].tolist() == [float(state == "core") for state in STATES]
    assert not plain[-4:].any()


def test_a_user_has_the_same_traits_alone_and_beside_others() -> None:
    spec = derive_traits(table(RICH))
    assert np.array_equal(compute_traits(table(profile("plain"), RICH), spec)[1], compute_traits(table(RICH), spec)[0])


def test_a_log_without_catalogue_and_scores_has_activity_and_lifecycle() -> None:
    spec = derive_traits(table(profile("plain")))
    assert compute_traits(table(profile("plain")), spec).shape == (1, 5 + len(STATES))
