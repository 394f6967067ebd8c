from __future__ import annotations

from pathlib import Path

import pytest

from sonder.core.workspace import Workspace
from sonder.releases.artefacts import Release
from sonder.releases.differences import Differences, MetricChange, compare, flatten
from sonder.releases.facts import read_facts
from tests.sealed import TASK, draw_profiles, seal_release


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.at(str(tmp_path))


def compared(workspace: Workspace, was: str = "r-1", now: str = "r-2") -> Differences:
    return compare(*(read_facts(Release.open(workspace, release_id)) for release_id in (was, now)))


def by_name(differences: Differences) -> dict[str, MetricChange]:
    return {change.name: change for change in differences.metrics}


def test_metrics_are_judged_by_the_way_that_is_better_for_each(workspace: Workspace) -> None:
    seal_release(workspace, "r-1", metrics={"a.gone": 1, "stability.users_moved": 0.3})
    changed = {"scores.buy_7d.auc": 0.76, "scores.buy_7d.ece": 0.03, "data.users": 210, "b.new": 2}
    seal_release(workspace, "r-2", metrics=changed)
    found = by_name(compared(workspace))
    assert found["scores.buy_7d.auc"].judgement == "better"
    assert found["scores.buy_7d.ece"].judgement == "worse"
    assert found["data.users"].judgement == "moved"
    assert found["retrieval.encoder.ndcg_at_10"].judgement == "same"
    assert found["a.gone"].judgement == found["b.new"].judgement == "only in one"
    assert found["scores.buy_7d.ece"].relative == pytest.approx(0.5)
    assert found["a.gone"].relative is None


def test_a_release_compared_with_itself_is_the_same(workspace: Workspace) -> None:
    seal_release(workspace, "r-1", metrics={"stability.users_moved": 0.1}, parent="r-0")
    same = compared(workspace, "r-1", "r-1")
    assert {change.judgement for change in same.metrics if not change.name.startswith("stability.")} == {"same"}
    assert (same.config, same.inputs, same.fields) == ((), (), ())


def test_what_may_not_be_compared_is_not_judged(workspace: Workspace) -> None:
    seal_release(workspace, "r-1")
    better = {"retrieval.encoder.ndcg_at_10": 0.9, "scores.buy_7d.auc": 0.9}
    seal_release(
        workspace, "r-2", metrics=better, evaluation={"protocol": "leave_one_out"}, tasks=({**TASK, "within_days": 30},)
    )
    differences = compared(workspace)
    found = by_name(differences)
    assert found["retrieval.encoder.ndcg_at_10"].judgement == "not comparable"
    assert "protocol" in found["retrieval.encoder.ndcg_at_10"].why
    assert found["scores.buy_7d.auc"].judgement == "not comparable"
    assert [change.name for change in differences.fields] == ["scores.buy_7d"]
    assert differences.count("better") == 0


@pytest.mark.parametrize(
    ("was", "now", "is_chance"),
    [((0.7, 0.8), (0.7, 0.8), True), ((0.74, 0.76), (0.7, 0.8), False), ((0.7, 0.8), (0.72, 0.74), False)],
)
def test_chance_is_where_each_interval_holds_the_other_value(
    workspace: Workspace, was: tuple[float, float], now: tuple[float, float], is_chance: bool
) -> None:
    seal_release(workspace, "r-1", intervals={"auc": was})
    seal_release(workspace, "r-2", intervals={"auc": now}, metrics={"scores.buy_7d.auc": 0.73})
    assert by_name(compared(workspace))["scores.buy_7d.auc"].is_chance == is_chance


def test_settings_and_fields_that_differ_are_named_and_places_are_not(workspace: Workspace) -> None:
    seal_release(workspace, "r-1")
    changes = {"seed": 8, "serving": {"port": 9000}, "encoder": {"dim": 8, "dropout": 0.5}}
    seal_release(workspace, "r-2", profiles=draw_profiles().drop_columns(["consent"]), **changes)
    differences = compared(workspace)
    assert [(change.name, change.was, change.now) for change in differences.config] == [
        ("encoder.dropout", None, 0.5),
        ("seed", 7, 8),
    ]
    assert {change.name for change in differences.fields} == {"consent"}


def test_nested_settings_are_flat_by_the_names_that_people_gave() -> None:
    content = {"scores": [{"name": "buy", "days": 7}, {"days": 3}], "paths": ["a", "b"], "none": None, "deep": {"a": 1}}
    assert flatten(content) == {
        "scores.buy.name": "buy",
        "scores.buy.days": 7,
        "scores.1.days": 3,
        "paths": ["a", "b"],
        "none": None,
        "deep.a": 1,
    }
