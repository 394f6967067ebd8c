"""How many clusters: as many as come back when the users are drawn again, beyond what any cloud of that shape gives.

For each candidate k and repeat the users of a sample are dealt into three parts. Two parts are clustered apart, both
results assign the third, and their agreement there is the stability (adjusted Rand index, mean over the repeats).

Small k are stable for a trivial reason: any stretched cloud is cut in two at the same place every time. So the same is
done with drawn vectors that have the mean and the covariance of the users' and no groups, and what counts is the gain:
stability of the users less that of the cloud, whose curve is first made to fall with k, as it does but for noise.

The rule: the largest k whose gain is within one standard error of the best gain, and whose own stability is within one
of that one's (a lucky draw of the cloud makes no groups). If no gain is above its own standard error the users are a
continuum without groups: then the largest k that comes back at least FAIR of the way, so that the
clusters are at least the same ones tomorrow; the smallest candidate if even that fails. `reason` says which it was.

A retrain keeps its parent's number while that still holds: the same rule, but with CLEARLY standard errors where a new
number has one (in a continuum, FAIR less as many), so that a number on the edge does not come and go.

Shapes: S users of a sample, D width.
Source: Ben-Hur, Elisseeff & Guyon 2002 (stability), Tibshirani & Walther 2005 (prediction strength on a third part),
Tibshirani et al. 2001 (a reference without structure, one standard error).
Limits: PART_USERS users a part; a group of fewer than some twenty of these users cannot be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import isotonic_regression

from sonder.segments.cluster_matching import adjusted_rand_index, contingency
from sonder.segments.clusters import assign, fit_sample, with_vector

CANDIDATES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 24)
REPEATS = 5
PART_USERS = 1_500
LEAST_USERS_A_CLUSTER = 10  # of a part, on average
FAIR = 0.6
CLEARLY = 2.0  # standard errors
STABLE, CONTINUUM, TOO_FEW, OF_PARENT = "stable", "continuum", "too_few_users", "parent"
_RESTARTS, _STEPS = 3, 10  # of one fit: enough to tell ks apart
_USERS_KEY, _CLOUD_KEY = 1, 2


@dataclass(frozen=True)
class CandidateStability:
    """One k: agreement of two halves on a third part, of the users and of a cloud without groups."""

    num_clusters: int
    stability: float  # adjusted Rand index, mean over the repeats
    reference: float  # the same of the cloud
    gain: float  # stability - reference
    stability_error: float  # standard error of the stability
    gain_error: float  # standard error of the gain


@dataclass(frozen=True)
class StabilityChoice:
    """The number of clusters and why."""

    num_clusters: int  # 0 if there are too few users
    reason: str  # STABLE, CONTINUUM, TOO_FEW or OF_PARENT
    curve: tuple[CandidateStability, ...]
    sample_users: int
    repeats: int

    @property
    def stability(self) -> float | None:
        """Of the number chosen."""
        return next((entry.stability for entry in self.curve if entry.num_clusters == self.num_clusters), None)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose_num_clusters(
    sample_SD: NDArray[np.float32], *, seed: int, candidates: Sequence[int] = CANDIDATES
) -> StabilityChoice:
    """Choose among the candidates from the users of the sample who have a vector; one candidate is only measured."""
    users_SD = with_vector(sample_SD)[: 3 * PART_USERS]
    possible = [k for k in candidates if k * LEAST_USERS_A_CLUSTER <= len(users_SD) // 3]
    if not possible:
        return StabilityChoice(0, TOO_FEW, (), len(users_SD), REPEATS)
    cloud_SD = _cloud_like(users_SD, np.random.default_rng([seed, _CLOUD_KEY]))
    own_KR = np.array([_agreements(users_SD, k, [seed, _USERS_KEY]) for k in possible])
    cloud_KR = np.array([_agreements(cloud_SD, k, [seed, _CLOUD_KEY]) for k in possible])
    falling_K = isotonic_regression(cloud_KR.mean(axis=1), increasing=False)
    curve = [_candidate(k, own_KR[i], cloud_KR[i], float(falling_K[i])) for i, k in enumerate(possible)]
    num_clusters, reason = choose_from(curve)
    return StabilityChoice(num_clusters, reason, tuple(curve), len(users_SD), REPEATS)


def choose_from(curve: Sequence[CandidateStability]) -> tuple[int, str]:
    """The rule on a measured curve -> number of clusters, reason."""
    best = max(curve, key=lambda entry: entry.gain)
    if best.gain > best.gain_error:
        least_gain, least = best.gain - best.gain_error, best.stability - best.stability_error
        return max(e.num_clusters for e in curve if e.gain >= least_gain and e.stability >= least), STABLE
    fair = [entry.num_clusters for entry in curve if entry.stability >= FAIR]
    return max(fair, default=min(entry.num_clusters for entry in curve)), CONTINUUM


def number_after(choice: StabilityChoice, num_parent: int) -> StabilityChoice:
    """The choice of a retrain: its parent's number if that was a candidate and still holds."""
    of_parent = next((entry for entry in choice.curve if entry.num_clusters == num_parent), None)
    if of_parent is None or num_parent == choice.num_clusters or not _still_holds(of_parent, choice.curve):
        return choice
    return replace(choice, num_clusters=num_parent, reason=OF_PARENT)


