"""Profiles of past days: what a release of that day would say, whole days, resumed after a kill, no leak unsaid."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from typer.testing import CliRunner

import pipelines.backfill
from pipelines.backfill import AskedDays, BackfillBucket, backfill
from pipelines.cli import app
from pipelines.profiles import write_profiles
from pipelines.score import score_users
from pipelines.segment import SegmentBucket
from sonder.core.config import SonderConfig
from sonder.core.errors import DataError, InvalidRequest, NotFound
from sonder.core.storage import Folder, read_manifest
from sonder.core.workspace import Workspace
from sonder.events.erasure import record_erasure
from sonder.history.snapshot import bucket_file, read_timelines, read_users
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.profiles.record import PROFILE_SCHEMA
from sonder.releases.artefacts import Release
from sonder.releases.profiling import Profiler, trained_until_us
from tests.hanging import PROCESS_HANGS_AFTER_S
from tests.services.conftest import (
    AS_OF_US,
    NUM_BUCKETS,
    NUM_DAYS,
    NUM_USERS,
    RELEASE,
    SNAPSHOT,
    START_US,
    TinyRelease,
    build_tiny_release,
)
from tests.tiny_log import write_snapshot

START = datetime.fromtimestamp(START_US / 1e6, tz=UTC).date()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> TinyRelease:
    return build_tiny_release(tmp_path_factory.mktemp("template") / "workspace")


@pytest.fixture
def tiny(template: TinyRelease, tmp_path: Path) -> TinyRelease:
    """A copy that a test may change."""
    shutil.copytree(template.workspace.root.path, tmp_path / "workspace")
    return replace(template, workspace=Workspace.at(str(tmp_path / "workspace")))


def days(first: int, last: int, every: int = 1) -> AskedDays:
    """By their number since the log began."""
    return AskedDays(START + timedelta(first), START + timedelta(last), every)


def midnight_us(day: date) -> int:
    return round(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000


def files_of(folder: Folder) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in folder.files() if ".staging" not in name}


def profiles_of(folder: Folder) -> pa.Table:
    parts = [(folder / name).read_table() for name in folder.files() if name.endswith(".parquet")]
    return pa.concat_tables(parts).sort_by("user_id")


def test_the_release_asked_at_its_own_moment_says_what_it_says(tiny: TinyRelease) -> None:
    release = Release.open(tiny.workspace, RELEASE)
    profiler = Profiler.of(release, named_as_of_us=AS_OF_US)
    for bucket in range(NUM_BUCKETS):
        timelines = read_timelines(tiny.workspace.history(SNAPSHOT), profiler.vocabulary, [bucket])
        kept = (release.profiles / f"bucket={bucket:03d}" / "part-0.parquet").read_table()
        users = read_users(tiny.workspace.history(SNAPSHOT), bucket)
        assert profiler.profiles(timelines, users, as_of_us=AS_OF_US).equals(kept)


def release_as_of(tiny: TinyRelease, folder: Path, as_of_us: int) -> pa.Table:
    """Profiles that the steps of a build make of the log that ended at `as_of`, with the release's models in place."""
    release = Release.open(tiny.workspace, RELEASE)
    timelines = read_timelines(tiny.workspace.history(SNAPSHOT), tiny.vocabulary).before(as_of_us)
    log = timelines.take(np.flatnonzero(timelines.lengths > 0))
    then = Workspace.at(str(folder / "then"))
    write_snapshot(then, "cut", _with_surfaces(log), tiny.vocabulary)
    target = Folder.at(str(folder / "release"))
    shutil.copytree(release.folder.path, target.path)
    for made in ("profiles",):
        (target / made).remove()
    thresholds, interests = release.thresholds.read_json(), release.interests_config.read_json()
    uris = {"history": then.history("cut").uri, "items": release.items.uri}
    task = SegmentBucket(**uris, encoder=release.encoder.uri, target=target.uri, as_of_us=as_of_us,
                         thresholds=thresholds, interests=interests)  # fmt: skip
    for bucket in range(2):
        task(bucket)
    config = SonderConfig.model_validate({"workspace": then.root.uri, "events": {"path": "unused"}})
    release.folder.fs.copy(release.items.path, then.items("cut").path, recursive=True)
    heads = target / "scores"
    score_users(config, "cut", release.encoder, heads, heads / "users", as_of_us=as_of_us, num_workers=0)
    write_profiles(then.history("cut"), release.items, target, as_of_us=as_of_us, num_workers=0)
    return profiles_of(target / "profiles")


