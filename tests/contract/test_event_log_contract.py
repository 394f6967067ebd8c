"""The promises of every log of online events, held against the embedded one and against a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from sonder.core.errors import StageUnavailable
from sonder.core.workspace import Workspace
from sonder.events.online import OnlineEvent
from sonder.profiles.event_log import open_event_log
from sonder.profiles.online_log import OnlineLog
from sonder.profiles.redis_log import RedisLog
from tests.redis_server import free_port, running_redis

Log = OnlineLog | RedisLog


def event(number: int, user_id: str = "u") -> OnlineEvent:
    return OnlineEvent(f"e-{number}", user_id, "i", "buy", number, value=1.5)


@pytest.fixture(params=["embedded", "networked"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    if request.param == "embedded":
        yield OnlineLog(tmp_path)
        return
    with running_redis(keeps=tmp_path) as url:
        networked = RedisLog(url)
        yield networked
        networked.close()


def read(log: Log, after: int = 0, limit: int = 100) -> list[OnlineEvent]:
    return [known for _, known in log.after(after, limit)]


def test_events_come_back_in_their_order_and_past_a_number(log: Log) -> None:
    assert log.last() == 0
    assert log.append([event(1), event(2)]) == (2, 0)
    assert log.append([event(3)]) == (1, 0)
    (first, _), (second, _), (third, _) = log.after(0, 10)
    assert (second, third) == (first + 1, first + 2)
    assert read(log) == [event(1), event(2), event(3)]
    assert read(log, first, 1) == [event(2)]
    assert read(log, third) == []
    assert log.last() == third


def test_an_id_counts_once_within_a_batch_and_between_batches(log: Log) -> None:
    assert log.append_all([[event(1), event(1)], [], [event(1), event(2)]]) == [(1, 1), (0, 0), (1, 1)]
    assert log.append_all([[]]) == [(0, 0)]
    assert read(log) == [event(1), event(2)]


def test_a_users_events_are_found_without_the_others(log: Log) -> None:
    log.append([event(1, "a"), event(2, "b"), event(3, "a"), event(4, "ab")])
    first = log.after(0, 1)[0][0]
    assert log.of_user("a") == [event(1, "a"), event(3, "a")]
    assert log.of_user("a", after=first) == [event(3, "a")]
    assert log.of_user("nobody") == []


def test_an_erased_users_events_are_gone_and_their_numbers_are_not_given_again(log: Log) -> None:
    log.append([event(1, "a"), event(2, "b"), event(3, "a")])
    newest = log.last()
    assert log.erase("a") == 2
    assert log.of_user("a") == []
    assert read(log) == [event(2, "b")]
    assert log.append([event(1, "a")]) == (1, 0)
    assert log.after(newest - 1, 10) == [(newest + 1, event(1, "a"))]
    assert log.erase("nobody") == 0


def test_two_gateways_share_a_networked_log(tmp_path: Path) -> None:
    with running_redis(keeps=tmp_path) as url:
        one, other = RedisLog(url), RedisLog(url)
        assert one.append([event(1), event(2)]) == (2, 0)
        assert other.append([event(2), event(3)]) == (1, 1)
        assert read(one) == read(other) == [event(1), event(2), event(3)]
        one.close()
        other.close()


def test_what_a_server_accepted_survives_its_kill(tmp_path: Path) -> None:
    for number in range(3):
        with running_redis(keeps=tmp_path) as url:
            log = RedisLog(url)
            assert log.append([event(number), event(0)]) == (1, 1)
            log.close()
    with running_redis(keeps=tmp_path) as url:
        log = RedisLog(url)
        assert read(log) == [event(number) for number in range(3)]
        log.close()


def test_a_server_that_keeps_no_file_takes_no_event_until_it_does(tmp_path: Path) -> None:
    with running_redis() as url, redis.Redis.from_url(url) as client:
        log = RedisLog(url)
        with pytest.raises(StageUnavailable, match="appendonly yes and appendfsync always"):
            log.append([event(1)])
        assert log.last() == 0
        client.config_set("appendonly", "yes")
        client.config_set("appendfsync", "everysec")
        with pytest.raises(StageUnavailable, match="would forget"):
            log.append([event(1)])
        client.config_set("appendfsync", "always")
        assert log.append([event(1)]) == (1, 0)
        log.close()


def test_a_server_that_is_away_accepts_nothing() -> None:
    log = RedisLog(f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(StageUnavailable, match="does not answer"):
        log.append([event(1)])
    log.close()


def test_numbers_of_a_networked_log_lie_above_those_of_an_embedded_one(tmp_path: Path) -> None:
    """A store whose progress is of the embedded log skips no event when its installation moves to a server."""
    embedded = open_event_log(Workspace.at(str(tmp_path / "workspace")), None)
    with running_redis(keeps=tmp_path) as url:
        networked = open_event_log(Workspace.at("memory://nowhere"), url)
        for log in (embedded, networked):
            log.append_all([[event(1)]])
        assert embedded.last() < networked.after(0, 1)[0][0]
        networked.close()
    embedded.close()
