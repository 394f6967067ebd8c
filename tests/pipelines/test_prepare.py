"""Prepare: the same bytes whatever the order, files and format of the log; nothing half-visible, nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

import pipelines.prepare
from benchmarks.processes import title_of, with_descendants
from pipelines.prepare import prepare
from pipelines.prepare_plan import derive_num_buckets
from pipelines.prepare_tasks import read_block
from sonder.core.config import SonderConfig
from sonder.core.errors import DataError, NotFound, TooManyBadRows
from sonder.core.input_config import EventsConfig
from sonder.core.storage import Folder, read_manifest
from sonder.core.workspace import Workspace
from sonder.events.reading import LogSplit
from sonder.history.snapshot import buckets_of, find_user, read_bucket
from sonder.history.vocabulary import Vocabulary
from tests.hanging import PROCESS_HANGS_AFTER_S

START = datetime(2026, 1, 1, tzinfo=UTC)
FIELDS = ("user_id", "item_id", "action", "timestamp", "surface", "value")


def random_log(num_events: int = 600, seed: int = 3) -> pl.DataFrame:
    """Users with events at distinct and at equal times, surfaces and values that are sometimes absent; not by time."""
    draw = np.random.default_rng(seed)
    minutes = draw.integers(0, 60 * 24 * 5, num_events) // 20 * 20  # coarse: many ties
    return pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in draw.integers(0, 9, num_events)],
            "item_id": [f"i{item}" for item in draw.integers(0, 50, num_events)],
            "action": draw.choice(["view", "buy"], num_events),
            "timestamp": [START + timedelta(minutes=int(minute)) for minute in minutes],
            "surface": [["home", "search", None][place] for place in draw.integers(0, 3, num_events)],
            "value": [None if value > 80 else value / 4 for value in draw.integers(0, 100, num_events).tolist()],
        }
    )


def shuffled(log: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Rows in random order, but those of one user and time in their own."""
    ties = log.group_by("user_id", "timestamp", maintain_order=True).len().drop("len")
    drawn = ties.with_columns(place=pl.Series(np.random.default_rng(seed).permutation(ties.height)))
    return log.join(drawn, on=["user_id", "timestamp"], maintain_order="left").sort("place", maintain_order=True)[
        :, : log.width
    ]


