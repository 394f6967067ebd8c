"""User frames of experiments, drawn with a fixed seed, for the tests of their analysis."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from sonder.experiments.specification import Experiment

START = datetime(2026, 1, 1, tzinfo=UTC)
OPENS = {"name": "opens", "kind": "count", "action": "open", "within_days": 3.0}
BOUGHT = {"name": "bought", "kind": "conversion", "action": "buy", "within_days": 3.0}
CLICKS = {"name": "clicks", "kind": "ratio", "action": "click", "per": "view", "within_days": 3.0}
BACK = {"name": "back", "kind": "retention", "day": 1}
FIRST = {"name": "first", "kind": "time_to_event", "action": "buy", "within_days": 3.0, "wanted": "decrease"}


def experiment(*metrics: dict[str, Any], arms: Sequence[str] = ("old", "new"), **settings: Any) -> Experiment:
    """The first metric is the primary one."""
    return Experiment.model_validate(
        {
            "name": "feed",
            "hypothesis": "the new feed is opened more often",
            "arms": [{"name": name, "release": f"release-{name}"} for name in arms],
            "metrics": metrics or (OPENS,),
            "primary": (metrics or (OPENS,))[0]["name"],
            "minimum_effect": 0.1,
            "max_days": 14.0,
            **settings,
        }
    )


def draw_users(
    num_users: int, *, seed: int = 1, effect: float = 0.0, days: float = 14.0, arms: Sequence[str] = ("old", "new")
) -> pl.DataFrame:
    """Every metric of above, known of everybody; `effect` is relative, of all arms but the first."""
    rng = np.random.default_rng(seed)
    arm = rng.integers(0, len(arms), num_users)
    up = np.where(arm > 0, 1 + effect, 1.0)
    habit = rng.gamma(2, 1, num_users)
    views, before = rng.poisson(3 * habit) + 1, rng.poisson(3 * habit) + 1
    first = rng.exponential(6 / up)
    seconds = np.sort(rng.uniform(0, days * 86_400, num_users))
    return pl.DataFrame(
        {
            "user_id": [f"u{number:06d}" for number in range(num_users)],
            "arm": np.asarray(arms)[arm],
            "exposed_at": [START + timedelta(seconds=float(one)) for one in seconds],
            "opens": rng.poisson(2 * habit * up).astype(float),
            "opens.pre": rng.poisson(4 * habit).astype(float),
            "bought": (rng.random(num_users) < 0.2 * up).astype(float),
            "clicks": rng.binomial(views, np.minimum(1, 0.2 * up)).astype(float),
            "clicks.per": views.astype(float),
            "clicks.pre": rng.binomial(before, 0.2).astype(float),
            "clicks.pre.per": before.astype(float),
            "back": (rng.random(num_users) < 0.3 * up).astype(float),
            "first": np.minimum(first, 3.0),
            "first.event": first < 3.0,
            "lifecycle": rng.choice(["new", "core", "dormant"], num_users),
            "segment": rng.choice(["readers", "buyers"], num_users),
        }
    )


def known_at(users: pl.DataFrame, experiment: Experiment, until: datetime) -> pl.DataFrame:
    """The frame as it was then: users exposed later are absent, numbers whose window is not over are null."""
    exposed = users.filter(pl.col("exposed_at") < until)
    return exposed.with_columns(
        pl.when(pl.col("exposed_at") + timedelta(days=metric.window_days) <= until)
        .then(pl.col(metric.name))
        .alias(metric.name)
        for metric in experiment.metrics
    )


def counts(users: pl.DataFrame) -> dict[str, int]:
    return dict(users["arm"].value_counts().iter_rows())
