from __future__ import annotations

import tempfile
from pathlib import Path

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.core.errors import ArtefactMismatch, InvalidRequest, NotFound
from sonder.profiles.lmdb_store import LmdbStore
from sonder.profiles.store import StoredProfile, StoreMetadata, key_of, pack, unpack

METADATA = StoreMetadata(release="r-1", as_of_us=5, dim=2, max_events=10, num_profiles=0)
PROFILES = st.builds(
    StoredProfile,
    computed_at_us=st.integers(-(2**63), 2**63 - 1),
    body=st.binary(max_size=64),
    embedding=st.binary(max_size=16),
    timeline=st.binary(max_size=64),
)
IDS = st.text(max_size=600) | st.sampled_from(["", "\0", "\0\0", "ü" * 300, "a" * 510, "a" * 511, "a" * 512, "m", "p"])


def profile(body: bytes = b'{"user_id":"a"}') -> StoredProfile:
    return StoredProfile(1, body, b"\0" * 8, b"")


def new_store(path: Path, metadata: StoreMetadata = METADATA) -> None:
    with LmdbStore.create(path, metadata) as store:
        store.finish(metadata)


@given(PROFILES)
def test_a_record_unpacks_to_what_was_packed(stored: StoredProfile) -> None:
    assert unpack(pack(stored, METADATA.fingerprint), METADATA.fingerprint) == stored


@given(PROFILES, st.integers(0, 200))
def test_a_cut_record_is_refused(stored: StoredProfile, size: int) -> None:
    record = pack(stored, METADATA.fingerprint)
    if size < len(record):
        with pytest.raises(ArtefactMismatch):
            unpack(record[:size], METADATA.fingerprint)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(IDS, PROFILES, max_size=6))
def test_any_id_reads_back_its_own_record(profiles: dict[str, StoredProfile]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        new_store(path)
        with LmdbStore.open(path, release="r-1", writable=True) as store:
            assert store.put_many(profiles.items()) == len(profiles)
            assert store.batch_get(list(profiles)) == list(profiles.values())
            assert [store.get(user_id) for user_id in profiles] == list(profiles.values())


@given(IDS, IDS)
def test_keys_differ_where_ids_differ_and_fit_into_lmdb(first: str, second: str) -> None:
    assert (key_of(first) == key_of(second)) == (first == second)
    assert 1 <= len(key_of(first)) <= 511


def test_an_id_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="surrogates"):
        key_of("\ud800")


def test_a_store_that_does_not_exist_is_not_created_by_opening(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        LmdbStore.open(tmp_path / "store", release="r-1")
    assert not (tmp_path / "store").exists()


def test_the_map_grows_until_a_batch_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sonder.profiles.lmdb_store._GROWTH_BYTES", 1 << 16)
    monkeypatch.setattr("sonder.profiles.lmdb_store._HEADROOM_BYTES", 0)
    new_store(tmp_path / "store")
    big = profile(b"x" * 100_000)
    with LmdbStore.open(tmp_path / "store", release="r-1", writable=True) as store:
        assert store.put_many([(str(user), big) for user in range(4)]) == 4
        assert store.get("3") == big


def test_parts_are_committed_together_and_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sonder.profiles.lmdb_store._COMMIT_BYTES", 250)
    with LmdbStore.create(tmp_path / "store", METADATA) as store:
        for part in range(10):  # each of about 100 bytes
            store.put_part(str(part), [(f"{part}-{user}", profile()) for user in range(2)])
        assert [store.loaded(str(part)) for part in range(11)] == [2] * 10 + [None]
        store.finish(METADATA)
    with LmdbStore.open(tmp_path / "store", release="r-1") as store:
        assert store.num_profiles() == 20


def test_a_part_that_cannot_be_written_takes_no_other_part_for_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sonder.profiles.lmdb_store._LOADING_BYTES", 1 << 16)
    monkeypatch.setattr("sonder.profiles.lmdb_store._GROWTH_BYTES", 1 << 16)
    with LmdbStore.create(tmp_path / "store", METADATA) as store:
        store.put_part("first", [("a", profile())])
        with pytest.raises(lmdb.MapFullError):
            store.put_part("second", [("b", profile(b"x" * 1_000_000))])
        assert (store.loaded("first"), store.loaded("second")) == (None, None)  # both come again
        assert store.put_part("first", [("a", profile())]) == 1
        assert store.get("b") is None


def test_a_load_of_before_a_restart_of_the_machine_starts_over(tmp_path: Path) -> None:
    with LmdbStore.create(tmp_path / "store", METADATA) as store:
        store.put_part("part", [("a", profile())])
    (tmp_path / "store" / "boot").write_text("another boot\n")
    with LmdbStore.create(tmp_path / "store", METADATA) as store:
        assert store.loaded("part") is None
        assert store.get("a") is None


def test_a_store_that_is_open_has_room_for_a_growing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sonder.profiles.lmdb_store._GROWTH_BYTES", 1 << 16)
    new_store(tmp_path / "store")
    with LmdbStore.open(tmp_path / "store", release="r-1", writable=True) as store:
        before = store._environment.info()["map_size"]
        store.put_many((str(user), profile(b"x" * 100_000)) for user in range(4))
        assert store._environment.info()["map_size"] == before
