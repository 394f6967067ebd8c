"""Measuring an experiment over a snapshot, its exposures, and what arrived online since."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

import pipelines.audience
import pipelines.experiment_buckets
from pipelines import experiment_log
from pipelines.experiment_metrics import analysis_folder, baseline, measure
from sonder.core.config import SonderConfig, validate
from sonder.core.errors import ConfigurationError, DataError, InvalidRequest, NotFound
from sonder.core.ids import bucket_of
from sonder.core.storage import MANIFEST, read_manifest
from sonder.core.workspace import Workspace
from sonder.events.erasure import record_erasure
from sonder.experiments.metrics import user_numbers
from sonder.profiles.log_shipping import LogShipper
from sonder.profiles.online_log import OnlineLog
from sonder.profiles.record import PROFILE_SCHEMA, profile_file
from sonder.profiles.redis_log import RedisLog
from sonder.releases.artefacts import Release
from sonder.segments.lifecycle import STATES
from tests.built import BuiltWorld
from tests.exposed_log import (
    EXPOSED_FROM,
    NUM_BUCKETS,
    THRESHOLDS,
    Row,
    append,
    at,
    events_of,
    experiment_of,
    expose,
    of_user,
    online,
    random_rows,
    us,
    write_snapshot,
)
from tests.redis_server import running_redis

ROWS = random_rows(4, 40)
ASSIGNED = [(f"u{number:03d}", ("old", "new")[number % 2], EXPOSED_FROM + number / 2) for number in range(30)]


@pytest.fixture
def config(tmp_path: Path) -> SonderConfig:
    return validate({"workspace": str(tmp_path / "w"), "events": {"path": "log.csv"}}, source="test")


@pytest.fixture
def workspace(config: SonderConfig) -> Workspace:
    found = Workspace.at(config.workspace)
    write_snapshot(found, ROWS)
    return found


@pytest.fixture
def release(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The release r-1, made of the snapshot and served: u000 to u019 are browsers, the others are in no cluster."""
    user_ids = sorted({user for user, *_ in ROWS})
    buckets = bucket_of(pl.Series(user_ids), NUM_BUCKETS)
    for bucket in range(NUM_BUCKETS):
        profiles = [
            {
                "user_id": user, "as_of": at(20), "is_cold": False, "num_events": number, "interests": [],
                "segments": {"cluster": "browsers" if number < 20 else None}, "affinities": [], "scores": [],
            }
            for number, user in enumerate(user_ids) if buckets[number] == bucket
        ]  # fmt: skip
        table = pa.Table.from_pylist(profiles, schema=PROFILE_SCHEMA)
        profile_file(workspace.root / "profiles", bucket).write_table(table)
    (workspace.root / "thresholds.json").write_json(THRESHOLDS.to_dict())
    found = SimpleNamespace(
        id="r-1", profiles=workspace.root / "profiles", thresholds=workspace.root / "thresholds.json",
        items=workspace.items("s"), base_rates=dict,
        manifest=SimpleNamespace(as_of_us=us(40), snapshot="s", row_counts={"profiles": 40}),
    )  # fmt: skip
    opened = SimpleNamespace(open=lambda _, name: found)
    current = SimpleNamespace(current=lambda: SimpleNamespace(release="r-1"))
    for module in (pipelines.experiment_buckets, pipelines.audience):
        monkeypatch.setattr(module, "Release", opened)
    monkeypatch.setattr(pipelines.experiment_buckets, "Registry", lambda _: current)
    monkeypatch.setattr(pipelines.audience, "served_release", lambda _: "r-1")
    return found


def test_the_buckets_together_are_what_the_pure_function_says_of_the_whole_log(
    workspace: Workspace, config: SonderConfig
) -> None:
    expose(workspace, ASSIGNED[:20])
    expose(workspace, ASSIGNED[10:], gateway="g2")
    found = measure(config, experiment_of())
    assert found.until == at(max(day for _, day, _, _ in ROWS)) + timedelta(microseconds=1)
    exposed = found.users.select("user_id", "arm", "exposed_at")
    assert exposed.rows() == [(user, arm, at(day)) for user, arm, day in ASSIGNED]
    expected = user_numbers(experiment_of(), exposed, events_of(ROWS), until=found.until)
    assert_frame_equal(found.users.drop("lifecycle", "segment"), expected)
    assert min(found.users.select(pl.col("buys", "spent", "d1", "d1.pre").sum()).row(0)) > 5


