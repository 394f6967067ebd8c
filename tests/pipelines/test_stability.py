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
from pipelines.cluster import cluster_users
from pipelines.profiles import write_profiles
from pipelines.score import score_users, train_scores
from pipelines.segment import segment_users, write_popularity
from pipelines.stability import STABILITY_FILE, measure_stability
from pipelines.stability_published import Published, read_published
from pipelines.train import train_encoder
from sonder.core.config import SonderConfig
from sonder.core.ids import bucket_of
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import load_encoder, save_encoder, training_of
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.vocabulary import Vocabulary
from sonder.releases.artefacts import Release
from sonder.releases.manifest import read_release
from sonder.releases.registry import Registry, seal
from tests.built import BuiltWorld
from tests.tiny_log import Event, random_log, timelines_of, vocabulary_of, write_snapshot

NUM_USERS, NUM_ITEMS, EARLY, LATE = 300, 120, 70, 80  # the last two: days at which the snapshots end
BUCKETS = {"early": 3, "late": 2}


def make_logs() -> dict[str, dict[str, list[Event]]]:
    """The log as of both days, users named so that each lies in the bucket that it is dealt to."""
    log = list(random_log(5, num_users=NUM_USERS, num_items=NUM_ITEMS, num_days=LATE).values())
    log.sort(key=lambda events: events[0][0] >= EARLY)  # who comes late stands last
    logs: dict[str, dict[str, list[Event]]] = {"early": {}, "late": {}}
    for row, events in enumerate(log):
        names = pl.Series([f"u{row:04d}-{number}" for number in range(100)])
        fits = [bucket_of(names, num) == row % num for num in BUCKETS.values()]
        name = names[int(np.flatnonzero(fits[0] & fits[1])[0])]
        logs["late"][name] = events
        if events[0][0] < EARLY:
            logs["early"][name] = [event for event in events if event[0] < EARLY]
    return logs


LOGS = make_logs()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SonderConfig:
    return SonderConfig.model_validate(
        {
            "workspace": str(tmp_path_factory.mktemp("line") / "workspace"),
            "events": {"path": "unused"},
            "evaluation": {"test_days": 10},
            "encoder": {"dim": 8, "max_epochs": 1, "num_negatives": 32},
            "segments": {"num_clusters": 4},
            "scores": [{"name": "buy_10d", "action": "buy", "within_days": 10}],
        }
    )


@pytest.fixture(scope="module")
def parent(config: SonderConfig) -> Release:
    """The release of the first days, served, made in this process; the snapshot `late` beside it has other buckets."""
    workspace, vocabulary = Workspace.at(config.workspace), vocabulary_of([f"c{item % 4}" for item in range(NUM_ITEMS)])
    for name, num_buckets in BUCKETS.items():
        write_snapshot(workspace, name, timelines_of(LOGS[name]), vocabulary, num_buckets=num_buckets)
    target = workspace.staging("parent")
    make(config, "early", target, EARLY)
    seal(
        target,
        workspace,
        release_id="r-parent",
        parent=None,
        snapshot="early",
        config=config,
        metrics={},
        row_counts={"profiles": len(LOGS["early"])},
        as_of_us=EARLY * DAY,
    )
    Registry(workspace).promote("r-parent", reason="test")
    return Release.open(workspace, "r-parent")


def make(config: SonderConfig, snapshot: str, target: Folder, end_day: int, parent: str | None = None) -> None:
    """The steps of a build that stability reads, without Ray."""
    workspace, as_of_us = Workspace.at(config.workspace), end_day * DAY
    history, items, encoder = workspace.history(snapshot), workspace.items(snapshot), target / "encoder"
    train_encoder(config, snapshot, encoder, cutoff_us=as_of_us - 10 * DAY, num_workers=0, follows=parent)
    vocabulary = Vocabulary.load(items)
    vocabulary.save(target / "items")
    write_popularity(history, vocabulary, load_encoder(encoder), target / "items", as_of_us=as_of_us)
    segment_users(config, snapshot, encoder, target, as_of_us=as_of_us, num_workers=0)
    cluster_users(config, snapshot, target, as_of_us=as_of_us, parent=parent, num_workers=0)
    scores = target / "scores"
    train_scores(
        config, snapshot, encoder, scores, end_us=as_of_us, encoder_cutoff_us=as_of_us - 10 * DAY, num_workers=0
    )
    score_users(config, snapshot, encoder, scores, scores / "users", as_of_us=as_of_us, num_workers=0)
    write_profiles(history, items, target, as_of_us=as_of_us, num_workers=0)


