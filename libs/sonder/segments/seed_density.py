"""How dense seeds are around a user, relative to everybody: a kernel density ratio on a sphere of vectors and features.

Shapes: N users, S seeds, B background users, D width of the vectors, F features, M = D + F.
A user's place: the vector, centred on everybody, and the features, standardised, each made a unit vector, joined so
that the cosine of two places is share * (cosine of the vectors) + (1 - share) * (cosine of the features).
Score of x: log mean_s exp(k cos(x, s)) - log mean_b exp(k cos(x, b)), von Mises-Fisher kernels (Hall, Watson & Cabrera,
Biometrika 1987) of one concentration k, whose normaliser cancels in the ratio.
Share and concentration are those under which held-out seeds are likeliest: each seed, scored by the other seeds, is to
be picked out of the background by its ratio (`picking_log_likelihood`).
A user is never evidence about itself: one background kernel at the user's own place is left out of its mean.
Limits: cost grows with N x (S + B) x M; callers keep S and B at some thousands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
CONCENTRATIONS = (4.0, 8.0, 16.0, 32.0, 64.0)
_NUM_TRIED = 512  # seeds, and background users, on which share and concentration are chosen
_CHUNK = 512  # users scored together: their cosines, 4 MB, stay in the processor's cache
_SAME = 1.0 - 1e-5  # cosine of a float32 place with itself, whatever the rounding
_TINY = 1e-6

Matrix = NDArray[np.float32]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Sphere:
    """Where users stand: what centring and standardising need, and how much the vectors count."""

    vector_mean_D: Matrix
    feature_mean_F: Matrix
    feature_scale_F: Matrix
    share: float = 1.0

    @classmethod
    def around(cls, vectors_BD: Matrix, features_BF: Matrix) -> Sphere:
        """The sphere centred on the background; a feature that is the same for all of it counts nothing."""
        spread_F = features_BF.std(axis=0)
        scale_F = np.where(spread_F > _TINY, 1 / np.maximum(spread_F, _TINY), 0).astype(np.float32)
        return cls(vectors_BD.mean(axis=0), features_BF.mean(axis=0), scale_F)

    def place(self, vectors_ND: Matrix, features_NF: Matrix) -> Matrix:
        """Unit rows [N, M]."""
        blocks = (
            np.float32(np.sqrt(self.share)) * _unit(vectors_ND - self.vector_mean_D),
            np.float32(np.sqrt(1 - self.share)) * _unit((features_NF - self.feature_mean_F) * self.feature_scale_F),
        )
        return np.concatenate(blocks, axis=1)


@dataclass(frozen=True)
class SeedDensity:
    """A fitted density ratio."""

    sphere: Sphere
    seeds_SM: Matrix  # places
    background_BM: Matrix
    concentration: float

    def score(self, vectors_ND: Matrix, features_NF: Matrix) -> Scores:
        """Log density ratio of each user [N]: 0 where seeds are as common as everybody."""
        scores = np.empty(len(vectors_ND))
        for start in range(0, len(vectors_ND), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            places = self.sphere.place(vectors_ND[chunk], features_NF[chunk])
            scores[chunk] = self._ratio(places, is_seed=False)
        return scores

    def held_out(self, tried: int | None = None) -> tuple[Scores, Scores]:
        """Scores of the first `tried` (all if None) seeds and background users, each without itself."""
        seeds, background = self.seeds_SM[:tried], self.background_BM[:tried]
        return self._ratio(seeds, is_seed=True), self._ratio(background, is_seed=False)

    def _ratio(self, places_NM: Matrix, *, is_seed: bool) -> Scores:
        near = log_mean_kernel(places_NM @ self.seeds_SM.T, self.concentration, leaves_self=is_seed)
        around = log_mean_kernel(places_NM @ self.background_BM.T, self.concentration, leaves_self=not is_seed)
        ratio: Scores = near - around
        return ratio


def fit_density(
    seeds_SD: Matrix, seeds_SF: Matrix, background_BD: Matrix, background_BF: Matrix, draw: np.random.Generator
) -> tuple[SeedDensity, Scores, Scores]:
    """Choose share and concentration -> the density, held-out scores of the seeds [S] and of the background [B]."""
    orders = draw.permutation(len(seeds_SD)), draw.permutation(len(background_BD))
    seeds = seeds_SD[orders[0]], seeds_SF[orders[0]]
    background = background_BD[orders[1]], background_BF[orders[1]]
    best, best_likelihood = None, -np.inf
    for density in _candidates(seeds, background):
        likelihood = picking_log_likelihood(*density.held_out(_NUM_TRIED))
        if best is None or likelihood > best_likelihood:
            best, best_likelihood = density, likelihood
    assert best is not None
    of_seeds, of_background = best.held_out()
    return best, of_seeds[np.argsort(orders[0])], of_background[np.argsort(orders[1])]


def _candidates(seeds: tuple[Matrix, Matrix], background: tuple[Matrix, Matrix]) -> Iterator[SeedDensity]:
    centred = Sphere.around(*background)
    for share in SHARES if centred.feature_scale_F.any() else (1.0,):
        sphere = replace(centred, share=share)
        places = sphere.place(*seeds), sphere.place(*background)
        for concentration in CONCENTRATIONS:
            yield SeedDensity(sphere, *places, concentration)


def picking_log_likelihood(of_seeds_S: Scores, of_background_B: Scores) -> float:
    """Mean log chance that a held-out seed is the one picked out of itself and the background, by ratio."""
    return float(np.mean(of_seeds_S - np.logaddexp(of_seeds_S, logsumexp(of_background_B))))


def log_mean_kernel(cosines_NK: Matrix, concentration: float, *, leaves_self: bool = False) -> Scores:
    """Log of the mean kernel of each row [N]; `leaves_self` drops one kernel that stands where the row does."""
    cosines = torch.from_numpy(cosines_NK)
    peak_N1, own_N1 = cosines.max(dim=1, keepdim=True)
    num = torch.full((len(cosines),), cosines.shape[1], dtype=torch.float64)
    if leaves_self and cosines.shape[1] > 1:
        rows = torch.nonzero(peak_N1[:, 0] >= _SAME)[:, 0]
        if len(rows):
            cosines = cosines.clone()
            cosines[rows, own_N1[rows, 0]] = -torch.inf
            peak_N1[rows] = cosines[rows].amax(dim=1, keepdim=True)
            num[rows] -= 1
    sums = (cosines - peak_N1).mul_(concentration).exp_().sum(dim=1, dtype=torch.float64)
    return (concentration * (peak_N1[:, 0].double() - 1) + sums.log() - num.log()).numpy()


def _unit(rows_NM: Matrix) -> Matrix:
    units: Matrix = rows_NM / np.maximum(np.linalg.norm(rows_NM, axis=1, keepdims=True), np.float32(_TINY))
    return units
