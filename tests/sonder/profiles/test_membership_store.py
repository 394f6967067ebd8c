"""The store of memberships: complete or absent, one read for all audiences of a user, old ones dropped."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.core.errors import NotFound
from sonder.core.storage import Folder, publish
from sonder.profiles import membership_store
from sonder.profiles.membership_store import MembershipStore, ensure_memberships
from sonder.profiles.memberships import Membership
from sonder.segments.audience_index import AudienceIndex, Counted, IndexedAudience
from sonder.segments.audiences import MEMBERSHIP_SCHEMA

DAY_0, DAY_1 = "1970-01-01T00:00:00+00:00", "1970-01-02T00:00:00+00:00"
DAY_US = 86_400_000_000


def count(audiences: Folder, name: str, buckets: list[dict[str, int | None]], evaluation: str = "00001") -> None:
    """Publish an evaluation: user -> day left, of stays that began on day 0."""
    staged = audiences / "staged"
    for number, users in enumerate(buckets):
        rows = [
            {"user_id": user, "entered_at": 0, "left_at": left, "as_of": DAY_US, "definition_version": 1}
            for user, left in users.items()
        ]
        table = pa.Table.from_pylist(rows, schema=MEMBERSHIP_SCHEMA)
        (staged / f"bucket={number:03d}" / "part-0.parquet").write_table(table)
    publish(staged, audiences / name / "members" / evaluation, {})


def index_of(*names: str, evaluation: str = "00001") -> AudienceIndex:
    counted = Counted(evaluation, 1, "r-1", DAY_1)
    return AudienceIndex(tuple(IndexedAudience(name, 1, "is_cold", counted) for name in names))


def test_a_user_has_the_audiences_it_is_in_now(tmp_path: Path) -> None:
    audiences = Folder.at(str(tmp_path / "audiences"))
    long_id = "x" * 600
    count(audiences, "a", [{"one": None, "two": DAY_US}, {long_id: None}])
    count(audiences, "b", [{"one": None}])
    with_two = ensure_memberships(tmp_path / "stores", audiences, index_of("a", "b"))
    store = MembershipStore.open(with_two)
    one = [Membership(name, 1, DAY_0, DAY_1, "refresh") for name in ("a", "b")]
    assert store.get("one") == one
    assert store.batch_get(["two", long_id, "nobody", "one"]) == [[], [one[0]], [], one]
    store.close()
    with pytest.raises(NotFound):
        store.get("one")


@settings(max_examples=15, deadline=None)
@given(members=st.lists(st.sets(st.integers(0, 12)), min_size=1, max_size=4))
def test_every_user_has_exactly_the_audiences_that_hold_it(
    members: list[set[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("members")
    audiences = Folder.at(str(folder / "audiences"))
    names = [f"a{number}" for number in range(len(members))]
    for name, inside in zip(names, members, strict=True):
        count(audiences, name, [{f"u{user}": None for user in inside if user % 2 == part} for part in (0, 1)])
    store = MembershipStore.open(ensure_memberships(folder / "stores", audiences, index_of(*names)))
    for user in range(13):
        expected = [name for name, inside in zip(names, members, strict=True) if user in inside]
        assert [membership.name for membership in store.get(f"u{user}")] == expected
    store.close()


def test_a_load_that_was_killed_is_begun_again_and_the_old_store_is_read_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audiences, stores = Folder.at(str(tmp_path / "audiences")), tmp_path / "stores"
    count(audiences, "a", [{"one": None}])
    old = ensure_memberships(stores, audiences, index_of("a"))
    count(audiences, "a", [{"two": None}, {"three": None}], "00002")
    write, parts = membership_store._write, []

    def dies(*arguments: object) -> None:
        if len(parts) == 1:
            raise KeyboardInterrupt
        parts.append(arguments)
        write(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(membership_store, "_write", dies)
        with pytest.raises(KeyboardInterrupt):
            ensure_memberships(stores, audiences, index_of("a", evaluation="00002"))
    assert [folder.name for folder in stores.iterdir() if folder.suffix != ".loading"] == [old.name]
    before = MembershipStore.open(old)
    assert before.get("one")
    before.close()
    store = MembershipStore.open(ensure_memberships(stores, audiences, index_of("a", evaluation="00002")))
    assert [bool(found) for found in store.batch_get(["one", "two", "three"])] == [False, True, True]
    store.close()


def test_the_newest_two_stores_are_kept_and_an_open_one_goes_on(tmp_path: Path) -> None:
    audiences, stores = Folder.at(str(tmp_path / "audiences")), tmp_path / "stores"
    opened = []
    for number in range(1, 5):
        count(audiences, "a", [{f"u{number}": None}], f"{number:05d}")
        opened.append(
            MembershipStore.open(ensure_memberships(stores, audiences, index_of("a", evaluation=f"{number:05d}")))
        )
    assert len(list(stores.iterdir())) == 2
    assert all(store.get(f"u{number}") for number, store in enumerate(opened, 1))
    for store in opened:
        store.close()


def test_records_that_do_not_fit_make_the_map_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership_store, "_GROWTH_BYTES", 1 << 16)
    audiences = Folder.at(str(tmp_path / "audiences"))
    count(audiences, "a", [{f"user-{number}": None for number in range(3_000)}])
    store = MembershipStore.open(ensure_memberships(tmp_path / "stores", audiences, index_of("a")))
    assert all(store.batch_get([f"user-{number}" for number in range(3_000)]))
    store.close()


def test_two_readers_in_one_process_share_it_and_each_closes_its_own(tmp_path: Path) -> None:
    audiences = Folder.at(str(tmp_path / "audiences"))
    count(audiences, "a", [{"one": None}])
    path = ensure_memberships(tmp_path / "stores", audiences, index_of("a"))
    first, second = MembershipStore.open(path), MembershipStore.open(path)  # engines of two releases
    first.close()
    first.close()
    assert len(second.get("one")) == 1
    with pytest.raises(NotFound):
        first.get("one")
    second.close()
    again = MembershipStore.open(path)
    assert len(again.get("one")) == 1
    again.close()
    assert membership_store._open == {}
