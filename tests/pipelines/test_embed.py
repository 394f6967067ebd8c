"""Embedding a small snapshot: what is written, what slices and resuming do not change, whose vocabulary is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import pipelines.embed
import sonder.history.snapshot
from pipelines.bucket_tasks import bucket_numbers, part_file
from pipelines.cli import app
from pipelines.embed import VECTOR_SCHEMA, VECTORS, embed_history, settle_as_of
from sonder.core.config import EncoderConfig, EvaluationConfig
from sonder.core.errors import ArtefactMismatch, ConfigurationError
from sonder.core.storage import MANIFEST, Folder
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import Encoder, load_encoder, save_encoder
from sonder.encoder.content import item_content
from sonder.encoder.inference import embed_users
from sonder.encoder.model import UserEncoder
from sonder.encoder.specification import derive, summarise
from sonder.history.snapshot import HISTORY_SCHEMA, bucket_file, iter_timelines, read_timelines
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from tests.built import BuiltWorld
from tests.tiny_log import random_log, timelines_of, vocabulary_of, write_snapshot

NUM_ITEMS, AS_OF_US = 12, 100 * DAY


@dataclass(frozen=True)
class World:
    """A snapshot of 60 users and one who comes later, in two buckets and an empty one, and an encoder."""

    history: Folder
    items: Folder
    encoder: Folder
    out: Folder

    def embed(self, out: Folder | None = None, *, as_of_us: int = AS_OF_US, num_workers: int = 0) -> dict[str, int]:
        return embed_history(
            self.history, self.items, self.encoder, out or self.out, as_of_us=as_of_us, num_workers=num_workers
        )

    def vectors(self, out: Folder | None = None) -> dict[str, list[float]]:
        files = [part_file((out or self.out) / VECTORS, bucket) for bucket in bucket_numbers(self.history)]
        return dict(pl.concat([pl.DataFrame(pl.from_arrow(file.read_table())) for file in files]).iter_rows())


@pytest.fixture
def world(tmp_path: Path) -> World:
    workspace = Workspace.at(str(tmp_path / "workspace"))
    log = random_log(5, num_users=60, num_items=NUM_ITEMS, num_days=120)
    timelines = timelines_of({**log, "comes later": [(101.0, 1, "buy")]})
    vocabulary = vocabulary_of([None] * NUM_ITEMS)
    history = write_snapshot(workspace, "tiny", timelines, vocabulary, num_buckets=2)
    bucket_file(history, 2).write_table(HISTORY_SCHEMA.empty_table())
    encoder = workspace.root / "encoder"
    save_encoder(make_encoder(timelines, vocabulary), encoder)
    return World(history, workspace.items("tiny"), encoder, workspace.root / "out")


def make_encoder(timelines: Timelines, vocabulary: Vocabulary) -> Encoder:
    """Of random weights."""
    config = EncoderConfig(dim=8, max_length=16)
    spec = derive(config, EvaluationConfig(), vocabulary, summarise(timelines, vocabulary), reads_time=True, seed=3)
    torch.manual_seed(3)
    content = item_content(vocabulary)
    weights = UserEncoder(spec, content).state_dict()
    return Encoder.of(spec, weights, np.ones(vocabulary.num_items, dtype=bool), content=content)


def expected(world: World, *, as_of_us: int = AS_OF_US) -> dict[str, list[float]]:
    timelines = read_timelines(world.history, Vocabulary.load(world.items), bucket_numbers(world.history))
    vectors = embed_users(load_encoder(world.encoder), timelines, as_of_us=as_of_us)
    return dict(zip(timelines.user_ids.to_pylist(), vectors.tolist(), strict=True))


def assert_same(found: dict[str, list[float]], wanted: dict[str, list[float]]) -> None:
    assert list(found) == list(wanted)
    np.testing.assert_allclose(list(found.values()), list(wanted.values()), atol=1e-5)


def test_every_user_gets_the_vector_of_embed_users(world: World) -> None:
    counts = world.embed()
    assert_same(world.vectors(), expected(world))
    zeros = [user for user, vector in world.vectors().items() if not any(vector)]
    assert "comes later" in zeros
    assert counts == {"users": 61, "zero_vectors": len(zeros)}
    assert (world.out / MANIFEST).read_json()["counts"] == counts
    assert part_file(world.out / VECTORS, 0).read_table().schema.equals(VECTOR_SCHEMA)
    assert world.out.files() == [
        "embedding.json",
        "manifest.json",
        "vectors/bucket=000/part-0.parquet",
        "vectors/bucket=001/part-0.parquet",
    ]


def test_the_moment_decides_what_is_read(world: World) -> None:
    world.embed(as_of_us=50 * DAY)
    assert_same(world.vectors(), expected(world, as_of_us=50 * DAY))
    assert world.vectors() != expected(world)


def test_slices_change_nothing_but_the_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = world.out / "whole"
    world.embed(whole)
    monkeypatch.setattr(sonder.history.snapshot, "_USERS_READ", 4)
    monkeypatch.setattr(pipelines.embed, "SLICE_EVENTS", 1)
    sizes: list[int] = []

    def counted(encoder: Encoder, timelines: Timelines, *, as_of_us: int) -> np.ndarray:
        sizes.append(timelines.num_users)
        return embed_users(encoder, timelines, as_of_us=as_of_us)

    monkeypatch.setattr(pipelines.embed, "embed_users", counted)
    world.embed(world.out / "sliced")
    assert_same(world.vectors(world.out / "sliced"), world.vectors(whole))
    assert set(sizes) <= {1, 2, 3, 4}
    assert sum(sizes) == 61
    file = part_file(world.out / "sliced" / VECTORS, 0)
    assert pq.ParquetFile(file.path).num_row_groups > 1


def test_a_slice_ends_with_the_read_that_fills_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sonder.history.snapshot, "_USERS_READ", 1)
    vocabulary = Vocabulary.load(world.items)
    slices = list(iter_timelines(world.history, vocabulary, 0, slice_events=50))
    assert all(part.num_events >= 50 for part in slices[:-1])
    assert all(part.num_events - part.lengths[-1] < 50 for part in slices)
    whole, joined = read_timelines(world.history, vocabulary, [0]), Timelines.concat(slices)
    assert joined.user_ids.equals(whole.user_ids)
    for name in ("offsets", "items", "actions", "surfaces", "times_us", "values"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
    assert list(iter_timelines(world.history, vocabulary, 2, slice_events=50)) == []


def test_a_bucket_whose_file_exists_is_not_done_again(world: World) -> None:
    whole = world.embed()
    kept, lost = (Path(part_file(world.out / VECTORS, bucket).path) for bucket in (0, 1))
    inode, content = kept.stat().st_ino, lost.read_bytes()  # a file written again is another
    lost.unlink()
    assert world.embed() == whole
    assert kept.stat().st_ino == inode
    assert lost.read_bytes() == content


def test_a_bucket_that_fails_half_way_leaves_no_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sonder.history.snapshot, "_USERS_READ", 4)
    monkeypatch.setattr(pipelines.embed, "SLICE_EVENTS", 1)
    left = 3

    def failing(encoder: Encoder, timelines: Timelines, *, as_of_us: int) -> np.ndarray:
        nonlocal left
        left -= 1
        if left < 0:
            raise MemoryError
        return embed_users(encoder, timelines, as_of_us=as_of_us)

    with monkeypatch.context() as patch:
        patch.setattr(pipelines.embed, "embed_users", failing)
        with pytest.raises(MemoryError):
            world.embed()
    assert world.out.files() == ["embedding.json"]
    world.embed()
    assert_same(world.vectors(), expected(world))


def test_a_folder_with_another_embedding_is_refused(world: World) -> None:
    world.embed()
    with pytest.raises(ConfigurationError, match="another snapshot, encoder or moment"):
        world.embed(as_of_us=AS_OF_US + 1)


def test_a_snapshot_newer_than_the_release_is_read_with_the_vocabulary_of_the_release(world: World) -> None:
    """The newer snapshot numbers the same items the other way round, and has one that the release does not know."""
    workspace = Workspace.at(str(Path(world.history.path).parents[1]))
    log = random_log(5, num_users=60, num_items=NUM_ITEMS, num_days=90)
    known = vocabulary_of([None] * NUM_ITEMS)
    newer = vocabulary_of([None] * (NUM_ITEMS + 1))
    newer = Vocabulary(newer.items.take(pa.array(range(NUM_ITEMS, -1, -1))), newer.actions, newer.action_weights, ())
    turned = {user: [(day, NUM_ITEMS - item, action) for day, item, action in events] for user, events in log.items()}
    turned["has only the new item"] = [(1.0, 0, "buy")]
    grown = write_snapshot(workspace, "grown", timelines_of(turned), newer, num_buckets=1)
    counts = embed_history(grown, world.items, world.encoder, world.out, as_of_us=AS_OF_US, num_workers=0)
    found = part_file(world.out / VECTORS, 0).read_table().to_pydict()
    wanted = embed_users(load_encoder(world.encoder), timelines_of(log), as_of_us=AS_OF_US)
    np.testing.assert_allclose(found["vector"][:-1], wanted, atol=1e-5)
    assert not any(found["vector"][-1])
    assert counts["zero_vectors"] == 1 + int((~wanted.any(axis=1)).sum())
    assert known.num_items < newer.num_items
    matched = world.out / "matched"
    items = {"items": world.items, "newer_items": workspace.items("grown")}
    again = embed_history(grown, encoder=world.encoder, target=matched, as_of_us=AS_OF_US, num_workers=0, **items)
    assert again["zero_vectors"] == counts["zero_vectors"] - 1  # the new item shares a word with known titles
    vectors = part_file(matched / VECTORS, 0).read_table().to_pydict()["vector"]
    assert any(vectors[-1])
    np.testing.assert_allclose(vectors[:-1], wanted, atol=1e-5)  # the others are matched by id
    with pytest.raises(ArtefactMismatch, match="knows 12 items"):  # the snapshot's own vocabulary
        embed_history(grown, workspace.items("grown"), world.encoder, world.out / "x", as_of_us=1, num_workers=0)


def test_a_moment_is_the_end_of_the_log_or_a_time_that_the_log_has() -> None:
    snapshot = {"first_event_us": 5, "last_event_us": 9, "is_ordinal": False}
    assert [settle_as_of(snapshot, moment) for moment in (None, 6, 20)] == [10, 6, 20]
    with pytest.raises(ConfigurationError, match="no event before"):
        settle_as_of(snapshot, 5)
    with pytest.raises(ConfigurationError, match="only an order"):
        settle_as_of({**snapshot, "is_ordinal": True}, 6)


@pytest.mark.ray
@pytest.mark.slow
def test_ray_writes_what_one_process_writes(ray_session: None, world: World) -> None:
    assert world.embed(world.out / "ray", num_workers=2) == world.embed(world.out / "process")
    assert_same(world.vectors(world.out / "ray"), world.vectors(world.out / "process"))


@pytest.mark.ray
@pytest.mark.slow
def test_the_command_embeds_by_the_served_release(built_world: BuiltWorld, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = CliRunner().invoke(app, ["embed", "--out", str(out), *built_world.arguments], catch_exceptions=False)
    assert run.exit_code == 0
    assert f"release={built_world.release_id}" in run.stdout
    files = "bucket=*/part-0.parquet"
    release = Path(built_world.config.workspace) / "releases" / built_world.release_id
    found, built = (
        dict(pl.read_parquet(folder / files, hive_partitioning=False).iter_rows())
        for folder in (out / VECTORS, release / "vectors")
    )
    assert_same(found, built)
    with pytest.raises(ConfigurationError, match="no event before"):
        CliRunner().invoke(
            app, ["embed", "--out", str(out), "--as-of", "1971-01-01", *built_world.arguments], catch_exceptions=False
        )
