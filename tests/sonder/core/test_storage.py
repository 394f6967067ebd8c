"""A reader never sees half a file or half a folder, on disk and on an object store."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from sonder.core.errors import DataError, NotFound
from sonder.core.storage import Folder, publish, read_manifest


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder.at(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


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
