"""Four numbers of a score and how sure the difference between two scores is, for benchmarks.

auc, pr_auc   as in sonder.evaluation.classification
log_loss      nats; a probability is kept 1e-7 away from 0 and 1, so that one impossible answer does not decide
top_lift      share of positives among the tenth with the highest scores, over the base rate; equal scores at the edge
              of the tenth count with their mean label, so the order of the users changes nothing
Intervals: a bootstrap over users, both scores on the same draw (paired), 2.5 and 97.5 % quantiles of the difference.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

METRICS = ("auc", "pr_auc", "log_loss", "top_lift")
LESS_IS_BETTER = ("log_loss",)
NUM_DRAWS = 500
TOP_SHARE = 0.1


def measure(labels_U: NDArray[np.bool_], scores_U: NDArray[np.float64]) -> dict[str, float]:
    """All METRICS of probabilities on users with both labels among them."""
    likely = np.where(labels_U, scores_U, 1 - scores_U)
    return {
        "auc": float(roc_auc_score(labels_U, scores_U)),
        "pr_auc": float(average_precision_score(labels_U, scores_U)),
        "log_loss": float(-np.log(np.clip(likely, 1e-7, None)).mean()),
        "top_lift": top_lift(labels_U, scores_U),
    }


def top_lift(labels_U: NDArray[np.bool_], scores_U: NDArray[np.float64]) -> float:
    num_top = max(int(len(labels_U) * TOP_SHARE), 1)
    edge = np.partition(scores_U, -num_top)[-num_top]
    above, at_edge = scores_U > edge, scores_U == edge
    found = labels_U[above].sum() + (num_top - above.sum()) * labels_U[at_edge].mean()
    return float(found / num_top / labels_U.mean())


def paired_differences(
    labels_U: NDArray[np.bool_],
    ours_U: NDArray[np.float64],
    theirs_U: NDArray[np.float64],
    *,
    measure: Callable[[NDArray[np.bool_], NDArray[np.float64]], dict[str, float]] = measure,
    seed: int = 7,
) -> dict[str, tuple[float, float, float]]:
    """ours - theirs of each metric -> (on all users, lower, upper end of the interval)."""
    rng = np.random.default_rng(seed)
    ours, theirs = measure(labels_U, ours_U), measure(labels_U, theirs_U)
    draws = []
    for _ in range(NUM_DRAWS):
        users = rng.integers(len(labels_U), size=len(labels_U))
        mine, other = measure(labels_U[users], ours_U[users]), measure(labels_U[users], theirs_U[users])
        draws.append([mine[name] - other[name] for name in METRICS])
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return {
        name: (ours[name] - theirs[name], float(low[place]), float(high[place])) for place, name in enumerate(METRICS)
    }


def verdict(name: str, difference: tuple[float, float, float]) -> str:
    """wins, loses, or even when the interval holds 0."""
    sign = -1 if name in LESS_IS_BETTER else 1
    low, high = sorted((sign * difference[1], sign * difference[2]))
    return "wins" if low > 0 else "loses" if high < 0 else "even"
