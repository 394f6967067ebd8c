"""Exposures on their way to files: once an hour, never lost to a failing disk, never after an erasure."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.gateway import exposing
from services.gateway.exposing import ExposureLog
from sonder.core import metrics
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.events.erasure import record_erasure
from sonder.experiments.exposure_files import erase_rows, read_exposures, read_shown

HOUR_US = 3_600_000_000


class Clock:
    def __init__(self) -> None:
        self.us = 1_700_000_000_000_000 // HOUR_US * HOUR_US

    def __call__(self) -> int:
        return self.us


@pytest.fixture
def workspace(tmp_path) -> Workspace:  # type: ignore[no-untyped-def]
    return Workspace.at(str(tmp_path))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(workspace: Workspace, clock: Clock) -> ExposureLog:
    return ExposureLog(workspace, "g1", clock_us=clock)


def expose(log: ExposureLog, user_id: str, arm: str = "control") -> None:
    log.expose("first", 1, arm, user_id, release="r-1", surface="profile")


def users(workspace: Workspace) -> list[str]:
    return read_exposures(workspace.experiments, "first")["user_id"].sort().to_list()


def lost(kind: str = "exposures") -> float:
    return metrics.REGISTRY.get_sample_value("sonder_exposures_lost_total", {"kind": kind}) or 0.0


def failing(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The storage refuses while the list says so."""
    fails, original = [True], Folder.write_table

    def write(self: Folder, table: Any) -> None:
        if fails[0]:
            raise OSError("no space left")
        original(self, table)

    monkeypatch.setattr(Folder, "write_table", write)
    return fails


def test_a_user_is_logged_once_an_hour_for_each_arm(log: ExposureLog, workspace: Workspace, clock: Clock) -> None:
    for _ in range(3):
        expose(log, "ada")
    expose(log, "ada", "treatment")
    clock.us += HOUR_US - 1
    expose(log, "ada")
    clock.us += 1
    expose(log, "ada")
    assert log.flush() == 0
    rows = read_exposures(workspace.experiments, "first")
    assert rows["arm"].to_list() == ["control", "treatment", "control"]
    assert rows["exposed_at"].dt.epoch("us").to_list() == [clock.us - HOUR_US, clock.us - HOUR_US, clock.us]


def test_nothing_is_written_where_nothing_came_and_a_file_is_of_one_experiment(
    log: ExposureLog, workspace: Workspace
) -> None:
    log.flush()
    assert not workspace.experiments.exists()
    expose(log, "ada")
    log.expose("second", 3, "b", "ada", release="r-2", surface="similar")
    log.show("third", 1, "ada", request_id="q", slots=[("i1", "a"), ("i2", "b")])
    log.flush()
    folders = ["/".join(name.split("/")[:3]) for name in workspace.experiments.files()]
    assert folders == ["first/exposures/g1", "second/exposures/g1", "third/shown/g1"]
    assert read_shown(workspace.experiments, "third").select("item_id", "team", "position").rows() == [
        ("i1", "a", 1),
        ("i2", "b", 2),
    ]


def test_what_cannot_be_written_waits_and_is_written_once(
    log: ExposureLog, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails, before = failing(monkeypatch), lost()
    expose(log, "ada")
    assert log.flush() == 1
    expose(log, "ada")
    expose(log, "bob")
    assert log.flush() == 2
    fails[0] = False
    assert log.flush() == 0
    assert users(workspace) == ["ada", "bob"]
    assert lost() == before


def test_what_does_not_fit_is_dropped_counted_and_logged_when_it_comes_again(
    log: ExposureLog, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposing, "MOST_BUFFERED", 2)
    before = lost()
    for user in ("ada", "bob", "eve", "eve"):
        expose(log, user)
    assert lost() == before + 2
    log.flush()
    expose(log, "eve")
    log.flush()
    assert users(workspace) == ["ada", "bob", "eve"]


def test_the_memory_of_who_was_logged_is_bounded_and_costs_rows_not_users(
    log: ExposureLog, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposing, "MOST_REMEMBERED", 10)
    for _ in range(2):
        for number in range(25):
            expose(log, f"user-{number:02d}")
    assert len(log._logged) <= 10
    log.flush()
    assert users(workspace) == [f"user-{number:02d}" for number in range(25)]


def test_a_gateway_that_ends_writes_what_it_has(
    log: ExposureLog, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposing, "CLOSING_PAUSE_S", 0.0)
    original, failures = ExposureLog._write_or_keep, [1]

    def write(self: ExposureLog, kind: Any, experiment: str, rows: Any) -> None:
        if failures[0]:
            failures[0] -= 1
            self._rows[kind] = [*rows, *self._rows[kind]]
        else:
            original(self, kind, experiment, rows)

    monkeypatch.setattr(ExposureLog, "_write_or_keep", write)
    expose(log, "ada")
    asyncio.run(log.close())
    assert users(workspace) == ["ada"]


def test_a_gateway_that_ends_without_storage_counts_what_is_lost(
    log: ExposureLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposing, "CLOSING_PAUSE_S", 0.0)
    failing(monkeypatch)
    before = lost()
    expose(log, "ada")
    asyncio.run(log.close())
    assert lost() == before + 1


def test_who_was_erased_is_not_written_and_what_comes_later_is(
    log: ExposureLog, workspace: Workspace, clock: Clock
) -> None:
    expose(log, "ada")
    expose(log, "bob")
    record_erasure(workspace.erasures, "ada", at_us=clock.us)
    log.flush()
    assert users(workspace) == ["bob"]
    clock.us += HOUR_US
    expose(log, "ada")
    log.flush()
    assert users(workspace) == ["ada", "bob"]


def test_an_erasure_while_the_file_is_written_misses_nobody(
    log: ExposureLog, workspace: Workspace, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Folder.write_table

    def write(self: Folder, table: Any) -> None:
        monkeypatch.setattr(Folder, "write_table", original)
        record_erasure(workspace.erasures, "ada", at_us=clock.us)  # somebody erases
        assert erase_rows(workspace.experiments, "ada") == 0  # and the file is not there yet
        original(self, table)

    monkeypatch.setattr(Folder, "write_table", write)
    expose(log, "ada")
    expose(log, "bob")
    log.flush()
    assert users(workspace) == ["bob"]


def test_what_waits_of_a_user_can_be_dropped(log: ExposureLog, workspace: Workspace) -> None:
    expose(log, "ada")
    expose(log, "bob")
    log.show("first", 1, "ada", request_id="q", slots=[("i1", "a"), ("i2", "b")])
    assert log.forget("ada") == 3
    log.flush()
    assert users(workspace) == ["bob"]
