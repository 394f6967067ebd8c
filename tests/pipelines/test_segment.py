"""Segmenting a small history through Ray: what it writes, what it says of known users, what it does not do twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import pipelines.segment
from pipelines.bucket_tasks import bucket_numbers
from pipelines.segment import PARTS, read_sample, segment_users
from pipelines.train import train_encoder
from sonder.core.config import SonderConfig
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.history.snapshot import HISTORY_SCHEMA, bucket_file
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from tests.tiny_log import Event, random_log, timelines_of, vocabulary_of, write_snapshot

pytestmark = pytest.mark.ray

AS_OF_DAY = 100
CATEGORIES = [f"c{item % 3}/d{item % 6}" for item in range(12)]


def every(step: float, first: float, last: float) -> list[Event]:
    return [(float(day), int(day) % 12, "view") for day in np.arange(first, last, step)]


KNOWN: dict[str, tuple[list[Event], str]] = {
    "came last week": (every(1, 95, 100), "new"),
    "daily": (every(1, 20, 100), "core"),
    "weekly": (every(5, 20, 100), "casual"),
    "now and then": (every(20, 15, 100), "marginal"),
    "left": (every(1, 10, 60), "dormant"),
    "is back": ([*every(1, 10, 30), (97.5, 3, "buy")], "resurrected"),
    "comes later": ([(100.0, 1, "buy"), (101.0, 2, "buy")], "cold"),
}


@pytest.fixture
def config(tmp_path: Path) -> SonderConfig:
    """A snapshot `tiny` in three buckets, one of them without users, and an encoder that has seen it."""
    log = random_log(5, num_users=60, num_items=12, num_days=AS_OF_DAY)
    timelines = timelines_of({**{user: events for user, (events, _) in KNOWN.items()}, **log})
    settled = SonderConfig.model_validate(
        {
            "workspace": str(tmp_path / "workspace"),
            "events": {"path": "unused"},
            "encoder": {"dim": 8, "max_epochs": 1, "num_negatives": 32},
            "segments": {"new_days": 7, "dormant_days": 30, "core_active_share": 0.5, "casual_active_share": 0.1},
        }
    )
    write_tiny(Workspace.at(settled.workspace), timelines, vocabulary_of(CATEGORIES))
    train_encoder(settled, "tiny", Folder.at(str(tmp_path / "encoder")), cutoff_us=80 * DAY, num_workers=0)
    return settled


def write_tiny(workspace: Workspace, timelines: Timelines, vocabulary: Vocabulary) -> None:
    """Users in the buckets 0 and 1; bucket 2 is a file without rows."""
    history = write_snapshot(workspace, "tiny", timelines, vocabulary, num_buckets=2)
    bucket_file(history, 2).write_table(HISTORY_SCHEMA.empty_table())
    manifest = (history / "manifest.json").read_json()
    manifest["buckets"].append({"bucket": 2, "users": 0, "events": 0})
    (history / "manifest.json").write_json(manifest)


def run(config: SonderConfig, target: Path, num_workers: int | None = None) -> dict[str, Any]:
    encoder = Folder.at(str(Path(config.workspace).parent / "encoder"))
    return segment_users(
        config, "tiny", encoder, Folder.at(str(target)), as_of_us=AS_OF_DAY * DAY, num_workers=num_workers
    )


def read(target: Path, part: str) -> pl.DataFrame:
    return pl.read_parquet(target / part / "bucket=*" / "part-0.parquet", hive_partitioning=False)


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_ray_writes_what_one_process_writes(ray_session: None, config: SonderConfig, tmp_path: Path) -> None:
    on_ray, in_process = run(config, tmp_path / "ray"), run(config, tmp_path / "process", num_workers=0)
    assert on_ray == in_process
    files = all_bytes(tmp_path / "ray")
    assert files == all_bytes(tmp_path / "process")
    assert set(files) == {
        *(f"{part}/bucket={bucket:03d}/part-0.parquet" for part in PARTS for bucket in (0, 1)),
        "segments/thresholds.json",
        "interests/config.json",
        "affinities/config.json",
    }


def test_known_users_are_in_the_state_that_their_days_say(config: SonderConfig, tmp_path: Path) -> None:
    result = run(config, tmp_path / "out", num_workers=0)
    states = dict(read(tmp_path / "out", "segments").select("user_id", "lifecycle").iter_rows())
    assert {user: states[user] for user in KNOWN} == {user: state for user, (_, state) in KNOWN.items()}
    assert result["lifecycle"] == dict(sorted(Counter(states.values()).items()))
    assert (result["users"], result["cold"]) == (67, sum(state == "cold" for state in states.values()))
    assert result["thresholds"]["dormant_days"] == 30


def test_every_user_has_a_vector_and_interests_are_those_of_users_with_one(
    config: SonderConfig, tmp_path: Path
) -> None:
    result = run(config, tmp_path / "out", num_workers=0)
    vectors, interests = read(tmp_path / "out", "vectors"), read(tmp_path / "out", "interests")
    assert vectors["user_id"].to_list() == read(tmp_path / "out", "segments")["user_id"].to_list()
    norms = dict(zip(vectors["user_id"], np.linalg.norm(np.array(vectors["vector"].to_list()), axis=1), strict=True))
    assert norms["comes later"] == 0
    assert [norms[user] for user in ("daily", "left")] == pytest.approx([1, 1])
    assert set(interests["user_id"]) == {user for user, norm in norms.items() if norm > 0}
    assert result["interests"] == interests.height
    per_user = interests.group_by("user_id").agg(pl.col("weight").sum(), ranks=pl.col("rank"))
    assert per_user["weight"].to_list() == pytest.approx([1.0] * per_user.height)
    assert all(ranks == list(range(1, len(ranks) + 1)) for ranks in per_user["ranks"].to_list())


def test_a_bucket_is_done_again_only_if_one_of_its_files_is_missing(config: SonderConfig, tmp_path: Path) -> None:
    target = tmp_path / "out"
    whole = run(config, target, num_workers=0)
    files = {file: file.stat().st_ino for file in target.rglob("bucket=*/*.parquet")}  # a file written again is another
    (target / "interests" / "bucket=001" / "part-0.parquet").unlink()
    assert run(config, target, num_workers=0) == whole
    written = {str(file.relative_to(target)) for file, inode in files.items() if file.stat().st_ino != inode}
    assert written >= {"vectors/bucket=001/part-0.parquet", "segments/bucket=001/part-0.parquet"}
    assert not {file for file in written if "bucket=000" in file}


def test_the_sample_is_whole_buckets_from_the_first(config: SonderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace.at(config.workspace)
    history, vocabulary = workspace.history("tiny"), Vocabulary.load(workspace.items("tiny"))
    assert bucket_numbers(history) == [0, 1]
    assert read_sample(history, vocabulary).num_users == 67
    monkeypatch.setattr(pipelines.segment, "SAMPLE_USERS", 34)  # all of bucket 0
    assert read_sample(history, vocabulary).num_users == 34
    monkeypatch.setattr(pipelines.segment, "SAMPLE_USERS", 35)
    assert read_sample(history, vocabulary).num_users == 67