def _still_holds(entry: CandidateStability, curve: Sequence[CandidateStability]) -> bool:
    best = max(curve, key=lambda candidate: candidate.gain)
    if best.gain > best.gain_error:
        has_gain = entry.gain >= best.gain - CLEARLY * best.gain_error
        return has_gain and entry.stability >= best.stability - CLEARLY * best.stability_error
    return entry.stability >= FAIR - CLEARLY * entry.stability_error


def _candidate(
    k: int, own_R: NDArray[np.float64], cloud_R: NDArray[np.float64], reference: float
) -> CandidateStability:
    variance, of_cloud = own_R.var(ddof=1) / len(own_R), cloud_R.var(ddof=1) / len(cloud_R)
    stability = float(own_R.mean())
    errors = float(np.sqrt(variance)), float(np.sqrt(variance + of_cloud))
    return CandidateStability(k, stability, reference, stability - reference, *errors)


def _agreements(vectors_SD: NDArray[np.float32], k: int, key: Sequence[int]) -> NDArray[np.float64]:
    """Adjusted Rand index on the third part [REPEATS]; every k sees the same parts."""
    part = len(vectors_SD) // 3
    found = np.empty(REPEATS)
    for repeat in range(REPEATS):
        order = np.random.default_rng([*key, repeat]).permutation(len(vectors_SD))
        third_SD = vectors_SD[order[2 * part : 3 * part]]
        rows = []
        for half in range(2):
            half_SD = vectors_SD[order[half * part : (half + 1) * part]]
            centroids_KD, _ = fit_sample(half_SD, k, seed=2 * repeat + half, restarts=_RESTARTS, max_steps=_STEPS)
            rows.append(assign(third_SD, centroids_KD).rows)
        found[repeat] = adjusted_rand_index(contingency(rows[0], rows[1], (k, k)))
    return found


def _cloud_like(vectors_SD: NDArray[np.float32], draw: np.random.Generator) -> NDArray[np.float32]:
    """As many unit vectors from one Gaussian of the same mean and covariance."""
    exact_SD = vectors_SD.astype(np.float64)
    mean_D = exact_SD.mean(axis=0)
    values_D, directions_DD = np.linalg.eigh(np.cov(exact_SD, rowvar=False))
    scales_D = np.sqrt(np.maximum(values_D, 0.0))
    cloud_SD = mean_D + (draw.standard_normal(exact_SD.shape) * scales_D) @ directions_DD.T
    unit_SD: NDArray[np.float32] = (cloud_SD / np.linalg.norm(cloud_SD, axis=1, keepdims=True)).astype(np.float32)
    return unit_SD
