"""Scores in profiles -> a file of users to act on, over a made-up release of three buckets, without Ray."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from pipelines import audience, cli
from pipelines.bucket_tasks import part_file
from pipelines.target import AskedTarget, Targets, choose_targets, write_targets
from sonder.core.errors import InvalidRequest, NotFound
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.profiles.record import PROFILE_SCHEMA
from sonder.scoring.decisions import simple_payoff
from tests.tiny_log import timelines_of, vocabulary_of, write_snapshot

NUM_USERS = 60
PAYOFF = simple_payoff(cost=2, value=10)  # pays above 0.2
HEADS = {
    "heads": [
        {"task": {"name": "churn_60d", "within_days": 60, "churn": True}, "outputs": ["churn_60d"]},
        {"task": {"name": "spend_30d", "within_days": 30, "value": True}, "outputs": ["spend_30d"]},
        {"task": {"name": "category_30d", "within_days": 30}, "outputs": ["category_30d/a", "category_30d/b"]},
    ],
    "refusals": [{"task": "buy_1d", "reason": "too few of a kind in the test rows", "numbers": {"positives": 3}}],
}


def profile(user: int) -> dict[str, Any]:
    """User n churns with n percent, the last five have no score; odd ones granted ads, every third is undecided."""
    scores = [{"name": "churn_60d", "value": user / 100}, {"name": "spend_30d", "value": user * 1.0}]
    return {
        "user_id": f"u{user:02d}",
        "as_of": 0,
        "is_cold": False,
        "num_events": user,
        "segments": {"lifecycle": "core"},
        "interests": [],
        "affinities": [],
        "scores": scores if user < NUM_USERS - 5 else [],
        "consent": None if user % 3 == 0 else [{"name": "ads", "granted": user % 2 == 1}],
    }


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    workspace = Workspace.at(str(tmp_path / "workspace"))
    vocabulary = vocabulary_of(["a", "b"])
    users = {f"u{user:02d}": [(0.0, 0, "view")] for user in range(NUM_USERS)}
    write_snapshot(workspace, "s", timelines_of(users), vocabulary, num_buckets=3)
    folder = Folder.at(str(tmp_path / "release"))
    for bucket in range(3):
        rows = [profile(user) for user in range(bucket, NUM_USERS, 3)]
        part_file(folder / "profiles", bucket).write_table(pa.Table.from_pylist(rows, schema=PROFILE_SCHEMA))
    (folder / "scores" / "heads.json").write_json(HEADS)
    draw = np.random.default_rng(0)
    values = draw.uniform(0, 1, 400)
    test = {
        "user_id": [f"t{row}" for row in range(400)],
        "cutoff": pa.array(np.full(400, 86_400_000_000)).cast(pa.timestamp("us", "UTC")),
        "label": pa.array((draw.random(400) < values).astype(float)),
        "value": pa.array(values, pa.float32()),
    }
    (folder / "scores" / "test" / "churn_60d.parquet").write_table(pa.table(test))
    vocabulary.save(folder / "items")
    manifest = SimpleNamespace(as_of_us=0, row_counts={"profiles": NUM_USERS}, snapshot="s")
    release = SimpleNamespace(
        id="r-1", profiles=folder / "profiles", scores=folder / "scores", items=folder / "items", manifest=manifest,
        base_rates=lambda: {"churn_60d": 0.3, "spend_30d": 3.0},
    )  # fmt: skip
    monkeypatch.setattr(audience.Release, "open", classmethod(lambda *_: release))
    return workspace


def choose(workspace: Workspace, **asked: Any) -> Targets:
    wanted = {"payoff": PAYOFF, "task": "churn_60d", "cost": 2.0} | asked
    return choose_targets(workspace, AskedTarget(**wanted), release_id="r-1")


def test_a_budget_buys_the_users_of_most_expected_gain(workspace: Workspace) -> None:
    targets = choose(workspace, budget=7.0)
    assert targets.users["user_id"].to_list() == ["u54", "u53", "u52"]
    assert targets.users["rank"].to_list() == [1, 2, 3]
    assert targets.users["expected_gain"].to_list() == pytest.approx([3.4, 3.3, 3.2], abs=1e-6)
    facts = targets.facts
    assert facts["expected"]["gain"] == pytest.approx(9.9, abs=1e-5)
    assert facts["random_gain"] == pytest.approx(3 * (10 * 0.27 - 2), abs=1e-5)  # mean score of users 0 to 54
    assert facts["next"] == {"users": 1, "gain": pytest.approx(3.1, abs=1e-5)}
    assert (facts["spent"], facts["stopped_by"]) == (6, "budget")
    assert facts["payoff"]["break_even"] == pytest.approx(0.2)


def test_without_a_budget_it_ends_where_acting_no_longer_pays(workspace: Workspace) -> None:
    targets = choose(workspace)
    assert targets.users["user_id"].to_list() == [f"u{user}" for user in range(54, 20, -1)]
    assert targets.facts["stopped_by"] == "nobody else is expected to gain"
    assert targets.facts["next"]["gain"] <= 0


def test_size_rule_consent_and_list_leave_users_out_and_each_is_counted_once(workspace: Workspace) -> None:
    targets = choose(workspace, rule="num_events >= 40", purpose="ads", exclude=("u53", "stranger"), size=100)
    assert targets.users["user_id"].to_list() == ["u49", "u47", "u43", "u41"]
    # of 60: five without a score, 40 below the rule, of the 15 left 10 did not grant ads
    assert targets.facts["left_out"] == {
        "no_score": 5, "outside_audience": 40, "without_consent": 10, "excluded": 1,
    }  # fmt: skip
    assert targets.facts["candidates"] == 4
    assert any("audience and consent are not applied" in note for note in targets.facts["notes"])


def test_the_held_out_window_is_told_with_its_cutoff(workspace: Workspace) -> None:
    facts = choose(workspace, size=11).facts
    held_out = facts["held_out"]
    assert held_out["cutoff"] == "1970-01-02T00:00:00+00:00"
    assert held_out["num_chosen"] == 80  # the same fifth of 400
    assert held_out["random"] < held_out["gain"] <= held_out["perfect"]
    assert "1970-01-02" in facts["protocol"]
    low, high = facts["expected"]["sum_interval"]
    assert low < facts["expected"]["sum"] < high


def test_a_probability_without_an_uplift_is_called_an_upper_bound(workspace: Workspace) -> None:
    assert choose(workspace, size=1, effect=0.3).facts["notes"][0].startswith("An upper bound")
    assert "30%" in choose(workspace, size=1, effect=0.3).facts["notes"][0]


def test_an_amount_pays_by_its_margin_and_says_that_it_has_no_held_out_window(workspace: Workspace) -> None:
    targets = choose(workspace, task="spend_30d", payoff=simple_payoff(cost=10, value=0.25), size=5)
    assert targets.users["expected_gain"].to_list() == pytest.approx([3.5, 3.25, 3.0, 2.75, 2.5])
    assert targets.facts["held_out"] is None
    assert any("no test rows of spend_30d" in note for note in targets.facts["notes"])


@pytest.mark.parametrize(
    ("task", "error", "said"),
    [
        ("chrun", NotFound, r"No score 'chrun'.*churn_60d, spend_30d, category_30d/a"),
        ("buy_1d", InvalidRequest, r"refused by release r-1: too few of a kind.*positives 3"),
        ("category_30d", NotFound, r"each of 2 categories.*category_30d/a, category_30d/b"),
    ],
)
def test_a_task_that_is_not_there_is_told_why(workspace: Workspace, task: str, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        choose(workspace, task=task)


def test_the_same_question_gives_the_same_file(workspace: Workspace, tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet", "c.csv"):
        write_targets(choose(workspace, size=5), tmp_path / name, min_size=5)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    columns = ["user_id", "score", "expected_gain", "rank", "release", "as_of"]
    assert pl.read_csv(tmp_path / "c.csv").columns == columns
    assert pl.read_parquet(tmp_path / "a.parquet").columns == columns
    assert Folder.at(str(tmp_path / "a.parquet.json")).read_json()["chosen"] == 5
    assert not workspace.staging("").children()


def test_a_handful_of_people_is_not_exported(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"audiences\.min_export_size"):
        write_targets(choose(workspace, size=5), tmp_path / "out.csv", min_size=6)
    assert not (tmp_path / "out.csv").exists()


def test_the_command_prints_thresholds_forecast_and_held_out_window(workspace: Workspace, tmp_path: Path) -> None:
    config = tmp_path / "sonder.yaml"
    config.write_text(f"workspace: {workspace.root}\nevents: {{path: log.csv}}\naudiences: {{min_export_size: 3}}\n")
    command = ["target", "--task", "churn_60d", "--budget", "10", "--cost", "2", "--release", "r-1", "-c", str(config)]
    done = CliRunner().invoke(cli.app, [*command, "--value", "10", "--out", str(tmp_path / "out.csv")])
    assert done.exit_code == 0, done.output
    assert "Acting pays above a score of 0.2" in done.output
    assert "held-out window from 1970-01-02" in " ".join(done.output.split())
    assert (tmp_path / "out.csv.json").exists()
    wrong = CliRunner().invoke(cli.app, [*command, "--value", "10", "--table", "true_positive=1"])
    assert isinstance(wrong.exception, InvalidRequest)
