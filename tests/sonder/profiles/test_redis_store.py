"""What only the networked store has to answer for: a server that is away, empty, full, closed or shared."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis

from sonder.core.errors import ConfigurationError, NotFound, NotReady, StageUnavailable
from sonder.profiles.redis_connection import PASSWORD_VARIABLE, RedisServer, address_of
from sonder.profiles.redis_store import RedisStore, drop_release
from sonder.profiles.store import LAYOUT_VERSION, StoredProfile, StoreMetadata
from tests.redis_server import free_port, running_redis

METADATA = StoreMetadata(release="r-1", as_of_us=5, dim=2, max_events=10, num_profiles=1)
ADA = StoredProfile(1, b'{"user_id":"ada"}', b"\0" * 8, b"")


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with running_redis() as url:
        yield url


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """Of an empty server."""
    with redis.Redis.from_url(redis_url) as opened:
        opened.flushall()
        yield opened


def new_store(url: str, release: str = "r-1") -> None:
    metadata = replace(METADATA, release=release)
    with RedisStore.create(url, metadata) as store:
        store.put_part("bucket=000", [("ada", ADA)])
        store.finish(metadata)


def test_a_server_that_does_not_run_is_unavailable_and_says_where_it_was_sought() -> None:
    port = free_port()
    with pytest.raises(StageUnavailable, match=f"redis://127.0.0.1:{port}/0 does not answer"):
        RedisStore.open(f"redis://127.0.0.1:{port}/0", release="r-1")


def test_reads_fail_while_the_server_is_away_and_a_server_that_came_back_empty_is_not_ready() -> None:
    port = free_port()
    with running_redis(port) as url:
        new_store(url)
        store = RedisStore.open(url, release="r-1")
        store._server._pause_s = 0.0  # the pause has its own test
        assert store.get("ada") == ADA
    with store:
        for read in (lambda: store.get("ada"), lambda: store.put_many([("ada", ADA)]), lambda: store.delete("ada")):
            with pytest.raises(StageUnavailable):
                read()
        with running_redis(port) as url:
            for read in (lambda: store.get("ada"), lambda: store.put_many([("ada", ADA)]), lambda: store.delete("ada")):
                with pytest.raises(NotReady, match="no longer holds release 'r-1'"):
                    read()
            new_store(url)
            assert store.get("ada") == ADA


def test_a_server_that_did_not_answer_is_not_asked_again_at_once() -> None:
    server = RedisServer(f"redis://127.0.0.1:{free_port()}/0", timeout_s=0.1, pause_s=60.0)
    with pytest.raises(StageUnavailable, match="does not answer"), server.asked() as client:
        client.ping()
    with pytest.raises(StageUnavailable, match="did not answer a moment ago"), server.asked():
        pytest.fail("asked again")


def test_a_wrong_password_is_told_without_telling_any(
    redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.acl_setuser("reader", enabled=True, passwords=["+right-one"], keys=["sonder/*"], categories=["+@all"])
    new_store(redis_url)
    address = redis_url.removeprefix("redis://")
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong-one")
    with pytest.raises(ConfigurationError, match=PASSWORD_VARIABLE) as refused:
        RedisStore.open(f"redis://reader@{address}", release="r-1")
    assert "wrong-one" not in "".join(traceback.format_exception(refused.value))
    monkeypatch.setenv(PASSWORD_VARIABLE, "right-one")
    with RedisStore.open(f"redis://reader@{address}", release="r-1") as store:
        assert store.get("ada") == ADA
        assert "right-one" not in repr(store._server)
    with RedisStore.open(f"valkey://reader:right-one@{address}", release="r-1") as store:
        assert store.get("ada") == ADA
        assert "right-one" not in repr(store._server)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://user:secret@host:6379/2?ssl_password=secret", "redis://host:6379/2"),
        ("rediss://:secr%40et@[::1]:6379", "rediss://[::1]:6379"),
        ("valkey://host/0", "valkey://host/0"),
    ],
)
def test_an_address_is_shown_without_secrets(url: str, address: str) -> None:
    assert address_of(url) == address


def test_a_reply_that_quotes_a_user_id_is_not_passed_on(redis_url: str, client: redis.Redis) -> None:
    server = RedisServer(redis_url, timeout_s=1.0)
    with pytest.raises(StageUnavailable) as told, server.asked() as asked:
        asked.execute_command("NOSUCHCOMMAND", "user-ada")
    server.close()
    assert "user-ada" not in "".join(traceback.format_exception(told.value, chain=False)) + str(told.value.__cause__)


def test_nothing_is_loaded_into_a_server_that_evicts(redis_url: str, client: redis.Redis) -> None:
    client.config_set("maxmemory", 100_000_000)
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(ConfigurationError, match=r"evicts keys when it is full \(allkeys-lru\)"):
            RedisStore.create(redis_url, METADATA)
    finally:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 0)


def test_a_full_server_refuses_a_batch_as_a_whole(redis_url: str, client: redis.Redis) -> None:
    new_store(redis_url)
    client.config_set("maxmemory", 1)
    try:
        with RedisStore.open(redis_url, release="r-1") as store:
            with pytest.raises(StageUnavailable, match="is full"):
                store.put_many([("ada", ADA._replace(computed_at_us=2)), ("bob", ADA)])
            assert store.batch_get(["ada", "bob"]) == [ADA, None]
            assert store.num_profiles() == 1
            assert store.delete("ada") is True
    finally:
        client.config_set("maxmemory", 0)


def test_dropping_a_release_leaves_the_others(redis_url: str, client: redis.Redis) -> None:
    for release in ("r-1", "r-10", "r-2"):
        new_store(redis_url, release)
    client.set("another/application", "kept")
    assert drop_release(redis_url, "r-1") == 4  # the record, the metadata, the count, the parts
    with pytest.raises(NotFound):
        RedisStore.open(redis_url, release="r-1")
    assert drop_release(redis_url, "r-1") == 0
    assert drop_release(redis_url, "*") == 0
    for release in ("r-10", "r-2"):
        with RedisStore.open(redis_url, release=release) as store:
            assert store.get("ada") == ADA
    assert client.get("another/application") == b"kept"


def test_a_store_that_was_dropped_is_not_written_to_again(redis_url: str, client: redis.Redis) -> None:
    new_store(redis_url)
    with RedisStore.open(redis_url, release="r-1") as store:
        drop_release(redis_url, "r-1")
        with pytest.raises(NotReady):
            store.put_many([("ada", ADA)])
    assert client.keys("sonder/*") == []


def test_who_comes_second_waits_for_who_loads(redis_url: str, client: redis.Redis) -> None:
    told: list[str] = []

    def second() -> None:
        with RedisStore.create(redis_url, METADATA) as store, store.loading():
            told.append("second")

    with RedisStore.create(redis_url, METADATA) as store, store.loading():
        waiting = threading.Thread(target=second)
        waiting.start()
        store.put_part("bucket=000", [("ada", ADA)])
        told.append("first")
    waiting.join(10)
    assert told == ["first", "second"]
    assert client.keys("*/l") == []


def test_a_loader_that_lost_its_turn_stops(redis_url: str, client: redis.Redis) -> None:
    def load(store: RedisStore) -> None:
        with store.loading():
            client.set(f"sonder/{LAYOUT_VERSION}/r-1/l", "somebody else's")
            store.put_part("bucket=000", [("ada", ADA)])
            pytest.fail("went on")

    with RedisStore.create(redis_url, METADATA) as store, pytest.raises(StageUnavailable, match="LockNotOwnedError"):
        load(store)
