"""One frozen vector per user, read by fixed small models on what the user does next: what a consumer gets from it.

Shapes: U users, D width, A users asked, K outputs, R resamples.
A probe fits one reader (probe_readers) on the training users of one question (probe_questions) and measures it on the
test users (probe_metrics). Beside the vector always stand what it has to beat and to add to:
none        a constant
rfm         recency, frequency, value
vector      the vector alone
vector_rfm  both: less rfm, that is what the vector adds
`score` of an encoder is the mean over the questions of its first metric, on one scale (2 auc - 1, spearman): 0 for a
constant, 1 for a perfect order. Two encoders: sonder.evaluation.probe_comparison.
Intervals: 95 %, a bootstrap over test users, all questions of a user together; differences on the same resamples.
Limits: intervals know of other users, not of another training of encoder or reader, nor of another month. Of two
encoders, compare several trainings before a small difference is believed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sonder.core.ids import unit_interval
from sonder.evaluation.probe_metrics import (
    Measure,
    macro_auc,
    nmae,
    normalised,
    poisson_deviance,
    spearman,
)
from sonder.evaluation.probe_questions import Question, Questions, describe
from sonder.evaluation.probe_readers import FOLDS, READERS, Answers, ReaderName, Task, calibrate_mean
from sonder.evaluation.resampling import NUM_RESAMPLES, Interval, percentile_interval, resampled_weights

Floats = NDArray[np.float64]
FeatureSet = Literal["none", "rfm", "vector", "vector_rfm"]
FEATURES: tuple[FeatureSet, ...] = ("none", "rfm", "vector", "vector_rfm")
HEADLINE: dict[str, str] = {"binary": "auc", "count": "spearman", "amount": "spearman"}
FOLD_KEY = "sonder/probes/fold/1/"


@dataclass(frozen=True)
class Measured:
    """A number, and the same of each resample of the test users."""

    value: float
    resampled_R: Floats
    users: int  # test users that it rests on

    @property
    def interval(self) -> Interval | None:
        return percentile_interval(self.resampled_R) if len(self.resampled_R) else None

    def less(self, other: Measured) -> Measured:
        """Paired: both were measured on the same resamples."""
        return Measured(self.value - other.value, self.resampled_R - other.resampled_R, self.users)

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value, "interval": self.interval, "users": self.users}


@dataclass(frozen=True)
class Probes:
    """What all readers made of one encoder's vectors."""

    questions: Questions
    readers: tuple[ReaderName, ...]
    found: Mapping[tuple[str, ReaderName, FeatureSet], Mapping[str, Measured]]  # by metric
    seed: int
    num_resamples: int

    def headline(self, question: Question, reader: ReaderName, features: FeatureSet) -> Measured:
        return self.found[question.name, reader, features][HEADLINE[question.kind]]

    def score(self, reader: ReaderName, features: FeatureSet) -> Measured | None:
        """Mean over the questions of the headline on one scale; None without questions."""
        parts = [
            (HEADLINE[question.kind], self.headline(question, reader, features)) for question in self.questions.asked
        ]
        if not parts:
            return None
        values = [float(normalised(name, np.array(part.value))) for name, part in parts]
        resampled_QR = np.stack([normalised(name, part.resampled_R) for name, part in parts])
        users = int(self.questions.is_test_U.sum())
        return Measured(float(np.mean(values)), resampled_QR.mean(axis=0), users)

    def metrics(self) -> dict[str, float]:
        """Flat: `probes.<reader>.<question>.<metric>` of the vector alone, and `probes.<reader>.score`."""
        flat: dict[str, float] = {}
        for (question, reader, features), measured in self.found.items():
            if features == "vector":
                flat |= {f"probes.{reader}.{question}.{name}": part.value for name, part in measured.items()}
        for reader in self.readers:
            score = self.score(reader, "vector")
            flat |= {} if score is None else {f"probes.{reader}.score": score.value}
        return flat

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: questions with every number and its interval, scores, refusals, flat metrics."""
        questions = self.questions
        return {
            "users": len(questions.user_ids),
            "users_test": int(questions.is_test_U.sum()),
            "questions": {
                question.name: describe(question, questions.is_test_U)
                | {"metric": HEADLINE[question.kind]}
                | {"readers": {reader: self._readings(question, reader) for reader in self.readers}}
                for question in questions.asked
            },
            "refused": dict(questions.refused),
            "score": {
                reader: {features: _told(self.score(reader, features)) for features in FEATURES}
                for reader in self.readers
            },
            "metrics": self.metrics(),
            "num_resamples": self.num_resamples,
        }

    def _readings(self, question: Question, reader: ReaderName) -> dict[str, Any]:
        told: dict[str, Any] = {
            features: {name: part.to_dict() for name, part in self.found[question.name, reader, features].items()}
            for features in FEATURES
        }
        both, alone = (self.found[question.name, reader, features] for features in ("vector_rfm", "rfm"))
        told["vector_adds"] = {name: both[name].less(alone[name]).to_dict() for name in both}
        return told


def run_probes(
    vectors_UD: NDArray[np.floating[Any]],
    questions: Questions,
    *,
    readers: Sequence[ReaderName] = ("linear", "network"),
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Probes:
    """Fit and measure every reader on every question; row u of `vectors` is of questions' user u, as of its cutoff."""
    if vectors_UD.ndim != 2 or len(vectors_UD) != len(questions.user_ids):
        raise ValueError(f"vectors {vectors_UD.shape}, expected one for each of {len(questions.user_ids)} users")
    if not np.isfinite(vectors_UD).all():
        raise ValueError("vectors hold values that are not finite")
    vectors = vectors_UD.astype(np.float64)
    inputs: dict[FeatureSet, Floats] = {
        "none": np.zeros((len(vectors), 0)),
        "rfm": questions.plain_UF,
        "vector": vectors,
        "vector_rfm": np.hstack([vectors, questions.plain_UF]),
    }
    folds_U = (unit_interval(questions.user_ids, FOLD_KEY) * FOLDS).astype(np.int64)
    num_test = int(questions.is_test_U.sum())
    weights_RT = np.stack(
        [np.ones(num_test), *resampled_weights(num_test, None, num_resamples=num_resamples, seed=seed)]
    )
    found = {
        (question.name, reader, features): _probe(
            question, questions, inputs[features], folds_U, weights_RT, reader, features, seed
        )
        for question in questions.asked
        for reader in readers
        for features in FEATURES
    }
    return Probes(questions, tuple(readers), found, seed, num_resamples)


