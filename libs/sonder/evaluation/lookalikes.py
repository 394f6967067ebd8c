"""How good an audience grown from seeds is, told by seeds that it did not see.

Shapes: S seeds, U others (everybody else, or a draw of them), N the size of an audience.
Protocol: seeds and others are dealt to five folds. For each fold a lookalike is fitted on the four others (choice of
bandwidth, strength and weight included); it then ranks the fold's seeds among the fold's others. The numbers are
means over the folds, with the standard error between them.
An audience of share q of everybody holds the best q of a fold's users.
recall         share of held-out seeds in it
lift           recall over q: how many times as many as a random audience of that size
precision      hits over the size, counting no one but seeds as a member: what is certain. Members whom no list names
               are misses here, so the true precision is higher. `precision_at_most` is lift times the largest share of
               members that the lifts, two standard errors low, leave room for: a lift is at most 1 / share.
Limits: with 50 seeds a fold holds out ten; read the standard error. Seeds drawn unfairly say nothing of others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from sonder.segments.lookalike import NUM_FOLDS, People, auc, deal_folds, fit_lookalike

SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
PROTOCOL = (
    "five folds: each fifth of the seeds is ranked among a fifth of the other users by a lookalike fitted on the rest; "
    "only seeds count as members"
)
_LEAST_HELD_OUT = 10  # seeds in a slice of the ranking before it may bound the share of members


@dataclass(frozen=True)
class RankingQuality:
    """One ranking against the truth, at audiences of given sizes."""

    average_precision: float
    auc: float
    precision: NDArray[np.float64]  # [sizes]
    recall: NDArray[np.float64]
    lift: NDArray[np.float64]


@dataclass(frozen=True)
class ReachPoint:
    """What is to be expected of an audience of one size."""

    share: float  # of everybody who can be ranked
    recall: float
    recall_error: float  # standard error over the folds
    lift: float
    precision: float
    precision_error: float
    precision_at_most: float


@dataclass(frozen=True)
class HeldOut:
    """The held-out quality of a lookalike, and the reach curve."""

    num_seeds: int
    auc: float
    auc_error: float
    average_precision: float
    average_precision_at_random: float  # the share of seeds among the ranked
    points: tuple[ReachPoint, ...]
    protocol: str = PROTOCOL

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def rank_quality(scores_N: NDArray[Any], is_member_N: NDArray[np.bool_], sizes: Sequence[float]) -> RankingQuality:
    """Rank by falling score; ties share their places, so a constant score is worth what a random one is."""
    if is_member_N.all() or not is_member_N.any():
        raise ValueError(f"all {len(is_member_N)} users are {'members' if is_member_N.any() else 'others'}")
    hits = hits_at(scores_N, is_member_N, sizes)
    num_members = int(is_member_N.sum())
    at = np.asarray(sizes, dtype=np.float64)
    return RankingQuality(
        average_precision=float(average_precision_score(is_member_N, scores_N)),
        auc=auc(scores_N[is_member_N], scores_N[~is_member_N]),
        precision=hits / at,
        recall=hits / num_members,
        lift=hits / num_members * len(is_member_N) / at,
    )


def hits_at(scores_N: NDArray[Any], is_member_N: NDArray[np.bool_], sizes: Sequence[float]) -> NDArray[np.float64]:
    """Members among the best of each size; a size that cuts through ties gets its share of their members."""
    values, groups = np.unique(-scores_N, return_inverse=True)
    num = np.cumsum(np.bincount(groups, minlength=len(values)))
    members = np.cumsum(np.bincount(groups, is_member_N.astype(np.float64), minlength=len(values)))
    hits: NDArray[np.float64] = np.interp(
        np.asarray(sizes, dtype=np.float64), np.append(0, num), np.append(0.0, members)
    )
    return hits


def evaluate_held_out(
    seeds: People, others: People, *, num_others: int | None = None, shares: Sequence[float] = SHARES, seed: int = 7
) -> HeldOut:
    """Measure the lookalike of these seeds by the module's protocol. Needs 2 seeds a fold at least.

    `num_others`: how many there are where `others` are a draw of them; precision is then that among all of them.
    """
    draw = np.random.default_rng(seed)
    folds_S, folds_U = deal_folds(seeds.num, draw), deal_folds(others.num, draw)
    shares = tuple(sorted(set(shares)))
    found = []
    for fold in range(NUM_FOLDS):
        fitted = fit_lookalike(
            seeds.take(np.flatnonzero(folds_S != fold)), others.take(np.flatnonzero(folds_U != fold)), seed=seed
        )
        of_seeds = fitted.log_ratio(seeds.take(np.flatnonzero(folds_S == fold)))
        of_others = fitted.log_ratio(others.take(np.flatnonzero(folds_U == fold)))
        scores = np.concatenate([of_seeds, of_others])
        is_seed = np.arange(len(scores)) < len(of_seeds)
        found.append(rank_quality(scores, is_seed, [max(1.0, share * len(scores)) for share in shares]))
    thinning = (seeds.num + others.num) / (seeds.num + (num_others or others.num))
    return _summary(found, shares, seeds.num, others.num, thinning)


def _summary(
    found: Sequence[RankingQuality], shares: Sequence[float], num_seeds: int, num_others: int, thinning: float
) -> HeldOut:
    recalls, precisions = (np.stack([getattr(q, name) for q in found]) for name in ("recall", "precision"))
    precisions = precisions * thinning  # among a draw of the others, seeds are more common than among all of them
    lifts = np.stack([quality.lift for quality in found]).mean(axis=0)
    recall, precision = recalls.mean(axis=0), precisions.mean(axis=0)
    errors = recalls.std(axis=0, ddof=1) / np.sqrt(len(recalls))
    sure_lifts = lifts * np.maximum(0, 1 - 2 * errors / np.maximum(recall, 1e-9))
    at_most = np.minimum(1.0, lifts * largest_share(recall * num_seeds, sure_lifts))
    points = tuple(
        ReachPoint(
            share=float(share),
            recall=float(recall[place]),
            recall_error=_error(recalls[:, place]),
            lift=float(lifts[place]),
            precision=float(precision[place]),
            precision_error=_error(precisions[:, place]),
            precision_at_most=float(max(at_most[place], precision[place])),
        )
        for place, share in enumerate(shares)
    )
    aucs = np.array([quality.auc for quality in found])
    return HeldOut(
        num_seeds=num_seeds,
        auc=float(aucs.mean()),
        auc_error=_error(aucs),
        average_precision=float(np.mean([quality.average_precision for quality in found])),
        average_precision_at_random=num_seeds / (num_seeds + num_others),
        points=points,
    )


def largest_share(num_hits: NDArray[np.float64], lifts: NDArray[np.float64]) -> float:
    """The largest share of members among everybody that no lift contradicts: precision = lift x share stays below 1."""
    is_sure = num_hits >= _LEAST_HELD_OUT
    return float(1 / max(1.0, lifts[is_sure].max(initial=1.0)))


def _error(values_K: NDArray[np.float64]) -> float:
    return float(values_K.std(ddof=1) / np.sqrt(len(values_K)))
