"""What two releases would have earned in a slot whose choices were drawn with known propensities.

The log of the slot is a Parquet or CSV file with a row a shown item: `user_id`, `item_id`, `propensity` (the chance,
before the draw, that this item stood there), `reward`, and optionally `position` (from 0). Its items are the actions.
A release is the policy that it would be if it were served: it orders the slot's items by its score for the user, and
puts the first at position 0, the second at 1, and so on. The user's vector is as of `as_of`, the moment up to which the
encoders were trained, so what users did with a slot that was logged after it is in neither.
Estimates: IPS, SNIPS, doubly robust and switch (sonder.experiments.off_policy), and the difference of the two releases
by doubly robust rounds, which is what decides; users are drawn together.
Limits: a log from before that moment has been seen by the encoders, and nothing here can tell. A set of actions that is
shown to everybody, at most MOST_ACTIONS; a user who is in no history gets the most popular items of the slot.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sonder.core.errors import DataError, NotFound
from sonder.core.ids import bucket_of
from sonder.encoder.artefact import load_encoder
from sonder.encoder.inference import embed_users
from sonder.experiments.clustered import estimate_ratio
from sonder.experiments.logged_feedback import LoggedFeedback
from sonder.experiments.off_policy import PolicyValue, doubly_robust_rounds, evaluate_policy
from sonder.experiments.reward_model import cross_fitted_rewards
from sonder.history.snapshot import buckets_of, read_timelines
from sonder.history.vocabulary import Vocabulary
from sonder.releases.artefacts import Release

MOST_ACTIONS, MOST_CELLS = 1_000, 50_000_000
LEAST_EFFECTIVE = 200.0  # rounds behind the weights, below which an estimate decides nothing
MOST_UNSUPPORTED = 0.01  # of what a release would show, that the log could not have shown
NEEDED = ("user_id", "item_id", "propensity", "reward")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class OffPolicyComparison:
    """Mean reward of a shown item; `difference` = candidate - current."""

    rounds: int
    users: int
    actions: int
    logged: float  # what the logging policy earned
    was: dict[str, PolicyValue]
    now: dict[str, PolicyValue]
    difference: float
    low: float
    high: float
    is_supported: bool
    warnings: tuple[str, ...]

    @property
    def judgement(self) -> str:
        if not self.is_supported:
            return "unknown"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "even"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"judgement": self.judgement}


def compare_off_policy(
    candidate: Release, current: Release, file: Path, *, as_of_us: int, seed: int
) -> OffPolicyComparison:
    """Both releases on one slot's log; DataError where it cannot be one."""
    rows = read_slot(file)
    users, items = rows["user_id"].unique(maintain_order=True), rows["item_id"].unique().sort()
    user_codes = rows.select(pl.col("user_id").replace_strict(users, np.arange(len(users)), return_dtype=pl.Int64))
    actions = rows.select(pl.col("item_id").replace_strict(items, np.arange(len(items)), return_dtype=pl.Int64))
    feedback = LoggedFeedback(
        actions=actions.to_series().to_numpy(),
        rewards=rows["reward"].to_numpy(),
        propensities=rows["propensity"].to_numpy(),
        num_actions=len(items),
        positions=rows["position"].to_numpy(),
        users=user_codes.to_series().to_numpy(),
    )
    num_positions = int(rows["position"].max()) + 1  # type: ignore[arg-type]
    _check_size(rows.height, len(items), num_positions, file)
    expected_NA = cross_fitted_rewards(feedback, seed=seed)
    sides = [_policy(release, candidate, users, items, as_of_us)[feedback.users] for release in (current, candidate)]
    policies = [_at_positions(order_NA, num_positions) for order_NA in sides]
    was, now = (evaluate_policy(feedback, policy, expected_rewards=expected_NA, seed=seed) for policy in policies)
    values = [doubly_robust_rounds(feedback, policy, expected_NA) for policy in policies]
    found = estimate_ratio(values[1] - values[0], np.ones(rows.height), feedback.user_codes, seed=seed)
    supports = [value["ips"].support for value in (was, now)]
    is_supported = all(
        support.effective_rounds >= LEAST_EFFECTIVE and support.unsupported_share <= MOST_UNSUPPORTED
        for support in supports
    )
    named = zip((current.id, candidate.id), supports, strict=True)
    return OffPolicyComparison(
        rows.height, len(users), len(items), float(feedback.rewards.mean()),
        {str(name): value for name, value in was.items()}, {str(name): value for name, value in now.items()},
        found.value, *found.interval, is_supported,
        tuple(f"{name}: {warning}" for name, support in named for warning in support.warnings),
    )  # fmt: skip


