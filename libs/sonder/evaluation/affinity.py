"""Does an affinity of 0.3 come true? Expected shares at the cutoff against the wanted actions that followed.

Shapes: U users, P shown (user, category) pairs, C categories of a level.
Protocol: everything is fitted before the cutoff and evidence ends there; what came true is the part of the user's
wanted actions of [cutoff, end) on items with a category of the level. Pairs count where the user has an event of its
own in the category before the cutoff (only those are shown) and a wanted action after it.
ece        mean |predicted - observed| over 15 bins of equally many pairs, weighted by pairs
brier      mean squared difference of the pairs
naive      the same for the undecayed share of all wanted actions so far, without prior, refusals or calibration
Limits: the first MAX_USERS users of the history, who are a random draw (buckets are by a digest of the id).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonder.evaluation.classification import CalibrationPoint, reliability_curve
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.interests.affinity import AffinityModel, Evidence, evidence_of, level_shares
from sonder.interests.affinity_fit import fit_affinity
from sonder.interests.taxonomy import Taxonomy

MAX_USERS = 50_000
FOREVER_DAYS = 1e9  # a half-life that decays nothing


@dataclass(frozen=True)
class AffinityQuality:
    """How one level of the tree came true."""

    level: int  # 1 is the top
    categories: int
    users: int
    pairs: int
    ece: float
    brier: float
    naive_ece: float
    naive_brier: float
    curve: tuple[CalibrationPoint, ...]  # `users` of a point are pairs

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> AffinityQuality:
        return cls(**{**content, "curve": tuple(CalibrationPoint(**point) for point in content["curve"])})


def evaluate_affinity(
    timelines: Timelines,
    vocabulary: Vocabulary,
    taxonomy: Taxonomy,
    *,
    cutoff_us: int,
    end_us: int,
    horizon_days: float,
) -> tuple[AffinityModel, list[AffinityQuality]]:
    """The model fitted before the cutoff, and its quality at each level that has pairs to measure on."""
    timelines = timelines.take(np.arange(min(timelines.num_users, MAX_USERS)))
    model = fit_affinity(timelines, vocabulary, taxonomy, as_of_us=cutoff_us, horizon_days=horizon_days)
    window = timelines.between(cutoff_us, end_us)
    window = window.keep(vocabulary.weight_of(window.actions) > 0)
    measured = [
        _level(timelines.before(cutoff_us), window, vocabulary, taxonomy, model, level, cutoff_us)
        for level in range(taxonomy.num_levels)
    ]
    return model, [quality for quality in measured if quality is not None]


def affinity_metrics(qualities: Sequence[AffinityQuality]) -> dict[str, float]:
    """`interests.affinity_{ece,brier,naive_ece,naive_brier}_level<n>`."""
    return {
        f"interests.affinity_{name}_level{quality.level}": getattr(quality, name)
        for quality in qualities
        for name in ("ece", "brier", "naive_ece", "naive_brier")
    }


def _level(
    past: Timelines,
    window: Timelines,
    vocabulary: Vocabulary,
    taxonomy: Taxonomy,
    model: AffinityModel,
    level: int,
    cutoff_us: int,
) -> AffinityQuality | None:
    codes_I, num_categories = taxonomy.codes_LI[level], len(taxonomy.names[level])
    decayed, plain = (
        evidence_of(past, vocabulary, codes_I, as_of_us=cutoff_us, half_life_days=days)
        for days in (model.half_life_days, FOREVER_DAYS)
    )
    came_P, has_actions_P = _came_true(decayed, window, codes_I, num_categories)
    if not has_actions_P.any():
        return None
    came = came_P[has_actions_P]
    shares = level_shares(decayed, model.levels[level])[has_actions_P]
    totals_U = np.bincount(plain.users, plain.wanted, minlength=past.num_users)
    naive = (plain.wanted / np.maximum(totals_U[plain.users], 1e-12))[has_actions_P]
    curve = reliability_curve(came, shares)
    return AffinityQuality(
        level=level + 1,
        categories=num_categories,
        users=len(np.unique(decayed.users[has_actions_P])),
        pairs=len(came),
        ece=_ece(curve),
        brier=float(np.mean((shares - came) ** 2)),
        naive_ece=_ece(reliability_curve(came, naive)),
        naive_brier=float(np.mean((naive - came) ** 2)),
        curve=curve,
    )


def _came_true(
    evidence: Evidence, window: Timelines, codes_I: NDArray[np.int32], num_categories: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Part of the user's wanted actions of the window in each pair's category [P], and whether it has any [P]."""
    codes_N = np.append(codes_I, np.int32(-1))[window.items].astype(np.int64)
    users, codes = window.user_rows[codes_N >= 0], codes_N[codes_N >= 0]
    totals_U = np.bincount(users, minlength=window.num_users)
    keys, counts = np.unique(users * num_categories + codes, return_counts=True)
    keys, counts = np.append(keys, -1), np.append(counts, 0)  # what is not found reads the last
    asked = evidence.users * num_categories + evidence.categories
    places = np.minimum(np.searchsorted(keys[:-1], asked), len(keys) - 1)
    found = np.where(keys[places] == asked, counts[places], 0)
    came: NDArray[np.float64] = found / np.maximum(totals_U[evidence.users], 1)
    return came, totals_U[evidence.users] > 0


def _ece(curve: Sequence[CalibrationPoint]) -> float:
    pairs = sum(point.users for point in curve)
    return float(sum(point.users * abs(point.predicted - point.observed) for point in curve) / pairs)
