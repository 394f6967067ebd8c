"""From boosters to heads: calibrate on held-out rows, ask about windows that nobody has seen, write both down.

Features pass through file by file; what is kept in memory are margins, labels and who it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import xgboost
from numpy.typing import NDArray

from pipelines.score_matrix import RowFiles
from pipelines.score_rows import ModelPlan, read_rows
from pipelines.score_train import folder_of
from sonder.core.storage import Folder
from sonder.evaluation.score_judgement import judge_score
from sonder.events.contract import TIMESTAMP_TYPE
from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.scoring.calibration import Calibrator
from sonder.scoring.drivers import Explainer, global_drivers
from sonder.scoring.heads import ScoreHead, calibrate, fit_calibrators, load_booster, predict, raw_margins

ABOUT = ("user_id", "lifecycle", "tenure_days")
MOST_JUDGED = 200_000  # rows whose quality is measured, with 200 resamples
MOST_EXPLAINED = 2_000  # users behind the global drivers
NUM_GLOBAL = 12


@dataclass(frozen=True)
class Asked:
    """Rows that a model was asked about: N of them."""

    about: pa.Table  # ABOUT and cutoff_us
    margins: NDArray[np.float32]  # [N, K]
    labels: NDArray[np.float64]  # [N, K]


def finish_head(
    model: ModelPlan,
    rows: Folder,
    target: Folder,
    buckets: Sequence[int],
    *,
    older: ModelPlan | None = None,
    sensitive: Sequence[str] = (),
) -> ScoreHead:
    """Calibrate a trained model on its held-out rows, test it, and write down what it said and how good that was.

    `older`: the model of the task's backtest, whose answers are written already.
    """
    booster = load_booster(target, model.name)
    held_out = ask(model, booster, rows, "calibration", buckets)
    calibrators = fit_calibrators(model.task, held_out.margins, held_out.labels)
    tested = ask(model, booster, rows, "test", buckets)
    answers = answers_table(model, tested, calibrators)
    (target / "test" / f"{model.task.name}.parquet").write_table(answers)
    judged = _judged(model, held_out, answers, target, older)
    measured = {key.removeprefix(f"scores.{model.task.name}."): value for key, value in judged["metrics"].items()}
    metrics = measured | {
        "mean_labels": tested.labels.mean(axis=0).tolist(),
        "cutoff_us": model.plan.test_us,
        "train_cutoffs_us": list(model.plan.train_us),
        "calibrated_on": model.plan.calibrated_on,
        "calibration": [calibrator.method for calibrator in calibrators],
        "calibration_users": len(held_out.labels),
        "rounds": booster.num_boosted_rounds(),
        "search": (target / f"{model.name}.search.json").read_json(),
        "reads_embedding": model.spec.embedding_dim > 0,
    }
    head = ScoreHead(model.task, model.outputs, booster, calibrators, model.spec, metrics)
    drivers = _drivers(model, head, rows, buckets, sensitive)
    (target / "quality" / f"{model.task.name}.json").write_json(judged | {"drivers": drivers})
    return head


def finish_backtest(model: ModelPlan, rows: Folder, target: Folder, buckets: Sequence[int]) -> None:
    """Calibrate the older model and write down what it said at each later cutoff."""
    booster = load_booster(folder_of(model, rows, target), model.name)
    held_out = ask(model, booster, rows, "calibration", buckets)
    calibrators = fit_calibrators(model.task, held_out.margins, held_out.labels)
    answers = answers_table(model, ask(model, booster, rows, "test", buckets), calibrators)
    (target / "backtest" / f"{model.task.name}.parquet").write_table(answers)


def ask(model: ModelPlan, booster: xgboost.Booster, rows: Folder, part: str, buckets: Sequence[int]) -> Asked:
    """Margins and labels of everybody in a part whom the task asks."""
    about, margins, labels = [], [], []
    for cut, bucket in RowFiles.of(rows, model, part, buckets).pieces:
        found = read_rows(rows, cut, bucket, [*ABOUT, "features", model.column])
        came = found.labels(model)
        asked = np.isfinite(came[:, 0])
        features = np.ascontiguousarray(found.features[asked, : model.spec.num_features])
        about.append(found.table.select([*ABOUT, "cutoff_us"]).filter(pa.array(asked)))
        margins.append(raw_margins(booster, features, len(model.outputs)))
        labels.append(came[asked])
    return Asked(pa.concat_tables(about).combine_chunks(), np.concatenate(margins), np.concatenate(labels))


def answers_table(model: ModelPlan, asked: Asked, calibrators: Sequence[Calibrator]) -> pa.Table:
    """What was said beside what came true: a row for each user asked at a cutoff, lists for several outputs."""
    values, about = calibrate(calibrators, asked.margins).astype(np.float32), asked.about
    return pa.table(
        {
            "user_id": about.column("user_id"),
            "cutoff": about.column("cutoff_us").cast(TIMESTAMP_TYPE),
            "label": _one_or_list(asked.labels),
            "value": _one_or_list(values),
            "lifecycle": about.column("lifecycle"),
            "tenure_days": about.column("tenure_days"),
        }
    )


def _one_or_list(matrix_NK: NDArray[Any]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(matrix_NK).ravel())
    return flat if matrix_NK.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, matrix_NK.shape[1])


def _judged(
    model: ModelPlan, held_out: Asked, answers: pa.Table, target: Folder, older: ModelPlan | None
) -> dict[str, Any]:
    """How good the answers are, with those of the older model; of very many rows an even sample is judged."""
    backtest, known_until_us = None, None
    if older is not None and older.outputs == model.outputs:
        backtest = _evenly((target / "backtest" / f"{model.task.name}.parquet").read_table())
        known_until_us = older.plan.calibration_us + model.task.within_days * MICROSECONDS_PER_DAY
    return judge_score(
        model.task.kind,
        _evenly(answers),
        outputs=model.outputs,
        backtest=backtest,
        trained_until_us=known_until_us,
        popularity=held_out.labels.mean(axis=0).tolist(),
    )


def _evenly(table: pa.Table) -> pa.Table:
    if table.num_rows <= MOST_JUDGED:
        return table
    return table.take(pa.array(np.linspace(0, table.num_rows - 1, MOST_JUDGED).astype(np.int64)))


def _drivers(model: ModelPlan, head: ScoreHead, rows: Folder, buckets: Sequence[int], sensitive: Sequence[str]) -> Any:
    """What moves the score of users of the test window at all, heaviest first."""
    features, num = [], 0
    for cut, bucket in RowFiles.of(rows, model, "test", buckets).pieces:
        found = read_rows(rows, cut, bucket, ["features", model.column])
        is_asked = np.isfinite(found.labels(model)[:, 0])
        features.append(found.features[is_asked, : model.spec.num_features])
        num += len(features[-1])
        if num >= MOST_EXPLAINED:
            break
    asked = np.ascontiguousarray(np.concatenate(features)[:MOST_EXPLAINED])
    leading = predict([head], asked).argmax(axis=1)
    explainer = Explainer.of(head.booster, head.spec, sensitive=sensitive)
    return [driver._asdict() for driver in global_drivers(explainer, asked, leading)[:NUM_GLOBAL]]