def test_a_measurement_is_published_with_its_counts_and_not_made_again(
    workspace: Workspace, config: SonderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    expose(workspace, [*ASSIGNED, ("u003", "old", 59.0), ("u050", "old", 58.0)])
    first = measure(config, experiment_of(), until=at(50))
    folder = analysis_folder(workspace, "better", at(50))
    assert folder.name == "2026-02-20T000000.000000Z"
    assert folder.files() == ["manifest.json", "users.parquet"]
    told = read_manifest(folder)
    assert told == first.manifest
    assert told["counts"] == {
        "exposed": 30, "in_several_arms": 0, "erased": 0, "exposed_later": 1, "exposure_rows": 32, "versions": [1],
        "online_events": 0, "segment_later": 0,
    }  # fmt: skip
    assert told["users"] == {"old": 15, "new": 15}
    assert told["mature"] == {"buys": 27, "spent": 30, "d1": 30}
    assert (told["snapshot"], told["until"]) == ("s", at(50).isoformat())
    assert_frame_equal(pl.read_parquet((folder / "users.parquet").path), first.users)
    assert not (workspace.root / ".staging").children()
    with monkeypatch.context() as patched:
        patched.setattr("pipelines.experiment_metrics.over_buckets", None)
        again = measure(config, experiment_of(), until=at(50))
    assert_frame_equal(again.users, first.users)
    expose(workspace, [("u031", "new", 31.0)])
    more = measure(config, experiment_of(), until=at(50))
    assert more.users.height == 31
    assert read_manifest(folder) == more.manifest


def test_a_user_of_two_arms_is_left_out_and_counted(workspace: Workspace, config: SonderConfig) -> None:
    expose(workspace, [*ASSIGNED, ("u003", "old", 44.0)])
    assert measure(config, experiment_of(), until=at(44)).users.height == 28  # that was not known then
    found = measure(config, experiment_of(), until=at(50))
    assert found.manifest["counts"]["in_several_arms"] == 1
    assert "u003" not in found.users["user_id"]


def test_users_whom_the_history_does_not_know_are_in_it_too(workspace: Workspace, config: SonderConfig) -> None:
    expose(workspace, [*ASSIGNED, ("nobody", "new", 35.0), ("newcomer", "old", 36.0)])
    append(workspace, online(("newcomer", 36.5, "buy", "e1"), ("newcomer", 37.5, "view", "e2")))
    found = measure(config, experiment_of())
    assert (of_user(found, "nobody")["buys"], of_user(found, "nobody")["d1"]) == (0, 0)
    assert (of_user(found, "newcomer")["buys"], of_user(found, "newcomer")["d1"]) == (1, 1)


def test_an_online_event_counts_unless_the_snapshot_has_it(workspace: Workspace, config: SonderConfig) -> None:
    known: list[Row] = [("ada", 29.0, "view", "e0"), ("ada", 31.0, "buy", "e1"), ("ada", 32.0, "buy", "")]
    write_snapshot(workspace, [*ROWS, *known])
    expose(workspace, [("ada", "old", 30.0), ("u001", "new", 30.0)])
    assert of_user(measure(config, experiment_of(), until=at(50)), "ada")["buys"] == 2
    same_id, same_row = ("ada", 31.5, "buy", "e1"), ("ada", 32.0, "buy", "e2")
    append(workspace, online(same_id, same_row, ("ada", 33.0, "buy", "e3"), ("other", 33.0, "buy", "e4")))
    found = measure(config, experiment_of(), until=at(50))
    assert of_user(found, "ada")["buys"] == 3
    assert found.manifest["counts"]["online_events"] == 3


def test_the_log_ends_with_what_arrived_last_but_not_with_a_clock_that_is_ahead(
    workspace: Workspace, config: SonderConfig
) -> None:
    expose(workspace, ASSIGNED)
    append(workspace, online(("u001", 70.0, "buy", "e1")))
    assert measure(config, experiment_of()).until == at(70.0) + timedelta(microseconds=1)
    ahead = online(("u001", 72.0, "buy", "e2"))[0]._replace(accepted_us=us(71.0))
    append(workspace, [ahead])
    assert measure(config, experiment_of()).until == at(71.0) + timedelta(microseconds=1)


def test_what_other_nodes_have_shipped_counts_once(tmp_path: Path, workspace: Workspace) -> None:
    expose(workspace, [("u001", "old", 30.0), ("ada", "new", 30.0)])
    for node, rows in (("n1", [("ada", 31.0, "buy", "e1")]), ("n2", [("ada", 32.0, "buy", "e2")])):
        of_node = Workspace.at(str(workspace.root), str(tmp_path / node))
        log = OnlineLog(of_node.online_log)
        log.append(online(*rows))
        LogShipper(of_node, log).ship()
        log.close()
    sections = {"workspace": str(workspace.root), "events": {"path": "log.csv"}}
    here = validate(sections | {"serving": {"local_dir": str(tmp_path / "n1")}}, source="test")
    elsewhere = validate(sections | {"serving": {"local_dir": str(tmp_path / "n3")}}, source="test")
    for config in (here, elsewhere):
        assert of_user(measure(config, experiment_of(), until=at(50)), "ada")["buys"] == 2


def test_what_gateways_keep_on_a_server_counts_too(tmp_path: Path, workspace: Workspace) -> None:
    expose(workspace, [("u001", "old", 30.0), ("ada", "new", 30.0)])
    with running_redis(keeps=tmp_path) as url:
        log = RedisLog(url)
        log.append(online(("ada", 31.0, "buy", "e1"), ("ada", 32.0, "buy", "e2")))
        log.close()
        sections = {"workspace": str(workspace.root), "events": {"path": "log.csv"}, "serving": {"store": url}}
        assert of_user(measure(validate(sections, source="test"), experiment_of(), until=at(50)), "ada")["buys"] == 2


def test_an_erased_user_is_gone_with_all_that_was_measured(workspace: Workspace, config: SonderConfig) -> None:
    expose(workspace, ASSIGNED)
    append(workspace, online(("u001", 70.0, "buy", "e1")))
    assert "u001" in measure(config, experiment_of(), until=at(50)).users["user_id"]
    record_erasure(workspace.erasures, "u001", at_us=us(45))
    found = measure(config, experiment_of(), until=at(50))
    assert "u001" not in found.users["user_id"]
    assert found.manifest["counts"]["erased"] == 1
    stored = pl.read_parquet((analysis_folder(workspace, "better", at(50)) / "users.parquet").path)
    assert "u001" not in stored["user_id"]
    planned = baseline(config, experiment_of(), at=at(30))
    assert "u001" not in planned.users["user_id"]
    assert planned.users.height > 20


def test_cuts_are_the_state_before_the_exposure_and_the_cluster_of_the_controls_release(
    workspace: Workspace, config: SonderConfig, release: SimpleNamespace
) -> None:
    expose(workspace, [*ASSIGNED, ("nobody", "new", 35.0)])
    found = measure(config, experiment_of(), until=at(50))
    assert of_user(found, "nobody")["lifecycle"] == "cold"
    states = set(found.users["lifecycle"])
    assert len(states) >= 4
    assert dict(found.users.group_by("segment").len().iter_rows()) == {"browsers": 20, "none": 11}
    assert found.manifest["release"] == "r-1"
    assert found.manifest["counts"]["segment_later"] == sum(day < 40 for *_, day in ASSIGNED) + 1
    later = [*ROWS, *[(user, day + 0.01, "view", "") for user, _, day in ASSIGNED for _ in range(5)]]
    write_snapshot(workspace, later, name="later")  # what they do afterwards does not change what they were
    (workspace.history("s") / MANIFEST).remove()
    release.manifest.snapshot = "later"
    again = measure(config, experiment_of(), until=at(50))
    assert again.manifest["snapshot"] == "later"
    assert again.users["lifecycle"].to_list() == found.users["lifecycle"].to_list()


def test_profiles_that_lie_in_other_buckets_are_found(
    workspace: Workspace, config: SonderConfig, release: SimpleNamespace
) -> None:
    expose(workspace, ASSIGNED)
    manifest = read_manifest(workspace.history("s"))
    older = manifest | {"last_event_us": us(1), "buckets": [{"bucket": b, "users": 0, "events": 0} for b in range(5)]}
    (workspace.history("older") / MANIFEST).write_json(older)
    release.manifest.snapshot = "older"
    found = measure(config, experiment_of(), until=at(50))
    assert dict(found.users.group_by("segment").len().iter_rows()) == {"browsers": 20, "none": 10}


def test_a_baseline_takes_the_active_for_exposed_by_their_first_event(
    workspace: Workspace, config: SonderConfig
) -> None:
    append(workspace, online(("newcomer", 34.5, "view", "e1")))
    found = baseline(config, experiment_of(), at=at(30))
    first: dict[str, float] = {}
    for user, day, *_ in [*ROWS, ("newcomer", 34.5, "view", "e1")]:
        if 30 <= day < 37:
            first[user] = min(day, first.get(user, day))
    assert found.users.select("user_id", "arm", "exposed_at").rows() == [
        (user, "old", at(day)) for user, day in sorted(first.items())
    ]
    assert found.users_per_day == tuple(sum(int(day - 30) == number for day in first.values()) for number in range(7))
    exposed = found.users.select("user_id", "arm", "exposed_at")
    known = events_of([*ROWS, ("newcomer", 34.5, "view", "e1")])
    expected = user_numbers(experiment_of(), exposed, known, until=found.until)
    assert_frame_equal(found.users.drop("lifecycle", "segment"), expected)
    assert not (workspace.root / ".staging").children()


def test_by_default_a_baseline_ends_with_the_log(workspace: Workspace, config: SonderConfig) -> None:
    found = baseline(config, experiment_of())
    assert found.until - datetime.fromisoformat(found.manifest["at"]) == timedelta(days=14)
    assert all(number == found.users.height for number in found.manifest["mature"].values())


def test_only_the_eligible_are_in_a_baseline(
    workspace: Workspace, config: SonderConfig, release: SimpleNamespace
) -> None:
    everybody = baseline(config, experiment_of(), at=at(30))
    found = baseline(config, experiment_of(eligibility="num_events >= 10"), at=at(30))
    assert found.manifest["counts"] == {"eligible": 30}
    assert_frame_equal(found.users, everybody.users.filter(pl.col("user_id") >= "u010"))
    with pytest.raises(DataError, match="Nobody eligible was active"):
        baseline(config, experiment_of(eligibility="num_events >= 1000"), at=at(30))


def test_a_wrong_question_is_told(workspace: Workspace, config: SonderConfig) -> None:
    with pytest.raises(NotFound, match=r"No exposure of experiment 'better'.*Start it"):
        measure(config, experiment_of())
    expose(workspace, ASSIGNED)
    rented = experiment_of(metrics=[{"name": "m", "kind": "count", "action": "rent", "within_days": 7}], primary="m")
    for job in (measure, baseline):
        with pytest.raises(ConfigurationError, match=r"action 'rent', which is not in the log.*one of buy, view"):
            job(config, rented)
    append(workspace, online(("u001", 50.0, "rent", "e1")))
    assert of_user(measure(config, rented), "u001")["m"] == 0
    with pytest.raises(InvalidRequest, match="The log ends at"):
        measure(config, experiment_of(), until=at(61))
    assert measure(config, experiment_of(), until=at(60)).users.height == 30
    with pytest.raises(InvalidRequest, match="has no time zone"):
        measure(config, experiment_of(), until=datetime(2026, 2, 1))
    with pytest.raises(InvalidRequest, match="Nobody is left of experiment 'better' before"):
        measure(config, experiment_of(), until=at(30))
    with pytest.raises(InvalidRequest, match="is not in the log"):
        baseline(config, experiment_of(), at=at(-1))
    expose(workspace, [("u039", "newer", 31.0)])
    with pytest.raises(DataError, match=r"name the arm 'newer'.*one of old, new"):
        measure(config, experiment_of())


def test_without_a_history_or_with_one_without_dates_nothing_is_measured(config: SonderConfig) -> None:
    workspace = Workspace.at(config.workspace)
    with pytest.raises(NotFound, match=r"No history.*sonder prepare"):
        measure(config, experiment_of())
    write_snapshot(workspace, ROWS)
    (workspace.history("s") / MANIFEST).write_json(read_manifest(workspace.history("s")) | {"is_ordinal": True})
    with pytest.raises(DataError, match="order but no time"):
        measure(config, experiment_of())


def test_the_newest_snapshot_is_the_one_with_the_latest_event(workspace: Workspace) -> None:
    write_snapshot(workspace, [*ROWS, ("u001", 61.0, "view", "")], name="a-newer")
    (workspace.history("unfinished") / "bucket=000").write_bytes(b"")
    assert experiment_log.newest_snapshot(workspace) == "a-newer"


def test_a_bucket_that_was_done_before_a_kill_is_not_done_again(
    workspace: Workspace, config: SonderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    expose(workspace, ASSIGNED)
    done: list[int] = []
    real = experiment_log.bucket_events

    def killed_at_the_last(history: Any, bucket: int, *rest: Any) -> pl.DataFrame:
        if bucket == 2 and 2 not in done:
            done.append(bucket)
            raise KeyboardInterrupt
        done.append(bucket)
        return real(history, bucket, *rest)

    monkeypatch.setattr(pipelines.experiment_buckets, "bucket_events", killed_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        measure(config, experiment_of(), until=at(50))
    assert measure(config, experiment_of(), until=at(50)).users.height == 30
    assert done == [0, 1, 2, 2]


@pytest.mark.ray
def test_ray_says_the_same(ray_session: None, workspace: Workspace, config: SonderConfig) -> None:
    expose(workspace, ASSIGNED)
    append(workspace, online(("u001", 31.0, "buy", "e1")))
    here = baseline(config, experiment_of(), at=at(30), num_workers=0)
    assert_frame_equal(baseline(config, experiment_of(), at=at(30), num_workers=2).users, here.users)
    here = measure(config, experiment_of(), until=at(50), num_workers=0)
    analysis_folder(workspace, "better", at(50)).remove()
    there = measure(config, experiment_of(), until=at(50), num_workers=2)
    assert_frame_equal(there.users, here.users)
    assert there.manifest == here.manifest


@pytest.mark.ray
def test_a_built_world_is_measured_with_the_cuts_and_the_rules_of_its_release(built_world: BuiltWorld) -> None:
    config = built_world.config
    workspace = Workspace.at(config.workspace)
    release = Release.open(workspace, built_world.release_id)
    actions = release.manifest.inputs["labels"]["action"]
    metrics = [
        {"name": "m", "kind": "count", "action": max(actions, key=actions.get), "within_days": 7},
        {"name": "d1", "kind": "retention", "day": 1},
    ]
    asked: dict[str, Any] = {"name": "built", "metrics": metrics, "primary": "m"}
    everybody = baseline(config, experiment_of(**asked))
    assert everybody.users.height > 100
    assert everybody.users["m"].mean() > 0  # type: ignore[operator]
    assert set(everybody.users["lifecycle"]) <= set(STATES)
    clusters = release.load_clusters()
    assert clusters is not None
    assert set(everybody.users["segment"]) <= {*clusters.names, "none"}
    assert everybody.users["segment"].n_unique() > 1
    core = baseline(config, experiment_of(**asked, eligibility="lifecycle = 'core'"))
    assert 0 < core.users.height < everybody.users.height
