"""The online log: each event once, on disk when accepted, in order, of any user, gone when erased."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sonder.events.online import OnlineEvent
from sonder.profiles import online_log
from sonder.profiles.online_log import OnlineLog


def event(number: int, user_id: str = "u") -> OnlineEvent:
    return OnlineEvent(f"e-{number}", user_id, "i", "buy", number)


def test_events_come_back_in_their_order_and_past_a_number(tmp_path: Path) -> None:
    log = OnlineLog(tmp_path)
    assert log.last() == 0
    assert log.append([event(1), event(2)]) == (2, 0)
    assert log.append([event(3)]) == (1, 0)
    assert log.after(0, 10) == [(1, event(1)), (2, event(2)), (3, event(3))]
    assert log.after(1, 1) == [(2, event(2))]
    assert log.after(3, 10) == []
    assert log.last() == 3


def test_an_id_counts_once_within_a_batch_and_between_batches(tmp_path: Path) -> None:
    log = OnlineLog(tmp_path)
    assert log.append_all([[event(1), event(1)], [event(1), event(2)]]) == [(1, 1), (1, 1)]
    assert [known for _, known in log.after(0, 10)] == [event(1), event(2)]


def test_a_users_events_are_found_without_the_others(tmp_path: Path) -> None:
    log = OnlineLog(tmp_path)
    log.append([event(1, "a"), event(2, "b"), event(3, "a"), event(4, "ab")])
    assert log.of_user("a") == [event(1, "a"), event(3, "a")]
    assert log.of_user("a", after=1) == [event(3, "a")]
    assert log.of_user("nobody") == []


def test_an_erased_users_events_are_gone_and_their_numbers_are_not_given_again(tmp_path: Path) -> None:
    log = OnlineLog(tmp_path)
    log.append([event(1, "a"), event(2, "b"), event(3, "a")])
    assert log.erase("a") == 2
    assert log.of_user("a") == []
    assert log.after(0, 10) == [(2, event(2, "b"))]
    assert log.append([event(1, "a")]) == (1, 0)
    assert log.after(2, 10) == [(4, event(1, "a"))]
    assert log.erase("nobody") == 0


def test_the_file_grows_past_its_first_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_log, "_GROWTH_BYTES", 1 << 16)
    log = OnlineLog(tmp_path)
    for start in range(0, 2_000, 500):
        assert log.append([event(number) for number in range(start, start + 500)]) == (500, 0)
    assert len(log.after(0, 5_000)) == 2_000
    assert log.size_bytes() > 1 << 16


WRITER = """
import sys
from pathlib import Path
from sonder.events.online import OnlineEvent
from sonder.profiles.online_log import OnlineLog
log = OnlineLog(Path(sys.argv[1]))
for number in range(100_000):
    log.append([OnlineEvent(f"{sys.argv[2]}-{number}-{part}", "u", "i", "buy", number) for part in range(3)])
    print(number, flush=True)
"""


def test_what_was_accepted_survives_the_kill_of_one_of_two_writers(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", WRITER, str(tmp_path), name] for name in ("a", "b")]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    accepted = {}
    for name, writer in zip("ab", writers, strict=True):
        assert writer.stdout is not None
        for _ in range(30):
            accepted[name] = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    log = OnlineLog(tmp_path)
    found = [known.event_id for _, known in log.after(0, 1_000_000)]
    for name, last in accepted.items():
        assert {f"{name}-{number}-{part}" for number in range(last + 1) for part in range(3)} <= set(found)
    assert len(found) % 3 == 0  # a batch is in or not
    assert [number for number, _ in log.after(0, 1_000_000)] == list(range(1, len(found) + 1))
    assert log.append([event(1)]) == (1, 0)
