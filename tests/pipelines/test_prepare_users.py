"""The user table in a snapshot: by the history's buckets, the same bytes every time, visible whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

import pipelines.prepare
from pipelines.prepare import prepare
from pipelines.prepare_plan import make_plan
from sonder.core.config import PrepareConfig, SonderConfig
from sonder.core.errors import ConfigurationError, DataError
from sonder.core.ids import digest_json
from sonder.core.input_config import EventsConfig, UsersConfig
from sonder.core.storage import read_manifest
from sonder.core.workspace import Workspace
from sonder.history.inputs import LAYOUT_VERSION, prepare_digest
from sonder.history.snapshot import buckets_of, read_bucket, read_users

ROWS = [("a", "DE", True), ("b", "FR", False), ("b", "IT", True), ("quiet", "PL", None), (None, "SE", True)]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    frame = pl.DataFrame({"user_id": ["a", "b", "c"], "item_id": ["i", "j", "i"], "timestamp": ["2026-01-01"] * 3})
    frame.write_csv(tmp_path / "log.csv")
    return tmp_path / "log.csv"


def configure(
    log: Path, workspace: Path, rows: list[Any] | None = None, *, num_files: int = 1, **keys: Any
) -> SonderConfig:
    folder = workspace.with_name(f"{workspace.name}-users")
    folder.mkdir(exist_ok=True)
    frame = pl.DataFrame(rows or ROWS, schema=["user_id", "land", "ads"], orient="row")
    for index, part in enumerate(frame.iter_slices(-(-frame.height // num_files))):
        part.write_parquet(folder / f"part-{index}.parquet")
    users = {"path": str(folder), "columns": {"attributes": ["land"], "consent": {"ads": "ads"}}, **keys}
    return SonderConfig.model_validate(
        {
            "workspace": str(workspace),
            "events": {"path": str(log), "action": "view"},
            "users": users,
            "prepare": {"num_buckets": 3},
        }
    )


def user_files(config: SonderConfig) -> dict[str, bytes]:
    history = Workspace.at(config.workspace).history(prepare(config))
    return {name: (history / name).read_bytes() for name in history.files() if name.startswith("users/")}


@pytest.mark.ray
def test_everybody_in_the_table_is_kept_in_their_bucket(ray_session: None, tmp_path: Path, log: Path) -> None:
    config = configure(log, tmp_path / "w")
    history = Workspace.at(config.workspace).history(prepare(config))
    found = {}
    for bucket in buckets_of(history):
        users = read_users(history, bucket).to_pylist()
        assert [user["user_id"] for user in users] == sorted(user["user_id"] for user in users)
        found.update({user["user_id"]: (user, bucket) for user in users})
        for user_id in read_bucket(history, bucket, ["user_id"]).column(0).to_pylist():
            assert user_id not in found or found[user_id][1] == bucket
    assert sorted(found) == ["a", "b", "quiet"]
    assert found["b"][0]["attributes"] == [{"name": "land", "value": "FR"}]
    assert found["b"][0]["consent"] == [{"name": "ads", "granted": False}]
    told = read_manifest(history)["user_table"]
    counts = {name: num for name, num in told["counts"].items() if num}
    assert counts == {"rows": 5, "without_id": 1, "repeated": 1, "users": 3, "users_with_events": 2}
    assert [entry["bucket"] for entry in told["buckets"]] == [0, 1, 2]


@pytest.mark.ray
def test_two_runs_and_another_cut_into_files_give_the_same_bytes(ray_session: None, tmp_path: Path, log: Path) -> None:
    one = user_files(configure(log, tmp_path / "one"))
    assert (
        one == user_files(configure(log, tmp_path / "two")) == user_files(configure(log, tmp_path / "x", num_files=3))
    )
    assert len(one) == 3


@pytest.mark.ray
def test_a_run_that_is_killed_shows_no_user_and_the_next_one_completes(
    ray_session: None, tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    config = configure(log, tmp_path / "w")
    with monkeypatch.context() as patched:
        patched.setattr(pipelines.prepare, "read_items", die)  # the user table is written, nothing is published
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    staged = list((tmp_path / "w" / ".staging").glob("*/history/users/bucket=*/part-0.parquet"))
    assert len(staged) == 3
    assert Workspace.at(config.workspace).root.children()[0].name == ".staging"
    assert user_files(config) == user_files(configure(log, tmp_path / "whole"))


@pytest.mark.ray
def test_a_table_whose_rows_have_no_ids_is_refused_and_nothing_is_published(
    ray_session: None, tmp_path: Path, log: Path
) -> None:
    config = configure(log, tmp_path / "w", [(None, "DE", True)] * 4)
    with pytest.raises(DataError, match=r"None of the 4 rows of the user table .* has a user id"):
        prepare(config)
    assert not (tmp_path / "w" / "history").exists()


def test_the_snapshot_is_named_by_the_table_and_not_by_what_is_sensitive(tmp_path: Path, log: Path) -> None:
    named = make_plan(configure(log, tmp_path / "w")).snapshot
    assert named == make_plan(configure(log, tmp_path / "w", sensitive=["land"])).snapshot
    assert named != make_plan(configure(log, tmp_path / "w", [*ROWS[:-1], ("c", "SE", True)])).snapshot
    assert named != make_plan(configure(log, tmp_path / "w", columns={"attributes": ["land"]})).snapshot


def test_a_wrong_column_is_found_before_any_work(tmp_path: Path, log: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"user_id is 'uid', the user table has user_id, land, ads"):
        make_plan(configure(log, tmp_path / "w", columns={"user_id": "uid"}))


def test_a_log_without_a_user_table_keeps_the_snapshot_id_that_it_had() -> None:
    events, prepare_config = EventsConfig(path="log.csv"), PrepareConfig()
    sections = {
        "events": events.model_dump(mode="json", exclude={"max_bad_fraction", "online"}),
        "items": None,
        "prepare": prepare_config.model_dump(mode="json"),
        "layout": LAYOUT_VERSION,
    }
    assert prepare_digest(events, None, prepare_config) == digest_json(sections)
    assert prepare_digest(events, None, prepare_config, UsersConfig(path="users.csv")) != digest_json(sections)