def write_files(folder: Path, log: pl.DataFrame, *, num_files: int = 1, form: str = "parquet") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if form != "parquet" and log["timestamp"].dtype != pl.String:
        log = log.with_columns(pl.col("timestamp").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    for index, part in enumerate(log.iter_slices(-(-log.height // num_files))):
        write = {"parquet": part.write_parquet, "csv": part.write_csv, "jsonl": part.write_ndjson}[form]
        write(folder / f"part-{index}.{form}")
    return folder


def configure(log: Path, workspace: Path, *, num_buckets: int = 3, **events: Any) -> SonderConfig:
    return SonderConfig.model_validate(
        {
            "workspace": str(workspace),
            "events": {"path": str(log), **events},
            "prepare": {"num_buckets": num_buckets},
        }
    )


def published(config: SonderConfig) -> tuple[Workspace, str, dict[str, Any]]:
    """Prepare -> workspace, snapshot and its manifest."""
    workspace, snapshot = Workspace.at(config.workspace), prepare(config)
    return workspace, snapshot, read_manifest(workspace.history(snapshot))


def digests(manifest: dict[str, Any]) -> list[str]:
    return [bucket["digest"] for bucket in manifest["buckets"]]


def histories(config: SonderConfig) -> dict[str, list[tuple[Any, ...]]]:
    """user_id -> (item, action, time, surface, value) of each event, in its order."""
    workspace, snapshot, _ = published(config)
    users = [
        row
        for b in buckets_of(workspace.history(snapshot))
        for row in read_bucket(workspace.history(snapshot), b).to_pylist()
    ]
    return {user["user_id"]: list(zip(*(user[name] for name in FIELDS[1:]), strict=True)) for user in users}


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def quarantined(workspace: Workspace, snapshot: str) -> Counter[str]:
    """Rows by reason, counted in the files themselves."""
    folder = workspace.quarantine(snapshot)
    files = [folder / name for name in folder.files() if name.endswith(".parquet")]
    return Counter(reason for file in files for reason in file.read_table(["reason"]).column(0).to_pylist())


def visible(workspace: Workspace) -> list[str]:
    """What a reader finds."""
    kinds = ("history", "items", "quarantine")
    return [kind for kind in kinds for child in (workspace.root / kind).children() if child.is_published()]


# -- the same bytes ------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_two_workspaces_hold_the_same_bytes_in_every_file(ray_session: None, tmp_path: Path) -> None:
    log = random_log().with_columns(user_id=pl.when(pl.col("item_id") == "i7").then(None).otherwise(pl.col("user_id")))
    path = write_files(tmp_path / "log", log, num_files=2)
    pl.DataFrame({"item_id": ["i1", "unseen"], "title": ["One", None]}).write_csv(tmp_path / "items.csv")
    items = {"path": str(tmp_path / "items.csv"), "columns": {"title": "title"}}
    for name in ("one", "two"):
        config = configure(path, tmp_path / name)
        prepare(SonderConfig.model_validate(config.model_dump() | {"items": items}))
    one = all_bytes(tmp_path / "one")
    assert one == all_bytes(tmp_path / "two")
    assert {name.split("/")[0] for name in one} == {"history", "items", "quarantine"}  # nothing is left in staging


@pytest.mark.ray
def test_the_history_holds_exactly_the_rows_of_the_log(ray_session: None, tmp_path: Path) -> None:
    log = random_log()
    config = configure(write_files(tmp_path / "log", log), tmp_path / "workspace")
    expected = {
        str(user): rows.sort("timestamp", maintain_order=True).select(FIELDS[1:]).rows()
        for (user,), rows in log.group_by("user_id")
    }
    assert histories(config) == expected
    workspace, snapshot, manifest = published(config)
    counts = {"rows_read": 600, "events": 600, "users": 9, "items": 50, "quarantined": 0, "by_reason": {}}
    assert manifest["counts"] == counts
    times = log["timestamp"].dt.epoch("us")
    assert (manifest["first_event_us"], manifest["last_event_us"]) == (times.min(), times.max())
    vocabulary = Vocabulary.load(workspace.items(snapshot))
    by_item = log.group_by("item_id").len().sort("len", "item_id", descending=[True, False])
    assert vocabulary.items.select(["item_id", "num_events"]).to_pylist() == [
        {"item_id": item, "num_events": num} for item, num in by_item.rows()
    ]
    found = find_user(workspace.history(snapshot), "u4").to_pylist()
    assert [user["user_id"] for user in found] == ["u4"]


@pytest.mark.ray
@pytest.mark.parametrize("num_files", [1, 4])
def test_order_and_files_of_the_log_change_nothing_but_ties(ray_session: None, tmp_path: Path, num_files: int) -> None:
    log = random_log()
    _, _, as_written = published(configure(write_files(tmp_path / "log", log), tmp_path / "one"))
    other = shuffled(log, seed=num_files)
    assert not other.equals(log)
    _, _, otherwise = published(
        configure(write_files(tmp_path / "other", other, num_files=num_files), tmp_path / "two")
    )
    assert digests(otherwise) == digests(as_written)
    backwards = histories(configure(write_files(tmp_path / "back", log.reverse()), tmp_path / "three"))
    ties = log.reverse().filter(user_id="u1").sort("timestamp", maintain_order=True)
    assert backwards["u1"] == ties.select(FIELDS[1:]).rows()


@pytest.mark.ray
def test_csv_json_lines_and_parquet_give_the_same_snapshot(ray_session: None, tmp_path: Path) -> None:
    log = random_log()
    found = []
    for form in ("parquet", "csv", "jsonl"):
        path = write_files(tmp_path / form, log, num_files=2, form=form)
        workspace, snapshot, manifest = published(configure(path, tmp_path / "workspace"))
        found.append((digests(manifest), (workspace.items(snapshot) / "items.parquet").digest()))
    assert found[0] == found[1] == found[2]


def test_a_table_without_an_order_is_ordered_by_content(tmp_path: Path) -> None:
    rows = random_log().to_arrow()
    config = EventsConfig.model_validate({"path": "t", "columns": {name: name for name in FIELDS}, "timestamp": "iso"})
    orders = []
    for number, table in enumerate((rows, rows.take(np.random.default_rng(0).permutation(rows.num_rows)))):
        staging = Folder.at(str(tmp_path / str(number)))
        parts = read_block(
            table, source="t", latest_us=2**62, config=config, staging=staging, num_buckets=3,
            absent=("event_id", "request_id"), erased={},
        )  # fmt: skip
        events = pl.concat([pl.DataFrame(pl.from_arrow(part)) for part in parts])
        orders.append(events.sort("log_order", "user_id"))
        counted = [file.read_json() for file in (staging / "scratch").children()]
        assert counted == [{"events": 600, "by_reason": {}}]
    assert orders[0].equals(orders[1])


# -- what is set aside ---------------------------------------------------------------------------------------------


def blemished_log() -> pl.DataFrame:
    """200 good rows; 4 bad ones, an id delivered three times, 90 anonymous rows, a bot with 12 events a day."""

    def row(user: str | None, item: str | None, minute: float, event: str) -> tuple[Any, ...]:
        return user, item, (START + timedelta(minutes=minute)).isoformat(), event

    good = [row(f"u{n % 20}", f"i{n % 30}", 60 * n, f"good-{n}") for n in range(200)]
    no_time = [("u1", "i1", "yesterday", f"late-{n}") for n in range(3)]
    no_item = [row("u2", None, 5, "no-item")]
    again = [row("u3", item, 7, "again") for item in ("first", "second", "third")]
    anonymous = [row(None, "i1", n, f"guest-{n}") for n in range(90)]
    bot = [row("bot", "i1", n, f"bot-{n}") for n in range(12)]
    rows = [*good, *no_time, *no_item, *again, *anonymous, *bot]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "event_id"], orient="row")


ASIDE = {"anonymous": 90, "bad_timestamp": 3, "bot": 12, "duplicate_event_id": 2, "missing_id": 1}
NUM_ROWS, NUM_BAD = 309, 6


@pytest.mark.ray
def test_below_the_limit_the_job_goes_on_and_says_what_it_set_aside(ray_session: None, tmp_path: Path) -> None:
    path = write_files(tmp_path / "log", blemished_log(), num_files=2, form="csv")
    config = configure(path, tmp_path / "w", action="view", max_events_per_day=10, max_bad_fraction=0.02)
    workspace, snapshot, manifest = published(config)
    assert manifest["counts"] == {
        "rows_read": NUM_ROWS, "events": 201, "users": 20, "items": 31, "quarantined": 108, "by_reason": ASIDE
    }  # fmt: skip
    assert quarantined(workspace, snapshot) == ASIDE
    assert read_manifest(workspace.quarantine(snapshot))["by_reason"] == ASIDE
    (user,) = find_user(workspace.history(snapshot), "u3").to_pylist()
    assert [item for item in user["item_id"] if item in ("first", "second", "third")] == ["first"]
    with pytest.raises(NotFound):
        find_user(workspace.history(snapshot), "bot")


@pytest.mark.ray
def test_past_the_limit_it_names_the_share_the_limit_and_the_reasons(ray_session: None, tmp_path: Path) -> None:
    path = write_files(tmp_path / "log", blemished_log(), form="jsonl")
    config = configure(path, tmp_path / "w", action="view", max_events_per_day=10, max_bad_fraction=0.019)
    with pytest.raises(TooManyBadRows) as refused:
        prepare(config)
    message = str(refused.value)
    assert "6 of 309 rows (1.94 %) are bad: 3 bad_timestamp, 2 duplicate_event_id, 1 missing_id." in message
    assert "at most 1.9 % (events.max_bad_fraction)" in message
    assert "anonymous" not in message  # neither bad nor the reason
    workspace = Workspace.at(config.workspace)
    assert visible(workspace) == ["quarantine"]  # to see what was wrong
    (snapshot,) = (child.name for child in (workspace.root / "quarantine").children())
    assert str(workspace.quarantine(snapshot)) in message
    assert quarantined(workspace, snapshot) == ASIDE
    assert (workspace.root / ".staging").children() == []
    accepted = SonderConfig.model_validate(
        config.model_dump() | {"events": config.events.model_dump() | {"max_bad_fraction": 0.5}}
    )
    assert prepare(accepted) == snapshot  # the limit decides whether, not what
    assert visible(workspace) == ["history", "items", "quarantine"]


@pytest.mark.ray
def test_a_log_of_guests_alone_is_refused_with_their_number(ray_session: None, tmp_path: Path) -> None:
    log = random_log(30).with_columns(user_id=pl.lit(None, pl.String))
    with pytest.raises(DataError, match=r"None of the 30 rows of the log is an event \(30 anonymous\)"):
        prepare(configure(write_files(tmp_path / "log", log), tmp_path / "w"))


@pytest.mark.ray
def test_order_alone_has_no_days_and_no_bots(ray_session: None, tmp_path: Path) -> None:
    log = pl.DataFrame({"user_id": ["a"] * 20, "item_id": [f"i{n}" for n in range(20)], "timestamp": range(19, -1, -1)})
    config = configure(
        write_files(tmp_path / "log", log), tmp_path / "w", action="read", timestamp="ordinal", max_events_per_day=5
    )
    workspace, snapshot, manifest = published(config)
    assert manifest["is_ordinal"] is True
    (user,) = find_user(workspace.history(snapshot), "a").to_pylist()
    assert user["item_id"] == [f"i{n}" for n in range(19, -1, -1)]


# -- a run that does not end ---------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.parametrize("published_before", [0, 1, 2])
def test_a_run_that_ends_between_two_publications_shows_no_history_and_the_next_one_completes(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published_before: int
) -> None:
    config = configure(write_files(tmp_path / "log", random_log()), tmp_path / "w")
    workspace, publish = Workspace.at(config.workspace), pipelines.prepare.publish
    made: list[str] = []

    def mortal_publish(staged: Folder, final: Folder, manifest: dict[str, Any]) -> None:
        if len(made) == published_before:
            raise KeyboardInterrupt
        made.append(final.uri)
        publish(staged, final, manifest)

    monkeypatch.setattr(pipelines.prepare, "publish", mortal_publish)
    with pytest.raises(KeyboardInterrupt):
        prepare(config)
    assert visible(workspace) == ["items", "quarantine"][2 - published_before :]
    monkeypatch.setattr(pipelines.prepare, "publish", publish)
    prepare(config)
    prepare(configure(tmp_path / "log", tmp_path / "whole"))
    assert all_bytes(tmp_path / "w") == all_bytes(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_prepare_leaves_nothing_half_visible_and_the_next_one_completes(
    ray_session: None, tmp_path: Path
) -> None:
    path = write_files(tmp_path / "log", random_log(20_000), num_files=6)
    config = configure(path, tmp_path / "w", num_buckets=12)
    (tmp_path / "sonder.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    # The first of six parts is read: the shuffle, twelve buckets and every publication are still to come.
    kill_when(sonder_prepare(tmp_path / "sonder.yaml"), tmp_path / "w" / ".staging", "prepare-*/scratch/read-*.json")
    workspace = Workspace.at(config.workspace)
    assert visible(workspace) == []
    assert [child.name for child in workspace.root.children()] == [".staging"]
    prepare(config)
    prepare(configure(path, tmp_path / "whole", num_buckets=12))
    assert all_bytes(tmp_path / "w") == all_bytes(tmp_path / "whole")


@pytest.mark.ray
def test_what_a_killed_run_still_wrote_after_the_next_one_had_ended_goes_with_the_one_after_that(
    ray_session: None, tmp_path: Path
) -> None:
    config = configure(write_files(tmp_path / "log", random_log(50)), tmp_path / "w")
    snapshot = prepare(config)
    staging = Workspace.at(config.workspace).staging(f"prepare-{snapshot}")
    (staging / "scratch" / "read-000001.json").write_json({})
    assert prepare(config) == snapshot
    assert staging.files() == []


def sonder_prepare(config_file: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines.cli", "prepare", "--config", str(config_file)]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def kill_when(process: subprocess.Popen[str], staging: Path, appears: str) -> None:
    """SIGKILL the job as soon as such a file exists, and wait until nobody of it writes any more."""
    deadline = time.monotonic() + PROCESS_HANGS_AFTER_S
    while not list(staging.glob(appears)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)  # the job needs the core that asking without a pause would take
    everybody = with_descendants({process.pid})
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    # Ray's workers are in process groups of their own: they end what they do, and then with their raylet.
    while any(title_of(pid) for pid in everybody):
        assert time.monotonic() < deadline
        time.sleep(0.05)


# -- the plan ------------------------------------------------------------------------------------------------------


def split_of(**fields: Any) -> LogSplit:
    whole = {"index": 0, "source": "a.csv", "file_index": 0, "kind": "csv", "first_row": 0, "part": None,
             "num_rows": None, "size_bytes": 0, "partitions": (), "latest_us": 0}  # fmt: skip
    return LogSplit(**(whole | fields))


@pytest.mark.parametrize(
    ("splits", "rows", "num_buckets"),
    [
        ([], None, 1),
        ([], 20_000_000, 80),
        ([split_of(num_rows=250_000)], None, 1),
        ([split_of(num_rows=250_000), split_of(num_rows=1)], None, 2),
        ([split_of(size_bytes=80 * 500_000)], None, 2),
        ([split_of(size_bytes=20 * 500_000, source="a.csv.gz")], None, 2),
        ([], 10**12, 999),
    ],
)
def test_buckets_follow_from_the_rows_that_are_declared_or_suggested(
    splits: Sequence[LogSplit], rows: int | None, num_buckets: int
) -> None:
    assert derive_num_buckets(splits, rows) == num_buckets
