"""`sonder build --since auto` by the real jobs: three days merged onto a release, beside everything computed anew."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from pipelines.build import build
from pipelines.increment import build_since
from pipelines.prepare import prepare
from sonder.core.config import SonderConfig, load
from sonder.core.errors import ConfigurationError, NotReady
from sonder.core.storage import Folder, read_manifest
from sonder.core.workspace import Workspace
from sonder.history.snapshot import bucket_file, buckets_of
from sonder.releases.artefacts import Release
from sonder.releases.manifest import verify_files
from sonder.releases.registry import Registry
from tests.built import write_small_world

pytestmark = pytest.mark.ray
NEW_DAYS = 3


@pytest.fixture(scope="module")
def world(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[SonderConfig, Path, list[pl.DataFrame]]:
    """A served release of all but the last days of a small world, and those days, one delivered too late."""
    folder = tmp_path_factory.mktemp("increment")
    file, overrides = write_small_world(folder)
    config = load(file, overrides)
    log = folder / "events"
    events = pl.concat([pl.read_parquet(part) for part in sorted(log.glob("*.parquet"))])
    for part in log.glob("*.parquet"):
        part.unlink()
    day = (events["timestamp"].max() - pl.Series(events["timestamp"])).dt.total_days()  # type: ignore[operator]
    parts = [events.filter(day == back) for back in range(NEW_DAYS)]
    events.filter(day >= NEW_DAYS).write_parquet(log / "base.parquet")
    release = build(config)
    Registry(Workspace.at(config.workspace)).promote(release, reason="test")
    return config, log, parts


def test_days_are_merged_onto_the_served_release_and_agree_with_everything_computed_anew(
    world: tuple[SonderConfig, Path, list[pl.DataFrame]],
) -> None:
    config, log, parts = world
    workspace, registry = Workspace.at(config.workspace), Registry(Workspace.at(config.workspace))
    root = registry.current()
    assert root is not None
    assert build_since(config, "auto") == root.release  # nothing is new
    parts[2].write_parquet(log / "day-2.parquet")
    parts[0].write_parquet(log / "day-0.parquet")
    first = build_since(config, "auto")
    registry.promote(first, reason="test")
    assert build_since(config, "auto") == first
    parts[1].write_parquet(log / "late.parquet")
    second = build_since(config, "auto")
    anew = build_since(config, first, everybody=True)
    assert len({root.release, first, second, anew}) == 4

    kept, whole = Release.open(workspace, second), Release.open(workspace, anew)
    verify_files(kept.folder, kept.manifest)
    made = kept.increment
    assert made is not None
    assert (made["parent"], made["root"], made["models"]) == (first, root.release, "carried")
    assert made["users"]["acted"] < made["users"]["profiles"] / 2
    assert kept.manifest.parent == first
    left, right = (profiles_of(release) for release in (kept, whole))
    exact = ["user_id", "as_of", "is_cold", "num_events", "first_seen", "last_seen"]
    assert left.select(exact).equals(right.select(exact))
    for field in ("lifecycle", "since", "active_days", "cluster_id", "cluster"):
        states = [frame["segments"].struct.field(field) for frame in (left, right)]
        assert states[0].equals(states[1], null_equal=True), field
    for field in ("name", "medoid_item_id", "state", "category", "num_events"):
        interests = [frame["interests"].list.eval(pl.element().struct.field(field)) for frame in (left, right)]
        assert interests[0].equals(interests[1]), field
    scores = [frame["scores"].explode().struct.field("value") for frame in (left, right)]
    assert (scores[0] - scores[1]).abs().max() < 1e-5  # type: ignore[operator]


def test_what_was_merged_is_what_a_full_prepare_holds_and_metrics_say_what_they_are(
    world: tuple[SonderConfig, Path, list[pl.DataFrame]],
) -> None:
    config, log, parts = world
    workspace = Workspace.at(config.workspace)
    for place, part in enumerate(parts):
        part.write_parquet(log / f"day-{place}.parquet")
    (log / "late.parquet").unlink(missing_ok=True)
    root = next(
        manifest for manifest in Registry(workspace).list() if Release.open(workspace, manifest.id).increment is None
    )
    release = Release.open(workspace, build_since(config, root.id))
    full = prepare(config)
    histories = [workspace.history(name) for name in (release.manifest.snapshot, full)]
    manifests = [read_manifest(history) for history in histories]
    assert manifests[0]["buckets"] == manifests[1]["buckets"]
    assert manifests[0]["counts"] == manifests[1]["counts"]
    assert manifests[0]["user_table"] == manifests[1]["user_table"]
    for bucket in buckets_of(histories[0]):
        first, second = (bucket_file(history, bucket).read_bytes() for history in histories)
        assert first == second
    metrics = release.manifest.metrics
    assert metrics["retrieval.encoder.ndcg_at_10"] == root.metrics["retrieval.encoder.ndcg_at_10"]
    assert metrics["data.events"] == manifests[1]["counts"]["events"] > root.metrics["data.events"]
    assert metrics["forward.users_scored"] > 0
    assert 2 < metrics["forward.days"] < 4  # three days, from the last event of one to that of another
    assert "forward.encoder.hr_at_10" in metrics
    assert (release.folder / "report" / "index.html").exists()
    assert (release.folder / "report" / "metrics.json").read_json() == metrics


def _with_other_models(config: SonderConfig) -> SonderConfig:
    return config.model_copy(update={"segments": config.segments.model_copy(update={"num_clusters": 3})})


def test_changed_models_are_refused(world: tuple[SonderConfig, Path, list[pl.DataFrame]]) -> None:
    with pytest.raises(ConfigurationError, match=r"The section segments was changed .*--retrain"):
        build_since(_with_other_models(world[0]), "auto")


@pytest.mark.slow  # every step of a build
def test_a_retrain_fits_the_models_on_the_merged_history(world: tuple[SonderConfig, Path, list[pl.DataFrame]]) -> None:
    config, log, parts = world
    for place, part in enumerate(parts):  # there already, where the tests above ran
        part.write_parquet(log / f"day-{place}.parquet")
    (log / "late.parquet").unlink(missing_ok=True)
    workspace = Workspace.at(config.workspace)
    current = Registry(workspace).current()
    assert current is not None
    release = Release.open(workspace, build_since(_with_other_models(config), "auto", retrain=True))
    assert release.increment is None
    assert release.manifest.parent == current.release
    assert "parent" in read_manifest(workspace.history(release.manifest.snapshot))
    training = (release.encoder / "encoder.json").read_json()["training"]
    assert training["parent"] == current.release


def test_without_a_served_release_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    config = SonderConfig.model_validate({"workspace": str(tmp_path), "events": {"path": "unused"}})
    with pytest.raises(NotReady, match="No release is promoted"):
        build_since(config, "auto")


def profiles_of(release: Release) -> pl.DataFrame:
    files = [release.profiles / name for name in release.profiles.files() if name.endswith(".parquet")]
    frame = pl.from_arrow(pa.concat_tables([Folder.read_table(file) for file in files]))
    assert isinstance(frame, pl.DataFrame)
    return frame.sort("user_id")
