"""The rows that heads are trained, stopped, calibrated and tested on: features and labels per task, part and bucket.

Written to target/<task>/<part>/bucket=NNN/part-0.parquet with user_id, cutoff, label and one fixed-size list of
features; target/done/bucket=NNN.json is written last, with the counts, and a bucket that has it is not done again.
Parts of a task (sonder.scoring.tasks has the windows):
later_time       train: the training cutoffs; stop, calibration: one half each of the users at the calibration cutoff
held_out_users   train, stop, calibration: 60, 20 and 20 % of the users at the one cutoff before the test
A user's half or fifth is drawn by the digest of its id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.bucket_tasks import part_file
from sonder.core.config import ScoreTask
from sonder.core.ids import unit_interval
from sonder.core.storage import Folder
from sonder.encoder.artefact import load_encoder
from sonder.encoder.inference import embed_users
from sonder.events.contract import TIMESTAMP_TYPE
from sonder.history.snapshot import read_timelines
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.scoring.features import compute_features
from sonder.scoring.specification import FeatureSpec, bind
from sonder.scoring.tasks import CutoffPlan, label_task

PARTS = ("train", "stop", "calibration", "test")
SPLIT_KEY = "sonder/score/split/1/"


@dataclass(frozen=True)
class TaskPlan:
    """One task with its points in time and what it reads."""

    task: ScoreTask
    plan: CutoffPlan
    spec: FeatureSpec

    @property
    def name(self) -> str:
        return self.task.name

    def to_dict(self) -> dict[str, Any]:
        return {"task": self.task.model_dump(mode="json"), "plan": self.plan.to_dict(), "spec": self.spec.to_dict()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TaskPlan:
        return cls(
            task=ScoreTask.model_validate(content["task"]),
            plan=CutoffPlan.from_dict(content["plan"]),
            spec=FeatureSpec.from_dict(content["spec"]),
        )


@dataclass(frozen=True)
class Rows:
    """Training or test rows of one task: N users at their cutoffs."""

    user_ids: pa.Array
    cutoffs_us: NDArray[np.int64]
    labels: NDArray[np.bool_]
    features: NDArray[np.float32]  # [N, F]


class ScoreRowsBucket:
    """The bucket task: reads a bucket's histories once and cuts them at every cutoff of every task."""

    def __init__(self, history: str, items: str, encoder: str, target: str, tasks: Sequence[Mapping[str, Any]]) -> None:
        self.history, self.target = Folder.at(history), Folder.at(target)
        self.vocabulary = Vocabulary.load(Folder.at(items))
        self.tasks = [TaskPlan.from_dict(task) for task in tasks]
        self.spec = max((task.spec for task in self.tasks), key=lambda spec: spec.embedding_dim)
        self.encoder = load_encoder(Folder.at(encoder)) if self.spec.embedding_dim else None

    def __call__(self, bucket: int) -> dict[str, Any]:
        done = self.target / "done" / f"bucket={bucket:03d}.json"
        if done.exists():
            counts: dict[str, Any] = done.read_json()
            return counts
        timelines = read_timelines(self.history, self.vocabulary, [bucket])
        counts = {}
        for task in self.tasks:
            counts[task.name] = {}
        for name, part, rows in self._rows(timelines):
            write_part(self.target / name / part, bucket, rows)
            counts[name][part] = [len(rows.labels), int(rows.labels.sum())]
        done.write_json(counts)
        return counts

    def _rows(self, timelines: Timelines) -> Iterator[tuple[str, str, Rows]]:
        draws = unit_interval(pl.Series(timelines.user_ids.to_pylist(), dtype=pl.String), SPLIT_KEY)
        collected: dict[tuple[str, str], list[Rows]] = {}
        for cutoff_us in sorted({cutoff for task in self.tasks for cutoff in task.plan.all_us}):
            asked = [task for task in self.tasks if cutoff_us in task.plan.all_us]
            features = self._features(timelines, cutoff_us, with_embedding=any(t.spec.embedding_dim for t in asked))
            for task in asked:
                eligible, labels = label_task(task.task, timelines, self.vocabulary, cutoff_us=cutoff_us)
                for part, is_in_part in parts_at(task.plan, cutoff_us, draws):
                    rows = np.flatnonzero(eligible & is_in_part)
                    cut = Rows(
                        user_ids=timelines.user_ids.take(pa.array(rows)),
                        cutoffs_us=np.full(len(rows), cutoff_us),
                        labels=labels[rows],
                        features=features[rows, : task.spec.num_features],
                    )
                    collected.setdefault((task.name, part), []).append(cut)
        for (name, part), pieces in collected.items():
            yield name, part, _concat(pieces)

    def _features(self, timelines: Timelines, cutoff_us: int, *, with_embedding: bool) -> NDArray[np.float32]:
        spec = self.spec if with_embedding else self.spec.without_embedding()
        embeddings = None
        if with_embedding:
            assert self.encoder is not None
            embeddings = embed_users(self.encoder, timelines, as_of_us=cutoff_us)
        return compute_features(bind(spec, self.vocabulary), timelines, cutoff_us=cutoff_us, embeddings_UD=embeddings)


def parts_at(plan: CutoffPlan, cutoff_us: int, draws_U: NDArray[np.float64]) -> list[tuple[str, NDArray[np.bool_]]]:
    """Which users belong to which parts at one cutoff of a plan."""
    if cutoff_us == plan.test_us:
        return [("test", np.ones(len(draws_U), dtype=np.bool_))]
    if plan.calibrated_on == "later_time":
        if cutoff_us == plan.calibration_us:
            return [("stop", draws_U < 0.5), ("calibration", draws_U >= 0.5)]
        return [("train", np.ones(len(draws_U), dtype=np.bool_))]
    is_train, is_calibration = draws_U < 0.6, draws_U >= 0.8
    return [("train", is_train), ("stop", ~is_train & ~is_calibration), ("calibration", is_calibration)]


def write_part(folder: Folder, bucket: int, rows: Rows) -> None:
    num, width = rows.features.shape
    features = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows.features).ravel()), width)
    table = pa.table(
        {
            "user_id": rows.user_ids.cast(pa.string()),
            "cutoff": pa.array(rows.cutoffs_us, pa.int64()).cast(TIMESTAMP_TYPE),
            "label": pa.array(rows.labels),
            "features": features if num else pa.array([], pa.list_(pa.float32(), width)),
        }
    )
    part_file(folder, bucket).write_table(table)


def read_part(folder: Folder, buckets: Sequence[int]) -> Rows:
    """Rows of some buckets of one part of a task."""
    tables = [part_file(folder, bucket).read_table() for bucket in buckets]
    table = pa.concat_tables(tables).combine_chunks()
    width = table.schema.field("features").type.list_size
    flat = table.column("features").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return Rows(
        user_ids=table.column("user_id").combine_chunks(),
        cutoffs_us=table.column("cutoff").cast(pa.int64()).to_numpy(),
        labels=table.column("label").to_numpy(),
        features=flat.reshape(table.num_rows, width),
    )


def _concat(pieces: list[Rows]) -> Rows:
    return Rows(
        user_ids=pa.concat_arrays([piece.user_ids for piece in pieces]),
        cutoffs_us=np.concatenate([piece.cutoffs_us for piece in pieces]),
        labels=np.concatenate([piece.labels for piece in pieces]),
        features=np.concatenate([piece.features for piece in pieces]),
    )
