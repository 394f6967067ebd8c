"""How far a release moved from its parent: vectors, neighbours, segments and scores of the users of both.

Shapes: U users of both, D width, C candidates, k neighbours.
A user moves by what he or she did since and by what a training changed; each function compares two sides and knows
neither: `pipelines.stability` gives them the same moment or each release's own, and names which.

Movement    cosine of a user's vector before and after, in quantiles; `moved` is the share below MOVED
Overlap@k   mean share of a user's k nearest that are the same on both sides; chance gives k / C
Churn       share of users whose segment is another one
PSI         population stability index of a score: sum over bins of (after - before) * ln(after / before), bins by the
            deciles before; the industry reads below 0.1 as the same, above 0.25 as another population
Limits: overlap and movement are read on a sample of users; a user without a vector on either side is in neither.
A list of half the candidates is not measured: chance alone would fill it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sonder.retrieval.exact import similar_users, top_items

K = 50
MOVED = 0.8  # cosine below which a user counts as moved
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75)
PSI_BINS = 10
_LEAST_SHARE = 1e-4  # of a bin, so that an empty one costs much and not everything


@dataclass(frozen=True)
class Movement:
    """Cosines between the two vectors of each user, summed up."""

    users: int
    mean: float
    quantiles: dict[str, float]  # p01, p05, ...
    moved: float  # share of users whose cosine is below MOVED

    @property
    def median(self) -> float:
        return self.quantiles["p50"]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def movement(before_UD: NDArray[np.float32], after_UD: NDArray[np.float32]) -> Movement | None:
    """Of the users who have a vector on both sides, row by row; None if nobody has."""
    both_U = before_UD.any(axis=1) & after_UD.any(axis=1)
    if not both_U.any():
        return None
    before, after = before_UD[both_U].astype(np.float64), after_UD[both_U].astype(np.float64)
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    cosines = np.einsum("ud,ud->u", before, after) / lengths
    quantiles = np.quantile(cosines, QUANTILES)
    named = {f"p{round(100 * level):02d}": float(value) for level, value in zip(QUANTILES, quantiles, strict=True)}
    return Movement(len(cosines), float(cosines.mean()), named, float((cosines < MOVED).mean()))


@dataclass(frozen=True)
class Overlap:
    """Mean share of the k nearest that are the same on both sides."""

    users: int
    candidates: int
    share: float
    by_chance: float  # what k of so many candidates have in common if drawn blindly

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def item_overlap(
    before_UD: NDArray[np.float32],
    after_UD: NDArray[np.float32],
    items_before_CD: NDArray[np.float32],
    items_after_CD: NDArray[np.float32],
    *,
    k: int = K,
) -> Overlap | None:
    """Of each user's k nearest items among the same C, in their order; None of fewer than 2 k: chance gives half."""
    both_U = before_UD.any(axis=1) & after_UD.any(axis=1)
    if len(items_before_CD) < 2 * k or not both_U.any():
        return None
    lists = [
        top_items(users_UD[both_U], items_CD, k)[0]
        for users_UD, items_CD in ((before_UD, items_before_CD), (after_UD, items_after_CD))
    ]
    return _overlap(*lists, num_candidates=len(items_before_CD))


def user_overlap(before_UD: NDArray[np.float32], after_UD: NDArray[np.float32], *, k: int = K) -> Overlap | None:
    """Of each user's k nearest others; None where there are fewer than 2 k."""
    both_U = before_UD.any(axis=1) & after_UD.any(axis=1)
    num = int(both_U.sum())
    if num - 1 < 2 * k:
        return None
    own_U = np.arange(num)
    lists = [similar_users(side, side, k, exclude_rows=own_U)[0] for side in (before_UD[both_U], after_UD[both_U])]
    return _overlap(*lists, num_candidates=num - 1)


def _overlap(before_UK: NDArray[np.int32], after_UK: NDArray[np.int32], *, num_candidates: int) -> Overlap:
    num, k = before_UK.shape
    rows = np.arange(num)[:, None] * (num_candidates + 1)  # no two rows share an id, so one look-up does
    same = np.isin(after_UK + rows, before_UK + rows)
    return Overlap(num, num_candidates, float(same.mean()), k / num_candidates)


@dataclass(frozen=True)
class Churn:
    """Users whose segment is another one on the other side, and where they went."""

    users: int
    share: float
    moves: tuple[tuple[str, str, int], ...]  # (before, after, users), the most frequent first

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "moves": [list(move) for move in self.moves]}


def churn(before: pl.Series, after: pl.Series, *, num_moves: int = 12) -> Churn | None:
    """Of the users with a segment on both sides, row by row; None if nobody has."""
    both = pl.DataFrame({"before": before, "after": after}).drop_nulls().cast(pl.String)
    if both.is_empty():
        return None
    moved = both.filter(pl.col("before") != pl.col("after"))
    moves = moved.group_by("before", "after").len().sort("len", "before", "after", descending=[True, False, False])
    return Churn(both.height, moved.height / both.height, tuple(moves.head(num_moves).rows()))


@dataclass(frozen=True)
class MembershipChurn:
    """An audience on both sides."""

    before: int
    after: int
    both: int

    @property
    def share(self) -> float:
        """1 - Jaccard: of those in on either side, who is not in on both; 0 of nobody."""
        either = self.before + self.after - self.both
        return 1 - self.both / either if either else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "share": self.share}


def membership_churn(before_U: NDArray[np.bool_], after_U: NDArray[np.bool_]) -> MembershipChurn:
    """Of the same users, row by row."""
    return MembershipChurn(int(before_U.sum()), int(after_U.sum()), int((before_U & after_U).sum()))


def population_stability_index(before: NDArray[Any] | Sequence[float], after: NDArray[Any] | Sequence[float]) -> float:
    """PSI of two samples of one score; 0 where both are the same."""
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if not len(before) or not len(after):
        raise ValueError(f"Found {len(before)} values before and {len(after)} after, expected some on both sides")
    edges = np.unique(np.quantile(before, np.linspace(0, 1, PSI_BINS + 1)[1:-1]))
    shares = [np.bincount(np.searchsorted(edges, side, "left"), minlength=len(edges) + 1) / len(side)
              for side in (before, after)]  # fmt: skip
    old, new = (np.maximum(share, _LEAST_SHARE) for share in shares)
    return float(((new - old) * np.log(new / old)).sum())
