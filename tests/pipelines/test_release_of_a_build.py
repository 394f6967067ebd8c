"""The gate and the comparison on a release that the real jobs made: what the guide says can be relied on is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.release_diff import compare_releases
from sonder.core.workspace import Workspace
from sonder.releases.artefacts import Release
from sonder.releases.facts import read_facts
from sonder.releases.metric_meaning import better
from tests.built import BuiltWorld

pytestmark = pytest.mark.ray
RELIED_ON = {
    "consumers": [
        {
            "name": "ads",
            "needs": ["scores.buy_7d", "segments.cluster_id", "embedding", "attributes.country", "interests.name"],
            "requires": [
                {"metric": "scores.buy_7d.auc", "may_fall": "1%"},
                {"metric": "scores.buy_7d.ece", "may_worsen": "10%"},
                {"metric": "retrieval.encoder.ndcg_at_10", "may_worsen": "2%"},
                {"metric": "data.users", "may_fall": "5%"},
                {"metric": "coverage.embedding", "at_least": 0.5},
                {"metric": "coverage.interests", "at_least": 0.5},
                {"metric": "rows.profiles", "may_fall": "1%"},
            ],
        }
    ]
}


def test_everything_that_the_guide_names_is_in_a_real_release(built_world: BuiltWorld, tmp_path: Path) -> None:
    consumers = tmp_path / "consumers.yaml"
    consumers.write_text(yaml.safe_dump(RELIED_ON), encoding="utf-8")
    arguments = [*built_world.arguments, "--set", f"consumers={consumers}"]
    told = CliRunner().invoke(
        app, ["release", "check", built_world.release_id, *arguments], env={"COLUMNS": "200"}, catch_exceptions=False
    )
    assert told.exit_code == 0, told.output
    assert "12 of 12 promises are kept" in told.output


def test_coverage_and_intervals_are_those_of_the_rows(built_world: BuiltWorld) -> None:
    workspace = Workspace.at(built_world.config.workspace)
    facts = read_facts(Release.open(workspace, built_world.release_id))
    rows, cold = facts.metrics["rows.profiles"], facts.metrics["rows.cold"]
    assert facts.metrics["coverage.embedding"] == pytest.approx((rows - cold) / rows)
    low, high = facts.intervals["scores.buy_7d.auc"]
    assert low < facts.metrics["scores.buy_7d.auc"] < high
    judged = {name for name in facts.metrics if name.startswith(("retrieval.encoder.", "scores.")) and better(name)}
    assert {"retrieval.encoder.hr_at_10", "scores.buy_7d.log_loss"} <= judged


def test_a_real_release_compared_with_itself_did_not_move(built_world: BuiltWorld) -> None:
    same = compare_releases(built_world.config, built_world.release_id, built_world.release_id)
    assert {change.judgement for change in same.differences.metrics if "stability" not in change.name} == {"same"}
    assert (same.users.lifecycle.stayed, same.users.clusters.stayed) == (1, 1)
    assert same.users.vectors.movement is not None
    assert same.users.vectors.movement.median == pytest.approx(1, abs=1e-5)
    assert {shift.psi for shift in same.users.scores} == {0}
    assert same.users.users > 500