def _with_surfaces(log: Timelines) -> Timelines:
    """`write_snapshot` writes none."""
    return replace(log, surfaces=np.full(log.num_events, -1, dtype=np.int16))


def without_surfaces(tiny: TinyRelease) -> None:
    history = tiny.workspace.history(SNAPSHOT)
    for bucket in range(NUM_BUCKETS):
        table = bucket_file(history, bucket).read_table()
        lists = table.column("surface").combine_chunks()
        nulls = pa.LargeListArray.from_arrays(lists.offsets, pa.nulls(len(lists.flatten()), pa.large_string()))
        place = table.schema.get_field_index("surface")
        bucket_file(history, bucket).write_table(table.set_column(place, table.schema.field("surface"), nulls))


def test_a_past_day_is_what_a_release_of_that_day_with_these_models_says(tiny: TinyRelease, tmp_path: Path) -> None:
    without_surfaces(tiny)
    told = backfill(tiny.workspace, days(20, 20), num_workers=0)
    as_of_us = midnight_us(START + timedelta(20))
    day = tiny.workspace.backfills(RELEASE) / f"as_of={START + timedelta(20)}"
    ours, theirs = profiles_of(day), release_as_of(tiny, tmp_path, as_of_us)
    assert ours.schema == PROFILE_SCHEMA
    assert 0 < ours.num_rows == theirs.num_rows == told["profiles"]
    facts = ["signup_at", "attributes", "consent"]  # the log above has no user table
    mine, yours = ours.drop_columns(facts).to_pylist(), theirs.drop_columns(facts).to_pylist()
    for left, right in zip(mine, yours, strict=True):
        assert close(left, right), left["user_id"]
    (user,) = [row for row in ours.to_pylist() if row["user_id"] == "user-1"]
    assert user["signup_at"] is None  # later than the day
    assert user["consent"] == [{"name": "ads", "granted": True}, {"name": "email", "granted": False}]


