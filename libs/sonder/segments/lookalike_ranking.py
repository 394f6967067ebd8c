"""The users most like the seeds out of very many: a coarse score of everybody, the exact one of who may be among them.

Shapes: N users, S seeds, C groups, K kernels or answers, R rows that are scored exactly, D width of the vectors, F
features, M = D + F.
Coarse: the seeds, and the background users, are gathered into C groups each by k-means; one kernel at the mean of a
group stands for all of it, with its weight. (By Jensen's inequality that is a lower bound of the group's density, near
it where the group is narrow against the kernel.)
The classifier is exact in both. `POOL` times K of the users, MIN_EXACT at least, are then scored exactly, so what an
answer says of a user is what `Lookalike.similarity` says; only who is looked at can be missed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from sonder.segments.lookalike import Lookalike, People
from sonder.segments.seed_density import SeedDensity, Sphere

NUM_GROUPS = 256
POOL = 8
MIN_EXACT = 1 << 17
_CHUNK = 1_024  # users scored together: their cosines, 2 MB, stay in the processor's cache
_SEED = 7

Matrix = NDArray[np.float32]
Scores = NDArray[np.float64]


def most_alike(
    fitted: Lookalike, people: People, is_out_N: NDArray[np.bool_], num: int
) -> tuple[NDArray[np.int64], Scores]:
    """The `num` people most like the seeds who are not out, best first -> their rows [K] and similarities [K]."""
    rows = np.flatnonzero(~is_out_N)
    num_exact = max(POOL * num, MIN_EXACT)
    if len(rows) > num_exact:
        density = CoarseDensity.of(fitted.density)

        def score(part: People) -> Scores:
            near = density.score(part.vectors_ND, part.features_NF)
            return fitted.combination(near, fitted.classifier.score(part.columns))

        scores_N = np.concatenate([score(part) for part in people.parts()])
        rows = np.sort(rows[np.argpartition(-scores_N[rows], num_exact)[:num_exact]])
    similarity_R = np.concatenate([fitted.similarity(part) for part in people.take(rows).parts()])
    best = np.argsort(-similarity_R, kind="stable")[:num]
    return rows[best], similarity_R[best]


@dataclass(frozen=True)
class CoarseDensity:
    """A seed density of few kernels."""

    sphere: Sphere
    kernels_KM: torch.Tensor  # of the seeds, then of the background, times the concentration: [2C, M]
    log_weights_K: torch.Tensor
    num_of_seeds: int

    @classmethod
    def of(cls, density: SeedDensity) -> CoarseDensity:
        """Gather the kernels of a fitted density."""
        seeds, background = _gathered(density.seeds_SM), _gathered(density.background_BM)
        kernels = np.concatenate([seeds[0], background[0]]) * np.float32(density.concentration)
        log_weights = np.log(np.concatenate([seeds[1], background[1]])).astype(np.float32)
        return cls(density.sphere, torch.from_numpy(kernels), torch.from_numpy(log_weights), len(seeds[0]))

    def score(self, vectors_ND: Matrix, features_NF: Matrix) -> Scores:
        """Nearly the log density ratio of each user [N]."""
        scores = np.empty(len(vectors_ND))
        for start in range(0, len(vectors_ND), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            places = torch.from_numpy(self.sphere.place(vectors_ND[chunk], features_NF[chunk]))
            kernels = torch.addmm(self.log_weights_K, places, self.kernels_KM.T)
            near, around = kernels[:, : self.num_of_seeds], kernels[:, self.num_of_seeds :]
            scores[chunk] = (torch.logsumexp(near, dim=1) - torch.logsumexp(around, dim=1)).numpy()
        return scores


def _gathered(places_SM: Matrix) -> tuple[Matrix, NDArray[np.float64]]:
    """Means of groups of places, and the share of the places in each; of few different ones, all."""
    distinct, counts = np.unique(places_SM, axis=0, return_counts=True)
    shares = counts / len(places_SM)
    if len(distinct) <= NUM_GROUPS:
        return distinct, shares
    groups = KMeans(NUM_GROUPS, n_init=1, random_state=_SEED).fit(distinct, sample_weight=shares)
    held = np.bincount(groups.labels_, shares, minlength=NUM_GROUPS).astype(np.float64)
    return groups.cluster_centers_[held > 0].astype(np.float32), held[held > 0]
