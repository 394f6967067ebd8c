"""Repairing stored profiles: what differs is found and written, what is right stays, whoever else writes meanwhile."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import orjson
import pytest
from filelock import FileLock
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.repair import Repair, RepairedUser
from pipelines.repair_stores import nobody_refreshes
from sonder.core.errors import InvalidRequest, NotFound
from sonder.core.workspace import Workspace
from sonder.events.erasure import record_erasure
from sonder.events.online import OnlineEvent
from sonder.profiles.differences import differences
from sonder.profiles.lmdb_store import LmdbStore
from sonder.profiles.store import StoredProfile, key_of
from sonder.releases.artefacts import Release
from tests.redis_server import running_redis
from tests.services.conftest import AS_OF_US, RELEASE, Served, TinyRelease, build_tiny_release, serve

USERS = [f"user-{number}" for number in range(8)]
HOUR_US = 3_600_000_000


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> TinyRelease:
    """With its online store loaded."""
    tiny = build_tiny_release(tmp_path_factory.mktemp("template") / "workspace")
    Release.open(tiny.workspace, RELEASE).open_store().close()
    return tiny


@pytest.fixture
def tiny(template: TinyRelease, tmp_path: Path) -> TinyRelease:
    """A copy that a test may change."""
    shutil.copytree(template.workspace.root.path, tmp_path / "workspace")
    return replace(template, workspace=Workspace.at(str(tmp_path / "workspace")))


@pytest.fixture
def release(tiny: TinyRelease) -> Release:
    return Release.open(tiny.workspace, RELEASE)


@pytest.fixture
def store(release: Release) -> Iterator[LmdbStore]:
    with LmdbStore.open(release.workspace.store / RELEASE, release=RELEASE, writable=True) as opened:
        yield opened


@pytest.fixture
def live(tiny: TinyRelease) -> Iterator[Served]:
    """The gateway's parts over the store and the log, with a real refresh."""
    with serve(tiny, writable=True) as opened:
        yield opened


def outcomes(results: Sequence[RepairedUser]) -> dict[str, str]:
    return {result.user_id: result.outcome for result in results}


def changed(profile: StoredProfile, **fields: Any) -> StoredProfile:
    return profile._replace(body=orjson.dumps(orjson.loads(profile.body) | fields))


def event(user_id: str, number: int, *, item: int = 2) -> OnlineEvent:
    return OnlineEvent(
        event_id=f"{user_id}-{number}",
        user_id=user_id,
        item_id=f"item-{item}",
        action="buy",
        time_us=AS_OF_US + number * HOUR_US,
        surface="web",
        value=3.0,
        request_id=None,
        accepted_us=AS_OF_US + number * HOUR_US,
    )


def test_a_healthy_store_is_not_touched(release: Release, store: LmdbStore, tiny: TinyRelease) -> None:
    everybody = [*tiny.user_ids, tiny.shown_only]
    before = store.records(everybody)
    results = Repair(release, store, None).run(everybody)
    assert set(outcomes(results).values()) == {"same"}
    assert store.records(everybody) == before


def test_what_differs_is_named_by_field_and_written_the_rest_stays(release: Release, store: LmdbStore) -> None:
    healthy = dict(zip(USERS, store.batch_get(USERS), strict=True))
    _damage(store)
    records = store.records(USERS)
    told = Repair(release, store, None, dry_run=True).run(USERS)
    assert store.records(USERS) == records
    assert Repair(release, store, None).run(USERS) == told
    assert {result.user_id: result.fields for result in told if result.outcome == "repaired"} == {
        "user-0": ("interests", "segments.lifecycle"),
        "user-1": ("num_events", "embedding"),
        "user-2": ("record",),
        "user-3": ("record",),
        "user-4": ("record",),
        "user-5": ("timeline",),
    }
    assert outcomes(told)["user-6"] == "same"
    for user_id, repaired in zip(USERS, store.batch_get(USERS), strict=True):
        assert repaired is not None
        assert differences(healthy[user_id], repaired) == ()
        assert repaired.timeline == healthy[user_id].timeline
    assert set(outcomes(Repair(release, store, None).run(USERS)).values()) == {"same"}


def _damage(store: LmdbStore) -> None:
    first, second, _, _, _, sixth, *_ = store.batch_get(USERS)
    segments = orjson.loads(first.body)["segments"] | {"lifecycle": "dormant"}
    store.put_many(
        [
            ("user-0", changed(first, segments=segments, interests=[])),
            ("user-1", changed(second, num_events=1)._replace(embedding=b"\0" * len(second.embedding))),
            ("user-5", sixth._replace(timeline=sixth.timeline[24:])),
        ]
    )
    store.delete("user-3")
    environment: lmdb.Environment = store._environment
    with environment.begin(write=True) as transaction:
        transaction.put(key_of("user-2"), b"torn")
        whole = transaction.get(key_of("user-4"))
        transaction.put(key_of("user-4"), b"another!" + whole[8:])  # of another release