@pytest.fixture
def staged(parent: Release, tmp_path: Path) -> Folder:
    """A build that made exactly what its parent is."""
    shutil.copytree(parent.folder.path, tmp_path / "release")
    return Folder.at(str(tmp_path / "release"))


@pytest.fixture
def buyers(parent: Release) -> Iterator[str]:
    """A saved audience, gone afterwards."""
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
             "cluster_churn_same_moment", f"audience_churn.{buyers}", "score_psi.buy_10d",
             "score_psi_same_moment.buy_10d"]  # fmt: skip
    for name in zeros:
        assert metrics[f"stability.{name}"] == pytest.approx(0, abs=1e-3), name
    assert 0 < metrics["stability.shared_users"] == found["users"] <= NUM_USERS
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
    assert moved["stability.stale_index_overlap_at_50"] < 0.9
    assert moved["stability.cluster_churn_same_moment"] > 0.3  # the centroids are not turned with it
    back, told = align_onto(turned, items, parent.workspace, parent.id)
    save_encoder(back, staged / "encoder")
    aligned = measured(parent, staged)["metrics"]
    assert told is not None
    assert (told["parent"], told["reason"]) == (parent.id, None)
    assert aligned["stability.user_cosine_p50"] == pytest.approx(1, abs=1e-4)
    assert aligned["stability.cluster_churn_same_moment"] == pytest.approx(0, abs=1e-3)


def test_what_other_events_moved_is_not_put_down_to_the_training(parent: Release, staged: Folder) -> None:
    earlier_us = parent.manifest.as_of_us - 30 * DAY
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
    assert set(new.scores) == {"buy_10d"}


def test_who_has_no_vector_has_the_zero_vector_in_its_place() -> None:
    users = pl.DataFrame({"embedding": [None, [1.0, 0.0], None, [0.0, 1.0]]})
    found = Published(users, 2, Folder.at("/nowhere"), ()).vectors_UD
    np.testing.assert_array_equal(found, [[0, 0], [1, 0], [0, 0], [0, 1]])


def test_a_retrain_on_later_days_is_aligned_and_its_movement_told_apart(
    config: SonderConfig, parent: Release, buyers: str, tmp_path: Path
) -> None:
    later, staged = config.model_copy(update={"seed": 2}), Folder.at(str(tmp_path / "late"))
    make(later, "late", staged, LATE, parent.id)
    assert training_of(staged / "encoder")["alignment"]["reason"] is None
    found = measure_stability(parent.workspace, "late", staged, parent=parent.id, as_of_us=LATE * DAY)
    metrics = found["metrics"]
    assert (found["moment"][:10], found["as_of"][:10]) == ("1970-03-12", "1970-03-22")
    assert metrics["stability.shared_users"] == len(LOGS["early"]) < len(LOGS["late"])  # across other buckets
    assert NUM_ITEMS / 2 < metrics["stability.shared_items"] <= NUM_ITEMS
    assert metrics["stability.item_alignment_cosine"] > metrics["stability.item_alignment_cosine_raw"]
    assert metrics["stability.user_cosine_p50"] > metrics["stability.user_cosine_p50_raw"]
    assert found["movement"]["same_moment"]["mean"] < found["movement"]["events"]["mean"] < 1
    assert metrics["stability.lifecycle_churn"] > 0
    assert set(found["audiences"]) == {buyers}
    published = pl.concat([pl.DataFrame((parent.profiles / name).read_table(["user_id", "segments"]))
                           for name in parent.profiles.files()])  # fmt: skip
    new = pl.concat([pl.DataFrame((staged / "profiles" / name).read_table(["user_id", "segments"]))
                     for name in (staged / "profiles").files()])  # fmt: skip
    both = published.join(new, on="user_id", suffix="_new").select(
        (pl.col("segments").struct.field("lifecycle") != pl.col("segments_new").struct.field("lifecycle")).mean()
    )
    assert metrics["stability.lifecycle_churn"] == pytest.approx(both.item())
    assert measure_stability(parent.workspace, "late", staged, parent=parent.id, as_of_us=LATE * DAY) == found


@pytest.mark.ray
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
    page = (release.folder / "report" / "index.html").read_bytes().decode()
    assert "What moved since the parent" in page
    assert "The space was turned onto the parent" in page
