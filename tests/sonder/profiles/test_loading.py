from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest

from sonder.core.errors import ArtefactMismatch, NotFound
from sonder.core.storage import Folder
from sonder.history.snapshot import HISTORY_SCHEMA, bucket_file
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import ITEM_SCHEMA, Vocabulary
from sonder.profiles import loading
from sonder.profiles.assembling import StageOutputs, assemble_profiles
from sonder.profiles.lmdb_store import LmdbStore
from sonder.profiles.loading import StoreSource, ensure_networked_store, ensure_store
from sonder.profiles.packing import unpack_timelines
from sonder.profiles.record import profile_file
from tests.redis_server import running_redis

AS_OF = 1_000_000
USERS = {0: ["ada", "bob"], 1: ["cyd"]}


def history_of(user_id: str, times: list[int]) -> dict[str, object]:
    num = len(times)
    return {
        "user_id": user_id,
        "item_id": [f"i{n % 2}" for n in range(num)],
        "action": ["buy"] * num,
        "timestamp": times,
        "surface": [None] * num,
        "value": [None] * num,
        "request_id": [None] * num,
        "event_key": list(range(num)),
        "num_events": num,
    }


@pytest.fixture
def source(tmp_path: Path) -> StoreSource:
    """Two buckets; every user has events at 1, 2, 3 and one after as_of."""
    snapshot, profiles = Folder.at(str(tmp_path / "history")), Folder.at(str(tmp_path / "profiles"))
    items = [{"item_index": i, "item_id": f"i{i}", "num_events": 2 - i} for i in range(2)]
    vocabulary = Vocabulary(pa.Table.from_pylist(items, ITEM_SCHEMA), ("buy",), (1.0,), ())
    for bucket, users in USERS.items():
        rows = [history_of(user_id, [1, 2, 3, AS_OF]) for user_id in users]
        history = pa.Table.from_pylist(rows, HISTORY_SCHEMA)
        bucket_file(snapshot, bucket).write_table(history)
        timelines = Timelines.from_history(history, vocabulary).before(AS_OF)
        vectors = pa.table({"user_id": users, "vector": pa.array([[0.6, 0.8]] * len(users), pa.list_(pa.float32()))})
        outputs = StageOutputs(vectors, None, None, None, None)
        profile_file(profiles, bucket).write_table(assemble_profiles(timelines, outputs, base_rates={}, as_of_us=AS_OF))
    return StoreSource("r-1", profiles, snapshot, vocabulary, as_of_us=AS_OF, computed_at_us=7, dim=2)


def second_part_fails_once(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts that were read, in a list that grows."""
    read_part, read = loading._part, []

    def dies_at_the_second(source: StoreSource, name: str) -> object:
        read.append(name)
        if name.startswith("bucket=001") and read.count(name) == 1:
            raise KeyboardInterrupt
        return read_part(source, name)

    monkeypatch.setattr(loading, "_part", dies_at_the_second)
    return read


def test_every_profile_is_loaded_with_its_embedding_and_its_timeline(source: StoreSource, tmp_path: Path) -> None:
    with ensure_store(tmp_path / "store" / "r-1", source) as store:
        assert store.metadata().num_profiles == 3
        for user_id in ("ada", "bob", "cyd"):
            stored = store.get(user_id)
            assert stored is not None
            assert orjson.loads(stored.body)["user_id"] == user_id
            assert np.frombuffer(stored.embedding, "<f4").tolist() == pytest.approx([0.6, 0.8])
            assert unpack_timelines([user_id], [stored.timeline]).times_us.tolist() == [1, 2, 3]
            assert stored.computed_at_us == 7


def test_only_the_newest_events_are_kept(source: StoreSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MAX_EVENTS", 2)
    with ensure_store(tmp_path / "r-1", source) as store:
        stored = store.get("ada")
        assert stored is not None
        assert unpack_timelines(["ada"], [stored.timeline]).times_us.tolist() == [2, 3]
        assert store.metadata().max_events == 2


def test_a_store_that_exists_is_not_loaded_again(source: StoreSource, tmp_path: Path) -> None:
    ensure_store(tmp_path / "r-1", source).close()
    source.profiles.remove()
    with ensure_store(tmp_path / "r-1", source) as store:
        assert store.metadata().num_profiles == 3


def test_a_killed_load_is_invisible_and_goes_on_at_the_missing_part(
    source: StoreSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "r-1"
    read = second_part_fails_once(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        ensure_store(target, source)
    assert not target.exists()
    with ensure_store(target, source) as store:
        assert store.metadata().num_profiles == 3
    assert sorted(read) == ["bucket=000/part-0.parquet", "bucket=001/part-0.parquet", "bucket=001/part-0.parquet"]


def test_profiles_of_users_without_a_history_are_refused(source: StoreSource, tmp_path: Path) -> None:
    bucket_file(source.snapshot, 1).write_table(HISTORY_SCHEMA.empty_table())
    with pytest.raises(ArtefactMismatch, match="the first of user 'cyd'"):
        ensure_store(tmp_path / "r-1", source)


def test_a_release_without_profiles_is_refused(source: StoreSource, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="No profiles"):
        ensure_store(tmp_path / "r-1", replace(source, profiles=Folder.at(str(tmp_path / "nothing"))))


def test_a_store_under_the_wrong_name_is_refused(source: StoreSource, tmp_path: Path) -> None:
    ensure_store(tmp_path / "r-1", source).close()
    with pytest.raises(ArtefactMismatch, match="holds release 'r-1'"):
        ensure_store(tmp_path / "r-1", replace(source, release="r-2"))


def test_the_store_opened_for_reading_cannot_be_written(source: StoreSource, tmp_path: Path) -> None:
    import lmdb

    with ensure_store(tmp_path / "r-1", source) as store, pytest.raises(lmdb.Error):
        store.put_many([("ada", LmdbStore.get(store, "bob") or pytest.fail("no bob"))])


def test_a_networked_store_is_loaded_once_and_holds_what_the_embedded_one_holds(
    source: StoreSource, tmp_path: Path
) -> None:
    users = ["ada", "bob", "cyd"]
    with running_redis() as url:
        with ensure_networked_store(url, source) as store, ensure_store(tmp_path / "r-1", source) as embedded:
            assert store.batch_get(users) == embedded.batch_get(users)
            assert store.metadata() == embedded.metadata()
            assert store.num_profiles() == embedded.num_profiles() == 3
        source.profiles.remove()
        with ensure_networked_store(url, source) as store:
            assert store.get("ada") is not None


def test_a_networked_load_that_dies_goes_on_at_the_missing_part(
    source: StoreSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = second_part_fails_once(monkeypatch)
    with running_redis() as url:
        with pytest.raises(KeyboardInterrupt):
            ensure_networked_store(url, source)
        with ensure_networked_store(url, source) as store:
            assert store.num_profiles() == 3
    assert sorted(read) == ["bucket=000/part-0.parquet", "bucket=001/part-0.parquet", "bucket=001/part-0.parquet"]