def test_a_server_is_repaired_like_the_embedded_store(release: Release) -> None:
    with running_redis() as url, closing(release.open_store(url)) as store:
        first = store.get("user-0")
        assert first is not None
        store.put_many([("user-0", changed(first, scores=[]))])
        store.delete("user-1")
        assert store.num_profiles() == 24
        told = Repair(release, store, None).run(["user-0", "user-1", "user-2"])
        assert [result.fields for result in told] == [("scores",), ("record",), ()]
        assert store.num_profiles() == 25
        repaired = store.get("user-0")
        assert differences(first, repaired or first) == ()


def test_users_of_whom_nothing_is_known_are_said_to_be_unknown(release: Release, store: LmdbStore) -> None:
    assert outcomes(Repair(release, store, None).run(["nobody", "user-1", "nobody"])) == {
        "nobody": "unknown",
        "user-1": "same",
    }


def test_an_erased_user_is_not_brought_back(release: Release, store: LmdbStore, tiny: TinyRelease) -> None:
    record_erasure(tiny.workspace.erasures, "user-1", at_us=AS_OF_US)
    assert Repair(release, store, None).run(["user-1"]) == [RepairedUser("user-1", "erased", ("record",))]
    assert store.get("user-1") is None
    assert outcomes(Repair(release, store, None).run(["user-1"])) == {"user-1": "erased"}


