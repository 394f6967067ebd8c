"""What a build records of its parent: nothing moves beside itself, a turned space moves until it is aligned."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines.align import align_onto
from pipelines.audience import save_audience
from pipelines.build import build
from pipelines.stability import STABILITY_FILE, measure_stability
from pipelines.stability_published import Published, read_published
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import load_encoder, save_encoder
from sonder.history.vocabulary import Vocabulary
from sonder.releases.artefacts import Release
from sonder.releases.manifest import read_release
from sonder.releases.registry import Registry
from tests.built import BuiltWorld

pytestmark = pytest.mark.ray


@pytest.fixture
def parent(built_world: BuiltWorld) -> Release:
    return Release.open(Workspace.at(built_world.config.workspace), built_world.release_id)


@pytest.fixture
def staged(parent: Release, tmp_path: Path) -> Folder:
    """A build that made exactly what its parent is."""
    shutil.copytree(parent.folder.path, tmp_path / "release")
    return Folder.at(str(tmp_path / "release"))


@pytest.fixture
def buyers(parent: Release) -> Iterator[str]:
    """A saved audience, and one that names what no release knows; both gone afterwards."""
    save_audience(parent.workspace, "recent-buyers", 'count("buy", 30d) >= 1')
    yield "recent-buyers"
    parent.workspace.audiences.remove()


def rotation(dim: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(1).normal(size=(dim, dim)))[0]


def measured(parent: Release, staged: Folder) -> dict:
    return measure_stability(
        parent.workspace, parent.manifest.snapshot, staged, parent=parent.id, as_of_us=parent.manifest.as_of_us
    )


def test_beside_itself_a_release_does_not_move(parent: Release, staged: Folder, buyers: str) -> None:
    found = measured(parent, staged)
    metrics = found["metrics"]
    for name in ("user_cosine_p50", "user_cosine_p05", "user_cosine_p50_raw", "user_cosine_p50_published",
                 "user_cosine_p50_events", "neighbour_overlap_at_50", "user_neighbour_overlap_at_50",
                 "stale_index_overlap_at_50", "item_alignment_cosine"):  # fmt: skip
        assert metrics[f"stability.{name}"] == pytest.approx(1, abs=1e-3), name
    zeros = ["users_moved", "lifecycle_churn", "lifecycle_churn_same_moment", "cluster_churn",
             "cluster_churn_same_moment", f"audience_churn.{buyers}", "score_psi.buy_7d",
             "score_psi_same_moment.buy_7d"]  # fmt: skip
    for name in zeros:
        assert metrics[f"stability.{name}"] == pytest.approx(0, abs=1e-3), name
    assert 0 < metrics["stability.shared_users"] == found["users"] <= 800
    assert found["audiences"][buyers]["before"] > 0
    assert (staged / "report" / STABILITY_FILE).read_json() == found


def test_a_space_that_was_turned_moves_everybody_until_it_is_aligned(parent: Release, staged: Folder) -> None:
    encoder, items = load_encoder(parent.encoder), Vocabulary.load(parent.items)
    turned = encoder.aligned(rotation(encoder.spec.dim))
    save_encoder(turned, staged / "encoder")
    moved = measured(parent, staged)["metrics"]
    assert moved["stability.user_cosine_p50"] < 0.5
    assert moved["stability.users_moved"] > 0.9
    assert moved["stability.neighbour_overlap_at_50"] == pytest.approx(1, abs=1e-3)
    assert moved["stability.stale_index_overlap_at_50"] < 0.5
    assert moved["stability.cluster_churn_same_moment"] > 0.3  # the centroids are not turned with it
    back, told = align_onto(turned, items, parent.workspace, parent.id)
    save_encoder(back, staged / "encoder")
    aligned = measured(parent, staged)["metrics"]
    assert told is not None
    assert (told["parent"], told["reason"]) == (parent.id, None)
    assert aligned["stability.user_cosine_p50"] == pytest.approx(1, abs=1e-4)
    assert aligned["stability.cluster_churn_same_moment"] == pytest.approx(0, abs=1e-3)


def test_what_other_events_moved_is_not_put_down_to_the_training(parent: Release, staged: Folder) -> None:
    earlier_us = parent.manifest.as_of_us - 30 * 86_400_000_000
    found = measure_stability(parent.workspace, parent.manifest.snapshot, staged, parent=parent.id, as_of_us=earlier_us)
    assert found["moment"] == found["as_of"]  # the earlier of both ends: both sides read what both can know
    assert found["metrics"]["stability.user_cosine_p50"] == pytest.approx(1, abs=1e-4)
    assert found["metrics"]["stability.lifecycle_churn_same_moment"] == 0


def test_without_a_readable_parent_the_reason_is_told_and_nothing_fails(parent: Release, staged: Folder) -> None:
    first = measure_stability(parent.workspace, parent.manifest.snapshot, staged, parent=None, as_of_us=1)
    assert (first["metrics"], first["reason"]) == ({}, "no release is served yet, so there is none to follow")
    lost = measure_stability(parent.workspace, parent.manifest.snapshot, staged, parent="r-lost", as_of_us=1)
    assert "r-lost" in lost["reason"]
    encoder = load_encoder(parent.encoder)
    same, told = align_onto(encoder, Vocabulary.load(parent.items), parent.workspace, "r-lost")
    assert same is encoder
    assert told is not None
    assert "r-lost cannot be read" in told["reason"]


def test_both_sides_show_the_same_users_in_the_same_order(parent: Release, staged: Folder) -> None:
    history = parent.workspace.history(parent.manifest.snapshot)
    old, new = read_published(parent, history, staged, [0, 2], most=100)
    assert old.users["user_id"].to_list() == new.users["user_id"].to_list()
    assert new.num_users == 100
    vocabulary = Vocabulary.load(parent.items)
    assert new.timelines(vocabulary).user_ids.to_pylist() == new.users["user_id"].to_list()
    whole = pl.DataFrame((parent.profiles / "bucket=000" / "part-0.parquet").read_table(["user_id", "embedding"]))
    both = new.users.join(whole, on="user_id", suffix="_stored").filter(pl.col("embedding").is_not_null())
    assert both.height > 10
    assert both["embedding"].to_list() == both["embedding_stored"].to_list()
    rows = [new.users["user_id"].to_list().index(user) for user in both["user_id"]]
    np.testing.assert_array_equal(new.vectors_UD[rows], np.array(both["embedding"].to_list(), np.float32))
    assert set(new.scores) == {"buy_7d", "churn_14d"}


def test_who_has_no_vector_has_the_zero_vector_in_its_place() -> None:
    users = pl.DataFrame({"embedding": [None, [1.0, 0.0], None, [0.0, 1.0]]})
    found = Published(users, 2, Folder.at("/nowhere"), ()).vectors_UD
    np.testing.assert_array_equal(found, [[0, 0], [1, 0], [0, 0], [0, 1]])


@pytest.mark.slow
def test_a_retrain_is_aligned_onto_what_is_served_and_says_so(built_world: BuiltWorld) -> None:
    config = built_world.config.model_copy(update={"seed": 23})
    workspace = Workspace.at(config.workspace)
    release = Release.open(workspace, build(config))
    current = Registry(workspace).current()
    assert current is not None
    manifest = read_release(release.folder)
    assert manifest.parent == current.release
    alignment = (release.encoder / "encoder.json").read_json()["training"]["alignment"]
    assert (alignment["parent"], alignment["reason"]) == (current.release, None)
    metrics = manifest.metrics
    assert metrics["stability.user_cosine_p50"] > metrics["stability.user_cosine_p50_raw"] + 0.2
    assert metrics["stability.item_alignment_cosine"] == pytest.approx(alignment["cosine"], abs=1e-5)
    assert 0 < metrics["stability.neighbour_overlap_at_50"] < 1
    page = (release.folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "What moved since the parent" in page
    assert "The space was turned onto the parent" in page
