"""`events.online`: what `POST /v1/events` accepted is a part of the log, in a full prepare and in a merge."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import pipelines.build
from pipelines.build import build, open_build
from pipelines.increment_plan import plan_delivery
from pipelines.increment_prepare import merge_delivery
from pipelines.prepare import prepare, prepare_now
from pipelines.prepare_plan import archive_online, make_plan
from sonder.core.config import SonderConfig
from sonder.core.errors import ConfigurationError
from sonder.core.storage import read_manifest
from sonder.core.workspace import Workspace
from sonder.events.erasure import record_erasure
from sonder.events.online import OnlineEvent
from sonder.history.snapshot import find_user
from sonder.profiles.log_archive import archived
from sonder.profiles.log_shipping import erase_shipped
from sonder.profiles.online_log import OnlineLog
from tests.pipelines.test_prepare import START, configure, quarantined, random_log

COLUMNS = {"user_id": "who", "item_id": "what", "action": "deed", "timestamp": "at", "event_id": "id"}
START_US = round(START.timestamp() * 1e6)


def write_log(folder: Path, name: str, log: pl.DataFrame) -> None:
    """With columns that are called otherwise than the contract's, without surfaces and values."""
    folder.mkdir(exist_ok=True)
    ids = pl.format(f"{name}-{{}}", pl.int_range(pl.len())).alias("id")
    log = log.select(ids, *(pl.col(field).alias(column) for field, column in COLUMNS.items() if field != "event_id"))
    log.with_columns(pl.col("at").dt.strftime("%Y-%m-%dT%H:%M:%SZ")).write_csv(folder / f"{name}.csv")


def configured(tmp_path: Path, **events: Any) -> SonderConfig:
    config = configure(tmp_path / "log", tmp_path / "w", **{"columns": COLUMNS, "online": True, **events})
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"test_days": 1})})


def accept(workspace: Workspace, *events: OnlineEvent) -> None:
    log = OnlineLog(workspace.online_log)
    log.append(events)
    log.close()


def online(event_id: str, user_id: str, day: float, **more: Any) -> OnlineEvent:
    return OnlineEvent(event_id, user_id, "fresh", "save", START_US + round(day * 86_400e6), **more)


def events_of(workspace: Workspace, snapshot: str, user_id: str) -> list[tuple[Any, ...]]:
    row = find_user(workspace.history(snapshot), user_id).to_pylist()[0]
    return list(zip(row["item_id"], row["action"], row["surface"], row["value"], strict=True))


@pytest.mark.ray
def test_a_log_and_what_arrived_online_become_one_history(ray_session: None, tmp_path: Path) -> None:
    write_log(tmp_path / "log", "a", random_log(100))
    config, workspace = configured(tmp_path), Workspace.at(str(tmp_path / "w"))
    before = prepare(config)
    accept(
        workspace,
        online("new-1", "u3", 6, surface="app", value=2.5),
        online("a-0", str(random_log(100)["user_id"][0]), 7),  # of the log, sent again
        online("new-2", "nobody", 6),
    )
    assert prepare(config) == before  # not a part of the log before it was archived
    assert prepare_now(config)["events"] == 102
    snapshot = prepare(config)
    assert snapshot != before
    assert events_of(workspace, snapshot, "u3")[-1] == ("fresh", "save", "app", 2.5)
    assert events_of(workspace, snapshot, "nobody") == [("fresh", "save", None, None)]
    assert quarantined(workspace, snapshot) == {"duplicate_event_id": 1}
    assert prepare(configured(tmp_path, online=False)) == before


@pytest.mark.ray
def test_merging_what_arrived_is_a_full_prepare_of_all(ray_session: None, tmp_path: Path) -> None:
    log, (first, second) = tmp_path / "log", (random_log(100), random_log(80, seed=8))
    write_log(log, "a", first)
    config, workspace = configured(tmp_path), Workspace.at(str(tmp_path / "w"))
    accept(workspace, online("x", "u1", 6), online("y", "gone", 6))
    archive_online(config)
    snapshot = prepare(config)
    write_log(log, "b", second)
    accept(workspace, online("x", "u1", 6), online("z", "u1", 7, value=1.0))
    assert plan_delivery(config, snapshot).plan.absent == ("surface", "value", "request_id")
    archive_online(config)
    record_erasure(workspace.erasures, "gone", at_us=START_US + 10**12)
    assert erase_shipped(workspace.archived_log, "gone", workspace.erasures) == 1  # the same input still
    merged, whole = merge_delivery(config, plan_delivery(config, snapshot)), prepare(config)
    left, right = (read_manifest(workspace.history(name)) for name in (merged, whole))
    assert left["buckets"] == right["buckets"]
    assert left["counts"] == right["counts"]
    assert left["counts"]["events"] == 182
    assert plan_delivery(config, merged).is_empty
    accept(workspace, online("w", "u2", 8))
    archive_online(config)
    alone = plan_delivery(config, merged)  # nothing new in the log itself
    assert [entry["path"].split("/")[:3] for entry in alone.new_files] == [["log", "archive", "local"]]
    assert events_of(workspace, merge_delivery(config, alone), "u2")[-1][0] == "fresh"


def test_a_log_without_times_is_refused(tmp_path: Path) -> None:
    write_log(tmp_path / "log", "a", random_log(10).with_columns(timestamp=START))
    config = configured(tmp_path, timestamp="ordinal", columns=COLUMNS | {"timestamp": "id"})
    with pytest.raises(ConfigurationError, match=r"events\.online is set, and the times of the log are only an order"):
        make_plan(config)


@pytest.mark.ray
def test_a_build_that_goes_on_keeps_the_inputs_it_began_with(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(tmp_path / "log", "a", random_log(100))
    config, workspace = configured(tmp_path), Workspace.at(str(tmp_path / "w"))
    built: list[str] = []

    def keep(begun: pipelines.build.Build) -> str:
        built.append(begun.snapshot)
        (begun.steps / "train.json").write_json({})
        return begun.release_id

    monkeypatch.setattr(pipelines.build, "_build_release", keep)
    accept(workspace, online("x", "u1", 5))
    build(config)
    accept(workspace, online("y", "u1", 5 + timedelta(hours=1) / timedelta(days=1)))
    build(config)  # as after a kill
    assert built[0] == built[1]
    assert len(archived(workspace)) == 1
    open_build(config).staging.remove()  # as after a release
    build(config)
    assert built[2] != built[1]
    assert len(archived(workspace)) == 2
