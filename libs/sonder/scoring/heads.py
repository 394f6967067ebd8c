"""A score head: one task's gradient-boosted trees, its calibrator, the specification of what it reads, its metrics.

Kept in a folder as `heads.json` (tasks, specifications, calibrators, metrics, refusals) and one `<task>.xgb.json` per
head, xgboost's own JSON. A folder holds one feature matrix for all heads: a head reads the plain columns and, if its
specification says so, the embedding columns after them.
Source: XGBoost (Chen & Guestrin, KDD 2016), histogram trees, early stopping on held-out log loss. Classes are not
reweighted: that would move every probability away from the frequency it must equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray

from sonder.core.config import ScoreTask
from sonder.core.errors import ArtefactMismatch
from sonder.core.storage import Folder
from sonder.scoring.calibration import Calibrator
from sonder.scoring.specification import FeatureSpec
from sonder.scoring.tasks import TaskRefusal

HEADS_FILE = "heads.json"
MAX_ROUNDS = 1_000
PATIENCE = 40
PARAMETERS: dict[str, Any] = {
    "objective": "binary:logistic",
    "eval_metric": "logloss",
    "tree_method": "hist",
    "eta": 0.05,
    "max_depth": 4,
    "min_child_weight": 5,
    "subsample": 0.8,
    "colsample_bytree": 0.5,
}


@dataclass(frozen=True)
class ScoreHead:
    task: ScoreTask
    booster: xgboost.Booster
    calibrator: Calibrator
    spec: FeatureSpec  # of the columns that this head reads
    metrics: dict[str, Any]


def train_booster(
    train: xgboost.DMatrix, stop: xgboost.DMatrix, *, seed: int, num_threads: int, callbacks: Sequence[Any] = ()
) -> xgboost.Booster:
    """Boost until the log loss on `stop` has not improved for PATIENCE rounds; keep the rounds up to the best."""
    booster = xgboost.train(
        PARAMETERS | {"seed": seed, "nthread": num_threads},
        train,
        num_boost_round=MAX_ROUNDS,
        evals=[(stop, "stop")],
        early_stopping_rounds=PATIENCE,
        verbose_eval=False,
        callbacks=list(callbacks),
    )
    return booster[: booster.best_iteration + 1]


def features_of(head: ScoreHead, features_UF: NDArray[np.float32]) -> NDArray[np.float32]:
    """The columns of the shared feature matrix that this head reads."""
    if features_UF.shape[1] < head.spec.num_features:
        raise ArtefactMismatch(
            f"Score {head.task.name} reads {head.spec.num_features} features and got {features_UF.shape[1]}",
            expected="features of the specification that the head was trained with",
        )
    return features_UF[:, : head.spec.num_features]


def raw_margins(head: ScoreHead, features_UF: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-odds [U] before calibration."""
    margins: NDArray[np.float32] = head.booster.inplace_predict(features_of(head, features_UF), predict_type="margin")
    return margins


def predict(heads: Sequence[ScoreHead], features_UF: NDArray[np.float32]) -> NDArray[np.float64]:
    """Calibrated probability of each user and head -> [U, T]."""
    probabilities = np.empty((len(features_UF), len(heads)))
    for column, head in enumerate(heads):
        probabilities[:, column] = head.calibrator(raw_margins(head, features_UF))
    return probabilities


def shared_spec(heads: Sequence[ScoreHead]) -> FeatureSpec:
    """The specification of the one matrix that all these heads read: with the embedding if any head wants it."""
    widest = max((head.spec for head in heads), key=lambda spec: spec.embedding_dim)
    if any(head.spec.without_embedding() != widest.without_embedding() for head in heads):
        raise ArtefactMismatch("The heads read different features", expected="heads that were trained together")
    return widest


def save_heads(heads: Sequence[ScoreHead], refusals: Sequence[TaskRefusal], folder: Folder) -> None:
    """Write the boosters, then the file that says they are complete."""
    for head in heads:
        booster_file(folder, head.task.name).write_bytes(bytes(head.booster.save_raw("json")))
    content = {
        "heads": [
            {
                "task": head.task.model_dump(mode="json"),
                "spec": head.spec.to_dict(),
                "calibrator": head.calibrator.to_dict(),
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
            booster=load_booster(folder, entry["task"]["name"]),
            calibrator=Calibrator.from_dict(entry["calibrator"]),
            spec=FeatureSpec.from_dict(entry["spec"]),
            metrics=entry["metrics"],
        )
        for entry in (folder / HEADS_FILE).read_json()["heads"]
    ]


def load_refusals(folder: Folder) -> list[TaskRefusal]:
    return [TaskRefusal(**entry) for entry in (folder / HEADS_FILE).read_json()["refusals"]]


def booster_file(folder: Folder, task: str) -> Folder:
    return folder / f"{task}.xgb.json"


def load_booster(folder: Folder, task: str) -> xgboost.Booster:
    return xgboost.Booster(model_file=bytearray(booster_file(folder, task).read_bytes()))
