"""What acting changes for each user, learnt from a randomised treatment: four learners, their mean, one calibration.

Shapes: N users, F features known before the treatment, e the share of users that was to be treated.
two_models           E[Y|x, treated] - E[Y|x, control], each from its own arm: the baseline (T-learner)
single_model         one model that also reads the arm, and every feature once more where treated (S-learner)
x_learner            each arm's outcomes less what the other arm's model expects, weighed by e (Künzel et al. 2019)
transformed_outcome  regression on Y (W - e) / (e (1 - e)), whose mean is the effect (Jaskowski & Jaroszewicz 2012 for
                     binary outcomes, Athey & Imbens 2016 for any)
r_learner            regression on residuals of outcome over residuals of treatment (Nie & Wager 2021)
The house's model is the mean of the last four; choosing one by cross-fitted Qini found less (docs/experiments.md).
Its predictions are then made honest in size: effect + slope * (mean of four - its mean), the best linear predictor of
the effect on folds that the learners were not fitted to (Chernozhukov et al. 2018), shrunk by how sure the slope is
(James & Stein). Where it is within a standard error of 0, everybody gets the average effect.
Limits: trees are small and stop early; they are trained in one process, on as many rows as fit into memory. The share
is one number for all users. Heavy tails of amounts are not cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray

from sonder.core.storage import Folder
from sonder.scoring.qini import Experiment, qini_coefficient

BASELINE = "two_models"
LEARNERS = ("single_model", "x_learner", "transformed_outcome", "r_learner")
HOUSE = "mean_of_four"
NUM_FOLDS = 3
MAX_ROUNDS, PATIENCE = 200, 10
MAX_SLOPE = 2.0
UPLIFT_FILE = "uplift.json"
_PARAMETERS: dict[str, Any] = {
    "tree_method": "hist",
    "eta": 0.05,
    "max_depth": 3,
    "subsample": 0.8,
    "colsample_bytree": 0.5,
}

Floats = NDArray[np.float64]
Features = NDArray[np.float32]


@dataclass(frozen=True)
class TreatedRows:
    """Users of the experiment with what was known of them before it."""

    features: Features  # [N, F]
    experiment: Experiment
    share: float  # e, in (0, 1)

    def take(self, rows: NDArray[np.int64]) -> TreatedRows:
        return TreatedRows(self.features[rows], self.experiment.take(rows), self.share)


@dataclass(frozen=True)
class Learner:
    """Fitted trees of one kind; predictions are in the unit of the outcome."""

    name: str
    boosters: tuple[xgboost.Booster, ...]
    share: float

    def predict(self, features_NF: Features) -> Floats:
        """Raw uplift of each user [N]."""
        if self.name == "single_model":
            treated, control = (_with_arm(features_NF, np.full(len(features_NF), arm)) for arm in (True, False))
            return _said(self.boosters[0], treated) - _said(self.boosters[0], control)
        said = [_said(booster, features_NF) for booster in self.boosters]
        if self.name == "two_models":
            return said[0] - said[1]
        if self.name == "x_learner":  # the smaller arm's model knows less, and its effect is read from the other
            return (1 - self.share) * said[0] + self.share * said[1]
        return said[0]


@dataclass(frozen=True)
class UpliftModel:
    """The mean of four learners, and the size of its predictions."""

    learners: tuple[Learner, ...]
    effect: float  # average over the training half
    mean: float  # of the raw predictions there
    slope: float  # 0: no difference between users was found
    cross_fitted: Mapping[str, float]  # Qini inside the training half of each learner, the baseline, the mean of four

    def predict(self, features_NF: Features) -> Floats:
        """Uplift of each user [N], in the unit of the outcome."""
        return self.effect + self.slope * (_mean_of(self.learners, features_NF) - self.mean)

    def save(self, folder: Folder) -> None:
        for learner in self.learners:
            for number, booster in enumerate(learner.boosters):
                (folder / f"{learner.name}.{number}.xgb.json").write_bytes(bytes(booster.save_raw("json")))
        content = {
            "learners": {learner.name: len(learner.boosters) for learner in self.learners},
            "share": self.learners[0].share,
            "effect": self.effect,
            "mean": self.mean,
            "slope": self.slope,
            "cross_fitted": dict(self.cross_fitted),
        }
        (folder / UPLIFT_FILE).write_json(content)

    @classmethod
    def load(cls, folder: Folder) -> UpliftModel:
        content = (folder / UPLIFT_FILE).read_json()
        learners = []
        for name in LEARNERS:  # their order decides the last bits of the mean
            files = [folder / f"{name}.{number}.xgb.json" for number in range(content["learners"][name])]
            boosters = tuple(xgboost.Booster(model_file=bytearray(file.read_bytes())) for file in files)
            learners.append(Learner(name, boosters, content["share"]))
        return cls(tuple(learners), content["effect"], content["mean"], content["slope"], content["cross_fitted"])


def fit_uplift(rows: TreatedRows, *, seed: int, num_threads: int = 1) -> UpliftModel:
    """Fit the four on all rows, and the size of their mean on folds that none of them was fitted to."""
    folds = _folds(rows.experiment, seed)
    predicted = {name: np.zeros(len(folds)) for name in (*LEARNERS, HOUSE, BASELINE)}
    qinis = dict.fromkeys(predicted, 0.0)
    for fold in range(NUM_FOLDS):
        inside, outside = rows.take(np.flatnonzero(folds != fold)), np.flatnonzero(folds == fold)
        for name in (*LEARNERS, BASELINE):
            learner = fit_learner(name, inside, seed=seed, num_threads=num_threads)
            predicted[name][outside] = learner.predict(rows.features[outside])
        predicted[HOUSE][outside] = np.mean([predicted[name][outside] for name in LEARNERS], axis=0)
        for name, uplift in predicted.items():
            qinis[name] += qini_coefficient(rows.experiment.take(outside), uplift[outside]) / NUM_FOLDS
    learners = tuple(fit_learner(name, rows, seed=seed, num_threads=num_threads) for name in LEARNERS)
    effect, slope = _best_linear(rows, predicted[HOUSE], folds)
    return UpliftModel(learners, effect, float(_mean_of(learners, rows.features).mean()), slope, qinis)


def fit_learner(name: str, rows: TreatedRows, *, seed: int, num_threads: int = 1) -> Learner:
    """One learner by its name; ValueError for another name."""
    features, treated, outcomes = rows.features, rows.experiment.treated, rows.experiment.outcomes
    boost = _Boosting(rows.experiment.is_binary, seed, num_threads)
    match name:
        case "two_models":
            boosters = tuple(boost.outcome(features[arm], outcomes[arm]) for arm in (treated, ~treated))
        case "single_model":
            boosters = (boost.outcome(_with_arm(features, treated), outcomes),)
        case "x_learner":
            with_treatment, without = (boost.outcome(features[arm], outcomes[arm]) for arm in (treated, ~treated))
            gained = outcomes[treated] - _said(without, features[treated])
            forgone = _said(with_treatment, features[~treated]) - outcomes[~treated]
            boosters = (boost.effect(features[treated], gained), boost.effect(features[~treated], forgone))
        case "transformed_outcome":
            boosters = (boost.effect(features, outcomes * (treated - rows.share) / (rows.share * (1 - rows.share))),)
        case "r_learner":
            residuals = outcomes - boost.expected(features, outcomes)
            surprise = treated.astype(np.float64) - rows.share
            boosters = (boost.effect(features, residuals / surprise, surprise**2),)
        case _:
            raise ValueError(f"no learner {name!r}")
    return Learner(name, boosters, rows.share)


@dataclass(frozen=True)
class _Boosting:
    """Small trees that stop on a fifth of their rows."""

    is_binary: bool
    seed: int
    num_threads: int

    def outcome(self, features_NF: Features, outcomes_N: Floats) -> xgboost.Booster:
        """Expected outcome; a probability for binary ones."""
        objective = "binary:logistic" if self.is_binary and 0 < outcomes_N.mean() < 1 else "reg:squarederror"
        return self._boost(features_NF, outcomes_N, None, objective)

    def effect(self, features_NF: Features, targets_N: Floats, weights_N: Floats | None = None) -> xgboost.Booster:
        return self._boost(features_NF, targets_N, weights_N, "reg:squarederror")

    def expected(self, features_NF: Features, outcomes_N: Floats) -> Floats:
        """Expected outcome whatever the arm, each half of the rows from a model of the other half [N]."""
        is_first = np.random.default_rng(self.seed + 1).permutation(len(outcomes_N)) % 2 == 0
        expected = np.empty(len(outcomes_N))
        for half in (is_first, ~is_first):
            expected[half] = _said(self.outcome(features_NF[~half], outcomes_N[~half]), features_NF[half])
        return expected

    def _boost(
        self, features_NF: Features, targets_N: Floats, weights_N: Floats | None, objective: str
    ) -> xgboost.Booster:
        is_stop = np.random.default_rng(self.seed).permutation(len(targets_N)) % 5 == 0
        train, stop = (
            xgboost.DMatrix(features_NF[part], targets_N[part], weight=None if weights_N is None else weights_N[part])
            for part in (~is_stop, is_stop)
        )
        leaf = {"min_child_weight": max(5.0, len(targets_N) / 200)}
        booster = xgboost.train(
            _PARAMETERS | leaf | {"objective": objective, "seed": self.seed, "nthread": self.num_threads},
            train,
            num_boost_round=MAX_ROUNDS,
            evals=[(stop, "stop")],
            early_stopping_rounds=PATIENCE,
            verbose_eval=False,
        )
        return booster[: booster.best_iteration + 1]


def _best_linear(rows: TreatedRows, predicted_N: Floats, folds_N: NDArray[np.int64]) -> tuple[float, float]:
    """Least squares of the outcomes on the treatment and on treatment times prediction -> average effect, slope."""
    surprise = rows.experiment.treated - rows.share
    centred, outcomes = predicted_N.copy(), rows.experiment.outcomes.copy()
    for fold in range(NUM_FOLDS):  # each fold's model has its own level
        centred[folds_N == fold] -= centred[folds_N == fold].mean()
        outcomes[folds_N == fold] -= outcomes[folds_N == fold].mean()
    columns = np.column_stack([np.ones(len(surprise)), surprise, surprise * centred, centred])
    coefficients = np.linalg.lstsq(columns, outcomes, rcond=None)[0]
    errors = outcomes - columns @ coefficients
    inverse = np.linalg.pinv(columns.T @ columns)
    deviation = np.sqrt((inverse @ (columns.T * errors**2) @ columns @ inverse)[2, 2])  # White (1980)
    effect, slope = coefficients[1], coefficients[2]
    if slope <= deviation:
        return float(effect), 0.0
    return float(effect), float(min(slope * (1 - (deviation / slope) ** 2), MAX_SLOPE))


def _mean_of(learners: tuple[Learner, ...], features_NF: Features) -> Floats:
    return np.asarray(np.mean([learner.predict(features_NF) for learner in learners], axis=0))


def _folds(experiment: Experiment, seed: int) -> NDArray[np.int64]:
    """A fold of each user; each holds both arms in their proportion."""
    draw = np.random.default_rng(seed)
    folds = np.empty(len(experiment.treated), dtype=np.int64)
    for arm in (experiment.treated, ~experiment.treated):
        folds[arm] = draw.permutation(int(arm.sum())) % NUM_FOLDS
    return folds


def _with_arm(features_NF: Features, treated_N: NDArray[np.bool_]) -> Features:
    """The features, the arm, and the features once more where treated (missing elsewhere)."""
    where_treated = np.where(treated_N[:, None], features_NF, np.float32("nan"))
    return np.concatenate([features_NF, treated_N[:, None].astype(np.float32), where_treated], axis=1)


def _said(booster: xgboost.Booster, features_NF: Features) -> Floats:
    if not len(features_NF):
        return np.zeros(0)
    return np.asarray(booster.inplace_predict(features_NF), dtype=np.float64)
