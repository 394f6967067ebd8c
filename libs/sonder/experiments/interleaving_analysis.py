"""Which of two interleaved rankers do users prefer? Credit of their actions, then one verdict for each user.

Shapes: U users that were shown at least one interleaved list.
credit       an action on an item counts for the team that put it there, by its action's weight; the same action on
             the same item of the same request counts once
preference   a user prefers the team with more credit over all their requests; equal credit is a tie
sign test    exact binomial test of the users who prefer B among those who prefer one (ties excluded), with the exact
             interval of that share (Clopper & Pearson, 1934)
difference   credit of B less credit of A per request, averaged within each user, then over all users, ties
             included; interval by Student's t. A user counts once, however many requests they made
Requests of a user are dependent, users are not: nothing here counts requests.
Source: Chapelle, Joachims, Radlinski & Yue, TOIS 2012; power of the sign test by the normal approximation.
Limits: an action without the id of its request cannot be credited (it is counted). One look at the end: neither
p-value allows to stop when it is small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import binomtest, norm
from scipy.stats import t as student

from sonder.events.contract import Col

__all__ = ["TEAM", "Preference", "compare_teams", "credit_users", "users_needed"]

TEAM = "team"
REQUESTS, CREDIT_A, CREDIT_B = "num_requests", "credit_a", "credit_b"
CONFIDENCE, POWER = 0.95, 0.8
_REQUEST = [Col.USER_ID, Col.REQUEST_ID]
_ITEM = [*_REQUEST, Col.ITEM_ID]

Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Preference:
    """How users judged B against A. `detectable_*` is what this many users would show in 8 of 10 experiments."""

    num_users: int
    num_prefer_a: int
    num_prefer_b: int
    share_b: float  # of the users with a preference; NaN when nobody has one
    share_interval: Interval
    share_p_value: float
    detectable_share: float  # the nearest share above 1/2
    difference: float  # credit per request, B less A
    difference_error: float
    difference_interval: Interval
    difference_p_value: float
    detectable_difference: float

    @property
    def num_ties(self) -> int:
        return self.num_users - self.num_prefer_a - self.num_prefer_b


def credit_users(shown: pl.DataFrame, events: pl.DataFrame, weights: Mapping[str, float]) -> tuple[pl.DataFrame, int]:
    """Credit of each user who was shown a list, and how many weighted events met no shown item.

    `shown` has user_id, request_id, item_id and team, a row per slot; `events` user_id, request_id, item_id and
    action. `weights` gives the credit of an action, 0 for those it does not name. The answer has user_id,
    num_requests, credit_a and credit_b, in the order of user_id.
    """
    if shown.select(_ITEM).is_duplicated().any():
        raise ValueError("an item is shown twice in one request: the team of an action would be ambiguous")
    table = pl.DataFrame(
        {Col.ACTION: list(weights), "weight": list(weights.values())},
        schema={Col.ACTION: pl.String, "weight": pl.Float64},
    )
    counted = events.join(table, on=Col.ACTION).filter(pl.col("weight") != 0).unique([*_ITEM, Col.ACTION])
    met = counted.join(shown.select([*_ITEM, TEAM]), on=_ITEM)
    credit = met.group_by(Col.USER_ID).agg(
        pl.col("weight").filter(pl.col(TEAM) == team).sum().alias(name)
        for team, name in (("a", CREDIT_A), ("b", CREDIT_B))
    )
    requests = shown.group_by(Col.USER_ID).agg(pl.col(Col.REQUEST_ID).n_unique().alias(REQUESTS))
    users = requests.join(credit, on=Col.USER_ID, how="left").with_columns(pl.col(CREDIT_A, CREDIT_B).fill_null(0.0))
    return users.sort(Col.USER_ID), counted.height - met.height


def compare_teams(users: pl.DataFrame, *, confidence: float = CONFIDENCE) -> Preference:
    """The verdict of the users of `credit_users`; at least two."""
    if users.height < 2:
        raise ValueError(f"{users.height} users: a comparison needs at least two")
    more = (users[CREDIT_B] - users[CREDIT_A]).to_numpy()
    num_a, num_b = int((more < 0).sum()), int((more > 0).sum())
    per_request = more / users[REQUESTS].to_numpy()
    mean, error = float(per_request.mean()), float(per_request.std(ddof=1) / np.sqrt(len(per_request)))
    degrees = len(per_request) - 1
    half = float(student.ppf((1 + confidence) / 2, degrees)) * error
    share, interval, p_value = _sign_test(num_a, num_b, confidence)
    return Preference(
        num_users=users.height,
        num_prefer_a=num_a,
        num_prefer_b=num_b,
        share_b=share,
        share_interval=interval,
        share_p_value=p_value,
        detectable_share=_detectable_share(num_a + num_b, confidence),
        difference=mean,
        difference_error=error,
        difference_interval=(mean - half, mean + half),
        difference_p_value=float(2 * student.sf(abs(mean) / error, degrees)) if error > 0 else float(mean == 0),
        detectable_difference=(float(norm.ppf((1 + confidence) / 2)) + float(norm.ppf(POWER))) * error,
    )


def users_needed(share: float, *, confidence: float = CONFIDENCE, power: float = POWER) -> int:
    """Users with a preference for the sign test to find a share other than 1/2 with this power."""
    if not 0 < share < 1 or share == 0.5:
        raise ValueError(f"a share of {share:g}: it must lie in (0, 1) and differ from 1/2")
    tails = float(norm.ppf((1 + confidence) / 2)) * 0.5 + float(norm.ppf(power)) * float(np.sqrt(share * (1 - share)))
    return int(np.ceil((tails / (share - 0.5)) ** 2))


def _sign_test(num_a: int, num_b: int, confidence: float) -> tuple[float, Interval, float]:
    if not num_a + num_b:
        return float("nan"), (0.0, 1.0), 1.0
    test = binomtest(num_b, num_a + num_b)
    bounds = test.proportion_ci(confidence, method="exact")
    return num_b / (num_a + num_b), (float(bounds.low), float(bounds.high)), float(test.pvalue)


def _detectable_share(num_deciding: int, confidence: float) -> float:
    """1/2 + d with d = (z_a / 2 + z_b sqrt(1/4 - d^2)) / sqrt(n), solved for d; at most 1."""
    if not num_deciding:
        return 1.0
    z_a, z_b = float(norm.ppf((1 + confidence) / 2)), float(norm.ppf(POWER))
    # (d sqrt n - z_a / 2)^2 = z_b^2 (1/4 - d^2), the larger root.
    square, linear, constant = num_deciding + z_b**2, -z_a * num_deciding**0.5, (z_a**2 - z_b**2) / 4
    root = (-linear + (linear**2 - 4 * square * constant) ** 0.5) / (2 * square)
    return float(min(1.0, 0.5 + root))
