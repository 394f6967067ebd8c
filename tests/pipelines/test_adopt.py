"""`sonder adopt` on a release that the real jobs built, beside a copy of itself and one that lost its training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pipelines.cli import app
from sonder.core.storage import MANIFEST
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import Encoder, load_encoder, save_encoder
from sonder.experiments.specification import read_experiment
from sonder.releases.artefacts import Release
from sonder.releases.registry import Registry, seal
from tests.built import BuiltWorld

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def cleared(built_world: BuiltWorld) -> Iterator[None]:
    """The world is the whole session's: what is added here goes again."""
    yield
    for release_id in ("r-copy", "r-lost"):
        Workspace.at(built_world.config.workspace).release(release_id).remove()


def copy_of(built_world: BuiltWorld, release_id: str, *, is_untrained: bool = False) -> str:
    """The built release under another name; untrained: with weights as they are drawn."""
    workspace = Workspace.at(built_world.config.workspace)
    release = Release.open(workspace, built_world.release_id)
    if workspace.release(release_id).is_published():
        return release_id
    staged = workspace.staging(release_id)
    for name in release.folder.files():
        if name != MANIFEST:
            (staged / name).write_bytes((release.folder / name).read_bytes())
    if is_untrained:
        encoder = load_encoder(release.encoder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            weights = {name: torch.randn_like(value) * 0.05 for name, value in encoder.model.state_dict().items()}
        save_encoder(
            Encoder.of(encoder.spec, weights, np.ones(encoder.spec.num_items, np.bool_), content=encoder.content),
            staged / "encoder",
        )
    manifest = release.manifest
    seal(
        staged,
        workspace,
        release_id=release_id,
        parent=None,
        snapshot=manifest.snapshot,
        config=built_world.config,
        metrics=manifest.metrics,
        row_counts=manifest.row_counts,
        as_of_us=manifest.as_of_us,
    )
    return release_id


def adopted(built_world: BuiltWorld, candidate: str, folder: Path) -> tuple[str, dict[str, object], str]:
    """What the command printed, its JSON and its page."""
    files = ["--html", str(folder / "a.html"), "--json", str(folder / "a.json"), "--experiment", str(folder / "e.yaml")]
    command = ["adopt", candidate, "--against", built_world.release_id, "--workers", "0", *files]
    told = CliRunner().invoke(app, [*command, *built_world.arguments], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    return told.output, json.loads((folder / "a.json").read_text()), (folder / "a.html").read_text()


def test_a_copy_of_the_current_release_may_be_shipped(built_world: BuiltWorld, tmp_path: Path) -> None:
    output, content, page = adopted(built_world, copy_of(built_world, "r-copy"), tmp_path)
    assert content["decision"]["word"] == "ship"  # type: ignore[index]
    assert "Ship it" in output
    assert "share 100.0% of their items" in page
    assert content["costs"]["was"]["training_seconds"] > 0  # type: ignore[index]
    experiment = read_experiment(tmp_path / "e.yaml")
    assert [arm.release for arm in experiment.arms] == [None, "r-copy"]
    assert content["plan"]["users_by_arm"]["candidate"] > 100  # type: ignore[index]


def test_a_release_that_lost_its_training_is_refused(built_world: BuiltWorld, tmp_path: Path) -> None:
    output, content, _ = adopted(built_world, copy_of(built_world, "r-lost", is_untrained=True), tmp_path)
    assert content["decision"]["word"] == "no"  # type: ignore[index]
    assert "NDCG@10" in output


def test_the_current_release_is_no_candidate(built_world: BuiltWorld) -> None:
    assert Registry(Workspace.at(built_world.config.workspace)).current() is not None
    told = CliRunner().invoke(app, ["adopt", built_world.release_id, *built_world.arguments])
    assert "is the current release" in str(told.exception)
