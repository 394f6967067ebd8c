"""What every online store promises, asked of LMDB and of a real Redis server."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import lmdb
import pytest
import redis

from sonder.core.errors import ArtefactMismatch, InvalidRequest, NotFound, NotReady
from sonder.profiles.lmdb_store import LmdbStore
from sonder.profiles.redis_store import RedisStore
from sonder.profiles.store import LAYOUT_VERSION, Progress, StoredProfile, StoreMetadata, key_of, pack
from tests.redis_server import running_redis

METADATA = StoreMetadata(release="r-1", as_of_us=5, dim=2, max_events=10, num_profiles=0)
ODD_IDS = [
    "",
    "\0",
    "\0\0",
    " ",
    "m",
    "p",
    "n",
    "l",
    "user/1",
    "a*",
    "[a]",
    "käufer",
    "😀",
    "a" * 510,
    "a" * 511,
    "ü" * 900,
]


class Kind(ABC):
    """How to make, open and damage a store of one kind."""

    @abstractmethod
    def create(self, metadata: StoreMetadata = METADATA) -> LmdbStore | RedisStore: ...

    @abstractmethod
    def open(self, release: str = "r-1") -> LmdbStore | RedisStore: ...

    @abstractmethod
    def write_raw(self, key: bytes, content: bytes) -> None:
        """Below the store of release r-1, which is not open."""


class Embedded(Kind):
    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, metadata: StoreMetadata = METADATA) -> LmdbStore:
        return LmdbStore.create(self.path, metadata)

    def open(self, release: str = "r-1") -> LmdbStore:
        return LmdbStore.open(self.path, release=release, writable=True)

    def write_raw(self, key: bytes, content: bytes) -> None:
        with lmdb.open(str(self.path)) as environment, environment.begin(write=True) as transaction:
            transaction.put(key, content)


class Networked(Kind):
    def __init__(self, url: str) -> None:
        self.url = url

    def create(self, metadata: StoreMetadata = METADATA) -> RedisStore:
        return RedisStore.create(self.url, metadata)

    def open(self, release: str = "r-1") -> RedisStore:
        return RedisStore.open(self.url, release=release)

    def write_raw(self, key: bytes, content: bytes) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.set(b"sonder/%d/r-1/" % LAYOUT_VERSION + key, content)


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with running_redis() as url:
        yield url


@pytest.fixture(params=["lmdb", "redis"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    if request.param == "lmdb":
        return Embedded(tmp_path / "store")
    url: str = request.getfixturevalue("redis_url")
    with redis.Redis.from_url(url) as client:
        client.flushall()
    return Networked(url)


@pytest.fixture
def store(kind: Kind) -> Iterator[LmdbStore | RedisStore]:
    """A finished store with the users a and b."""
    with kind.create() as loading:
        loading.put_part("bucket=000", [("a", profile("a")), ("b", profile("b"))])
        loading.finish(replace(METADATA, num_profiles=2))
    with kind.open() as opened:
        yield opened


def profile(name: str, computed_at_us: int = 1) -> StoredProfile:
    return StoredProfile(computed_at_us, b'{"user_id":"%b"}' % name.encode(), b"\0" * 8, b"\1" * 24)


def test_a_batch_keeps_its_order_with_none_for_the_unknown(store: LmdbStore | RedisStore) -> None:
    assert store.batch_get(["b", "nobody", "a", "b"]) == [profile("b"), None, profile("a"), profile("b")]
    assert store.batch_get([]) == []
    assert store.get("a") == profile("a")
    assert store.get("nobody") is None


def test_odd_and_long_ids_are_kept_apart(store: LmdbStore | RedisStore) -> None:
    profiles = {user_id: profile(str(number)) for number, user_id in enumerate(ODD_IDS)}
    assert store.put_many(profiles.items()) == len(ODD_IDS)
    assert store.batch_get(ODD_IDS) == list(profiles.values())
    assert store.num_profiles() == 2 + len(ODD_IDS)
    assert store.metadata() == replace(METADATA, num_profiles=2)


def test_writing_again_replaces(store: LmdbStore | RedisStore) -> None:
    assert store.put_many([("a", profile("a", 2)), ("c", profile("c"))]) == 2
    assert store.batch_get(["a", "b", "c"]) == [profile("a", 2), profile("b"), profile("c")]
    assert store.num_profiles() == 3


def test_what_was_written_is_there_for_who_opens_it_next(store: LmdbStore | RedisStore, kind: Kind) -> None:
    store.put_many([("c", profile("c"))])
    store.close()
    with kind.open() as again:
        assert again.get("c") == profile("c")
        assert again.metadata() == replace(METADATA, num_profiles=2)


def test_a_batch_with_a_bad_id_writes_nothing(store: LmdbStore | RedisStore) -> None:
    with pytest.raises(InvalidRequest, match="surrogates"):
        store.put_many([("a", profile("a", 2)), ("\ud800", profile("x"))])
    assert store.get("a") == profile("a")


def test_a_batch_whose_source_fails_writes_nothing(store: LmdbStore | RedisStore) -> None:
    def fails() -> Iterator[tuple[str, StoredProfile]]:
        yield "a", profile("a", 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.put_many(fails())
    assert store.get("a") == profile("a")
    assert store.num_profiles() == 2


def test_a_reader_sees_a_batch_whole_while_it_is_replaced(store: LmdbStore | RedisStore) -> None:
    users, num_rounds = [f"user-{number}" for number in range(20)], 50
    store.put_many((user, profile(user, 0)) for user in users)
    seen: list[set[int]] = []

    def write() -> None:
        for number in range(1, num_rounds + 1):
            store.put_many([(user, profile(user, number)) for user in users])

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        seen.append({found.computed_at_us for found in store.batch_get(users) if found is not None})
    writer.join()
    seen.append({found.computed_at_us for found in store.batch_get(users) if found is not None})
    assert [versions for versions in seen if len(versions) != 1] == []
    assert seen[-1] == {num_rounds}
    newest = [version for versions in seen for version in versions]
    assert newest == sorted(newest)


def test_a_deleted_user_is_gone_and_the_others_stay(store: LmdbStore | RedisStore, kind: Kind) -> None:
    assert store.delete("a") is True
    assert store.delete("a") is False
    assert store.delete("nobody") is False
    assert store.batch_get(["a", "b"]) == [None, profile("b")]
    assert store.num_profiles() == 1
    store.close()
    with kind.open() as again:
        assert again.get("a") is None


def test_a_deleted_user_can_come_back(store: LmdbStore | RedisStore) -> None:
    store.delete("a")
    store.put_many([("a", profile("a", 2))])
    assert store.get("a") == profile("a", 2)
    assert store.num_profiles() == 2


def test_a_record_of_another_release_is_refused_on_reading(store: LmdbStore | RedisStore, kind: Kind) -> None:
    store.close()
    kind.write_raw(key_of("a"), pack(profile("a"), replace(METADATA, release="r-0").fingerprint))
    with kind.open() as again:
        with pytest.raises(ArtefactMismatch, match="fingerprint"):
            again.get("a")
        with pytest.raises(ArtefactMismatch, match="fingerprint"):
            again.batch_get(["b", "a"])
        assert again.get("b") == profile("b")


@pytest.mark.parametrize("size", [0, 8, 27, 40])
def test_a_cut_record_in_the_store_is_refused_on_reading(store: LmdbStore | RedisStore, kind: Kind, size: int) -> None:
    store.close()
    kind.write_raw(key_of("a"), pack(profile("a"), METADATA.fingerprint)[:size])
    with kind.open() as again, pytest.raises(ArtefactMismatch):
        again.get("a")


def test_metadata_of_another_layout_is_refused_on_opening(store: LmdbStore | RedisStore, kind: Kind) -> None:
    store.close()
    kind.write_raw(b"m", METADATA.to_json().replace(b'"layout":%d' % LAYOUT_VERSION, b'"layout":99'))
    with pytest.raises(ArtefactMismatch, match="layout 99"):
        kind.open()


def test_metadata_of_another_release_is_refused_on_opening(store: LmdbStore | RedisStore, kind: Kind) -> None:
    store.close()
    kind.write_raw(b"m", replace(METADATA, release="r-0").to_json())
    with pytest.raises(ArtefactMismatch, match="holds release 'r-0'"):
        kind.open()


def test_a_store_that_was_never_made_is_not_found(kind: Kind) -> None:
    with pytest.raises(NotFound):
        kind.open()


def test_an_unfinished_store_is_not_found(kind: Kind) -> None:
    with kind.create() as loading:
        loading.put_part("bucket=000", [("a", profile("a"))])
    with pytest.raises(NotFound, match="finished"):
        kind.open()


def test_an_interrupted_load_goes_on_where_it_was(kind: Kind) -> None:
    with kind.create() as loading:
        assert loading.loaded("bucket=000") is None
        assert loading.put_part("bucket=000", [("a", profile("a")), ("b", profile("b"))]) == 2
    with kind.create() as loading:
        assert (loading.loaded("bucket=000"), loading.loaded("bucket=001")) == (2, None)
        assert loading.put_part("bucket=001", [("c", profile("c"))]) == 1
        loading.finish(replace(METADATA, num_profiles=3))
    with kind.open() as store:
        assert store.batch_get(["a", "b", "c"]) == [profile("a"), profile("b"), profile("c")]
        assert store.num_profiles() == store.metadata().num_profiles == 3


def test_a_part_that_was_cut_short_does_not_count_as_loaded(kind: Kind) -> None:
    def fails() -> Iterator[tuple[str, StoredProfile]]:
        for number in range(1_500):
            yield f"user-{number}", profile("x")
        raise KeyboardInterrupt

    with kind.create() as loading:
        with pytest.raises(KeyboardInterrupt):
            loading.put_part("bucket=000", fails())
        assert loading.loaded("bucket=000") is None
        assert loading.put_part("bucket=000", [(f"user-{n}", profile("y")) for n in range(2_500)]) == 2_500
        loading.finish(replace(METADATA, num_profiles=2_500))
    with kind.open() as store:
        assert store.num_profiles() == 2_500
        assert store.batch_get(["user-0", "user-2499"]) == [profile("y"), profile("y")]


def test_a_part_without_users_is_loaded(kind: Kind) -> None:
    with kind.create() as loading:
        assert loading.put_part("bucket=000", []) == 0
        assert loading.loaded("bucket=000") == 0
        loading.finish(METADATA)
    with kind.open() as store:
        assert store.num_profiles() == 0
        assert store.get("a") is None


def test_the_size_grows_with_the_records(store: LmdbStore | RedisStore) -> None:
    before = store.size_bytes()
    store.put_many([(f"user-{number}", StoredProfile(1, b"x" * 1_000, b"", b"")) for number in range(500)])
    assert 0 < before < 100_000
    assert 500 * 1_000 < store.size_bytes() - before < 4 * 500 * 1_000


def test_a_refresh_is_written_with_how_far_it_is(store: LmdbStore | RedisStore, kind: Kind) -> None:
    assert store.progress() == (0, METADATA.as_of_us)
    store.put_refreshed([("a", profile("new a")), ("c", profile("c"))], Progress(7, METADATA.as_of_us + 5))
    store.put_refreshed([], Progress(8, METADATA.as_of_us + 6))
    assert store.progress() == (8, METADATA.as_of_us + 6)
    assert store.batch_get(["a", "b", "c"]) == [profile("new a"), profile("b"), profile("c")]
    assert store.num_profiles() == 3


def test_a_refresh_from_older_records_than_the_stores_writes_nothing(store: LmdbStore | RedisStore) -> None:
    first, second = store.progress(), Progress(7, METADATA.as_of_us + 5)
    store.put_refreshed([("a", profile("new a"))], second, after=first)
    with pytest.raises(NotReady, match="followed the log to 7"):
        store.put_refreshed([("a", profile("older"))], Progress(9, METADATA.as_of_us + 9), after=first)
    with pytest.raises(NotReady, match="Expected: 6"):
        store.put_refreshed([], Progress(9, METADATA.as_of_us), after=Progress(6, METADATA.as_of_us))
    assert (store.get("a"), store.progress()) == (profile("new a"), second)
    store.put_refreshed([("a", profile("newer"))], Progress(8, METADATA.as_of_us + 6), after=second)
    assert (store.get("a"), store.progress().sequence) == (profile("newer"), 8)


def test_a_refresh_whose_source_fails_writes_nothing(store: LmdbStore | RedisStore) -> None:
    def failing() -> Iterator[tuple[str, StoredProfile]]:
        yield "a", profile("new a")
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        store.put_refreshed(failing(), Progress(7, 1))
    assert (store.get("a"), store.progress().sequence) == (profile("a"), 0)


def test_a_record_is_replaced_only_while_it_is_the_one_that_was_read(store: LmdbStore | RedisStore) -> None:
    read = store.records(["a", "b", "nobody", "c"])
    assert read[:2] == [pack(profile("a"), METADATA.fingerprint), pack(profile("b"), METADATA.fingerprint)]
    assert read[2:] == [None, None]
    store.put_many([("b", profile("b", 2)), ("c", profile("c", 2))])  # by somebody else, meanwhile
    users = ["a", "b", "nobody", "c"]
    changes = [(user, held, profile(user, 9)) for user, held in zip(users, read, strict=True)]
    assert store.put_unchanged(changes) == ["b", "c"]
    found = store.batch_get(users)
    assert [held.computed_at_us for held in found if held] == [9, 2, 9, 2]
    assert store.num_profiles() == 4
    assert store.put_unchanged([]) == []


def test_what_is_held_is_told_and_replaced_however_broken_it_is(kind: Kind, store: LmdbStore | RedisStore) -> None:
    store.close()
    kind.write_raw(key_of("a"), b"torn")
    with kind.open() as opened:
        assert opened.records(["a"]) == [b"torn"]
        assert opened.put_unchanged([("a", b"torn", profile("a", 9))]) == []
        assert opened.get("a") == profile("a", 9)