def read_slot(file: Path) -> pl.DataFrame:
    """The slot's log with `position`; DataError says which column or value is wrong."""
    if not file.exists():
        raise NotFound(f"No file {file}", expected=f"the log of a slot with the columns {', '.join(NEEDED)}")
    try:  # ids of a CSV stay the texts that they are: 0012 is not 12
        rows = pl.read_csv(file, infer_schema=False) if file.suffix == ".csv" else pl.read_parquet(file)
    except pl.exceptions.PolarsError as error:
        told = str(error).splitlines()[0]
        raise DataError(f"{file} cannot be read: {told}", expected="a CSV file (.csv) or a Parquet file") from error
    if missing := [name for name in NEEDED if name not in rows.columns]:
        raise DataError(
            f"{file} has no column {', '.join(missing)}, it has {', '.join(rows.columns)}",
            expected=f"{', '.join(NEEDED)}, and `position` where the slot shows several",
        )
    if not rows.height:
        raise DataError(f"{file} has no row", expected="one row a shown item")
    if "position" not in rows.columns:
        rows = rows.with_columns(position=pl.lit(0))
    kinds = {"user_id": pl.String, "item_id": pl.String, "propensity": pl.Float64, "reward": pl.Float64}
    rows = rows.select(
        *(pl.col(name).cast(kind, strict=False) for name, kind in kinds.items()),
        pl.col("position").cast(pl.Int64, strict=False),
    )
    if counts := {name: rows[name].null_count() for name in rows.columns if rows[name].null_count()}:
        told = ", ".join(f"{name} ({num:,})" for name, num in counts.items())
        raise DataError(f"{file}: values are missing or of another type: {told} of {rows.height:,} rows")
    return rows


def _check_size(num_rounds: int, num_actions: int, num_positions: int, file: Path) -> None:
    if num_actions > MOST_ACTIONS or num_rounds * num_actions * num_positions > MOST_CELLS:
        raise DataError(
            f"{file} has {num_rounds:,} rounds, {num_actions:,} items and {num_positions} positions",
            expected=f"a slot of at most {MOST_ACTIONS:,} items, rounds x items x positions up to {MOST_CELLS:,}",
            do="Take a sample of the users, all rounds of each.",
        )


def _policy(
    release: Release, candidate: Release, users: pl.Series, items: pl.Series, as_of_us: int
) -> NDArray[np.int64]:
    """Place of each item in the release's order for each user [U, A], 0 first."""
    history = candidate.workspace.history(candidate.manifest.snapshot)
    vocabulary, encoder = Vocabulary.load(release.items), load_encoder(release.encoder)
    buckets = np.unique(bucket_of(users, len(buckets_of(history)))).tolist()
    timelines = read_timelines(history, vocabulary, buckets)
    place = pl.DataFrame({"user_id": pl.Series(timelines.user_ids)}).with_row_index("row")
    rows = pl.DataFrame({"user_id": users}).join(place, on="user_id", how="left", maintain_order="left")["row"]
    known = rows.is_not_null().to_numpy()
    vectors_UD = np.zeros((len(users), encoder.spec.dim), dtype=np.float32)
    vectors_UD[known] = embed_users(
        encoder, timelines.take(rows.drop_nulls().cast(pl.Int64).to_numpy()), as_of_us=as_of_us
    )
    index = pl.DataFrame({"item_id": pl.Series(vocabulary.item_ids)}).with_row_index("index")
    found = pl.DataFrame({"item_id": items}).join(index, on="item_id", how="left", maintain_order="left")["index"]
    is_known = found.is_not_null().to_numpy()
    scores_UA = np.full((len(users), len(items)), -np.inf, dtype=np.float32)
    chosen = found.drop_nulls().cast(pl.Int64).to_numpy()
    scores_UA[:, is_known] = vectors_UD @ encoder.item_vectors[chosen].T + encoder.item_bias[chosen]
    order = np.argsort(-scores_UA, axis=1, kind="stable")
    places: NDArray[np.int64] = np.argsort(order, axis=1, kind="stable")
    return places


def _at_positions(places_NA: NDArray[np.int64], num_positions: int) -> Floats:
    """The item of place l stands at position l, for certain [N, A, L]."""
    policy_NAL: Floats = (places_NA[:, :, None] == np.arange(num_positions)).astype(np.float64)
    return policy_NAL
