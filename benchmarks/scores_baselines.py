"""What a growth team would use instead of our heads: logistic regression on RFM, and BG/NBD.

Population and labels are derived here a second time, from the definitions of sonder.scoring.tasks;
benchmarks/scores.py refuses to go on where they are not those of our own test rows.
logistic   recency, active days, money, tenure before the cutoff; log1p, standardised; the strength of the penalty by
           5 folds of users over the training rows; as it comes, and calibrated at our calibration cutoff by our method
bg_nbd     see scores_bgnbd.py: fitted to all active days before the test cutoff; as it comes, and calibrated on what a
           fit before the calibration cutoff said there
           counts the days of the task's action; of all events for churn, where every event is activity
Limits: RFM counts days, not invoices, and events of every action. BG/NBD knows nothing of users without the action
(0.1 % of Online Retail's, who only cancelled): they get its lowest answer.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sonder.core.config import ScoreTask
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.scoring.calibration import fit_calibrator, log_loss

PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)  # C of scikit-learn
NUM_FOLDS = 5


@dataclass(frozen=True)
class Asked:
    """One task of one log, with the points in time that our own head was made at."""

    task: ScoreTask
    timelines: Timelines
    vocabulary: Vocabulary
    train_us: Sequence[int]
    calibration_us: int
    test_us: int

    def labelled(self, cutoff_us: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Rows of the users who are asked at a cutoff, and what came true; tasks of kind action and churn alone."""
        window_us = self.task.within_days * MICROSECONDS_PER_DAY
        start_us = cutoff_us - window_us if self.task.churn else 0
        rows = np.flatnonzero(self.timelines.between(start_us, cutoff_us).lengths)
        window = self.timelines.between(cutoff_us, cutoff_us + window_us)
        if self.task.churn:
            return rows, window.lengths[rows] == 0
        assert self.task.action is not None
        wanted = window.actions == self.vocabulary.actions.index(self.task.action)
        came_true = np.bincount(window.user_rows[wanted], minlength=window.num_users) > 0
        return rows, came_true[rows]


def rfm(timelines: Timelines, cutoff_us: int) -> NDArray[np.float64]:
    """log1p of recency and tenure in days, active days and money [U, 4]; users without events get nonsense."""
    history = timelines.before(cutoff_us)
    users, days = history.user_rows, history.times_us // MICROSECONDS_PER_DAY
    starts_day = (np.diff(days, prepend=-1) != 0) | (np.diff(users, prepend=-1) != 0)
    known = history.lengths > 0
    ages = np.zeros((history.num_users, 2))
    for column, places in enumerate((history.offsets[1:] - 1, history.offsets[:-1])):
        ages[known, column] = (cutoff_us - history.times_us[places[known]]) / MICROSECONDS_PER_DAY
    frequency = np.bincount(users[starts_day], minlength=history.num_users)
    money = np.bincount(users, np.nan_to_num(history.values), minlength=history.num_users)
    return np.log1p(np.column_stack([ages[:, 0], frequency, np.maximum(money, 0), ages[:, 1]]))


def logistic(asked: Asked) -> dict[str, NDArray[np.float64]]:
    """Probabilities of the users of the test cutoff -> {"logistic": …, "logistic, calibrated": …}."""
    rows, labels, features = [], [], []
    for cutoff_us in asked.train_us:
        users, came_true = asked.labelled(cutoff_us)
        rows.append(users)
        labels.append(came_true)
        features.append(rfm(asked.timelines, cutoff_us)[users])
    model = _chosen(np.concatenate(features), np.concatenate(labels), np.concatenate(rows) % NUM_FOLDS)
    users, came_true = asked.labelled(asked.calibration_us)
    margins = model.decision_function(rfm(asked.timelines, asked.calibration_us)[users])
    calibrator = fit_calibrator(margins, came_true)
    users, _ = asked.labelled(asked.test_us)
    test = rfm(asked.timelines, asked.test_us)[users]
    return {
        "logistic": model.predict_proba(test)[:, 1],
        "logistic, calibrated": calibrator(model.decision_function(test)),
    }


def _chosen(x_NF: NDArray[np.float64], y_N: NDArray[np.bool_], folds_N: NDArray[np.int64]) -> Pipeline:
    def loss(penalty: float) -> float:
        of_fold = []
        for fold in range(NUM_FOLDS):
            held = folds_N == fold
            model = _model(penalty).fit(x_NF[~held], y_N[~held])
            of_fold.append(log_loss(y_N[held], model.predict_proba(x_NF[held])[:, 1]))
        return float(np.mean(of_fold))

    return _model(min(PENALTIES, key=loss)).fit(x_NF, y_N)


def _model(penalty: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000))


def bg_nbd(asked: Asked, python: Path, scratch: Path) -> dict[str, NDArray[np.float64]]:
    """Probabilities of the users of the test cutoff -> {"bg_nbd": …, "bg_nbd, calibrated": …, "bg_nbd, alive": …}."""
    scratch.mkdir(parents=True, exist_ok=True)
    # Its clock counts whole days up to the cutoff, as ours does: 24 hours back from it.
    offset_us = asked.test_us % MICROSECONDS_PER_DAY
    events = asked.timelines
    if asked.task.action is not None:
        events = events.keep(events.actions == asked.vocabulary.actions.index(asked.task.action))
    days = (events.times_us - offset_us) // MICROSECONDS_PER_DAY
    users = pl.Series(events.user_ids.to_pylist(), dtype=pl.String)
    table = pl.DataFrame({"user_id": users.gather(events.user_rows), "day": days}).unique()
    table.write_parquet(scratch / "days.parquet")
    cutoffs = [(cutoff - offset_us) // MICROSECONDS_PER_DAY for cutoff in (asked.calibration_us, asked.test_us)]
    answered = subprocess.run(
        [
            *(str(python), str(Path(__file__).with_name("scores_bgnbd.py"))),
            *(str(scratch / "days.parquet"), str(scratch / "answers.parquet")),
            *("--horizon", str(asked.task.within_days), "--cutoffs", *map(str, cutoffs)),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    json.loads(answered.stdout.splitlines()[-1])
    answers = pl.read_parquet(scratch / "answers.parquet")
    happens: dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    labels: dict[int, NDArray[np.bool_]] = {}
    for cutoff_us, day in zip((asked.calibration_us, asked.test_us), cutoffs, strict=True):
        rows, labels[cutoff_us] = asked.labelled(cutoff_us)
        of_users = pl.DataFrame({"user_id": users.gather(rows)}).join(
            answers.filter(pl.col("cutoff") == day), on="user_id", how="left", maintain_order="left"
        )
        of_users = of_users.with_columns(pl.col("p_active", "p_alive").fill_null(strategy="min"))
        active, alive = of_users["p_active"].to_numpy(), of_users["p_alive"].to_numpy()
        happens[cutoff_us] = (1 - active, 1 - alive) if asked.task.churn else (active, alive)
    calibrator = fit_calibrator(_margins(happens[asked.calibration_us][0]), labels[asked.calibration_us])
    active, alive = happens[asked.test_us]
    return {"bg_nbd": active, "bg_nbd, calibrated": calibrator(_margins(active)), "bg_nbd, alive": alive}


def _margins(probabilities_U: NDArray[np.float64]) -> NDArray[np.float64]:
    margins: NDArray[np.float64] = logit(np.clip(probabilities_U, 1e-7, 1 - 1e-7))
    return margins
