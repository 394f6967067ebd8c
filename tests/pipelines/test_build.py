"""The main job, end to end: one build by the real jobs, looked at from every side."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from pipelines.build import build, build_metrics, run_until, with_parent
from pipelines.cli import app
from pipelines.story import pick_users, read_story
from pipelines.train import train_encoder
from sonder.core.errors import ConfigurationError, NotFound
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import training_of
from sonder.releases.manifest import read_release, verify_files
from sonder.releases.registry import Registry
from tests.built import BuiltWorld

pytestmark = pytest.mark.ray
RETRIEVAL = ("hr_at_10", "ndcg_at_10", "hr_at_10_unseen", "ndcg_at_10_unseen", "p90_coverage_at_10")
SCORES = ("auc", "pr_auc", "ece", "base_rate", "users")


def release_folder(world: BuiltWorld) -> Path:
    return Path(world.config.workspace) / "releases" / world.release_id


def profiles(world: BuiltWorld) -> pl.DataFrame:
    return pl.read_parquet(release_folder(world) / "profiles" / "bucket=*" / "part-0.parquet", hive_partitioning=False)


def test_a_release_is_sealed_with_digests_of_every_file(built_world: BuiltWorld) -> None:
    workspace = Workspace.at(built_world.config.workspace)
    manifest = read_release(workspace.release(built_world.release_id))
    verify_files(workspace.release(built_world.release_id), manifest)
    assert {name.split("/")[0] for name in manifest.files} >= {
        "encoder", "items", "interests", "affinities", "segments", "scores", "profiles", "report"
    }  # fmt: skip
    assert not [child.name for child in workspace.staging("").children() if child.name.startswith("build-")]


def test_every_user_of_the_log_has_one_profile(built_world: BuiltWorld) -> None:
    events = pl.read_parquet(built_world.config_file.parent / "events" / "*.parquet")
    found = profiles(built_world)
    assert sorted(found["user_id"]) == sorted(events["user_id"].unique())
    assert found["num_events"].sum() == events.height
    warm = found.filter(~pl.col("is_cold"))
    assert warm["embedding"].list.len().unique().to_list() == [16]
    assert warm["interests"].list.len().min() >= 1
    assert warm["affinities"].list.len().min() >= 1


def test_profiles_carry_what_the_user_table_says(built_world: BuiltWorld) -> None:
    accounts = pl.read_parquet(built_world.config_file.parent / "users.parquet")
    found = profiles(built_world).join(accounts, on="user_id", how="left", suffix="_given")
    is_known = pl.col("user_id").is_in(accounts["user_id"].to_list())
    assert found.filter(~is_known)["attributes"].null_count() == found.filter(~is_known).height > 0
    known = found.filter(is_known)
    assert (known["signup_at"] == known["signup_at_given"]).all()
    for row in known.head(50).to_dicts():
        told = {pair["name"]: pair["value"] for pair in row["attributes"]}
        assert (told.get("country"), told["age_band"]) == (row["country"], row["age_band"])
        granted = {pair["name"]: pair["granted"] for pair in row["consent"]}
        assert (granted.get("ads"), granted.get("email")) == (row["consent_ads"], row["consent_email"])


def test_the_flat_metrics_have_the_published_names(built_world: BuiltWorld) -> None:
    metrics = json.loads((release_folder(built_world) / "report" / "metrics.json").read_text(encoding="utf-8"))
    models = ("encoder", "popularity", "item_knn")
    names = {f"retrieval.{model}.{metric}" for model in models for metric in RETRIEVAL}
    names |= {f"data.{name}" for name in ("events", "users", "items", "quarantined")}
    names |= {f"scores.{task.name}.{metric}" for task in built_world.config.scores for metric in SCORES}
    names |= {f"retrieval.{model}.{metric}" for model in models for metric in ("recall_at_10", "hide_rate_at_10")}
    names |= {f"interests.affinity_{name}_level{level}" for name in ("ece", "naive_ece") for level in (1, 2, 3)}
    # a synthetic world is measured against its own truth as well
    names |= {"truth.interest_purity", "truth.lifecycle_agreement", "truth.buy_7d.auc_of_truth"}
    names |= {
        "truth.lifecycle_agreement_28d_ago",
        "lifecycle.net_growth",
        "lifecycle.forecast_mae",
        "lifecycle.naive_mae",
    }
    assert names <= set(metrics)
    assert all(isinstance(value, int | float) for value in metrics.values())
    assert build_metrics(built_world.config) == metrics


def test_the_same_build_again_is_the_same_release_at_once(built_world: BuiltWorld) -> None:
    assert build(built_world.config) == built_world.release_id
    assert run_until(built_world.config, "train")["status"] == "released already"
    assert len(Registry(Workspace.at(built_world.config.workspace)).list()) == 1


def test_training_on_from_a_release_takes_a_tenth_of_its_epochs(
    built_world: BuiltWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_parent(built_world.config.model_copy(update={"seed": 12}), built_world.release_id)
    monkeypatch.setattr("pipelines.train.ensure_ray", lambda: None)
    workspace = Workspace.at(config.workspace)
    snapshot = read_release(workspace.release(built_world.release_id)).snapshot
    target, parent = Folder.at(str(tmp_path)), workspace.release(built_world.release_id) / "encoder"
    metrics = train_encoder(config, snapshot, target, cutoff_us=None, num_workers=0)
    assert (metrics["parent"], metrics["epochs"], metrics["full_epochs"]) == (built_world.release_id, 1, 2)
    assert training_of(target)["full_epochs"] == 2
    first = training_of(parent)["history"][0]["loss"]
    assert metrics["history"][0]["loss"] < first  # it did not start from nothing


def test_a_parent_that_is_not_there_is_said_before_any_work(built_world: BuiltWorld, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="r-unknown"):
        with_parent(built_world.config, "r-unknown")
    served = Registry(Workspace.at(built_world.config.workspace)).current()
    if served is not None:
        assert with_parent(built_world.config, "current").encoder.parent == served.release
    empty = built_world.config.model_copy(update={"workspace": str(tmp_path)})
    with pytest.raises(ConfigurationError, match="Build without --parent first"):
        with_parent(empty, "current")


def test_a_story_tells_what_the_release_knows(built_world: BuiltWorld) -> None:
    workspace = Workspace.at(built_world.config.workspace)
    folder = workspace.release(built_world.release_id) / "profiles"
    user_id = pick_users([folder / name for name in folder.files()], count=1)[0]
    story = read_story(workspace, user_id)
    assert story.timeline == tuple(sorted(story.timeline, key=lambda moment: moment.time))
    assert story.profile["interests"][0]["weight"] > 0
    assert len(story.recommendations) == 10
    with pytest.raises(NotFound, match="nobody"):
        read_story(workspace, "nobody")


def test_the_report_is_one_page_that_asks_nothing_of_the_network(built_world: BuiltWorld) -> None:
    page = (release_folder(built_world) / "report" / "index.html").read_text(encoding="utf-8")
    assert "HR@10" in page
    for section in (
        "What users did not want",
        "By what is known of the user",
        "Is the space in use?",
        "States over time",
    ):
        assert section in page
    assert "<script" not in page
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_the_commands_tell_the_same(built_world: BuiltWorld, tmp_path: Path) -> None:
    runner = CliRunner()
    listed = runner.invoke(app, ["release", "list", *built_world.arguments], env={"COLUMNS": "200"})
    assert built_world.release_id in listed.output
    assert "served" in listed.output
    shown = runner.invoke(app, ["release", "show", *built_world.arguments])
    assert json.loads(shown.output)["id"] == built_world.release_id
    evaluated = runner.invoke(
        app, ["evaluate", "--json", str(tmp_path / "metrics.json"), *built_world.arguments], env={"COLUMNS": "200"}
    )
    assert "item-kNN" in evaluated.output
    assert (
        json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["data.users"]
        == profiles(built_world).height
    )
    user_id = profiles(built_world)["user_id"][0]
    told = runner.invoke(app, ["profile", user_id, *built_world.arguments], env={"COLUMNS": "200"})
    assert f"User {user_id}" in told.output


def test_a_test_window_that_does_not_fit_is_refused_with_one_that_does(built_world: BuiltWorld) -> None:
    config = built_world.config
    too_long = type(config).model_validate(
        config.model_dump() | {"evaluation": {"protocol": "temporal", "test_days": 60}}
    )
    with pytest.raises(ConfigurationError, match=r"evaluation\.test_days=35"):
        build(too_long)
