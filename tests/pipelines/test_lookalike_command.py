"""Seeds file -> audience file over a made-up release of four buckets, without Ray."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from pipelines import lookalike
from pipelines.bucket_tasks import part_file
from pipelines.lookalike import Asked, check_out, grow_audience, write_audience
from pipelines.user_lists import read_user_ids
from sonder.core.errors import ConfigurationError, DataError, InvalidRequest
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.profiles.record import PROFILE_SCHEMA

NUM_USERS = 240
MEMBERS = [f"u{user}" for user in range(80)]
NOBODY = pl.Series("user_id", [], dtype=pl.String)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Users 0 to 79 point east, the others anywhere; the last one is cold."""
    draw = np.random.default_rng(1)
    vectors = draw.normal(size=(NUM_USERS, 4))
    vectors[:80] = draw.normal(size=(80, 4)) + 30 * np.eye(4)[0]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    profiles = Folder.at(str(tmp_path / "profiles"))
    for bucket in range(4):
        rows = [
            {
                "user_id": f"u{user}",
                "as_of": 0,
                "is_cold": False,
                "num_events": 3,
                "segments": {"lifecycle": "core"},
                "interests": [],
                "scores": [],
                "embedding": None if user == NUM_USERS - 1 else vectors[user].tolist(),
            }
            for user in range(bucket, NUM_USERS, 4)
        ]
        part_file(profiles, bucket).write_table(pa.Table.from_pylist(rows, schema=PROFILE_SCHEMA))
    manifest = SimpleNamespace(as_of_us=0, row_counts={"profiles": NUM_USERS})
    release = SimpleNamespace(id="r-1", profiles=profiles, manifest=manifest)
    monkeypatch.setattr(lookalike.Release, "open", classmethod(lambda *_: release))
    return Workspace.at(str(tmp_path / "workspace"))


def grow(workspace: Workspace, seeds: list[str], size: int, exclude: pl.Series = NOBODY) -> Any:
    asked = Asked(pl.Series("user_id", seeds, dtype=pl.String), exclude, size)
    return grow_audience(workspace, asked, release_id="r-1", num_workers=0)


def test_an_audience_is_ranked_without_seeds_and_excluded_users(workspace: Workspace) -> None:
    excluded = pl.Series("user_id", MEMBERS[50:55])
    audience = grow(workspace, [*MEMBERS[:50], "stranger", f"u{NUM_USERS - 1}"], 25, excluded)
    found = audience.members["user_id"].to_list()
    assert set(found) == set(MEMBERS[55:])  # the 25 members that nobody named, before 159 others
    assert audience.members["rank"].to_list() == list(range(1, 26))
    assert audience.members["similarity"].is_sorted(descending=True)
    assert audience.members["percentile"][0] == 100
    assert audience.facts["seeds"] == {"given": 52, "used": 50, "unknown": 1, "cold": 1}
    assert audience.facts["ranked_users"] == NUM_USERS - 1 - 50 - 5
    assert audience.facts["warnings"] == []
    assert not workspace.staging("").children()


def test_the_curve_has_the_size_that_was_asked_for_and_similarity_falls_along_it(workspace: Workspace) -> None:
    facts = grow(workspace, MEMBERS[:50], 47).facts
    sizes, similarities = ([row[name] for row in facts["reach"]] for name in ("size", "similarity"))
    assert 47 in sizes
    assert similarities == sorted(similarities, reverse=True)
    assert "five folds" in facts["held_out"]["protocol"]


def test_an_audience_larger_than_everybody_is_everybody(workspace: Workspace) -> None:
    audience = grow(workspace, MEMBERS[:30], 10_000)
    assert audience.facts["size"] == NUM_USERS - 1 - 30
    assert "30 seeds" in audience.facts["warnings"][0]


def test_the_same_request_gives_the_same_audience(workspace: Workspace) -> None:
    first, second = (grow(workspace, MEMBERS[:50], 20) for _ in range(2))
    assert first.members.equals(second.members)


def test_too_few_known_seeds_are_refused_with_their_counts(workspace: Workspace) -> None:
    with pytest.raises(InvalidRequest, match=r"9 of 10 seeds can be used: 1 are unknown"):
        grow(workspace, [*MEMBERS[:9], "stranger"], 5)


def test_the_audience_is_written_by_suffix_with_its_facts_beside(workspace: Workspace, tmp_path: Path) -> None:
    audience = grow(workspace, MEMBERS[:50], 5)
    for name, read in (("out.csv", pl.read_csv), ("out.parquet", pl.read_parquet)):
        beside = write_audience(audience, tmp_path / name)
        assert read(tmp_path / name).columns == ["user_id", "rank", "similarity", "percentile"]
        assert Folder.at(str(beside)).read_json()["release"] == "r-1"
    with pytest.raises(ConfigurationError, match=r"out\.xls"):
        check_out(Path("out.xls"))


def test_ids_are_read_as_text_from_every_format(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("007\n\n 8 \n007\n")
    (tmp_path / "ids.csv").write_text("name,user_id\nx,007\ny,8\n")
    pl.DataFrame({"who": ["007", "8"]}).write_parquet(tmp_path / "ids.parquet")
    for name in ("ids.txt", "ids.csv", "ids.parquet"):
        assert read_user_ids(tmp_path / name).to_list() == ["007", "8"]
    (tmp_path / "two.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="columns a, b"):
        read_user_ids(tmp_path / "two.csv")
    with pytest.raises(DataError, match="No file"):
        read_user_ids(tmp_path / "absent.txt")
