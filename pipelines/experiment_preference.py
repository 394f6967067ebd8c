"""The answer of an interleaved experiment: whose items did users choose, of lists that both arms filled in turns?

What gateways showed (SHOWN_SCHEMA) meets the events of the primary metric's action: an event counts for the newest list
that showed this user this item, up to the metric's window before it; each slot once. Users are compared, not clicks.
Team a is the control.
Limits: what is shown is read in this process, the history bucket by bucket. The request id of an event is not needed,
and not looked at: the history does not keep it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from pipelines.experiment_log import ExperimentLog, frame_of, without
from sonder.core import telemetry
from sonder.core.config import SonderConfig
from sonder.core.errors import NotFound
from sonder.core.ids import bucket_of
from sonder.events.contract import Col
from sonder.experiments.exposure_files import read_shown
from sonder.experiments.interleaving_analysis import Preference, compare_teams, credit_users
from sonder.experiments.metrics import TIME
from sonder.experiments.specification import Experiment
from sonder.history.snapshot import read_bucket

_SHOWN = [Col.USER_ID, Col.ITEM_ID, "shown_at", Col.REQUEST_ID, "team"]
_EVENT = [Col.USER_ID, Col.ITEM_ID, Col.ACTION, Col.TIMESTAMP]
LEAST_USERS = 2


@dataclass(frozen=True)
class PreferenceFound:
    """The preference, until when, and what was counted."""

    preference: Preference
    until: datetime
    counts: dict[str, Any]


def measure_preference(
    config: SonderConfig, experiment: Experiment, *, until: datetime | None = None
) -> PreferenceFound:
    """NotFound where no list was shown to enough users."""
    log = ExperimentLog.open(config)
    log.check(experiment)
    until, metric = until or log.end, experiment.metric(experiment.primary)
    with telemetry.stage("preference", experiment=experiment.name) as told:
        slots = read_shown(log.workspace.experiments, experiment.name)
        shown = without(log.erased, slots).filter(pl.col("shown_at") < until)
        if shown[Col.USER_ID].n_unique() < LEAST_USERS:
            raise NotFound(
                f"Lists of experiment {experiment.name!r} were shown to {shown[Col.USER_ID].n_unique()} users before "
                f"{until.isoformat()}",
                expected=f"at least {LEAST_USERS} of them",
                do="Start it, and wait until gateways have answered /recommendations for its users.",
            )
        assert metric.action is not None, "a specification with another primary is refused"
        events = chosen_events(log, shown[Col.USER_ID].unique(), metric.action).filter(pl.col(Col.TIMESTAMP) < until)
        met = met_lists(events, shown, within=timedelta(days=metric.window_days))
        users, num_unmet = credit_users(shown.select(_SHOWN), met, {metric.action: 1.0})
        told.update(users=users.height, events=events.height, met=met.height)
    counts = {
        "lists": shown.select(pl.struct(Col.USER_ID, Col.REQUEST_ID).n_unique()).item(),
        "slots": shown.height,
        f"{metric.action} events of these users": events.height,
        "of an item that was shown before": met.height - num_unmet,
    }
    return PreferenceFound(compare_teams(users), until, counts)


def chosen_events(log: ExperimentLog, users: pl.Series, action: str) -> pl.DataFrame:
    """What these users did by this action, in the history and online, each once."""
    online = log.of_online(users).select(_EVENT).with_columns(pl.col(Col.TIMESTAMP).cast(TIME))
    parts = [online.filter(pl.col(Col.ACTION) == action)]
    for bucket in np.unique(bucket_of(users, log.num_buckets)).tolist():
        lists = frame_of(read_bucket(log.history, bucket, _EVENT)).filter(pl.col(Col.USER_ID).is_in(users.implode()))
        held = lists.explode([name for name in _EVENT if name != Col.USER_ID])
        parts.append(
            held.filter(pl.col(Col.ACTION) == action).with_columns(pl.col(Col.TIMESTAMP).cast(TIME)).select(_EVENT)
        )
    return pl.concat(parts).unique(_EVENT, maintain_order=True)


def met_lists(events: pl.DataFrame, shown: pl.DataFrame, *, within: timedelta) -> pl.DataFrame:
    """The events of items that were shown, with the request of the newest such list before."""
    lists = shown.select(Col.USER_ID, Col.ITEM_ID, Col.REQUEST_ID, pl.col("shown_at").cast(TIME)).sort("shown_at")
    met = events.sort(Col.TIMESTAMP).join_asof(
        lists,
        left_on=Col.TIMESTAMP,
        right_on="shown_at",
        by=[Col.USER_ID, Col.ITEM_ID],
        strategy="backward",
        tolerance=within,
        check_sortedness=False,
    )
    return met.filter(pl.col(Col.REQUEST_ID).is_not_null()).select(Col.USER_ID, Col.REQUEST_ID, Col.ITEM_ID, Col.ACTION)
