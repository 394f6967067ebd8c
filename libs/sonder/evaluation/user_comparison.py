"""Two releases side by side, user by user: where those who are in both went, and how far.

Everything is as published: each profile as of its own release's end, so new events and a new training move users
together (releases that follow one another separate the two: evaluation.stability).
Vectors may lie in two spaces that have nothing to do with each other; then a cosine between them says nothing. Whether
they do is measured, not believed: on one half of the users the rotation that brings old onto new vectors nearest is
fitted, on the other half it is asked how much nearer than unturned ones they are. Where turning more than doubles the
mean cosine, it is another space.

Columns of both tables: user_id, lifecycle, cluster_id, cluster, num_interests, embedding (list or null), scores (list
of {name, value}). Shapes: S users of both, D width.
Source: scipy's orthogonal Procrustes (Schonemann 1966) for the rotation.
Limits: no cosine where the widths differ, or where fewer than LEAST_VECTORS users have a vector in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes
from sklearn.metrics import adjusted_rand_score

from sonder.evaluation.stability import Movement, movement, population_stability_index
from sonder.segments.lifecycle import STATES

NO_CLUSTER = "no cluster"
LEAST_VECTORS = 4  # per dimension, so that each half still fixes a rotation
LEAST_SCORED = 20
NUM_BINS = 40
_OTHER_SPACE = 2.0  # times nearer after turning
MOST_INTERESTS = 10


@dataclass(frozen=True)
class Flow:
    """Users by their label before (rows) and after (columns)."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @property
    def users(self) -> int:
        return sum(map(sum, self.counts))

    @property
    def agreement(self) -> float:
        """Adjusted Rand index of the two groupings: 1 the same groups whatever they are called, 0 as by chance."""
        counts = np.array(self.counts, dtype=np.int64).reshape(len(self.before), len(self.after))
        rows, columns = (np.repeat(codes.ravel(), counts.ravel()) for codes in np.indices(counts.shape))
        return float(adjusted_rand_score(rows, columns)) if len(rows) else 1.0

    @property
    def stayed(self) -> float:
        """Share of users with the same label; 0 of nobody."""
        place = {name: column for column, name in enumerate(self.after)}
        same = sum(row[place[name]] for name, row in zip(self.before, self.counts, strict=True) if name in place)
        return same / self.users if self.users else 0.0


@dataclass(frozen=True)
class ScoreShift:
    """One score of the users who have it in both releases. Bins are equally wide; the last one is open."""

    name: str
    users: int
    psi: float
    mean_before: float
    mean_after: float
    edges: tuple[float, ...]  # [NUM_BINS + 1]
    before: tuple[float, ...]  # share of users in each bin
    after: tuple[float, ...]
    moved_by_half: float  # share of users whose score halved or doubled


@dataclass(frozen=True)
class VectorShift:
    """Cosines of the users with a vector in both; `reason` where there is none to tell."""

    users: int
    reason: str | None = None
    movement: Movement | None = None
    histogram: tuple[float, ...] = ()  # share of users per equal bin of cosine, from `lowest` (and below) to 1
    lowest: float = -1.0
    mean_raw: float | None = None
    mean_turned: float | None = None  # after the best rotation, of the half that it was not fitted on

    @property
    def is_other_space(self) -> bool:
        return self.movement is None and self.mean_raw is not None


@dataclass(frozen=True)
class UserComparison:
    """What became of the users of both releases."""

    only_before: int
    only_after: int
    users: int
    lifecycle: Flow
    clusters: Flow
    interests: tuple[tuple[int, int], ...]  # users with 0, 1, ... MOST_INTERESTS or more, before and after
    scores: tuple[ScoreShift, ...]
    vectors: VectorShift

    def to_dict(self) -> dict[str, Any]:
        content = asdict(self)
        content["lifecycle"] |= {"stayed": self.lifecycle.stayed}
        content["clusters"] |= {"stayed": self.clusters.stayed, "agreement": self.clusters.agreement}
        content["vectors"]["is_other_space"] = self.vectors.is_other_space
        return content


def compare_users(before: pl.DataFrame, after: pl.DataFrame) -> UserComparison:
    """Compare the profiles of the users that are in both tables; the order of the rows changes nothing."""
    both = before.join(after, on="user_id", suffix="_after").sort("user_id")
    return UserComparison(
        only_before=before.height - both.height,
        only_after=after.height - both.height,
        users=both.height,
        lifecycle=_flow(both["lifecycle"], both["lifecycle_after"], STATES),
        clusters=_cluster_flow(both),
        interests=_interests(both),
        scores=tuple(_scores(both)),
        vectors=_vectors(both),
    )


def _flow(before: pl.Series, after: pl.Series, order: Sequence[str] = ()) -> Flow:
    """By label; those of `order` first, the others by how many users they have."""
    pairs = pl.DataFrame({"before": before, "after": after}).group_by("before", "after").len()
    counts = {(old, new): num for old, new, num in pairs.rows()}
    sides = []
    for side in (0, 1):
        totals: dict[str, int] = {}
        for pair, num in counts.items():
            totals[pair[side]] = totals.get(pair[side], 0) + num
        known = [name for name in order if name in totals]
        sides.append([*known, *sorted(totals.keys() - set(known), key=lambda name: (-totals[name], name))])
    old, new = sides
    return Flow(tuple(old), tuple(new), tuple(tuple(counts.get((row, column), 0) for column in new) for row in old))


