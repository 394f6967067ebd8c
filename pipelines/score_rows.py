"""The rows that heads are trained, stopped, calibrated and tested on: one file of features per cutoff and bucket.

target/cutoff=US/bucket=NNN/part-0.parquet holds every sampled user with an event before the cutoff: user_id, draw (a
number in [0, 1) by the digest of the id), lifecycle and tenure at the cutoff, `features`, and for each task asked at
this cutoff `label:<task>`, a list of its outputs' labels, null for who is not asked. Features are computed once per
cutoff, whatever the number of tasks. target/done/bucket=NNN.json is written last, and such a bucket is not done again.
Parts of a model (sonder.scoring.cutoffs has the points in time):
later_time       train: the training cutoffs; calibration: the users at the calibration cutoff; stop: half of them. What
                 stops the boosting is nearly new to it, and twice the rows calibrate better (benchmarks/scores)
held_out_users   train, stop, calibration: 60, 20 and 20 % of the users at the one cutoff before the test
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.bucket_tasks import part_file
from sonder.core.ids import unit_interval
from sonder.core.score_config import ScoreTask
from sonder.core.storage import Folder
from sonder.encoder.artefact import Encoder, load_encoder
from sonder.encoder.inference import RisingVectors, embed_users
from sonder.history.snapshot import read_timelines
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.user_features import LIFECYCLE, UserFeatures
from sonder.scoring.cutoffs import CutoffPlan
from sonder.scoring.specification import FeatureSpec
from sonder.scoring.tasks import label_task
from sonder.segments.lifecycle import STATES, lifecycle_of
from sonder.segments.thresholds import LifecycleThresholds

PARTS = ("train", "stop", "calibration", "test")
SPLIT_KEY = "sonder/score/split/1/"
SAMPLE_KEY = "sonder/score/sample/1/"


@dataclass(frozen=True)
class ModelPlan:
    """One model of one task: its points in time and the columns it reads."""

    task: ScoreTask
    plan: CutoffPlan
    spec: FeatureSpec
    outputs: tuple[str, ...]
    is_backtest: bool = False

    @property
    def name(self) -> str:
        """Of the model; a task may have two."""
        return f"{self.task.name}.backtest" if self.is_backtest else self.task.name

    @property
    def column(self) -> str:
        """Of the labels in the rows."""
        return f"label:{self.task.name}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "task": self.task.model_dump(mode="json"),
            "plan": self.plan.to_dict(),
            "spec": self.spec.to_dict(),
            "outputs": list(self.outputs),
            "is_backtest": self.is_backtest,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ModelPlan:
        return cls(
            task=ScoreTask.model_validate(content["task"]),
            plan=CutoffPlan.from_dict(content["plan"]),
            spec=FeatureSpec.from_dict(content["spec"]),
            outputs=tuple(content["outputs"]),
            is_backtest=bool(content["is_backtest"]),
        )


@dataclass(frozen=True)
class Slice:
    """Rows of one cutoff whose users' draws lie in [low, high)."""

    cutoff_us: int
    low: float
    high: float

    def holds(self, draws_N: NDArray[np.float64]) -> NDArray[np.bool_]:
        inside: NDArray[np.bool_] = (draws_N >= self.low) & (draws_N < self.high)
        return inside


def slices_of(plan: CutoffPlan, part: str) -> list[Slice]:
    """Where the rows of a part lie."""
    if part == "test":
        return [Slice(cutoff_us, 0.0, 1.0) for cutoff_us in plan.asked_us]
    if plan.calibrated_on == "held_out_users":
        low, high = {"train": (0.0, 0.6), "stop": (0.6, 0.8), "calibration": (0.8, 1.0)}[part]
        return [Slice(plan.calibration_us, low, high)]
    if part == "train":
        return [Slice(cutoff_us, 0.0, 1.0) for cutoff_us in plan.train_us]
    return [Slice(plan.calibration_us, 0.0, 0.5 if part == "stop" else 1.0)]


@dataclass(frozen=True)
class Rows:
    """Rows of one part in one file: N users at one cutoff."""

    table: pa.Table

    @property
    def cutoffs_us(self) -> NDArray[np.int64]:
        cutoffs: NDArray[np.int64] = self.table.column("cutoff_us").to_numpy()
        return cutoffs

    @cached_property
    def features(self) -> NDArray[np.float32]:
        """[N, F], as wide as the cutoff's widest reader wanted."""
        column = self.table.column("features").combine_chunks()
        flat: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(column), column.type.list_size)

    def labels(self, model: ModelPlan) -> NDArray[np.float64]:
        """[N, K], NaN in the rows that the task does not ask."""
        column = self.table.column(model.column).combine_chunks()
        labels = np.full((len(column), len(model.outputs)), np.nan)
        values = column.drop_null().flatten().to_numpy(zero_copy_only=False)
        width = column.type.list_size
        asked = column.is_valid().to_numpy(zero_copy_only=False)
        labels[asked] = values.reshape(-1, width)[:, self._places(model)]
        return labels

    def _places(self, model: ModelPlan) -> NDArray[np.int64]:
        """Columns of the outputs that the model kept, among those that were written."""
        written = self.table.schema.field(model.column).metadata
        names = json.loads(written[b"outputs"])
        return np.array([names.index(output) for output in model.outputs])