def test_a_user_erased_while_the_record_is_written_is_not_brought_back(
    release: Release, store: LmdbStore, tiny: TinyRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.delete("user-1")  # so that the repair writes over nothing
    write = store.put_unchanged

    def erased_meanwhile(changes: Any) -> list[str]:
        record_erasure(tiny.workspace.erasures, "user-1", at_us=AS_OF_US)
        return write(changes)

    monkeypatch.setattr(store, "put_unchanged", erased_meanwhile)
    assert outcomes(Repair(release, store, None).run(["user-1"])) == {"user-1": "erased"}
    assert store.get("user-1") is None


# -- beside the online log ---------------------------------------------------------------------------------------------


def repair(live: Served, users: Sequence[str], **how: Any) -> list[RepairedUser]:
    release = Release.open(live.release.workspace, RELEASE)
    return Repair(release, live.store, live.log, **how).run(users)


def refresh(live: Served) -> None:
    while asyncio.run(live.refresher().step()):
        pass


def test_what_refreshes_wrote_is_right_and_is_computed_again_with_the_online_events(live: Served) -> None:
    live.log.append([event("user-1", 1), event("newcomer", 2), event("user-1", 3, item=5)])
    refresh(live)
    live.log.append([event("user-2", 50)])
    refresh(live)  # the store's moment is later than the records of the others
    users = ["user-1", "newcomer", "user-2", "user-3"]
    assert set(outcomes(repair(live, users)).values()) == {"same"}
    healthy = live.store.batch_get(users)
    live.store.put_many(
        [(user, changed(held, num_events=0)._replace(timeline=b"")) for user, held in zip(users, healthy, strict=True)]
    )
    told = repair(live, users)
    assert {result.fields for result in told} == {("num_events", "timeline")}
    for held, repaired in zip(healthy, live.store.batch_get(users), strict=True):
        assert repaired is not None
        assert differences(held, repaired) == ()
    live.store.delete("newcomer")
    assert outcomes(repair(live, ["newcomer"])) == {"newcomer": "repaired"}
    assert orjson.loads(live.store.get("newcomer").body)["num_events"] == 1


def test_a_refresh_that_writes_first_is_not_overwritten(live: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    held = live.store.get("user-1")
    live.store.put_many([("user-1", changed(held, scores=[]))])
    write, calls = live.store.put_unchanged, []

    def refreshed_meanwhile(changes: Any) -> list[str]:
        if not calls:
            live.log.append([event("user-1", 1)])
            refresh(live)
        calls.append(changes)
        return write(changes)

    monkeypatch.setattr(live.store, "put_unchanged", refreshed_meanwhile)
    num_events = orjson.loads(held.body)["num_events"]
    assert outcomes(repair(live, ["user-1"])) == {"user-1": "same"}  # the refresh computed the scores again
    assert orjson.loads(live.store.get("user-1").body)["num_events"] == num_events + 1


def test_a_refresh_that_read_the_broken_record_and_writes_last_is_repaired_again(
    live: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = live.store.get("user-1")
    live.store.put_many([("user-1", held._replace(timeline=held.timeline[24:]))])
    write, calls = live.store.put_unchanged, []

    def overtaken(changes: Any) -> list[str]:
        calls.append(changes)
        if len(calls) > 1:
            return write(changes)
        live.log.append([event("user-1", 1)])
        refresher, late = live.refresher(), []
        with monkeypatch.context() as patched:
            patched.setattr(live.store, "put_refreshed", lambda *written, after: late.append((written, after)))
            asyncio.run(refresher.step())  # reads the broken record, and is slow to write
        written = write(changes)
        held_back, after = late[0]
        live.store.put_refreshed(*held_back, after=after)
        return written

    monkeypatch.setattr(live.store, "put_unchanged", overtaken)
    assert outcomes(repair(live, ["user-1"])) == {"user-1": "repaired"}
    assert len(calls) == 2
    body = orjson.loads(live.store.get("user-1").body)
    assert body["num_events"] == orjson.loads(held.body)["num_events"] + 1


def test_a_user_whose_events_wait_is_left_to_the_refresh_unless_none_runs(live: Served) -> None:
    held = live.store.get("user-1")
    live.store.put_many([("user-1", changed(held, scores=[]))])
    live.log.append([event("user-1", 1)])
    assert outcomes(repair(live, ["user-1", "user-2"], wait_s=0.0)) == {"user-1": "busy", "user-2": "same"}
    assert outcomes(repair(live, ["user-1"], is_alone=True)) == {"user-1": "repaired"}
    assert orjson.loads(live.store.get("user-1").body)["num_events"] == orjson.loads(held.body)["num_events"]
    refresh(live)  # the event that waited counts once
    assert orjson.loads(live.store.get("user-1").body)["num_events"] == orjson.loads(held.body)["num_events"] + 1


def test_without_the_log_a_refreshed_user_is_left_alone(live: Served) -> None:
    live.log.append([event("user-1", 1)])
    refresh(live)
    release = Release.open(live.release.workspace, RELEASE)
    told = Repair(release, live.store, None).run(["user-1", "user-2"])
    assert outcomes(told) == {"user-1": "elsewhere", "user-2": "same"}


def test_the_lock_of_a_running_refresh_says_that_one_runs(release: Release) -> None:
    with nobody_refreshes(release) as is_alone:
        assert is_alone
        with nobody_refreshes(release) as another:
            assert not another
    with FileLock(str(release.workspace.refresh_lock(RELEASE))), nobody_refreshes(release) as is_alone:
        assert not is_alone


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tiny: TinyRelease, tmp_path: Path) -> Path:
    file = tmp_path / "sonder.yaml"
    file.write_text(f"workspace: {tiny.workspace.root}\nevents: {{path: events.csv}}\n", encoding="utf-8")
    return file


def test_the_command_repairs_a_list_and_says_what_differed(tiny: TinyRelease, config: Path, tmp_path: Path) -> None:
    with LmdbStore.open(tiny.workspace.store / RELEASE, release=RELEASE, writable=True) as store:
        _damage(store)
    users = tmp_path / "users.csv"
    users.write_text("user_id\n" + "\n".join(USERS), encoding="utf-8")
    answers = tmp_path / "answers.json"
    dry = CliRunner().invoke(app, ["repair", str(users), "--dry-run", "-c", str(config)], catch_exceptions=False)
    assert "8 users, 6 would be repaired, 2 same" in dry.output
    command = ["repair", str(users), "--user", "nobody", "--json", str(answers), "-c", str(config)]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert f"store/{RELEASE}: 9 users, 6 repaired, 2 same, 1 unknown." in done.output
    assert "record of 3" in done.output
    assert "user-0: interests, segments.lifecycle" in done.output
    told = orjson.loads(answers.read_bytes())[f"store/{RELEASE}"]
    assert {entry["user_id"]: entry["outcome"] for entry in told}["user-0"] == "repaired"
    again = CliRunner().invoke(app, ["repair", str(users), "-c", str(config)], catch_exceptions=False)
    assert "8 users, 8 same." in again.output


def test_nobody_to_repair_and_no_store_are_refused(tiny: TinyRelease, config: Path) -> None:
    assert isinstance(CliRunner().invoke(app, ["repair", "-c", str(config)]).exception, InvalidRequest)
    shutil.rmtree(tiny.workspace.store)
    refused = CliRunner().invoke(app, ["repair", "--user", "user-1", "-c", str(config)])
    assert isinstance(refused.exception, NotFound)
    assert "store load" in str(refused.exception)


def test_numbers_that_differ_in_their_last_digits_are_the_same() -> None:
    def record(score: float, name: str = "a", embedding: bytes = b"") -> StoredProfile:
        return StoredProfile(1, orjson.dumps({"scores": [{"name": name, "value": score}]}), embedding, b"")

    assert differences(record(0.5), record(0.5000001)) == ()
    assert differences(record(0.5), record(0.51)) == ("scores",)
    assert differences(record(0.5), record(0.5, name="b")) == ("scores",)
    assert differences(record(0.5, embedding=b"\0\0\0\0"), record(0.5)) == ("embedding",)
    assert differences(None, record(0.5)) == ("record",)
    assert differences(StoredProfile(1, b"{", b"", b""), record(0.5)) == ("record",)
