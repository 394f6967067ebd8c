"""Everybody of a release, read from several files, some without anybody who has a vector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from services.retrieval.everybody import read_everybody
from sonder.core.storage import Folder
from sonder.profiles.record import PROFILE_SCHEMA
from sonder.profiles.traits import compute_traits, derive_traits
from sonder.segments import lookalike
from sonder.segments.lookalike import People

DIM = 8


def profile(user: int, *, is_cold: bool = False) -> dict[str, Any]:
    segments = {"lifecycle": "core", "active_days": 1 + user, "tenure_days": 3.0, "recency_days": 0.0}
    vector = None if is_cold else [float(user)] * DIM
    scores = [{"name": "buy", "value": 0.5}] if user % 2 else []
    return {
        "user_id": f"u{user}",
        "as_of": 0,
        "is_cold": is_cold,
        "num_events": user,
        "segments": segments,
        "interests": [],
        "scores": scores,
        "embedding": vector,
    }


def test_vectors_and_traits_stand_in_the_order_of_the_files_and_the_cold_are_apart(tmp_path: Path) -> None:
    profiles = Folder.at(str(tmp_path))
    files = [
        [profile(1), profile(2, is_cold=True), profile(3)],
        [profile(4, is_cold=True)],
        [],
        [profile(5), profile(6)],
    ]
    tables = [pa.Table.from_pylist(rows, schema=PROFILE_SCHEMA) for rows in files]
    for bucket, table in enumerate(tables):
        (profiles / f"bucket={bucket:03d}" / "part-0.parquet").write_table(table)
    everybody = read_everybody(profiles, DIM)
    assert everybody.user_ids.to_pylist() == ["u1", "u3", "u5", "u6"]
    assert everybody.cold_ids.to_pylist() == ["u2", "u4"]
    assert everybody.people.vectors_ND.tolist() == [[float(user)] * DIM for user in (1, 3, 5, 6)]
    assert everybody.people.vectors_ND.flags.writeable
    together = compute_traits(pa.concat_tables(tables), derive_traits(tables[0]))
    assert np.array_equal(everybody.people.features_NF, together[[0, 2, 4, 5]])


def test_a_release_of_nobody_is_read(tmp_path: Path) -> None:
    everybody = read_everybody(Folder.at(str(tmp_path)), DIM)
    assert (len(everybody.user_ids), everybody.people.vectors_ND.shape) == (0, (0, DIM))


def test_parts_of_people_are_all_of_them_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookalike, "PART_USERS", 3)
    people = People(np.arange(14, dtype=np.float32).reshape(7, 2), np.arange(7, dtype=np.float32).reshape(7, 1))
    parts = list(people.parts())
    assert [part.num for part in parts] == [3, 3, 1]
    assert np.array_equal(np.concatenate([part.columns for part in parts]), people.columns)
    assert [part.num for part in people.take(np.array([], dtype=np.int64)).parts()] == [0]