def close(left: Any, right: Any) -> bool:
    """Alike but for the last digits of numbers, which depend on who shares a batch."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(close(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(close, left, right))
    if isinstance(left, float):
        return left == right or abs(left - right) <= 1e-5 * max(1.0, abs(right))
    return bool(left == right)


def test_what_happens_after_the_day_changes_nothing(tiny: TinyRelease) -> None:
    asked = days(15, 25, 5)
    backfill(tiny.workspace, asked, out=tiny.workspace.root / "before", num_workers=0)
    history = tiny.workspace.history(SNAPSHOT)
    for bucket in range(NUM_BUCKETS):
        table = bucket_file(history, bucket).read_table()
        items = table.column("item_id").combine_chunks()
        times = table.column("timestamp").combine_chunks().flatten().cast(pa.int64()).to_numpy()
        is_later = times >= midnight_us(asked.last)
        assert is_later.any()
        flat = np.where(is_later, "item-0", items.flatten().to_numpy(zero_copy_only=False))
        place = table.schema.get_field_index("item_id")
        changed = pa.LargeListArray.from_arrays(items.offsets, pa.array(flat, pa.large_string()))
        bucket_file(history, bucket).write_table(table.set_column(place, table.schema.field("item_id"), changed))
    backfill(tiny.workspace, asked, out=tiny.workspace.root / "after", num_workers=0)
    assert files_of(tiny.workspace.root / "after") == files_of(tiny.workspace.root / "before")


def test_users_without_events_before_the_day_are_absent_and_those_that_say_nothing_are_cold(tiny: TinyRelease) -> None:
    timelines = read_timelines(tiny.workspace.history(SNAPSHOT), tiny.vocabulary)
    first_us = timelines.times_us[timelines.offsets[timelines.user_ids.to_pylist().index(tiny.shown_only)]]
    later = int((first_us - START_US) // MICROSECONDS_PER_DAY) + 2
    for number in (3, later):
        backfill(tiny.workspace, days(number, number), num_workers=0)
        day = tiny.workspace.backfills(RELEASE) / f"as_of={START + timedelta(number)}"
        manifest, profiles = read_manifest(day), profiles_of(day)
        has_events = timelines.before(manifest["as_of_us"]).lengths > 0
        known = timelines.user_ids.filter(pa.array(has_events)).to_pylist()
        assert profiles.column("user_id").to_pylist() == sorted(known)
        num_cold = sum(profiles.column("is_cold").to_pylist())
        absent = NUM_USERS + 1 - len(known)
        assert manifest["counts"] == {"profiles": len(known), "cold": num_cold, "absent": absent}
        assert absent > 0 or number == later
    reasons = dict(zip(*(profiles.column(name).to_pylist() for name in ("user_id", "cold_reason")), strict=True))
    assert reasons[tiny.shown_only] == "no_wanted_events"


def test_a_manifest_says_what_the_models_know_and_a_release_older_than_the_days_knows_nothing_of_them(
    tiny: TinyRelease,
) -> None:
    told = backfill(tiny.workspace, days(10, 11), num_workers=0)
    assert told["leaking_days"] == 2
    folder = tiny.workspace.backfills(RELEASE)
    manifest = read_manifest(folder / f"as_of={START + timedelta(10)}")
    assert manifest["knows_the_future"] is True
    assert manifest["models_trained_until"].startswith(str(START + timedelta(NUM_DAYS)))
    assert set(manifest["models_trained_until_by_part"]) == {"derived", "encoder", "scores.buy_7d"}
    assert manifest["release"] == RELEASE
    assert manifest["as_of"].startswith(str(START + timedelta(10)))

    older = tiny.workspace.release("older")  # the same models, of a log that ended on day 12
    shutil.copytree(tiny.workspace.release(RELEASE).path, older.path)
    cut = _cut_history(tiny, 12)
    as_of_us = int(read_manifest(tiny.workspace.history(cut))["last_event_us"]) + 1
    sealed = (older / "manifest.json").read_json() | {"id": "older", "snapshot": cut, "as_of_us": as_of_us}
    (older / "manifest.json").write_json(sealed)
    told = backfill(tiny.workspace, days(14, 15), release_id="older", num_workers=0)
    manifest = read_manifest(tiny.workspace.backfills("older") / f"as_of={START + timedelta(14)}")
    assert told["leaking_days"] == 0
    assert manifest["knows_the_future"] is False
    assert manifest["snapshot"] == SNAPSHOT  # its own log ended before


def _cut_history(tiny: TinyRelease, num_days: int) -> str:
    timelines = read_timelines(tiny.workspace.history(SNAPSHOT), tiny.vocabulary)
    log = timelines.before(START_US + num_days * MICROSECONDS_PER_DAY)
    write_snapshot(tiny.workspace, "cut", _with_surfaces(log), tiny.vocabulary)
    return "cut"


def test_an_encoder_knows_what_its_ancestors_learnt_from(tiny: TinyRelease) -> None:
    release = Release.open(tiny.workspace, RELEASE)
    month_us = 30 * MICROSECONDS_PER_DAY
    assert trained_until_us(tiny.workspace, release)["encoder"] == AS_OF_US - month_us  # temporal, 30 days of test
    child = tiny.workspace.release("child")
    shutil.copytree(release.folder.path, child.path)
    manifest = (child / "manifest.json").read_json()
    manifest["config"]["encoder"]["parent"] = RELEASE
    manifest |= {"id": "child", "as_of_us": AS_OF_US - month_us}
    (child / "manifest.json").write_json(manifest)
    known = trained_until_us(tiny.workspace, Release.open(tiny.workspace, "child"))
    assert known["encoder"] == AS_OF_US - month_us
    assert known["derived"] == AS_OF_US - month_us


def test_days_that_are_there_are_kept_and_others_of_another_version_are_made_anew_only_when_asked(
    tiny: TinyRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    backfill(tiny.workspace, days(10, 12), num_workers=0)
    folder = tiny.workspace.backfills(RELEASE)
    before = files_of(folder)
    told = backfill(tiny.workspace, days(9, 12), num_workers=0)
    assert (told["written"], told["kept"]) == (1, 3)
    assert before.items() <= files_of(folder).items()
    monkeypatch.setattr("sonder.__version__", "9.9")
    with pytest.raises(InvalidRequest, match=r"as_of=.* is there, of release.*--again"):
        backfill(tiny.workspace, days(10, 12), num_workers=0)
    told = backfill(tiny.workspace, days(10, 12), again=True, num_workers=0)
    assert told["written"] == 3
    assert read_manifest(folder / f"as_of={START + timedelta(10)}")["code_version"] == "9.9"


def test_an_erased_user_is_in_no_later_backfill(tiny: TinyRelease) -> None:
    user = tiny.user_ids[0]
    backfill(tiny.workspace, days(30, 30), out=tiny.workspace.root / "with", num_workers=0)
    record_erasure(tiny.workspace.erasures, user, at_us=AS_OF_US)
    backfill(tiny.workspace, days(30, 30), out=tiny.workspace.root / "without", num_workers=0)
    ids = [set(profiles_of(tiny.workspace.root / name).column("user_id").to_pylist()) for name in ("with", "without")]
    assert ids[0] - ids[1] == {user}


def test_a_day_appears_whole_or_not_at_all_and_the_next_run_goes_on(
    tiny: TinyRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, whole = days(10, 12), tiny.workspace.root / "whole"
    backfill(tiny.workspace, asked, out=whole, num_workers=0)
    made: list[tuple[int, int]] = []

    class Dying(BackfillBucket):
        def _profiles(self, bucket: int, as_of_us: int) -> Any:
            if len(made) == 3:  # day 11 has one bucket of two
                raise MemoryError("the machine died")
            made.append((as_of_us, bucket))
            return super()._profiles(bucket, as_of_us)

    monkeypatch.setattr(pipelines.backfill, "BackfillBucket", Dying)
    with pytest.raises(MemoryError):
        backfill(tiny.workspace, asked, num_workers=0)
    folder = tiny.workspace.backfills(RELEASE)
    assert [child.name for child in folder.children()] == [f"as_of={START + timedelta(10)}"]
    again: list[tuple[int, int]] = []

    class Counting(BackfillBucket):
        def _profiles(self, bucket: int, as_of_us: int) -> Any:
            again.append((as_of_us, bucket))
            return super()._profiles(bucket, as_of_us)

    monkeypatch.setattr(pipelines.backfill, "BackfillBucket", Counting)
    told = backfill(tiny.workspace, asked, num_workers=0)
    assert (told["written"], told["kept"]) == (2, 1)
    assert len(again) == 3
    assert not set(again) & set(made)
    assert files_of(folder) == files_of(whole)
    assert not (tiny.workspace.root / ".staging").files() or all(
        name.endswith(".lock") for name in (tiny.workspace.root / ".staging").files()
    )


KILLED = """
import sys
from datetime import date
from pipelines.backfill import AskedDays, backfill
from sonder.core.workspace import Workspace
first, last = map(date.fromisoformat, sys.argv[2:])
backfill(Workspace.at(sys.argv[1]), AskedDays(first, last), num_workers=0)
"""


def test_after_sigkill_the_same_command_ends_with_the_same_bytes(tiny: TinyRelease) -> None:
    asked = days(5, 14)
    arguments = [sys.executable, "-c", KILLED, tiny.workspace.root.path, str(asked.first), str(asked.last)]
    folder = tiny.workspace.backfills(RELEASE)
    with subprocess.Popen(arguments) as process:
        deadline = time.monotonic() + PROCESS_HANGS_AFTER_S
        while len(folder.children()) < 3:
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        with pytest.raises(DataError, match="Another process backfills"):
            backfill(tiny.workspace, asked, num_workers=0)
        process.send_signal(signal.SIGKILL)
    published = sum(child.is_published() for child in folder.children())
    assert 0 < published < 10
    told = backfill(tiny.workspace, asked, num_workers=0)
    assert told["kept"] == published
    whole = tiny.workspace.root / "whole"
    backfill(tiny.workspace, asked, out=whole, num_workers=0)
    assert files_of(folder) == files_of(whole)


@pytest.mark.ray
def test_ray_data_writes_the_same_bytes(tiny: TinyRelease, ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.backfill, "PAIRS_AT_ONCE", 3)  # in runs that end within a day
    asked = days(10, 12)
    backfill(tiny.workspace, asked, num_workers=2)
    backfill(tiny.workspace, asked, out=tiny.workspace.root / "here", num_workers=0)
    assert files_of(tiny.workspace.backfills(RELEASE)) == files_of(tiny.workspace.root / "here")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (days(12, 10), "a last day that is not before the first"),
        (days(0, 3), "The log tells nothing of"),
        (days(NUM_DAYS, NUM_DAYS + 9), "the day after its last one"),
    ],
)
def test_days_that_the_log_cannot_tell_of_are_refused_before_any_work(
    tiny: TinyRelease, asked: AskedDays, told: str
) -> None:
    with pytest.raises(InvalidRequest, match=told):
        backfill(tiny.workspace, asked, num_workers=0)
    with pytest.raises(NotFound, match="No release 'nobody'"):
        backfill(tiny.workspace, asked, release_id="nobody", num_workers=0)


def test_a_log_without_dates_has_no_days(tiny: TinyRelease) -> None:
    file = tiny.workspace.history(SNAPSHOT) / "manifest.json"
    file.write_json(file.read_json() | {"is_ordinal": True})
    with pytest.raises(InvalidRequest, match="only an order"):
        backfill(tiny.workspace, days(10, 10), num_workers=0)


def test_the_command_says_what_it_wrote_warns_of_the_leak_and_how_to_read_it(
    tiny: TinyRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.backfill, "over_buckets", _here)
    config = tmp_path / "sonder.yaml"
    config.write_text(f"workspace: {tiny.workspace.root}\nevents: {{path: events.csv}}\n", encoding="utf-8")
    first, last = START + timedelta(10), START + timedelta(31)
    arguments = ["backfill", "--from", str(first), "--to", str(last), "-c", str(config)]
    done = CliRunner().invoke(app, [*arguments, "--every", "2w"], catch_exceptions=False)
    assert "2 days" in done.output
    assert "do not train on them" in done.output
    read = pl.read_parquet(
        f"{tiny.workspace.backfills(RELEASE)}/as_of=*/bucket=*/part-0.parquet", hive_partitioning=False
    )
    assert read["as_of"].dt.date().unique().sort().to_list() == [first, first + timedelta(14)]
    refused = CliRunner().invoke(app, [*arguments, "--every", "1h"])
    assert isinstance(refused.exception, InvalidRequest)


def _here(make: Any, arguments: Any, pairs: Any, *, num_workers: int | None, on_done: Any) -> Any:
    from pipelines.bucket_tasks import over_buckets

    return over_buckets(make, arguments, pairs, num_workers=0, on_done=on_done)
