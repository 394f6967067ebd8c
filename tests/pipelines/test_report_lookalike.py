"""The list of seeds that a build knows by itself, over made-up histories and profiles, without Ray."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines import report_lookalike
from pipelines.bucket_tasks import part_file
from pipelines.report_lookalike import draw_seeds, illustrate_reach
from sonder.core.score_config import ScoreTask
from sonder.core.storage import Folder
from sonder.evaluation.reach_chart import ReachFacts
from sonder.history.snapshot import HISTORY_SCHEMA, bucket_file
from sonder.profiles.record import PROFILE_SCHEMA

AS_OF = datetime(2025, 3, 31, tzinfo=UTC)
NUM_USERS = 180
BUY = ScoreTask(name="buy_7d", action="buy", within_days=7)
CHURN = ScoreTask(name="churn_14d", churn=True, within_days=14)


def write_world(folder: Folder, days_ago: list[float], action: str = "buy") -> None:
    """One bucket; the user u000 did the action `days_ago[0]` days before as_of, and so on; buyers point east."""
    draw = np.random.default_rng(1)
    vectors = draw.normal(size=(NUM_USERS, 4)) + np.where(np.array(days_ago) <= 7, 3.0, 0.0)[:, None] * np.eye(4)[0]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"u{user:03d}" for user in range(NUM_USERS)]
    lists = {"item_id": ["x"], "surface": [None], "value": [None], "request_id": [None], "event_key": [0]}
    history = [
        {"user_id": name, "action": [action], "timestamp": [AS_OF - timedelta(days=days)], "num_events": 1, **lists}
        for name, days in zip(ids, days_ago, strict=True)
    ]
    bucket_file(folder / "history", 0).write_table(pa.Table.from_pylist(history, schema=HISTORY_SCHEMA))
    (folder / "history" / "manifest.json").write_json({"buckets": [{"bucket": 0, "users": NUM_USERS}]})
    profiles = [
        {"user_id": name, "as_of": AS_OF, "is_cold": False, "num_events": 3, "segments": {"lifecycle": "core"}}
        | {"interests": [], "affinities": [], "scores": [], "embedding": vector}
        for name, vector in zip(ids, vectors.tolist(), strict=True)
    ]
    part_file(folder / "release" / "profiles", 0).write_table(pa.Table.from_pylist(profiles, schema=PROFILE_SCHEMA))


def reach_of(folder: Folder, scores: tuple[ScoreTask, ...] = (CHURN, BUY), is_ordinal: bool = False) -> Any:
    config: Any = SimpleNamespace(scores=scores, seed=7)
    return illustrate_reach(
        config, folder / "history", folder / "release", folder / "staged", as_of=AS_OF, is_ordinal=is_ordinal
    )


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.at(str(tmp_path))


def test_who_acted_in_the_window_before_as_of_is_a_seed_and_nobody_else(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = [7.0] * 60 + [7.001] * 60 + [0.0] * 30 + [-1.0] * 30  # as_of itself and later are not known yet
    write_world(folder, days)
    reach = reach_of(folder)
    assert isinstance(reach, ReachFacts)
    assert (reach.num_actors, reach.num_seeds, reach.num_ranked) == (60, 60, 120)
    assert (reach.action, reach.within_days, reach.as_of) == ("buy", 7, "2025-03-31")
    assert "five folds" in reach.protocol
    assert [row.size for row in reach.rows] == sorted(row.size for row in reach.rows)
    assert not (folder / "staged").children()
    monkeypatch.setattr(report_lookalike, "MAX_SEEDS", 55)
    assert (reach_of(folder).num_seeds, reach_of(folder).num_actors) == (55, 60)


@pytest.mark.parametrize(
    ("num_actors", "reason"),
    [(49, "49 users with a vector did `buy`"), (91, "91 of 180 users"), (0, "fewer than the 50")],
)
def test_a_list_that_is_too_short_or_nearly_everybody_is_left_out_with_its_reason(
    folder: Folder, num_actors: int, reason: str
) -> None:
    write_world(folder, [1.0] * num_actors + [20.0] * (NUM_USERS - num_actors))
    assert reason in reach_of(folder)


def test_without_an_action_or_without_dates_there_is_no_list(folder: Folder) -> None:
    assert "No score names an `action`" in reach_of(folder, (CHURN,))
    assert "no dates" in reach_of(folder, is_ordinal=True)


def test_seeds_are_those_with_the_lowest_draw_whatever_bucket_they_lie_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_lookalike, "MAX_SEEDS", 2)
    assert draw_seeds([(0.5, "a"), (0.9, "b"), (0.1, "c")]).to_list() == ["c", "a"]
