"""What files of a workspace promise, asked of a local disk, of memory and of a real S3 server.

A reader never sees half a file or half a folder, and of two writers one wins.
"""

from __future__ import annotations

import pickle
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sonder.core.errors import DataError, NotFound
from sonder.core.locking import exclusive
from sonder.core.storage import Folder, publish, read_manifest
from tests.s3_server import S3Server


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    name = uuid.uuid4().hex
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_environment")
        return Folder.at(server.uri(name))
    return Folder.at(str(tmp_path / name) if request.param == "local" else f"memory://{name}")


def test_a_folder_is_absent_until_its_manifest_is_there(root: Folder) -> None:
    staged = root / ".staging" / "one"
    (staged / "deep" / "a.bin").write_bytes(b"a")
    with pytest.raises(NotFound):
        read_manifest(root / "one")
    publish(staged, root / "one", {"rows": 1})
    assert read_manifest(root / "one") == {"rows": 1}
    assert (root / "one").files() == ["deep/a.bin", "manifest.json"]
    assert not staged.exists()


def test_publishing_twice_is_refused_and_keeps_the_first(root: Folder) -> None:
    for content in (b"first", b"second"):
        (root / ".staging" / "x" / "a").write_bytes(content)
        if content == b"first":
            publish(root / ".staging" / "x", root / "x", {})
    with pytest.raises(DataError, match="already published"):
        publish(root / ".staging" / "x", root / "x", {})
    assert (root / "x" / "a").read_bytes() == b"first"


def test_an_unfinished_leftover_is_replaced(root: Folder) -> None:
    (root / "x" / "leftover").write_bytes(b"half")
    (root / ".staging" / "x" / "a").write_bytes(b"whole")
    publish(root / ".staging" / "x", root / "x", {})
    assert (root / "x").files() == ["a", "manifest.json"]


def test_what_a_killed_writer_left_half_written_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = Folder.at(str(tmp_path / ".staging" / "x"))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(type(staged.fs), "mv", killed)
        with pytest.raises(KeyboardInterrupt):
            (staged / "deep" / "a").write_bytes(b"half")
    (left,) = staged.files()
    (staged / "deep" / "a").write_bytes(b"whole")
    assert staged.files() == sorted(["deep/a", left])
    publish(staged, Folder.at(str(tmp_path / "x")), {})
    assert Folder.at(str(tmp_path / "x")).files() == ["deep/a", "manifest.json"]


def test_the_same_table_gives_the_same_bytes(root: Folder) -> None:
    table = pa.table({"a": pa.chunked_array([[1, 2], [3]]), "b": ["x", "y", None]})
    (root / "one.parquet").write_table(table)
    (root / "two.parquet").write_table(table.combine_chunks())
    assert (root / "one.parquet").digest() == (root / "two.parquet").digest()
    assert (root / "one.parquet").read_table().equals(table)


def test_a_missing_file_is_not_found(root: Folder) -> None:
    with pytest.raises(NotFound, match="absent"):
        (root / "absent").read_bytes()
    with pytest.raises(NotFound, match="absent"):
        (root / "absent.parquet").read_table()
    assert (root / "absent").children() == []


def test_a_folder_lists_what_is_in_it_and_nothing_beside_it(root: Folder) -> None:
    for name in ("a/one", "a/deep/two", "ab/three"):
        (root / name).write_bytes(name.encode())
    assert (root / "a").files() == ["deep/two", "one"]
    assert (root / "a").sizes() == {"deep/two": 10, "one": 5}
    assert [child.name for child in root.children()] == ["a", "ab"]
    assert [child.name for child in (root / "a").children()] == ["deep", "one"]
    assert ((root / "a").exists(), (root / "a" / "one").exists(), (root / "b").exists()) == (True, True, False)
    assert ((root / "b").files(), (root / "b").children()) == ([], [])


def test_removing_a_folder_leaves_its_neighbour(root: Folder) -> None:
    for name in ("a/one", "a/deep/two", "ab/three"):
        (root / name).write_bytes(b"x")
    (root / "a").remove()
    (root / "a").remove()
    assert root.files() == ["ab/three"]


def test_odd_names_are_kept(root: Folder) -> None:
    names = ["bucket=007/part-0.parquet", "with space", "käufer", "per%20cent", "a+b", "dot.name", "tilde~"]
    for name in names:
        (root / name).write_bytes(name.encode())
    assert root.files() == sorted(names)
    assert [(root / name).read_bytes() for name in names] == [name.encode() for name in names]


def test_a_folder_travels_to_another_process(root: Folder) -> None:
    (root / "a").write_bytes(b"x")
    again: Folder = pickle.loads(pickle.dumps(root))  # noqa: S301
    assert (again / "a").read_bytes() == b"x"
    assert str(again) == str(root)


def test_a_table_in_parts_appears_when_it_is_whole_and_not_after_an_error(root: Folder) -> None:
    table = pa.table({"a": [1, 2]})
    with (root / "deep" / "t.parquet").table_writer(table.schema) as writer:
        writer.write_table(table)
        writer.write_table(table)
        assert not (root / "deep" / "t.parquet").exists()
    assert (root / "deep" / "t.parquet").read_table().column("a").to_pylist() == [1, 2, 1, 2]

    def dies() -> None:
        with (root / "deep" / "half.parquet").table_writer(table.schema) as writer:
            writer.write_table(table)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        dies()
    assert root.files() == ["deep/t.parquet"]


