"""What was accepted online is in files for builds: each event once, in files that stay, without whoever was erased."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow as pa
import pytest

from sonder.core.errors import DataError
from sonder.core.locking import exclusive
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.events.erasure import record_erasure
from sonder.events.online import OnlineEvent
from sonder.profiles import log_archive, log_shipping
from sonder.profiles.log_archive import archive, archived
from sonder.profiles.log_shipping import LogShipper, erase_shipped, events_of
from sonder.profiles.online_log import OnlineLog
from sonder.profiles.redis_log import RedisLog
from tests.redis_server import running_redis

_numbers = itertools.count()


def event(user_id: str) -> OnlineEvent:
    number = next(_numbers)
    return OnlineEvent(f"e-{number}", user_id, "käse", "buy", 10**15 + number, "home", number / 2, "r", 10**15)


def accept(workspace: Workspace, *user_ids: str) -> list[OnlineEvent]:
    events, log = [event(user_id) for user_id in user_ids], OnlineLog(workspace.online_log)
    log.append(events)
    log.close()
    return events


def of_archive(workspace: Workspace) -> list[OnlineEvent]:
    return [known for name in archived(workspace) for known in events_of((workspace.archived_log / name).read_table())]


def test_each_event_is_archived_once_in_files_that_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_shipping, "MOST_EVENTS", 2)
    monkeypatch.setattr(log_archive, "ROWS_PER_FILE", 3)
    workspace = Workspace.at(str(tmp_path))
    assert (archive(workspace, None), archived(workspace)) == (0, [])  # nothing was ever accepted
    events = accept(workspace, "a", "b", "a", "c", "a")
    assert (archive(workspace, None), archive(workspace, None)) == (5, 0)
    assert archived(workspace) == [f"local/{1:016d}-{4:016d}.parquet", f"local/{5:016d}-{5:016d}.parquet"]
    before = {name: (workspace.archived_log / name).read_bytes() for name in archived(workspace)}
    events += accept(workspace, "d")
    assert archive(workspace, None) == 1
    assert of_archive(workspace) == events
    assert all((workspace.archived_log / name).read_bytes() == content for name, content in before.items())


def test_what_nodes_have_shipped_is_archived_by_node_though_they_merge_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_shipping, "MERGE_AT", 3)
    nodes = [Workspace.at(str(tmp_path / "shared"), str(tmp_path / name)) for name in ("one", "two")]
    logs = [OnlineLog(workspace.online_log) for workspace in nodes]
    shippers = [LogShipper(workspace, log) for workspace, log in zip(nodes, logs, strict=True)]
    events: list[OnlineEvent] = []
    for turn in range(4):
        for log, shipper in zip(logs, shippers, strict=True):
            events += (accepted := [event("a"), event("b")])
            log.append(accepted)
            shipper.ship()
        shippers[1].adopt()  # what the other one accepted is not this one's
        if turn in (1, 3):  # before and after the segments were merged
            assert archive(nodes[0], None) == 8
    for log in logs:
        log.close()
    assert sorted(of_archive(nodes[1])) == sorted(events)
    assert len(archived(nodes[0])) == 4
    assert archive(nodes[1], None) == 0


def test_the_log_of_a_networked_store_is_archived(tmp_path: Path) -> None:
    workspace = Workspace.at(str(tmp_path / "shared"), str(tmp_path / "node"))
    with running_redis(keeps=tmp_path) as url:
        log, events = RedisLog(url), [event("a"), event("b")]
        log.append(events)
        log.close()
        assert (archive(workspace, url), archive(workspace, url)) == (2, 0)
    assert of_archive(workspace) == events
    assert archived(workspace)[0].startswith("store/")


def test_who_was_erased_is_in_no_file(tmp_path: Path) -> None:
    workspace = Workspace.at(str(tmp_path))
    accept(workspace, "a", "b")
    archive(workspace, None)
    accept(workspace, "a")
    record_erasure(workspace.erasures, "a", at_us=2 * 10**15)  # and the log has not been cleared yet
    assert erase_shipped(workspace.archived_log, "a", workspace.erasures) == 1
    accept(workspace, "c")
    archive(workspace, None)
    assert [known.user_id for known in of_archive(workspace)] == ["b", "c"]
    assert archive(workspace, None) == 0


def test_of_two_erasures_at_once_neither_brings_the_other_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace.at(str(tmp_path))
    accept(workspace, "a", "b", "c")
    archive(workspace, None)
    write = log_shipping.write_unerased

    def write_late(file: Folder, table: pa.Table, erasures: Folder) -> None:
        """Another gateway erases b after this one has read the file and before it writes."""
        monkeypatch.setattr(log_shipping, "write_unerased", write)
        record_erasure(erasures, "b", at_us=2 * 10**15)
        assert erase_shipped(workspace.archived_log, "b", erasures) == 1
        write(file, table, erasures)

    monkeypatch.setattr(log_shipping, "write_unerased", write_late)
    record_erasure(workspace.erasures, "a", at_us=2 * 10**15)
    assert erase_shipped(workspace.archived_log, "a", workspace.erasures) == 1
    assert [known.user_id for known in of_archive(workspace)] == ["c"]


def test_one_process_archives_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_archive, "_WAIT_S", 0.1)
    workspace = Workspace.at(str(tmp_path))
    accept(workspace, "a")
    with exclusive(workspace.staging("archive.lock")), pytest.raises(DataError, match="Another process has been"):
        archive(workspace, None)
    assert archive(workspace, None) == 1
