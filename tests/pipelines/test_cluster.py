"""Clustering small bucket files: passes, resuming, names, and a retrain that is matched to its parent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import pipelines.cluster
import pipelines.cluster_reading
from pipelines.bucket_tasks import part_file
from pipelines.cluster import cluster_users
from pipelines.embed import vector_table
from sonder.core.config import SonderConfig
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.segments.clusters import CLUSTERS_FILE, Clusters, assign
from tests.blobs import blobs
from tests.tiny_log import timelines_of, vocabulary_of, write_snapshot

NUM_GROUPS, USERS_A_GROUP, AS_OF_DAY = 3, 100, 20
CATEGORIES = ("garden/tools", "kitchen/pans", "books/crime")


def write_world(folder: Path, *, turn: int = 0) -> tuple[SonderConfig, Folder]:
    """300 users in two buckets, each group wants its own category until as_of; the first user has no vector.

    `turn` gives the space of another training: the same groups, other coordinates.
    """
    vectors, groups = blobs(NUM_GROUPS, USERS_A_GROUP, width=6)
    vectors = np.roll(vectors, turn, axis=1)
    vectors[0] = 0
    config = SonderConfig.model_validate({"workspace": str(folder / "workspace"), "events": {"path": "unused"}})
    later = (AS_OF_DAY, "buy")  # known to nobody at as_of, and of another category
    log = {
        f"u{user:03d}": [
            (5.0, int(group), "view"),
            (6.0, int(group), "buy"),
            (later[0], (int(group) + 1) % 3, later[1]),
        ]
        for user, group in enumerate(groups)
    }
    workspace, target = Workspace.at(config.workspace), Folder.at(str(folder / f"build-{turn}"))
    if not workspace.history("tiny").is_published():
        write_snapshot(workspace, "tiny", timelines_of(log), vocabulary_of(CATEGORIES))
    for bucket in range(2):
        user_ids = pa.array(list(log)[bucket::2])
        part_file(target / "vectors", bucket).write_table(vector_table(user_ids, vectors[bucket::2]))
        states = pa.table({"user_id": user_ids, "lifecycle": pa.array(["core"] * len(user_ids))})
        part_file(target / "segments", bucket).write_table(states)
    return config, target


def run(config: SonderConfig, target: Folder, **options: Any) -> dict[str, Any]:
    return cluster_users(config, "tiny", target, as_of_us=AS_OF_DAY * DAY, num_workers=0, **options)


def assigned(target: Folder) -> dict[str, int | None]:
    files = Path(target.path) / "clusters" / "bucket=*" / "part-0.parquet"
    frame = pl.read_parquet(files, hive_partitioning=False)
    return dict(frame.select("user_id", "cluster_id").iter_rows())


def all_bytes(target: Folder) -> dict[str, bytes]:
    folder = target / "clusters"
    return {name: (folder / name).read_bytes() for name in folder.files()}


def test_the_groups_are_found_named_and_described(tmp_path: Path) -> None:
    config, target = write_world(tmp_path)
    result = run(config, target)
    assert {entry["name"] for entry in result["clusters"]} == set(CATEGORIES)
    assert [entry["id"] for entry in result["clusters"]] == [1, 2, 3]
    assert sum(entry["users"] for entry in result["clusters"]) == 299
    assert result["clusters"][0]["lifecycle"] == {"core": 100}
    assert result["users_without"] == 1
    assert assigned(target)["u000"] is None
    assert result["metrics"]["segments.clusters"] == 3
    assert result["metrics"]["segments.cluster_stability"] > 0.9
    assert "segments.cluster_ari_parent" not in result["metrics"]
    assert set(all_bytes(target)) == {
        "bucket=000/part-0.parquet", "bucket=001/part-0.parquet", "centroids.safetensors", "clusters.json"
    }  # fmt: skip


def test_what_was_written_assigns_as_the_files_say(tmp_path: Path) -> None:
    config, target = write_world(tmp_path)
    run(config, target)
    clusters = Clusters.load(target / "clusters")
    table = part_file(target / "vectors", 1).read_table()
    rows = assign(np.array(table["vector"].to_pylist(), np.float32), clusters.centroids_KD).rows
    files = assigned(target)
    assert [files[user] for user in table["user_id"].to_pylist()] == [clusters.ids[row] for row in rows]


def test_a_retrain_keeps_ids_and_names_in_another_space(tmp_path: Path) -> None:
    config, target = write_world(tmp_path)
    first = run(config, target)
    publish(config, target)
    _, again = write_world(tmp_path, turn=2)
    second = run(config.model_copy(update={"seed": 8}), again, parent="r-parent")
    assert (second["metrics"]["segments.cluster_ari_parent"], second["metrics"]["segments.cluster_share_moved"]) == (
        1,
        0,
    )
    assert assigned(again) == assigned(target)
    assert {e["id"]: e["name"] for e in second["clusters"]} == {e["id"]: e["name"] for e in first["clusters"]}
    assert second["matching"]["common_users"] == 299
    more = run_with(config, tmp_path, 4)
    assert {entry["id"] for entry in more["clusters"]} > {1, 2, 3}
    assert max(entry["id"] for entry in more["clusters"]) == 4


def publish(config: SonderConfig, target: Folder) -> None:
    """The clusters of a build become those of the release `r-parent`."""
    parent = Workspace.at(config.workspace).release("r-parent") / "clusters"
    for name, content in all_bytes(target).items():
        (parent / name).write_bytes(content)


def test_a_retrain_says_where_it_started_and_a_first_build_too(tmp_path: Path) -> None:
    config, target = write_world(tmp_path)
    assert run(config, target)["start"]["clusters_started_from"] == "fresh"
    publish(config, target)
    _, again = write_world(tmp_path, turn=2)
    found = run(config, again, parent="r-parent")
    assert (found["start"]["clusters_started_from"], found["start"]["reason"]) == ("parent", "kept")
    assert found["start"]["excess_inertia"] == pytest.approx(0, abs=0.01)
    assert (again / "clusters" / CLUSTERS_FILE).read_json()["start"] == found["start"]


def test_a_cluster_whose_users_are_gone_is_dropped_and_the_others_stay(tmp_path: Path) -> None:
    config, target = write_world(tmp_path)
    run(config, target)
    publish(config, target)
    before = assigned(target)
    _, again = write_world(tmp_path, turn=2)
    for bucket in range(2):
        table = part_file(again / "vectors", bucket).read_table()
        user_ids, vectors = table["user_id"].to_pylist(), np.array(table["vector"].to_pylist(), np.float32)
        vectors[[before[user_id] == 2 for user_id in user_ids]] = 0
        part_file(again / "vectors", bucket).write_table(vector_table(pa.array(user_ids), vectors))
    found = run(config, again, parent="r-parent")
    assert ([entry["id"] for entry in found["clusters"]], found["matching"]["dropped"]) == ([1, 3], [2])
    assert found["start"]["clusters_started_from"] == "parent"
    assert assigned(again) == {user_id: None if cluster == 2 else cluster for user_id, cluster in before.items()}


def test_where_everybody_is_not_sampled_the_parents_clusters_need_no_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, target = write_world(tmp_path)
    run(config, target)
    publish(config, target)
    monkeypatch.setattr(pipelines.cluster_reading, "SAMPLE_VECTORS", 140)
    _, again = write_world(tmp_path, turn=2)
    found = run(config, again, parent="r-parent")
    assert (found["start"]["clusters_started_from"], found["passes"]) == ("parent", [])
    assert assigned(again) == assigned(target)


def run_with(config: SonderConfig, folder: Path, num_clusters: int) -> dict[str, Any]:
    _, target = write_world(folder, turn=3)
    wished = config.segments.model_copy(update={"num_clusters": num_clusters})
    return run(config.model_copy(update={"segments": wished}), target, parent="r-parent")


def test_passes_over_everybody_start_from_a_sample_and_a_killed_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.cluster_reading, "SAMPLE_VECTORS", 140)
    config, target = write_world(tmp_path)
    whole = run(config, target)
    assert 2 <= len(whole["passes"]) <= pipelines.cluster.MAX_PASSES
    assert whole["passes"] == sorted(whole["passes"], reverse=True)
    files = all_bytes(target)
    (target / "clusters").remove()
    calls = []

    def killed(*arguments: Any, **options: Any) -> list[dict[str, Any]]:
        calls.append(arguments[0].__name__)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return over_buckets(*arguments, **options)

    over_buckets = pipelines.cluster.over_buckets
    monkeypatch.setattr(pipelines.cluster, "over_buckets", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config, target)
    assert (target / "clusters" / "decided" / "pass-00.json").exists()
    assert run(config, target) == whole
    assert calls.count("PassBucket") == len(whole["passes"]) + 1  # the interrupted one again, the first not
    assert all_bytes(target) == files


def test_too_few_users_make_no_clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, target = write_world(tmp_path)
    for bucket in range(2):
        table = part_file(target / "vectors", bucket).read_table()
        nobody = vector_table(table["user_id"].combine_chunks(), np.zeros((table.num_rows, 6), np.float32))
        part_file(target / "vectors", bucket).write_table(nobody)
    result = run(config, target)
    assert (result["clusters"], result["users_without"], result["stability"]["reason"]) == ([], 300, "too_few_users")
    assert result["metrics"] == {"segments.clusters": 0}
    assert set(assigned(target).values()) == {None}
    assert (target / "clusters" / CLUSTERS_FILE).exists()