def _probe(
    question: Question,
    questions: Questions,
    inputs_UD: Floats,
    folds_U: NDArray[np.int64],
    weights_RT: Floats,
    reader: ReaderName,
    features: FeatureSet,
    seed: int,
) -> dict[str, Measured]:
    """Every metric of one reader on one question; the first row of `weights` is the sample itself."""
    is_test_U = questions.is_test_U
    is_test_A = is_test_U[question.rows_A]
    learn, test = question.rows_A[~is_test_A], question.rows_A[is_test_A]
    labels_NK, came_TK = question.labels_AK[~is_test_A], question.labels_AK[is_test_A]
    scale = 1.0 if question.kind != "amount" else float(np.median(labels_NK[labels_NK > 0]))
    targets_NK = labels_NK if question.kind == "binary" else np.log1p(np.maximum(labels_NK, 0) / scale)
    if inputs_UD.shape[1]:
        num_plain = questions.plain_UF.shape[1] if features == "vector_rfm" else 0
        task = Task(
            inputs_UD[learn], targets_NK, inputs_UD[test], folds_U[learn], question.kind, num_plain=num_plain, seed=seed
        )
        answers = READERS[reader](task)
    else:
        answers = Answers(np.zeros(came_TK.shape), np.arange(len(learn)), np.zeros(labels_NK.shape))
    measures = _measures(question, answers, labels_NK, targets_NK, came_TK, scale)
    places = np.searchsorted(np.flatnonzero(is_test_U), test)
    found = {}
    for name, measure in measures.items():
        values_R = np.array([measure(weights_T[places]) for weights_T in weights_RT])
        found[name] = Measured(float(values_R[0]), values_R[1:], len(test))
    return found


def _measures(
    question: Question, answers: Answers, labels_NK: Floats, targets_NK: Floats, came_TK: Floats, scale: float
) -> dict[str, Measure]:
    if question.kind == "binary":
        return {"auc": macro_auc(came_TK, answers.test_TK)}
    scores_T, came_T = answers.test_TK[:, 0], came_TK[:, 0]
    measures = {"spearman": spearman(came_T, scores_T)}
    of_calibration, calibration = answers.calibration_C, answers.calibration_CK[:, 0]
    if question.kind == "count":
        mean_of = calibrate_mean(calibration, labels_NK[of_calibration, 0])
        return measures | {"poisson_deviance": poisson_deviance(came_T, mean_of(scores_T))}
    mean_of = calibrate_mean(calibration, targets_NK[of_calibration, 0])
    logs_T = np.log1p(np.maximum(came_T, 0) / scale)
    return measures | {"nmae": nmae(logs_T, mean_of(scores_T), float(targets_NK.mean()))}


def _told(measured: Measured | None) -> dict[str, Any] | None:
    return None if measured is None else measured.to_dict()
