"""What a user was when exposed: the cut by lifecycle, from nothing but the events before the exposure.

A lifecycle state depends on how long before its moment events lie and on nothing else, so every user's clock is set to
0 at the exposure and all users are asked at that one moment (segments.lifecycle).
Limits: the definitions (days, shares) are those of a release, which may be younger than an exposure.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from sonder.events.contract import Col
from sonder.experiments.metrics import TIME
from sonder.history.timelines import Timelines
from sonder.segments.lifecycle import STATES, LifecycleThresholds, lifecycle_of


def lifecycle_at_exposure(exposed: pl.DataFrame, events: pl.DataFrame, thresholds: LifecycleThresholds) -> pl.Series:
    """State of each exposed user [U]; "cold" without an event before the exposure.

    exposed: user_id, exposed_at, each user once. events: user_id, timestamp, in any order.
    """
    rows = exposed.select(Col.USER_ID, pl.col("exposed_at").cast(TIME)).with_row_index("row")
    before = (
        events.lazy()
        .select(Col.USER_ID, pl.col(Col.TIMESTAMP).cast(TIME))
        .join(rows.lazy(), on=Col.USER_ID, how="inner")
        .filter(pl.col(Col.TIMESTAMP) < pl.col("exposed_at"))
        .select("row", after=pl.col(Col.TIMESTAMP).cast(pl.Int64) - pl.col("exposed_at").cast(pl.Int64))
        .sort("row", "after")
        .collect()
    )
    num = before.height
    timelines = Timelines(
        user_ids=rows[Col.USER_ID].to_arrow(),
        offsets=np.concatenate(([0], np.cumsum(np.bincount(before["row"].to_numpy(), minlength=rows.height)))),
        items=np.zeros(num, dtype=np.int32),
        actions=np.zeros(num, dtype=np.int16),
        surfaces=np.zeros(num, dtype=np.int16),
        times_us=before["after"].to_numpy(),
        values=np.zeros(num),
    )
    states = lifecycle_of(timelines, as_of_us=0, thresholds=thresholds)
    return pl.Series("lifecycle", STATES, dtype=pl.String).gather(states.astype(np.uint32)).alias("lifecycle")