def _cluster_flow(both: pl.DataFrame) -> Flow:
    """By id, which lives on where the next release's clusters were matched; a cluster is called as it is now."""
    names = {NO_CLUSTER: NO_CLUSTER}
    for ending in ("", "_after"):
        known = both.select(f"cluster_id{ending}", f"cluster{ending}").drop_nulls(f"cluster_id{ending}").unique()
        names |= {str(number): f"{number} {name or ''}".strip() for number, name in known.sort(pl.all()).rows()}
    before, after = (
        both[f"cluster_id{ending}"].cast(pl.String).fill_null(NO_CLUSTER).replace_strict(names, return_dtype=pl.String)
        for ending in ("", "_after")
    )
    totals = pl.concat([before, after]).value_counts().sort("count", before.name, descending=[True, False])
    return _flow(before, after, totals[before.name].to_list())


def _interests(both: pl.DataFrame) -> tuple[tuple[int, int], ...]:
    sides = [
        np.bincount(both[name].clip(0, MOST_INTERESTS).to_numpy(), minlength=MOST_INTERESTS + 1)
        for name in ("num_interests", "num_interests_after")
    ]
    return tuple((int(old), int(new)) for old, new in zip(*sides, strict=True))


def _scores(both: pl.DataFrame) -> list[ScoreShift]:
    sides = [
        both.select("user_id", pl.col(column).alias("score"))
        .explode("score")
        .drop_nulls("score")
        .select("user_id", pl.col("score").struct.field("name"), pl.col("score").struct.field("value"))
        for column in ("scores", "scores_after")
    ]
    joined = sides[0].join(sides[1], on=("user_id", "name"), suffix="_after").drop_nulls().sort("name", "user_id")
    return [
        _shift(
            str(name), rows["value"].to_numpy().astype(np.float64), rows["value_after"].to_numpy().astype(np.float64)
        )
        for (name,), rows in joined.partition_by("name", as_dict=True, maintain_order=True).items()
        if rows.height >= LEAST_SCORED
    ]


def _shift(name: str, before: NDArray[np.float64], after: NDArray[np.float64]) -> ScoreShift:
    top = float(np.quantile(np.concatenate((before, after)), 0.995)) or 1.0
    edges = np.linspace(0, top, NUM_BINS + 1)
    shares = [np.histogram(np.clip(side, 0, top), edges)[0] / len(side) for side in (before, after)]
    low, high = np.minimum(before, after), np.maximum(before, after)
    return ScoreShift(
        name=name,
        users=len(before),
        psi=population_stability_index(before, after),
        mean_before=float(before.mean()),
        mean_after=float(after.mean()),
        edges=tuple(edges.tolist()),
        before=tuple(shares[0].tolist()),
        after=tuple(shares[1].tolist()),
        moved_by_half=float((high > 2 * low).mean()),
    )


def _vectors(both: pl.DataFrame) -> VectorShift:
    warm = both.filter(pl.col("embedding").is_not_null() & pl.col("embedding_after").is_not_null())
    if not warm.height:
        return VectorShift(0, "no user has a vector in both releases")
    sides = [warm[name].to_list() for name in ("embedding", "embedding_after")]
    widths = [len(side[0]) for side in sides]
    if widths[0] != widths[1]:
        return VectorShift(warm.height, f"vectors had {widths[0]} dimensions and have {widths[1]}")
    if warm.height < LEAST_VECTORS * widths[0]:
        needed = LEAST_VECTORS * widths[0]
        return VectorShift(warm.height, f"{warm.height} users have a vector in both, at least {needed} are needed")
    old_SD, new_SD = (np.array(side, dtype=np.float64) for side in sides)
    raw_S = _cosines(old_SD, new_SD)
    turned = _held_out(old_SD, new_SD)
    if turned > _OTHER_SPACE * max(float(raw_S.mean()), 0.0):
        return VectorShift(warm.height, "different space", mean_raw=float(raw_S.mean()), mean_turned=turned)
    lowest = max(-1.0, math.floor(10 * float(np.quantile(raw_S, 0.005))) / 10 - 0.1)
    histogram = np.histogram(raw_S.clip(lowest, 1), NUM_BINS, (lowest, 1))[0] / len(raw_S)
    return VectorShift(
        users=warm.height,
        movement=movement(old_SD.astype(np.float32), new_SD.astype(np.float32)),
        histogram=tuple(histogram.tolist()),
        lowest=lowest,
        mean_raw=float(raw_S.mean()),
        mean_turned=turned,
    )


def _held_out(old_SD: NDArray[np.float64], new_SD: NDArray[np.float64]) -> float:
    """Mean cosine of each half after the rotation that the other half gives."""
    halves = [np.arange(first, len(old_SD), 2) for first in (0, 1)]
    cosines = [
        _cosines(old_SD[judged] @ orthogonal_procrustes(old_SD[fitted], new_SD[fitted])[0], new_SD[judged])
        for fitted, judged in (halves, halves[::-1])
    ]
    return float(np.concatenate(cosines).mean())


def _cosines(old_SD: NDArray[np.float64], new_SD: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(old_SD, axis=1) * np.linalg.norm(new_SD, axis=1)
    cosines: NDArray[np.float64] = np.einsum("sd,sd->s", old_SD, new_SD) / np.maximum(lengths, 1e-12)
    return cosines
