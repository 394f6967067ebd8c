"""Do reasons hold still? The drivers of the same users, seen a hair apart.

Shapes: U users, F features, K drivers told at most.
`nearby_features` moves every user by less than a reader would notice: an hour passes, one more event long ago, the last
bit that the embedding keeps. `driver_stability` compares what is told before and after.
Limits: `nearby_features` finds its columns by their words (scoring.specification) and leaves the others alone; to let
an hour pass for every column, compute the features again at a later cutoff and compare those.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from sonder.scoring.drivers import NUM_DRIVERS, Explainer, Told
from sonder.scoring.specification import EMBEDDING_DRIVER, FeatureSpec

HOUR_DAYS = np.float32(1 / 24)
EMBEDDING_STEP = np.float32(1 / 4096)  # what features.compute_features rounds to


@dataclass(frozen=True)
class DriverStability:
    """Shares over the users that have a driver before or after, of `num_drivers` told at most."""

    num_users: int
    num_drivers: int
    jaccard: float  # of the told families, with their direction: mean over users
    same_first: float  # the heaviest driver is the same family in the same direction
    same_column: float  # of the families told both times: by the same column, which names the window
    contradicted: float  # a family is told as raising once and as lowering once

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def driver_stability(
    explainer: Explainer,
    features_UF: NDArray[np.float32],
    nearby_UF: NDArray[np.float32],
    outputs_U: NDArray[np.int64] | None = None,
    *,
    num: int = NUM_DRIVERS,
) -> DriverStability:
    """Compare the drivers of U users with those of the same users moved by a hair. NaN shares without any driver."""
    before = explainer.tell(features_UF, outputs_U, num=num)
    after = explainer.tell(nearby_UF, outputs_U, num=num)
    is_pair_UKK = (before.families_UK[:, :, None] == after.families_UK[:, None, :]) & _is_told(before)[:, :, None]
    is_aligned_UKK = (before.weights_UK[:, :, None] > 0) == (after.weights_UK[:, None, :] > 0)
    is_same_column_UKK = before.columns_UK[:, :, None] == after.columns_UK[:, None, :]
    num_told = _is_told(before).sum(axis=1) + _is_told(after).sum(axis=1)
    shared = (is_pair_UKK & is_aligned_UKK).sum(axis=(1, 2))
    asked = num_told > 0
    num_asked, num_pairs = int(asked.sum()), int(is_pair_UKK.sum())
    unions = (num_told - shared)[asked]
    firsts = (is_pair_UKK & is_aligned_UKK)[:, 0, 0] if is_pair_UKK.size else np.zeros(len(asked), np.bool_)
    return DriverStability(
        num_users=num_asked,
        num_drivers=num,
        jaccard=float((shared[asked] / unions).mean()) if num_asked else float("nan"),
        same_first=float(firsts[asked].mean()) if num_asked else float("nan"),
        same_column=float((is_pair_UKK & is_same_column_UKK).sum() / num_pairs) if num_pairs else float("nan"),
        contradicted=float((is_pair_UKK & ~is_aligned_UKK).any(axis=(1, 2))[asked].mean())
        if num_asked
        else float("nan"),
    )


def nearby_features(spec: FeatureSpec, features_UF: NDArray[np.float32], *, seed: int = 0) -> NDArray[np.float32]:
    """The same users a hair apart -> [U, F]; what never happened (NaN) still never happened.

    days since …               one hour more
    number of events … ever    one more, of any and of each action that the user has at all
    share of events …          the same events among one more
    embedding                  up or down by 1/4096, each dimension by its own coin
    """
    nearby = features_UF[:, : spec.num_features].copy()
    families = np.array([family for family, _ in spec.columns])
    texts = np.array([text for _, text in spec.columns])
    is_recency = np.strings.startswith(texts, "days since the") & ~np.strings.endswith(texts, "usual gap")
    nearby[:, is_recency] += HOUR_DAYS
    is_count = np.strings.startswith(families, "number of ") & np.strings.endswith(texts, "events ever")
    nearby[:, is_count] += nearby[:, is_count] > 0
    is_total = texts == "number of events ever"
    if is_total.any():
        total = nearby[:, is_total][:, :1]
        shares = np.strings.startswith(texts, "share of events ")
        nearby[:, shares] *= np.where(total > 0, (total - 1) / np.maximum(total, 1), 1)
    is_embedding = families == EMBEDDING_DRIVER
    coins = np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), (len(nearby), int(is_embedding.sum())))
    nearby[:, is_embedding] += coins * EMBEDDING_STEP
    return nearby


def _is_told(told: Told) -> NDArray[np.bool_]:
    is_told: NDArray[np.bool_] = told.families_UK >= 0
    return is_told
