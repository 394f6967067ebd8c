"""Two checks that a build runs on its own features, because a score that saw the future costs whoever trusts it.

columns_that_see_the_future   features at a cutoff, computed from the whole log, from the log that ends there and from
                              the log with another future, must have the same bits
leaking_columns               a single column that nearly separates the labels is taken for a leak, whatever its name:
                              real behaviour is not that predictable
Limits: the first is about events alone, an item or user table of today is not rewritten; the second looks for one
threshold on one column, and at about MAX_ROWS rows, chosen evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.scoring.specification import FeatureSpec

MAX_AUC = 0.995  # of a single column, in either direction
MIN_OF_A_KIND = 50  # rows of each label: of fewer, one column of hundreds separates them by chance
MAX_ROWS = 50_000
_INVENTED_EVENTS = 4  # per user, the first of them at the cutoff itself
_INVENTED_DAYS = 30

Compute = Callable[[Timelines], NDArray[np.float32]]


@dataclass(frozen=True)
class LeakingColumn:
    """A column that separates the labels by itself; `auc` is at least MAX_AUC, of either direction."""

    column: str
    auc: float
    num_rows: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def columns_that_see_the_future(
    compute: Compute, timelines: Timelines, cutoff_us: int, *, names: Sequence[str]
) -> tuple[str, ...]:
    """Names of the columns that change with what happens at the cutoff or later; none of an honest computation.

    `compute` makes the features [U, F] of the cutoff from histories that it may not look through to their end.
    """
    known = compute(timelines.before(cutoff_us))
    sees = np.zeros(known.shape[1], dtype=np.bool_)
    for future in (timelines, _with_another_future(timelines, cutoff_us)):
        told = compute(future)
        sees |= ((told != known) & ~(np.isnan(told) & np.isnan(known))).any(axis=0)
    return tuple(name for name, is_wrong in zip(names, sees, strict=True) if is_wrong)


def leaking_columns(
    features_NF: NDArray[np.float32], labels_N: NDArray[np.bool_], spec: FeatureSpec, *, max_auc: float = MAX_AUC
) -> list[LeakingColumn]:
    """Columns that alone tell the labels apart, worst first; NaN is a value of its own, below or above all others.

    None where one of the labels has fewer than MIN_OF_A_KIND rows: that is too few to say.
    """
    chosen = np.linspace(0, len(labels_N) - 1, min(len(labels_N), MAX_ROWS)).astype(np.int64)
    labels = labels_N[chosen]
    if min(np.count_nonzero(labels), np.count_nonzero(~labels)) < MIN_OF_A_KIND:
        return []
    found = []
    for column, (_, description) in enumerate(spec.columns):
        auc = separation(features_NF[chosen, column], labels)
        if auc >= max_auc:
            found.append(LeakingColumn(description, round(auc, 6), len(labels)))
    return sorted(found, key=lambda leak: -leak.auc)


def separation(values_N: NDArray[np.float32], labels_N: NDArray[np.bool_]) -> float:
    """AUC of one column in its better direction, NaN below or above every number: 0.5 to 1."""
    known = ~np.isnan(values_N)
    num_known, num_missing = (
        (np.count_nonzero(labels_N[rows]), np.count_nonzero(~labels_N[rows])) for rows in (known, ~known)
    )
    (positives, negatives), (missing_positives, missing_negatives) = num_known, num_missing
    ranks = rankdata(values_N[known])[labels_N[known]].sum()
    won = ranks - positives * (positives + 1) / 2 + missing_positives * missing_negatives / 2
    pairs = (positives + missing_positives) * (negatives + missing_negatives)
    below = (won + positives * missing_negatives) / pairs
    above = (won + missing_positives * negatives) / pairs
    return float(max(below, 1 - below, above, 1 - above))


def _with_another_future(timelines: Timelines, cutoff_us: int) -> Timelines:
    """The same past, then a few invented events of every user, the first of them at the cutoff itself."""
    past, draw = timelines.before(cutoff_us), np.random.default_rng(cutoff_us % (1 << 32))
    num, each = past.num_users, _INVENTED_EVENTS
    later_us = draw.integers(0, _INVENTED_DAYS * MICROSECONDS_PER_DAY, (num, each))
    later_us[:, 0] = 0
    later_us.sort(axis=1)
    ends = np.repeat(past.offsets[1:], each)

    def grown(known_N: NDArray[Any], pool: NDArray[Any]) -> NDArray[Any]:
        """With values that occur anywhere in the log."""
        invented = draw.choice(pool, num * each) if len(pool) else np.zeros(num * each, known_N.dtype)
        return np.insert(known_N, ends, invented)

    return Timelines(
        user_ids=past.user_ids,
        offsets=past.offsets + each * np.arange(num + 1),
        items=grown(past.items, timelines.items),
        actions=grown(past.actions, timelines.actions),
        surfaces=grown(past.surfaces, timelines.surfaces),
        times_us=np.insert(past.times_us, ends, cutoff_us + later_us.ravel()),
        values=grown(past.values, timelines.values * 3 + 1),
    )
