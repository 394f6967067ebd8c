"""`sonder embed`: the vector of every user of a history snapshot at one moment, by the encoder of any release.

Writes target/vectors/bucket=NNN/part-0.parquet (VECTOR_SCHEMA), one Ray Data task per history bucket; before them
target/embedding.json, which says what is embedded with what, and after them target/manifest.json with the counts.
A bucket whose file exists is not done again; a folder that holds another embedding is refused.
Memory: a bucket is read, embedded and written in slices of whole users, so a task holds one slice and the encoder.

Histories are raw ids, and each release numbers items in its own way: they are read with the vocabulary of the encoder's
release, or, of a newer snapshot, with that one's items, matched by id: what came after the release has the vector of
its content (`sonder.encoder.growth`), and a user of only items without any gets the zero vector.
Limits: a moment before the end of an encoder's training data is a view back in time by weights that know the future.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.bucket_tasks import bucket_numbers, over_buckets, part_file
from sonder.core import telemetry
from sonder.core.config import SonderConfig
from sonder.core.errors import ArtefactMismatch, ConfigurationError
from sonder.core.storage import MANIFEST, Folder, drop_unfinished, read_manifest
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import ENCODER_FILE, load_encoder
from sonder.encoder.growth import grown
from sonder.encoder.inference import embed_users
from sonder.history.snapshot import iter_timelines
from sonder.history.vocabulary import Vocabulary

# The imports above are what a worker loads before its first user: those of the command alone stand in `embed_release`.

logger = logging.getLogger("sonder")
VECTORS, DESCRIPTION_FILE = "vectors", "embedding.json"
VECTOR_SCHEMA = pa.schema([("user_id", pa.string()), ("vector", pa.list_(pa.float32()))])  # of norm 1, or 0
SLICE_EVENTS = 1 << 18  # an ordinary bucket of `prepare`; about 100 MB while it is embedded
SECONDS_BETWEEN_LINES = 10.0
_ZERO_VECTORS = b"sonder.zero_vectors"  # key of a file's metadata: how many users have none


def embed_release(
    config: SonderConfig,
    target: Folder,
    *,
    release_id: str | None = None,
    as_of_us: int | None = None,
    num_workers: int | None = None,
) -> dict[str, Any]:
    """Embed the configuration's log by a release (the served one if not named), by default at the end of the log.

    Returns the counts of `embed_history` with `release`, `snapshot` and `as_of_us`.
    """
    from pipelines.prepare import prepare
    from sonder.releases.artefacts import Release, served_release

    workspace = Workspace.at(config.workspace)
    release = Release.open(workspace, release_id or served_release(workspace))
    snapshot = prepare(config)
    history = workspace.history(snapshot)
    as_of_us = settle_as_of(read_manifest(history), as_of_us)
    newer = None if snapshot == release.manifest.snapshot else workspace.items(snapshot)
    counts = embed_history(
        history, release.items, release.encoder, target, as_of_us=as_of_us, num_workers=num_workers, newer_items=newer
    )
    return {"release": release.id, "snapshot": snapshot, "as_of_us": as_of_us, **counts}


def settle_as_of(snapshot: Mapping[str, Any], as_of_us: int | None) -> int:
    """The moment to embed at: the end of the log (one microsecond after its last event) if none is asked for."""
    if as_of_us is None:
        return int(snapshot["last_event_us"]) + 1
    if snapshot["is_ordinal"]:
        raise ConfigurationError(
            "--as-of names a date, and the times of this log are only an order", do="Leave --as-of out."
        )
    first_us = int(snapshot["first_event_us"])
    if as_of_us <= first_us:
        raise ConfigurationError(
            f"The log has no event before {_told(as_of_us)}", expected=f"--as-of after its first one, {_told(first_us)}"
        )
    return as_of_us


def embed_history(
    history: Folder,
    items: Folder,
    encoder: Folder,
    target: Folder,
    *,
    as_of_us: int,
    num_workers: int | None = None,
    newer_items: Folder | None = None,
) -> dict[str, int]:
    """Embed every user of a snapshot from the events before `as_of` -> counts: users, zero_vectors.

    `items` is the item folder of the encoder's own release, ArtefactMismatch if it is another; `newer_items` that of
    a snapshot made after it, None for the release's own.
    """
    _claim(target, history.name, encoder, as_of_us)
    buckets = bucket_numbers(history)
    with telemetry.stage("embed", snapshot=history.name, buckets=len(buckets)) as counts:
        arguments = {
            "history": history.uri,
            "items": items.uri,
            "encoder": encoder.uri,
            "target": target.uri,
            "as_of_us": as_of_us,
            "newer_items": None if newer_items is None else newer_items.uri,
        }
        progress = Progress(len(buckets))
        summaries = over_buckets(EmbedBucket, arguments, buckets, num_workers=num_workers, on_done=progress.add)
        totals = {name: sum(summary[name] for summary in summaries) for name in ("users", "zero_vectors")}
        drop_unfinished(target)
        (target / MANIFEST).write_json({**(target / DESCRIPTION_FILE).read_json(), "counts": totals})
        counts.update(totals)
    return totals


class EmbedBucket:
    """The bucket task: the encoder and its vocabulary are loaded once."""

    def __init__(
        self, history: str, items: str, encoder: str, target: str, as_of_us: int, newer_items: str | None = None
    ) -> None:
        self.history, self.vectors, self.as_of_us = Folder.at(history), Folder.at(target) / VECTORS, as_of_us
        self.vocabulary = Vocabulary.load(Folder.at(items))
        self.encoder = load_encoder(Folder.at(encoder))
        if self.encoder.spec.num_items != self.vocabulary.num_items:
            raise ArtefactMismatch(
                f"The encoder knows {self.encoder.spec.num_items} items and {items} lists {self.vocabulary.num_items}",
                expected="the items of the release that the encoder belongs to",
            )
        if newer_items is not None:
            newer = Vocabulary.load(Folder.at(newer_items))
            self.encoder, self.vocabulary = grown(self.encoder, self.vocabulary, newer)

    def __call__(self, bucket: int) -> dict[str, int]:
        file = part_file(self.vectors, bucket)
        if not file.exists():
            self._embed(bucket, file)
        with file.open() as opened:
            found = pq.read_metadata(opened)
        return {"users": found.num_rows, "zero_vectors": int(found.metadata[_ZERO_VECTORS])}

    def _embed(self, bucket: int, file: Folder) -> None:
        num_zero = 0
        with file.table_writer(VECTOR_SCHEMA, repeats=False) as writer:
            for timelines in iter_timelines(self.history, self.vocabulary, bucket, slice_events=SLICE_EVENTS):
                vectors_UD = embed_users(self.encoder, timelines, as_of_us=self.as_of_us)
                num_zero += int((~vectors_UD.any(axis=1)).sum())
                writer.write_table(vector_table(timelines.user_ids, vectors_UD))
            writer.add_key_value_metadata({_ZERO_VECTORS: str(num_zero)})


def vector_table(user_ids: pa.Array, vectors_UD: NDArray[np.float32]) -> pa.Table:
    """VECTOR_SCHEMA, one row per user."""
    offsets = pa.array(np.arange(len(vectors_UD) + 1) * vectors_UD.shape[1], pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.array(vectors_UD.ravel(), pa.float32()))
    return pa.table([user_ids.cast(pa.string()), lists], schema=VECTOR_SCHEMA)


def vectors_of(column: pa.Array) -> NDArray[np.float32]:
    """A list column of equal lengths -> [U, D]."""
    flat: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return flat.reshape(len(column), -1) if len(column) else flat.reshape(0, 1)


@dataclass
class Progress:
    """Tells of finished buckets, at most one line in SECONDS_BETWEEN_LINES; those done by an earlier run count too."""

    num_buckets: int
    done: int = 0
    users: int = 0
    started: float = field(default_factory=time.perf_counter)
    told: float = field(default_factory=time.perf_counter)

    def add(self, summary: Mapping[str, Any]) -> None:
        self.done += 1
        self.users += summary["users"]
        now = time.perf_counter()
        if now - self.told < SECONDS_BETWEEN_LINES:
            return
        self.told = now
        rate = self.users / (now - self.started)
        logger.info("embed: %d of %d buckets, %s users, %s a second", self.done, self.num_buckets,
                    f"{self.users:,}", f"{rate:,.0f}")  # fmt: skip


def _claim(target: Folder, snapshot: str, encoder: Folder, as_of_us: int) -> None:
    """Say in the folder what it will hold, and refuse one that holds something else: its buckets would be mixed."""
    claim = {"snapshot": snapshot, "encoder": (encoder / ENCODER_FILE).read_json()["digest"], "as_of_us": as_of_us}
    file = target / DESCRIPTION_FILE
    if file.exists() and file.read_json() != claim:
        raise ConfigurationError(
            f"{target} holds the vectors of another snapshot, encoder or moment",
            expected="a new folder, or one that the same command has begun",
            do="Name another folder with --out, or remove this one.",
        )
    file.write_json(claim)


def _told(time_us: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).isoformat()
