"""`sonder release diff`: the terminal, the JSON and the page tell the same; samples are the same users everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.release_diff import compare_releases, read_profiles
from sonder.core.config import SonderConfig
from sonder.core.errors import NotFound
from sonder.core.workspace import Workspace
from sonder.releases.artefacts import Release
from tests.sealed import TASK, config_of, draw_profiles, seal_release


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diff")
    config = {"workspace": str(folder / "workspace"), "events": {"path": "log.csv"}, "scores": [TASK]}
    (folder / "sonder.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    workspace = Workspace.at(str(folder / "workspace"))
    seal_release(workspace, "r-1", profiles=draw_profiles(1, users=600))
    worse = {"scores.buy_7d.auc": 0.73, "retrieval.encoder.hr_at_10": 0.09}
    later = draw_profiles(2, users=600, first=50, shift=0.5)
    seal_release(workspace, "r-2", profiles=later, metrics=worse, day=61, seed=9)
    seal_release(workspace, "r-turned", profiles=draw_profiles(1, users=600, turn=True))
    return folder


def config_at(place: Path) -> SonderConfig:
    return config_of(Workspace.at(str(place / "workspace")))


def shown(place: Path, *arguments: str) -> str:
    command = ["release", "diff", *arguments, "-c", str(place / "sonder.yaml")]
    told = CliRunner().invoke(app, command, env={"COLUMNS": "200"}, catch_exceptions=False)
    assert told.exit_code == 0, told.output
    return told.output


def test_the_terminal_the_json_and_the_page_tell_the_same(place: Path, tmp_path: Path) -> None:
    page, numbers = tmp_path / "diff.html", tmp_path / "diff.json"
    told = shown(place, "r-1", "r-2", "--out", str(page), "--json", str(numbers))
    content = json.loads(numbers.read_text(encoding="utf-8"))
    psi = next(score["psi"] for score in content["users"]["scores"] if score["name"] == "buy_7d")
    auc = next(metric for metric in content["metrics"] if metric["name"] == "scores.buy_7d.auc")
    assert auc["judgement"] == "worse"
    assert content["users"]["users"] == 550
    html = page.read_text(encoding="utf-8")
    for text in (told, html):
        assert f"{psi:.3f}" in text
        assert "-2.67 %" in text
        assert "550" in text
    assert "1 better, 1 worse" in told
    assert "seed" in told


def test_another_space_is_named_in_all_three(place: Path, tmp_path: Path) -> None:
    page, numbers = tmp_path / "diff.html", tmp_path / "diff.json"
    told = shown(place, "r-1", "r-turned", "--out", str(page), "--json", str(numbers))
    assert "different space" in told
    assert "Different space." in page.read_text(encoding="utf-8")
    assert json.loads(numbers.read_text(encoding="utf-8"))["users"]["vectors"]["is_other_space"]


def test_a_release_that_is_not_there_is_named(place: Path) -> None:
    with pytest.raises(NotFound, match="r-9"):
        compare_releases(config_at(place), "r-1", "r-9")


def test_a_sample_is_the_same_users_in_both_releases_and_in_every_run(place: Path) -> None:
    whole = compare_releases(config_at(place), "r-1", "r-2")
    some = compare_releases(config_at(place), "r-1", "r-2", max_users=150)
    assert (whole.share, some.share) == (1.0, 0.25)
    assert 90 < some.users.users < 190
    assert some.users.only_before < 30  # two samples drawn apart would have a quarter of their users in common
    assert compare_releases(config_at(place), "r-1", "r-2", max_users=150).to_dict() == some.to_dict()
    smaller = set(read_profiles(Release.open(Workspace.at(str(place / "workspace")), "r-1"), 0.1)["user_id"])
    larger = set(read_profiles(Release.open(Workspace.at(str(place / "workspace")), "r-1"), 0.25)["user_id"])
    assert smaller < larger


def test_profiles_of_before_there_were_clusters_are_compared_without(tmp_path: Path) -> None:
    workspace = Workspace.at(str(tmp_path))
    profiles = draw_profiles()
    segments = profiles.column("segments").combine_chunks()
    place = profiles.schema.get_field_index("segments")
    old = profiles.set_column(
        place, "segments", pa.StructArray.from_arrays([segments.field("lifecycle")], ["lifecycle"])
    )
    seal_release(workspace, "r-1", profiles=old)
    seal_release(workspace, "r-2", profiles=profiles)
    compared = compare_releases(config_of(workspace), "r-1", "r-2")
    assert compared.users.clusters.before == ("no cluster",)
    assert "segments.cluster_id" in {change.name for change in compared.differences.fields}


def test_what_consumers_rely_on_is_part_of_the_comparison(place: Path, tmp_path: Path) -> None:
    consumers = {"consumers": [{"name": "ads", "requires": [{"metric": "scores.buy_7d.auc", "may_fall": "1%"}]}]}
    (tmp_path / "consumers.yaml").write_text(yaml.safe_dump(consumers), encoding="utf-8")
    told = shown(place, "r-1", "r-2", "--set", f"consumers={tmp_path / 'consumers.yaml'}")
    assert "a promotion would be refused" in told
