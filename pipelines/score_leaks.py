"""Refuse a task whose features know what they may not: two checks of sonder.scoring.leaks, run by every build.

The first asks a sample of users for their features with three different futures; columns that differ see the future,
and no task that reads them is trained. The second looks for a single column that tells the labels apart by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.score_matrix import RowFiles
from pipelines.score_rows import ModelPlan, features_at, read_rows
from sonder.core.storage import Folder
from sonder.encoder.artefact import Encoder
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.user_features import UserFeatures
from sonder.scoring.cutoffs import TaskRefusal
from sonder.scoring.leaks import MAX_AUC, MAX_ROWS, columns_that_see_the_future, leaking_columns

SAMPLE_USERS = 500


def refuse_futures(
    models: Sequence[ModelPlan], encoder: Encoder, sample: Timelines, vocabulary: Vocabulary
) -> tuple[list[ModelPlan], list[TaskRefusal]]:
    """Part the models from those that read a column which changes with events at or after the test cutoff."""
    users = sample.take(np.arange(min(sample.num_users, SAMPLE_USERS)))
    widest = max(models, key=lambda model: model.spec.num_features)
    cutoff_us = widest.plan.test_us
    features = UserFeatures.of(widest.spec, vocabulary, encoder.item_vectors)

    def compute(timelines: Timelines) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        told = features_at(features, encoder, timelines, cutoff_us)
        assert told is not None
        return told

    names = [description for _, description in widest.spec.columns]
    seen = columns_that_see_the_future(compute, users, cutoff_us, names=names)
    if not seen:
        return list(models), []
    reason = f"leaked: features change with events at or after the cutoff: {', '.join(seen[:5])}"
    numbers: dict[str, float] = {"columns": len(seen), "users_checked": users.num_users}
    return [], [TaskRefusal(model.task.name, reason, numbers) for model in models if not model.is_backtest]


def refuse_leaks(
    models: Sequence[ModelPlan], rows: Folder, buckets: Sequence[int]
) -> tuple[list[ModelPlan], list[TaskRefusal]]:
    """Part the models from those with a column that alone separates the labels of the newest training cutoff."""
    refusals = []
    for model in models:
        if model.is_backtest:
            continue
        features, labels = _sample(model, rows, buckets)
        found = leaking_columns(features, labels, model.spec)
        if found:
            worst = found[0]
            reason = (
                f"leaked: {worst.column!r} alone separates the labels with AUC {worst.auc:.4f}"
                f" (at most {MAX_AUC} is believed)"
            )
            numbers = {"auc": worst.auc, "rows": worst.num_rows, "columns": len(found)}
            refusals.append(TaskRefusal(model.task.name, reason, numbers))
    refused = {refusal.task for refusal in refusals}
    return [model for model in models if model.task.name not in refused], refusals


def _sample(
    model: ModelPlan, rows: Folder, buckets: Sequence[int]
) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float32]], np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Features and labels (of the first output, above 0) of up to MAX_ROWS users asked."""
    features, labels, num = [], [], 0
    for cut, bucket in RowFiles.of(rows, model, "train", buckets).pieces:
        found = read_rows(rows, cut, bucket, ["features", model.column])
        came = found.labels(model)[:, 0]
        asked = np.isfinite(came)
        features.append(found.features[asked, : model.spec.num_features])
        labels.append(came[asked] > 0)
        num += len(labels[-1])
        if num >= MAX_ROWS:
            break
    return np.concatenate(features), np.concatenate(labels)
