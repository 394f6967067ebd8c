"""Tasks are declared: one kind each, a task for each horizon, mistakes told in one sentence."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sonder.core.config import SonderConfig
from sonder.core.score_config import ScoreTask


def config(*scores: dict[str, Any]) -> SonderConfig:
    return SonderConfig.model_validate({"events": {"path": "log"}, "scores": scores})


@pytest.mark.parametrize(
    ("keys", "kind", "is_probability"),
    [
        ({"action": "buy"}, "action", True),
        ({"churn": True}, "churn", True),
        ({"next_category": 20}, "next_category", True),
        ({"next_category": 20, "action": "buy"}, "next_category", True),
        ({"value": True, "action": "buy"}, "value", False),
        ({"count": True}, "count", False),
    ],
)
def test_the_kind_follows_from_the_keys(keys: dict[str, Any], kind: str, is_probability: bool) -> None:
    task = ScoreTask.model_validate({"name": "task", "within_days": 7} | keys)
    assert (task.kind, task.is_probability) == (kind, is_probability)


@pytest.mark.parametrize("keys", [{}, {"churn": True, "action": "buy"}, {"churn": True, "count": True}])
def test_no_kind_or_two_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="expected one of"):
        ScoreTask.model_validate({"name": "task", "within_days": 7} | keys)


def test_several_horizons_are_several_tasks() -> None:
    tasks = config({"name": "buy", "action": "buy", "within_days": [7, 30]}).scores
    assert [(task.name, task.within_days) for task in tasks] == [("buy_7d", 7), ("buy_30d", 30)]
    assert config(*[task.model_dump() for task in tasks]).scores == tasks


def test_a_horizon_that_is_declared_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="buy_7d"):
        config({"name": "buy", "action": "buy", "within_days": [7, 7]})
