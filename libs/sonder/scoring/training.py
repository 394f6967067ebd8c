"""Grow the trees of a task: its objective, early stopping on later time, a small search, and going on after a kill.

Objective: log loss for probabilities (all categories of next_category in one model, a tree each), Poisson for counts,
Tweedie (power 1.5: a mass at 0 and a skewed amount above it) for values. Classes are not reweighted, however rare:
that would move every probability away from the frequency it must equal, and the hessian already says how much a leaf
of rare positives knows (min_child_weight is in its units).
Search: the first `trials` of TRIALS, each stopped where its loss on `stop` rows (users of a later time, not calibrated
or tested on) fell in PATIENCE rounds by no more than LEAST_GAIN of all that it fell since the first; the least loss
wins, of equals the earlier. With millions of rows a loss falls by a millionth for hundreds of rounds
(benchmarks/scale_2026-11-30.md; how LEAST_GAIN was chosen: benchmarks/head-rounds_2026-11-30.md).
Missing values: while trees are grown one is MISSING, beyond all others ("never" beyond any "long ago"), and in the
trees that are kept it goes where MISSING went. xgboost's own way, a direction learnt at every split, takes 3.5 times as
long and 2 to 6 times the memory, for the same losses (benchmarks/missing-values_2026-11-30.md).
Going on: after every SAVE_EVERY rounds the trees and their losses so far are handed to `save`, and the run itself goes
on from the trees as they were saved: xgboost keeps the state of its column draws within a booster, so only runs that
all begin anew at the same rounds end with the same trees, interrupted or not.
Source: XGBoost (Chen & Guestrin, KDD 2016), histogram trees.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray

from sonder.core.errors import ConfigurationError
from sonder.core.score_config import ScoreTask
from sonder.scoring.specification import FeatureSpec

MAX_ROUNDS = 1_000
PATIENCE = 40
LEAST_GAIN = 0.003
SAVE_EVERY = 50
TWEEDIE_POWER = 1.5
MISSING = np.float32(1e30)

COMMON: dict[str, Any] = {"tree_method": "hist", "seed_per_iteration": True, "subsample": 0.8, "max_bin": 256}
# The house's settings first (chosen for a log of a thousand users, benchmarks/scores), then finer ones and a simpler.
TRIALS: tuple[dict[str, Any], ...] = (
    {"eta": 0.03, "max_depth": 3, "min_child_weight": 20, "colsample_bytree": 0.25, "reg_lambda": 5},
    {"eta": 0.05, "max_depth": 4, "min_child_weight": 5, "colsample_bytree": 0.5, "reg_lambda": 1},
    {"eta": 0.05, "max_depth": 6, "min_child_weight": 20, "colsample_bytree": 0.5, "reg_lambda": 5},
    {"eta": 0.05, "max_depth": 2, "min_child_weight": 20, "colsample_bytree": 0.25, "reg_lambda": 5},
)


@dataclass(frozen=True)
class Objective:
    name: str  # xgboost's
    metric: str  # xgboost's name of the loss that stops
    power: float  # of the Tweedie deviance of an amount; 1 where there is none

    def parameters(self) -> dict[str, Any]:
        tweedie = {"tweedie_variance_power": self.power} if self.name == "reg:tweedie" else {}
        return {"objective": self.name, "eval_metric": self.metric, **tweedie}


@dataclass(frozen=True)
class Progress:
    """Trees of one trial so far, and their loss on the stop rows after each round."""

    booster: xgboost.Booster | None
    losses: tuple[float, ...]

    @property
    def best_round(self) -> int:
        """Index of the round with the least loss so far, the earliest of equals."""
        return int(np.argmin(self.losses))

    @property
    def is_done(self) -> bool:
        """Whether the last PATIENCE rounds brought no more than LEAST_GAIN of the whole fall, or there are enough."""
        if len(self.losses) <= PATIENCE:
            return False
        best, before = min(self.losses), min(self.losses[:-PATIENCE])
        still_falls = before - best > LEAST_GAIN * (self.losses[0] - best)  # no loss that is NaN does
        return len(self.losses) >= MAX_ROUNDS or not still_falls


NOTHING_YET = Progress(None, ())


@dataclass(frozen=True)
class Trial:
    """One setting of the search and what became of it."""

    parameters: Mapping[str, Any]
    rounds: int
    loss: float

    def to_dict(self) -> dict[str, Any]:
        return {"parameters": dict(self.parameters), "rounds": self.rounds, "loss": self.loss}


def objective_of(task: ScoreTask) -> Objective:
    if task.is_probability:
        return Objective("binary:logistic", "logloss", 1.0)
    if task.kind == "count":
        return Objective("count:poisson", "poisson-nloglik", 1.0)
    return Objective("reg:tweedie", f"tweedie-nloglik@{TWEEDIE_POWER}", TWEEDIE_POWER)


def monotone_constraints(task: ScoreTask, spec: FeatureSpec) -> dict[str, str]:
    """xgboost's parameter for `task.monotone` (families of features -> direction); none for none."""
    families = list(dict.fromkeys(family for family, _ in spec.columns))
    for family in task.monotone:
        if family not in families:
            raise ConfigurationError(
                f"score {task.name!r} has a monotone family {family!r}, which this log's features have not",
                expected=f"one of: {', '.join(families)}",
            )
    signs = {family: {"increasing": 1, "decreasing": -1}[way] for family, way in task.monotone.items()}
    if not signs:
        return {}
    return {"monotone_constraints": "(" + ",".join(str(signs.get(family, 0)) for family, _ in spec.columns) + ")"}


def grow(
    train: xgboost.DMatrix,
    stop: xgboost.DMatrix,
    parameters: Mapping[str, Any],
    *,
    start: Progress = NOTHING_YET,
    save: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Boost until the loss on `stop` hardly falls any more (`Progress.is_done`), from `start` on."""
    booster = start.booster if start.booster is not None else xgboost.Booster(dict(parameters), [train, stop])
    booster.set_param(dict(parameters))
    losses = list(start.losses)
    while not Progress(booster, tuple(losses)).is_done:
        booster.update(train, len(losses))
        losses.append(float(str(booster.eval(stop, "stop")).rsplit(":", 1)[1]))
        if len(losses) % SAVE_EVERY == 0:
            save(Progress(booster, tuple(losses)))
            booster = xgboost.Booster(dict(parameters), model_file=booster.save_raw("json"))
    return Progress(booster, tuple(losses))


def fill_missing(features_NF: NDArray[np.float32]) -> None:
    """MISSING in place of every NaN, in place."""
    features_NF[np.isnan(features_NF)] = MISSING


def best_trees(progress: Progress) -> xgboost.Booster:
    """The trees up to the round with the least loss, in which a missing value goes where MISSING went."""
    assert progress.booster is not None
    model = json.loads(progress.booster[: progress.best_round + 1].save_raw("json"))
    for tree in model["learner"]["gradient_booster"]["model"]["trees"]:
        tree["default_left"] = [0] * len(tree["default_left"])
    return xgboost.Booster(model_file=bytearray(json.dumps(model).encode()))


def choose(trials: Sequence[Trial]) -> int:
    """Place of the trial with the least loss, the earliest of equals."""
    return int(np.argmin([trial.loss for trial in trials]))
