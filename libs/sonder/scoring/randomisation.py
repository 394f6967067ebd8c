"""Was the treatment drawn at random? Sample ratio, and whether anything known before it tells the arms apart.

Shapes: N users, F features known before the treatment.
ratio     chi-square of the arms' sizes against the declared share; p below RATIO_REFUSED is a broken assignment or a
          broken log, p below RATIO_DOUBTFUL a warning (Fabijan et al., Diagnosing sample ratio mismatch, KDD 2019)
balance   AUC of small trees that guess the arm from the features, each user by trees of the other half; under a
          random draw it is 0.5 with a known error (Mann & Whitney), and the largest standardised mean difference of a
          column is as large as chance makes the largest of F
A refusal needs an imbalance that is both beyond chance and large enough to matter; beyond chance alone is a warning.
Limits: an imbalance in what the log does not hold is not seen; neither is treatment that did not reach its users.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray
from scipy.stats import chisquare, norm
from sklearn.metrics import roc_auc_score

RATIO_REFUSED, RATIO_DOUBTFUL = 0.001, 0.01
ERRORS_REFUSED, ERRORS_DOUBTFUL = 4.0, 3.0  # standard errors of the AUC above 0.5
AUC_THAT_MATTERS = 0.53
DIFFERENCE_THAT_MATTERS = 0.25  # standardised: Rubin's limit for comparing arms at all
CHANCE = 0.001  # of one column of all beyond the bound, if the draw was random
_ROUNDS = 30

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Randomisation:
    """What was found; `refusals` are reasons not to believe any effect, `warnings` reasons to look."""

    num_treated: int
    num_control: int
    share: float  # declared
    ratio_p_value: float
    auc: float  # of guessing the arm
    auc_error: float  # standard error under a random draw
    largest_difference: float  # standardised, of any column
    largest_column: str
    difference_bound: float  # what chance alone stays below
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_randomisation(
    features_NF: Features,
    treated_N: NDArray[np.bool_],
    *,
    share: float,
    columns: tuple[str, ...],
    seed: int,
    num_threads: int = 1,
) -> Randomisation:
    """Look at the arms before any outcome is read. Both arms must hold users; `columns` names the features."""
    num_treated = int(treated_N.sum())
    num_control = len(treated_N) - num_treated
    if not num_treated or not num_control:
        raise ValueError(f"{num_treated} treated and {num_control} controls: both arms are needed")
    expected = len(treated_N) * np.array([share, 1 - share])
    p_value = float(chisquare([num_treated, num_control], expected).pvalue)
    auc = _arm_auc(features_NF, treated_N, seed, num_threads)
    auc_error = float(np.sqrt((len(treated_N) + 1) / (12 * num_treated * num_control)))
    differences = np.abs(standardised_differences(features_NF, treated_N))
    largest = int(np.argmax(differences))
    tail = norm.isf(CHANCE / (2 * max(len(differences), 1)))
    bound = float(tail * np.sqrt(1 / num_treated + 1 / num_control))
    found = Randomisation(
        num_treated, num_control, share, p_value, auc, auc_error, float(differences[largest]), columns[largest],
        bound, (), (),
    )  # fmt: skip
    refusals, warnings = _judge(found)
    return Randomisation(**(asdict(found) | {"refusals": refusals, "warnings": warnings}))


def standardised_differences(features_NF: Features, treated_N: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(mean of the treated - mean of the controls) / pooled deviation of each column [F], missing values left out."""
    sizes, means, variances = [], [], []
    for arm in (treated_N, ~treated_N):
        values = features_NF[arm].astype(np.float64)
        known = ~np.isnan(values)
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, values, 0).sum(axis=0) / count
        sizes.append(known.sum(axis=0))
        means.append(mean)
        variances.append((np.where(known, values - mean, 0) ** 2).sum(axis=0) / count)
    deviation = np.sqrt((variances[0] + variances[1]) / 2)
    is_comparable = (deviation > 0) & (sizes[0] > 1) & (sizes[1] > 1)
    # A column that few users have differs more by chance: it counts by the share of users that have it.
    weight = np.sqrt(np.minimum(sizes[0] / max(treated_N.sum(), 1), sizes[1] / max((~treated_N).sum(), 1)))
    return np.where(is_comparable, weight * (means[0] - means[1]) / np.where(is_comparable, deviation, 1), 0.0)


def _judge(found: Randomisation) -> tuple[tuple[str, ...], tuple[str, ...]]:
    refusals: list[str] = []
    warnings: list[str] = []
    ratio = (
        f"{found.num_treated:,} treated and {found.num_control:,} controls where a share of {found.share:g} was "
        f"declared (chi-square p = {found.ratio_p_value:.2g})"
    )
    if found.ratio_p_value < RATIO_DOUBTFUL:
        (refusals if found.ratio_p_value < RATIO_REFUSED else warnings).append(ratio)
    errors = (found.auc - 0.5) / found.auc_error
    guess = f"what was known before tells the arms apart: AUC {found.auc:.3f} ({errors:.1f} standard errors above 0.5)"
    if errors > ERRORS_DOUBTFUL:
        (refusals if errors > ERRORS_REFUSED and found.auc > AUC_THAT_MATTERS else warnings).append(guess)
    column = (
        f"{found.largest_column} differs by {found.largest_difference:.2f} standard deviations between the arms "
        f"(chance stays below {found.difference_bound:.2f})"
    )
    if found.largest_difference > found.difference_bound:
        (refusals if found.largest_difference > DIFFERENCE_THAT_MATTERS else warnings).append(column)
    return tuple(refusals), tuple(warnings)


def _arm_auc(features_NF: Features, treated_N: NDArray[np.bool_], seed: int, num_threads: int) -> float:
    """Each half's arms guessed by trees of the other half; the mean of the two AUCs."""
    half_N = np.empty(len(treated_N), dtype=np.int64)
    draw = np.random.default_rng(seed)
    for arm in (treated_N, ~treated_N):
        half_N[arm] = draw.permutation(int(arm.sum())) % 2
    parameters = {
        "objective": "binary:logistic", "tree_method": "hist", "eta": 0.1, "max_depth": 3, "min_child_weight": 5,
        "seed": seed, "nthread": num_threads,
    }  # fmt: skip
    aucs = []
    for half in (0, 1):
        inside, outside = half_N != half, half_N == half
        if len(np.unique(treated_N[inside])) < 2 or len(np.unique(treated_N[outside])) < 2:
            return 0.5
        matrix = xgboost.DMatrix(features_NF[inside], treated_N[inside].astype(np.float32))
        booster = xgboost.train(parameters, matrix, num_boost_round=_ROUNDS, verbose_eval=False)
        aucs.append(roc_auc_score(treated_N[outside], booster.inplace_predict(features_NF[outside])))
    return float(np.mean(aucs))
