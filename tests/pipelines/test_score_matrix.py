"""Pages that a killed training left behind, and batches of many small files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from filelock import FileLock

import pipelines.score_matrix as score_matrix
from pipelines.bucket_tasks import part_file
from pipelines.score_matrix import RowFiles, pages_folder
from pipelines.score_rows import Slice
from sonder.core.storage import Folder
from sonder.scoring.training import MISSING


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_pages_are_gone_afterwards_and_those_of_others_stay(tmp_path: Path) -> None:
    with pages_folder() as first:
        (first / "page").write_bytes(b"1")
        with pages_folder() as second:
            assert first.parent == second.parent == tmp_path
            assert (first / "page").exists()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_when_another_one_begins(tmp_path: Path) -> None:
    left, held = tmp_path / "sonder-matrix-left", tmp_path / "sonder-matrix-held"
    for folder in (left, held):
        folder.mkdir()
        (folder / "train.page").write_bytes(b"1")
        (folder / "lock").touch()  # its lock ends with its owner
    with FileLock(held / "lock"), pages_folder():
        assert not left.exists()
        assert (held / "train.page").exists()


def test_a_name_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    (tmp_path / "sonder-matrix-trap").symlink_to(elsewhere)
    with pages_folder():
        assert (elsewhere / "lock").exists()


def test_small_files_are_handed_over_together_and_nothing_is_missing_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Folder.at(str(tmp_path / "rows"))
    for bucket, num in enumerate((3, 0, 4, 5)):
        values = np.full((num, 2), bucket, dtype=np.float32)
        values[:1, 1] = np.nan
        features = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 2)
        table = pa.table({"draw": np.zeros(num), "features": features})
        part_file(rows / "cutoff=5", bucket).write_table(table)
    files = RowFiles(rows, (Slice(5, 0.0, 1.0),), (0, 1, 2, 3))
    monkeypatch.setattr(score_matrix, "BATCH_ROWS", 5)

    def batches(every: int) -> list[Any]:
        handed: list[Any] = []
        iterator = score_matrix._Files(files, 2, every=every)
        while iterator.next(lambda data: handed.append(data.tolist())):
            pass
        return handed

    first, second = batches(every=1)
    assert [len(first), len(second)] == [7, 5]
    assert first[:2] == [[0.0, MISSING], [0.0, 0.0]]
    (third,) = batches(every=3)
    assert third == (first + second)[::3]