def test_of_many_who_create_a_file_one_wins(root: Folder) -> None:
    def create(number: int) -> int | None:
        try:
            (root / "deep" / "a").create_bytes(b"%d" % number)
        except FileExistsError:
            return None
        return number

    with ThreadPoolExecutor(8) as writers:
        (winner,) = [number for number in writers.map(create, range(8)) if number is not None]
    assert (root / "deep" / "a").read_bytes() == b"%d" % winner
    assert root.files() == ["deep/a"]


def test_no_change_of_a_file_is_lost(root: Folder) -> None:
    file = root / "deep" / "counts.json"

    def change(number: int) -> None:
        file.update_json(lambda found: {**(found or {}), str(number): number})

    with ThreadPoolExecutor(8) as writers:
        list(writers.map(change, range(24)))
    assert file.read_json() == {str(number): number for number in range(24)}


def test_a_file_is_read_again_only_when_it_changed(root: Folder) -> None:
    file = root / "a"
    with pytest.raises(NotFound):
        file.read_if_changed()
    file.write_bytes(b"one")
    found = file.read_if_changed()
    assert found is not None
    assert found[0] == b"one"
    assert file.read_if_changed(found[1]) is None
    file.write_bytes(b"two")
    changed = file.read_if_changed(found[1])
    assert changed is not None
    assert changed[0] == b"two"


def test_of_two_who_publish_one_name_one_wins_and_its_files_are_not_mixed(root: Folder) -> None:
    if not (root.is_local or root.is_conditional):
        pytest.skip("file systems without conditional writes keep no two publishers apart, as docs/storage.md says")

    def publishes(number: int) -> bool:
        staged = root / ".staging" / str(number)
        try:
            publish(staged, root / "x", {"from": number})
        except DataError:
            return False
        return True

    for number in range(4):
        for name in ("a", f"only-{number}"):
            (root / ".staging" / str(number) / name).write_bytes(b"%d" % number)
    with ThreadPoolExecutor(4) as publishers:
        won = [number for number, wins in enumerate(publishers.map(publishes, range(4))) if wins]
    (winner,) = won
    assert read_manifest(root / "x") == {"from": winner}
    assert (root / "x").files() == ["a", "manifest.json", f"only-{winner}"]
    assert (root / "x" / "a").read_bytes() == b"%d" % winner


def test_a_publisher_that_dies_before_the_manifest_leaves_nothing_visible(
    root: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (root / ".staging" / "x" / name).write_bytes(name.encode())

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(Folder, "create_bytes", dies)
        dying.setattr("os.rename", dies)
        with pytest.raises(KeyboardInterrupt):
            publish(root / ".staging" / "x", root / "x", {})
    with pytest.raises(NotFound):
        read_manifest(root / "x")
    publish(root / ".staging" / "x", root / "x", {})
    assert (root / "x").files() == ["a", "b", "c", "manifest.json"]
    assert not (root / ".staging" / "x").exists()


def test_one_process_at_a_time_holds_a_lock(root: Folder) -> None:
    if not (root.is_local or root.is_conditional):
        pytest.skip("file systems without conditional writes have no locks, as docs/storage.md says")
    with exclusive(root / "lock") as held:
        held.check()
        refused = threading.Event()

        def tries() -> None:
            with pytest.raises(TimeoutError), exclusive(root / "lock"):
                pass
            refused.set()

        other = threading.Thread(target=tries)
        other.start()
        other.join(20)
        assert refused.is_set()
    with exclusive(root / "lock") as held:
        held.is_last = True
    assert root.files() == []


_NAMES = st.sampled_from(["a", "b", "deep/a", "deep/er/b"])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), _NAMES, st.binary(max_size=20)),
        st.tuples(st.just("create"), _NAMES, st.binary(max_size=20)),
        st.tuples(st.just("remove"), _NAMES, st.just(b"")),
        st.tuples(st.just("update"), _NAMES, st.just(b"")),
    ),
    max_size=12,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS)
def test_whatever_is_done_in_whatever_order_files_are_those_of_a_dictionary(
    root: Folder, steps: list[tuple[str, str, bytes]]
) -> None:
    folder, expected = root / uuid.uuid4().hex, dict[str, bytes]()
    for what, name, content in steps:
        if what == "write":
            (folder / name).write_bytes(content)
            expected[name] = content
        elif what == "create" and name in expected:
            with pytest.raises(FileExistsError):
                (folder / name).create_bytes(content)
        elif what == "create":
            (folder / name).create_bytes(content)
            expected[name] = content
        elif what == "remove":
            (folder / name).remove()
            expected.pop(name, None)
        elif name not in expected:
            (folder / name).update_json(lambda found: {"was": found})
            expected[name] = (folder / name).read_bytes()
            assert (folder / name).read_json() == {"was": None}
    visible = [name for name in folder.files() if not name.rpartition("/")[2].startswith(".")]
    assert visible == sorted(expected)
    assert {name: (folder / name).read_bytes() for name in expected} == expected
