"""A score head: one task's gradient-boosted trees, its calibrators, the specification of what it reads, its metrics.

Kept in a folder as `heads.json` (tasks, outputs, specifications, calibrators, metrics, refusals) and one
`<task>.xgb.json` per head, xgboost's own JSON. A folder holds one feature matrix for all heads: a head reads the plain
columns and, if its specification says so, the embedding columns after them.
A head has one output, or one for each category (next_category): outputs are the names under which scores are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray

from sonder.core.errors import ArtefactMismatch
from sonder.core.score_config import ScoreTask
from sonder.core.storage import Folder
from sonder.scoring.calibration import Calibrator, fit_calibrator, fit_mean_calibrator
from sonder.scoring.cutoffs import TaskRefusal
from sonder.scoring.specification import FeatureSpec
from sonder.scoring.training import objective_of

HEADS_FILE = "heads.json"


@dataclass(frozen=True)
class ScoreHead:
    task: ScoreTask
    outputs: tuple[str, ...]  # K names of scores
    booster: xgboost.Booster
    calibrators: tuple[Calibrator, ...]  # one for each output
    spec: FeatureSpec  # of the columns that this head reads
    metrics: dict[str, Any]

    @property
    def fallbacks(self) -> dict[str, float]:
        """What is told of a user of whom nothing is known: the mean label of the test window, by output."""
        return dict(zip(self.outputs, self.metrics["mean_labels"], strict=True))


def features_of(head: ScoreHead, features_UF: NDArray[np.float32]) -> NDArray[np.float32]:
    """The columns of the shared feature matrix that this head reads."""
    if features_UF.shape[1] < head.spec.num_features:
        raise ArtefactMismatch(
            f"Score {head.task.name} reads {head.spec.num_features} features and got {features_UF.shape[1]}",
            expected="features of the specification that the head was trained with",
        )
    return features_UF[:, : head.spec.num_features]


def raw_margins(booster: xgboost.Booster, features_UF: NDArray[np.float32], num_outputs: int) -> NDArray[np.float32]:
    """Margins before calibration [U, K]: log-odds of a probability, logarithm of an amount."""
    margins: NDArray[np.float32] = booster.inplace_predict(features_UF, predict_type="margin")
    return margins.reshape(len(features_UF), num_outputs)


def calibrate(calibrators: Sequence[Calibrator], margins_UK: NDArray[np.float32]) -> NDArray[np.float64]:
    """What is promised, from margins -> [U, K]."""
    values = np.empty(margins_UK.shape)
    for column, calibrator in enumerate(calibrators):
        values[:, column] = calibrator(margins_UK[:, column])
    return values


def fit_calibrators(
    task: ScoreTask, margins_NK: NDArray[np.float32], labels_NK: NDArray[np.float64]
) -> tuple[Calibrator, ...]:
    """Fit one calibrator for each output on held-out rows."""
    columns = range(margins_NK.shape[1])
    if task.is_probability:
        return tuple(fit_calibrator(margins_NK[:, k], labels_NK[:, k]) for k in columns)
    power = objective_of(task).power
    return tuple(fit_mean_calibrator(margins_NK[:, k], labels_NK[:, k], power=power) for k in columns)


def predict(heads: Sequence[ScoreHead], features_UF: NDArray[np.float32]) -> NDArray[np.float64]:
    """Calibrated scores of each user -> [U, outputs of all heads]."""
    parts = [
        calibrate(head.calibrators, raw_margins(head.booster, features_of(head, features_UF), len(head.outputs)))
        for head in heads
    ]
    return np.concatenate(parts, axis=1) if parts else np.empty((len(features_UF), 0))


def shared_spec(heads: Sequence[ScoreHead]) -> FeatureSpec:
    """The specification of the one matrix that all these heads read: with the embedding if any head wants it."""
    return _widest([head.spec for head in heads])


def load_shared_spec(folder: Folder) -> FeatureSpec | None:
    """That of a folder's heads, read without their trees; None without heads."""
    entries = (folder / HEADS_FILE).read_json()["heads"]
    return _widest([FeatureSpec.from_dict(entry["spec"]) for entry in entries]) if entries else None


def _widest(specs: Sequence[FeatureSpec]) -> FeatureSpec:
    widest = max(specs, key=lambda spec: spec.embedding_dim)
    if any(spec.without_embedding() != widest.without_embedding() for spec in specs):
        raise ArtefactMismatch("The heads read different features", expected="heads that were trained together")
    return widest


def save_heads(heads: Sequence[ScoreHead], refusals: Sequence[TaskRefusal], folder: Folder) -> None:
    """Write the boosters, then the file that says they are complete."""
    for head in heads:
        save_booster(head.booster, folder, head.task.name)
    content = {
        "heads": [
            {
                "task": head.task.model_dump(mode="json"),
                "outputs": list(head.outputs),
                "spec": head.spec.to_dict(),
                "calibrators": [calibrator.to_dict() for calibrator in head.calibrators],
                "metrics": head.metrics,
            }
            for head in heads
        ],
        "refusals": [refusal.to_dict() for refusal in refusals],
    }
    (folder / HEADS_FILE).write_json(content)


def load_heads(folder: Folder) -> list[ScoreHead]:
    """The heads of a folder, in the order of the configuration; none if every task was refused."""
    return [
        ScoreHead(
            task=ScoreTask.model_validate(entry["task"]),
            outputs=tuple(entry["outputs"]),
            booster=load_booster(folder, entry["task"]["name"]),
            calibrators=tuple(Calibrator.from_dict(calibrator) for calibrator in entry["calibrators"]),
            spec=FeatureSpec.from_dict(entry["spec"]),
            metrics=entry["metrics"],
        )
        for entry in (folder / HEADS_FILE).read_json()["heads"]
    ]


def load_refusals(folder: Folder) -> list[TaskRefusal]:
    return [TaskRefusal(**entry) for entry in (folder / HEADS_FILE).read_json()["refusals"]]


def booster_file(folder: Folder, task: str) -> Folder:
    return folder / f"{task}.xgb.json"


def save_booster(booster: xgboost.Booster, folder: Folder, task: str) -> None:
    booster_file(folder, task).write_bytes(bytes(booster.save_raw("json")))


def load_booster(folder: Folder, task: str) -> xgboost.Booster:
    return xgboost.Booster(model_file=bytearray(booster_file(folder, task).read_bytes()))