def read_rows(rows: Folder, part: Slice, bucket: int, columns: Sequence[str]) -> Rows:
    """Rows of a slice in one bucket with these columns."""
    table = part_file(rows / f"cutoff={part.cutoff_us}", bucket).read_table(["draw", *columns])
    table = table.filter(pa.array(part.holds(table.column("draw").to_numpy())))
    return Rows(table.append_column("cutoff_us", pa.array(np.full(table.num_rows, part.cutoff_us))))


class ScoreRowsBucket:
    """The bucket task: reads a bucket's histories once and cuts them at every cutoff of every model."""

    def __init__(
        self,
        history: str,
        items: str,
        encoder: str,
        target: str,
        models: Sequence[Mapping[str, Any]],
        share: float,
    ) -> None:
        self.history, self.target, self.share = Folder.at(history), Folder.at(target), share
        self.vocabulary = Vocabulary.load(Folder.at(items))
        self.models = [ModelPlan.from_dict(model) for model in models]
        self.encoder = load_encoder(Folder.at(encoder))
        specs = {model.spec.num_features: model.spec for model in self.models}
        self.features = {
            width: UserFeatures.of(spec, self.vocabulary, self.encoder.item_vectors) for width, spec in specs.items()
        }
        self.thresholds = LifecycleThresholds.from_dict(self.models[0].spec.settings[LIFECYCLE])

    def __call__(self, bucket: int) -> dict[str, Any]:
        done = self.target / "done" / f"bucket={bucket:03d}.json"
        if done.exists():
            counts: dict[str, Any] = done.read_json()
            return counts
        timelines = self._sampled(read_timelines(self.history, self.vocabulary, [bucket]))
        vectors = RisingVectors(self.encoder, timelines)
        for cutoff_us in sorted({cutoff for model in self.models for cutoff in model.plan.all_us}):
            rows = self._rows(timelines, vectors, cutoff_us)
            part_file(self.target / f"cutoff={cutoff_us}", bucket).write_table(rows)
        counts = {model.name: {part: self._count(model, part, bucket) for part in PARTS} for model in self.models}
        done.write_json(counts)
        return counts

    def _sampled(self, timelines: Timelines) -> Timelines:
        if self.share >= 1:
            return timelines
        return timelines.take(np.flatnonzero(draws_of(timelines.user_ids, SAMPLE_KEY) < self.share))

    def _rows(self, timelines: Timelines, vectors: RisingVectors, cutoff_us: int) -> pa.Table:
        has_begun = np.flatnonzero(timelines.before(cutoff_us).lengths > 0)
        known = timelines.take(has_begun)
        history = known.before(cutoff_us)
        asked = {model.column: model for model in self.models if cutoff_us in model.plan.all_us}
        width = max(m.spec.num_features for m in self.models if cutoff_us in m.plan.all_us)
        reader = self.features[width]
        vectors_UD = vectors.at(cutoff_us)[has_begun] if reader.needs_vectors else None
        features = reader.compute(history, vectors_UD, as_of_us=cutoff_us)
        first_us = known.times_us[known.offsets[:-1]]
        columns: dict[str, pa.Array] = {
            "user_id": known.user_ids,
            "draw": pa.array(draws_of(known.user_ids, SPLIT_KEY)),
            "lifecycle": pa.array(STATES, pa.string()).take(
                pa.array(lifecycle_of(history, as_of_us=cutoff_us, thresholds=self.thresholds))
            ),
            "tenure_days": pa.array((cutoff_us - first_us) / MICROSECONDS_PER_DAY),
            "features": _fixed_lists(features),
        }
        fields = [pa.field(name, column.type) for name, column in columns.items()]
        for name, model in asked.items():
            eligible, labels = label_task(model.task, model.outputs, known, self.vocabulary, cutoff_us=cutoff_us)
            columns[name] = _fixed_lists(labels.reshape(len(eligible), -1), is_valid=eligible)
            fields.append(pa.field(name, columns[name].type, metadata={"outputs": json.dumps(model.outputs)}))
        return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields))

    def _count(self, model: ModelPlan, part: str, bucket: int) -> list[Any]:
        """Users asked, and those with a label above 0 for each output."""
        labels = [
            read_rows(self.target, cut, bucket, [model.column]).labels(model) for cut in slices_of(model.plan, part)
        ]
        asked = np.concatenate(labels)
        return [int(np.isfinite(asked[:, 0]).sum()), (np.nan_to_num(asked) > 0).sum(axis=0).tolist()]


def features_at(
    features: UserFeatures | None, encoder: Encoder, timelines: Timelines, cutoff_us: int
) -> NDArray[np.float32] | None:
    """Features [U, F] of every user at a cutoff, with the users embedded only if these are read; None for None."""
    if features is None:
        return None
    vectors = embed_users(encoder, timelines, as_of_us=cutoff_us) if features.needs_vectors else None
    return features.compute(timelines, vectors, as_of_us=cutoff_us)


def draws_of(user_ids: pa.Array, key: str) -> NDArray[np.float64]:
    """A number in [0, 1) for each user, the same whenever and wherever it is asked."""
    return unit_interval(pl.Series(user_ids.to_pylist(), dtype=pl.String), key)


def _fixed_lists(matrix_NF: NDArray[Any], is_valid: NDArray[np.bool_] | None = None) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(matrix_NF).ravel())
    mask = None if is_valid is None else pa.array(~is_valid)
    return pa.FixedSizeListArray.from_arrays(flat, matrix_NF.shape[1], mask=mask)
