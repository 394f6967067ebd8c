"""What a node accepted is in the workspace soon, once, without whoever was erased, and other nodes take it over."""

from __future__ import annotations

import itertools
import random
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from sonder.core.errors import StorageUnavailable
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.events.erasure import record_erasure
from sonder.events.online import OnlineEvent
from sonder.profiles import log_shipping
from sonder.profiles.log_shipping import LogShipper, erase_shipped, events_of, segments
from sonder.profiles.online_log import OnlineLog
from tests.s3_server import S3Server

_numbers = itertools.count()


class Node:
    """A node with a disk of its own."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.workspace = Workspace.at(uri, str(folder))
        self.log = OnlineLog(self.workspace.online_log)
        self.shipper = LogShipper(self.workspace, self.log)

    def accept(self, *user_ids: str) -> None:
        self.log.append([event(user_id) for user_id in user_ids])

    @property
    def mine(self) -> Folder:
        return self.workspace.shipped_log / self.workspace.node()

    def shipped(self) -> list[OnlineEvent]:
        files = [self.mine / f"{first:016d}-{last:016d}.parquet" for first, last in segments(self.mine)]
        return [known for file in files for known in events_of(file.read_table())]


def event(user_id: str) -> OnlineEvent:
    number = next(_numbers)
    return OnlineEvent(f"e-{number}", user_id, "käse", "buy", 10**15 + number, None, number / 2, "r", 10**15)


@pytest.fixture(params=["memory", "s3"])
def uri(request: pytest.FixtureRequest) -> str:
    name = uuid.uuid4().hex
    if request.param == "memory":
        return f"memory://{name}"
    server: S3Server = request.getfixturevalue("s3_environment")
    return server.uri(name)


@pytest.fixture
def node(uri: str, tmp_path: Path) -> Callable[[str], Node]:
    return lambda name: Node(uri, tmp_path / name)


def test_events_are_shipped_once_as_they_were_accepted(node: Callable[[str], Node]) -> None:
    one = node("one")
    assert one.shipper.ship() == 0
    one.accept("a", "b")
    assert (one.shipper.ship(), one.shipper.ship()) == (2, 0)
    one.accept("c")
    again = LogShipper(one.workspace, one.log)  # another process of the node, after a kill
    assert (again.ship(), again.ship()) == (1, 0)
    assert one.shipped() == [known for _, known in one.log.after(0, 10)]
    assert segments(one.mine) == [(1, 2), (3, 3)]


def test_another_node_takes_over_each_event_once_and_ships_none_of_it(node: Callable[[str], Node]) -> None:
    one, two = node("one"), node("two")
    one.accept("a", "b")
    two.accept("c")
    for shipping in (one, two):
        shipping.shipper.ship()
    assert (two.shipper.adopt(), two.shipper.adopt()) == (2, 0)
    assert [known.user_id for _, known in two.log.after(0, 10)] == ["c", "a", "b"]
    two.accept("d")
    one.accept("e")
    assert (two.shipper.ship(), one.shipper.ship()) == (1, 1)
    assert [known.user_id for known in two.shipped()] == ["c", "d"]
    assert LogShipper(two.workspace, two.log).adopt() == 1  # it remembers how far it was
    assert one.shipper.adopt() == 2
    assert (one.shipper.ship(), two.shipper.adopt()) == (0, 0)


def test_who_was_erased_is_in_no_segment_and_is_not_taken_over(node: Callable[[str], Node]) -> None:
    one, two = node("one"), node("two")
    one.accept("a", "b", "a")
    one.shipper.ship()
    assert erase_shipped(one.workspace.shipped_log, "a", one.workspace.erasures) == 2
    assert [known.user_id for known in one.shipped()] == ["b"]
    one.accept("a", "c")
    record_erasure(one.workspace.erasures, "a", at_us=2 * 10**15)  # and the log has not been cleared yet
    one.shipper.ship()
    assert [known.user_id for known in one.shipped()] == ["b", "c"]
    one.mine.fs.invalidate_cache()
    assert two.shipper.adopt() == 2
    assert erase_shipped(one.workspace.shipped_log, "nobody", one.workspace.erasures) == 0


def test_a_tombstone_that_comes_while_a_segment_is_written_counts(
    node: Callable[[str], Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = node("one")
    one.accept("a", "b")
    write = Folder.write_table

    def erased_meanwhile(file: Folder, table: object) -> None:
        if not one.workspace.erasures.children():
            record_erasure(one.workspace.erasures, "a", at_us=2 * 10**15)
        write(file, table)

    monkeypatch.setattr(Folder, "write_table", erased_meanwhile)
    one.shipper.ship()
    assert [known.user_id for known in one.shipped()] == ["b"]


def test_small_segments_become_one_and_no_event_is_lost_or_told_twice(
    node: Callable[[str], Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_shipping, "MERGE_AT", 4)
    monkeypatch.setattr(log_shipping, "MOST_EVENTS", 20)
    draw, one, two = random.Random(3), node("one"), node("two")
    for turn in range(25):
        one.accept(*(f"u{number}" for number in range(draw.randint(1, 4))))
        one.shipper.ship()
        if turn % 4 == 0:
            two.shipper.adopt()
    two.shipper.adopt()
    accepted = [known for _, known in one.log.after(0, 1_000)]
    assert one.shipped() == accepted
    assert [known for _, known in two.log.after(0, 1_000)] == accepted
    assert len(one.mine.files()) < 15


def test_a_store_that_does_not_answer_delays_and_loses_nothing(
    node: Callable[[str], Node], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log_shipping, "SHIP_EVERY_S", 0.05)
    one, write, is_away = node("one"), Folder.write_table, threading.Event()
    is_away.set()

    def away(file: Folder, table: object) -> None:
        if is_away.is_set():
            raise StorageUnavailable("it does not answer")
        write(file, table)

    monkeypatch.setattr(Folder, "write_table", away)
    one.accept("a")
    one.shipper.start()
    time.sleep(0.3)
    assert one.mine.files() == []
    is_away.clear()
    one.accept("b")
    one.shipper.close()  # ships what is left
    assert [known.user_id for known in one.shipped()] == ["a", "b"]
    assert "it does not answer" in caplog.text


def test_one_process_of_a_node_ships(node: Callable[[str], Node]) -> None:
    one = node("one")
    second = LogShipper(one.workspace, one.log)
    one.shipper.start()
    time.sleep(0.2)
    second.start()
    one.accept("a")
    second.close()  # which is not the one that ships
    one.shipper.close()
    assert [known.user_id for known in one.shipped()] == ["a"]
