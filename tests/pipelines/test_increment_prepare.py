"""Merging the new files of a log into a snapshot: what a full prepare of all files holds, whatever the days' order."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from pipelines.increment_plan import plan_delivery
from pipelines.increment_prepare import merge_delivery
from pipelines.prepare import prepare
from sonder.core.config import SonderConfig
from sonder.core.errors import DataError, TooManyBadRows
from sonder.core.storage import MANIFEST, read_manifest
from sonder.core.workspace import Workspace
from sonder.events.erasure import record_erasure
from sonder.history.snapshot import find_user, touched_file
from tests.hanging import PROCESS_HANGS_AFTER_S
from tests.pipelines.test_prepare import START, all_bytes, configure, quarantined, random_log

LIMITS = {"max_events_per_day": 40, "max_bad_fraction": 0.4}


def with_ids(log: pl.DataFrame) -> pl.DataFrame:
    return log.with_columns(event_id=pl.format("e{}", pl.int_range(pl.len())))


def deliver(folder: Path, name: str, log: pl.DataFrame) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    log.write_parquet(folder / f"{name}.parquet")


def merge(config: SonderConfig, parent: str) -> str:
    return merge_delivery(config, plan_delivery(config, parent))


def days_of(log: pl.DataFrame, *, seed: int = 5) -> list[pl.DataFrame]:
    """Four deliveries: by day, but for late rows, rows that come twice, a new item, a new action, a bot of two days."""
    draw = np.random.default_rng(seed)
    day = ((log["timestamp"] - START).dt.total_days() // 2).to_numpy() + (draw.random(log.height) < 0.1)
    parts = [log.filter(day == number) for number in range(4)]
    again = parts[0].sample(20, seed=seed)
    fresh = (
        parts[1]
        .head(3)
        .with_columns(
            item_id=pl.lit("fresh"), action=pl.lit("save"), event_id=pl.format("fresh-{}", pl.int_range(pl.len()))
        )
    )
    busy = (
        parts[0]
        .head(1)
        .sample(50, with_replacement=True)
        .with_columns(
            user_id=pl.lit("bot"),
            timestamp=pl.lit(START) + pl.duration(seconds=pl.int_range(50)),
            event_id=pl.format("bot-{}", pl.int_range(50)),
        )
    )
    unreadable = parts[3].head(2).with_columns(user_id=pl.lit(None, pl.String))
    return [
        pl.concat([parts[0], busy.head(30)]),
        pl.concat([parts[1], again, fresh]),
        pl.concat([parts[2], busy.tail(20)]),
        pl.concat([parts[3], unreadable]),
    ]


def facts(workspace: Workspace, snapshot: str) -> dict[str, Any]:
    """What has to be the same: all but where it came from."""
    manifest = read_manifest(workspace.history(snapshot))
    names = (
        "buckets",
        "counts",
        "first_event_us",
        "last_event_us",
        "first_event",
        "last_event",
        "is_ordinal",
        "labels",
    )
    return {name: manifest[name] for name in names}


def history_bytes(workspace: Workspace, snapshot: str) -> dict[str, bytes]:
    files = all_bytes(Path(workspace.history(snapshot).path))
    items = all_bytes(Path(workspace.items(snapshot).path))
    return {name: files[name] for name in files if name.startswith("bucket=")} | items


@pytest.mark.ray
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1)])
def test_days_merged_one_by_one_are_a_full_prepare_of_all(
    ray_session: None, tmp_path: Path, order: tuple[int, ...]
) -> None:
    parts = days_of(with_ids(random_log()))
    log = tmp_path / "log"
    config = configure(log, tmp_path / "merged", **LIMITS)
    deliver(log, f"day-{order[0]}", parts[order[0]])
    snapshot = prepare(config)
    for place in order[1:]:
        deliver(log, f"day-{place}", parts[place])
        snapshot = merge(config, snapshot)
    paths = [str(log / f"day-{place}.parquet") for place in order]  # delivered in this order, listed in this order
    whole = SonderConfig.model_validate(
        config.model_dump()
        | {"workspace": str(tmp_path / "whole"), "events": config.events.model_dump() | {"path": tuple(paths)}}
    )
    expected = Workspace.at(whole.workspace), prepare(whole)
    merged = Workspace.at(config.workspace), snapshot
    assert facts(*merged) == facts(*expected)
    assert history_bytes(*merged) == history_bytes(*expected)
    assert quarantined(*merged) == quarantined(*expected) == facts(*merged)["counts"]["by_reason"]
    assert facts(*merged)["counts"]["by_reason"] == {"anonymous": 2, "bot": 50, "duplicate_event_id": 20}


@pytest.mark.ray
def test_a_log_without_ids_delivered_again_adds_nothing_and_buckets_without_news_are_kept(
    ray_session: None, tmp_path: Path
) -> None:
    log, config = (
        tmp_path / "log",
        configure(tmp_path / "log", tmp_path / "workspace", num_buckets=5, max_bad_fraction=1),
    )
    first = random_log()
    deliver(log, "a", first)
    snapshot = prepare(config)
    one = first.filter(pl.col("user_id") == "u3")
    late = one.head(1).with_columns(timestamp=pl.lit(START) - timedelta(days=2), item_id=pl.lit("late"))
    deliver(log, "b", pl.concat([one, late]))
    merged = merge(config, snapshot)
    workspace = Workspace.at(config.workspace)
    told = read_manifest(workspace.history(merged))["delivery"]
    assert (told["new"], told["added"], told["touched"]) == (one.height + 1, 1, 1)
    assert len(told["merged_buckets"]) == 1
    before, after = (facts(workspace, name)["buckets"] for name in (snapshot, merged))
    assert sum(left != right for left, right in zip(before, after, strict=True)) == 1
    changed = touched_file(workspace.history(merged), told["merged_buckets"][0]).read_table()
    assert changed.column(0).to_pylist() == ["u3"]
    assert facts(workspace, merged)["first_event_us"] < facts(workspace, snapshot)["first_event_us"]
    assert merge(config, snapshot) == merged  # at once, as it is there


@pytest.mark.ray
def test_erased_users_leave_the_merged_snapshot(ray_session: None, tmp_path: Path) -> None:
    log, config = tmp_path / "log", configure(tmp_path / "log", tmp_path / "workspace", **LIMITS)
    parts = days_of(with_ids(random_log()))
    deliver(log, "a", parts[0])
    snapshot = prepare(config)
    workspace = Workspace.at(config.workspace)
    record_erasure(workspace.erasures, "u3", at_us=round((START + timedelta(days=1)).timestamp() * 1e6))
    assert plan_delivery(config, snapshot).erased
    deliver(log, "b", parts[1])
    merged = merge(config, snapshot)
    assert facts(workspace, merged) == facts(workspace, prepare(config))
    assert history_bytes(workspace, merged) == history_bytes(workspace, prepare(config))
    times = find_user(workspace.history(merged), "u3").column("timestamp")[0].as_py()
    assert times[0] - timedelta(days=1) > START
    assert plan_delivery(config, merged).is_empty


@pytest.mark.ray
def test_files_that_were_changed_or_removed_are_refused_with_what_to_do(ray_session: None, tmp_path: Path) -> None:
    log, config = tmp_path / "log", configure(tmp_path / "log", tmp_path / "workspace")
    first = random_log()
    deliver(log, "a", first.head(300))
    deliver(log, "b", first.tail(300))
    snapshot = prepare(config)
    assert plan_delivery(config, snapshot).is_empty
    deliver(log, "b", first.tail(299))
    with pytest.raises(DataError, match=r"1 of 2 files of the log are changed .*b\.parquet.* without --since"):
        plan_delivery(config, snapshot)
    (log / "b.parquet").unlink()
    with pytest.raises(DataError, match=r"1 of 2 files of the log are gone .*b\.parquet.* without --since"):
        plan_delivery(config, snapshot)
    deliver(log, "b", first.tail(300))
    stricter = configure(log, tmp_path / "workspace", max_events_per_day=3)
    with pytest.raises(DataError, match="not mapped as it was"):
        plan_delivery(stricter, snapshot)
    assert plan_delivery(configure(log, tmp_path / "workspace", max_bad_fraction=0.5), snapshot).is_empty
    manifest = Workspace.at(config.workspace).history(snapshot) / MANIFEST
    manifest.write_json({**manifest.read_json(), "layout": 1})
    with pytest.raises(DataError, match=r"of another version, .* without --since"):
        plan_delivery(config, snapshot)


@pytest.mark.ray
def test_a_bad_delivery_is_refused_though_it_is_little_beside_the_log(ray_session: None, tmp_path: Path) -> None:
    log, config = tmp_path / "log", configure(tmp_path / "log", tmp_path / "workspace")
    deliver(log, "a", random_log())
    snapshot = prepare(config)
    deliver(log, "b", random_log(4).with_columns(item_id=pl.lit(None, pl.String)))
    with pytest.raises(TooManyBadRows, match="4 of 4 rows"):
        merge(config, snapshot)
    assert not Workspace.at(config.workspace).staging("x").exists()
    (log / "b.parquet").unlink()
    deliver(log, "c", random_log().head(0))  # a day on which nothing happened
    assert merge(config, snapshot) != snapshot


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_merge_leaves_nothing_visible_and_goes_on(tmp_path: Path) -> None:
    log, config = tmp_path / "log", configure(tmp_path / "log", tmp_path / "workspace", num_buckets=40)
    parts = days_of(with_ids(random_log(20_000)))
    options = {"max_events_per_day": 4_000, "max_bad_fraction": 0.9}
    config = configure(log, tmp_path / "workspace", num_buckets=40, **options)
    deliver(log, "a", parts[0])
    file = tmp_path / "sonder.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    run = (
        "import sys; from sonder.core.config import load; from pipelines.increment_plan import plan_delivery;"
        "from pipelines.increment_prepare import merge_delivery; from pipelines.prepare import prepare;"
        "config = load(sys.argv[1]); parent = sys.argv[2];"
        "print('id', prepare(config) if parent == '-' else merge_delivery(config, plan_delivery(config, parent)))"
    )

    def start(parent: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", run, str(file), parent]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)

    snapshot = start("-").communicate(timeout=PROCESS_HANGS_AFTER_S)[0].split()[-1]
    deliver(log, "b", parts[1])
    workspace = Workspace.at(config.workspace)
    staged = Path(workspace.root.path) / ".staging"
    with start(snapshot) as killed:
        deadline = time.monotonic() + PROCESS_HANGS_AFTER_S
        while not list(staged.glob("merge-*/scratch/merged/*.json")):
            assert killed.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(killed.pid, signal.SIGKILL)
    done = {path: path.stat().st_mtime_ns for path in staged.glob("merge-*/scratch/merged/*.json")}
    assert done
    assert [child.name for child in (workspace.root / "history").children()] == [snapshot]
    merged = start(snapshot).communicate(timeout=PROCESS_HANGS_AFTER_S)[0].split()[-1]
    assert read_manifest(workspace.history(merged))["parent"] == snapshot
    shutil.copytree(log, tmp_path / "again")
    whole = configure(tmp_path / "again", tmp_path / "whole", num_buckets=40, **options)
    file.write_text(yaml.safe_dump(whole.model_dump(mode="json")))
    full = start("-").communicate(timeout=PROCESS_HANGS_AFTER_S)[0].split()[-1]
    assert history_bytes(workspace, merged) == history_bytes(Workspace.at(whole.workspace), full)
