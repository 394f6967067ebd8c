"""A small history, exposures and online events of one experiment, by days since a start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.experiment_metrics import Measured
from sonder.core.ids import bucket_of
from sonder.core.storage import MANIFEST
from sonder.core.workspace import Workspace
from sonder.events.contract import EVENT_SCHEMA
from sonder.events.online import OnlineEvent
from sonder.experiments.exposures import EXPOSURE_SCHEMA
from sonder.experiments.specification import Experiment
from sonder.history.assemble import assemble_bucket
from sonder.history.snapshot import bucket_file
from sonder.profiles.online_log import OnlineLog
from sonder.segments.thresholds import LifecycleThresholds
from tests.tiny_log import vocabulary_of

START = datetime(2026, 1, 1, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NUM_BUCKETS, NUM_DAYS, EXPOSED_FROM = 3, 60, 30
THRESHOLDS = LifecycleThresholds(new_days=7, dormant_days=14, core_active_share=0.4, casual_active_share=0.2)
Row = tuple[str, float, str, str]  # user, day, action, id
EXPERIMENT = {
    "name": "better", "hypothesis": "it is", "arms": [{"name": "old"}, {"name": "new", "release": "r-2"}],
    "metrics": [
        {"name": "buys", "kind": "count", "action": "buy", "within_days": 7},
        {"name": "spent", "kind": "value", "action": "buy", "within_days": 3},
        {"name": "d1", "kind": "retention", "day": 1},
    ],
    "primary": "buys", "minimum_effect": 0.1, "pre_days": 14,
}  # fmt: skip


def at(day: float) -> datetime:
    return START + timedelta(days=day)


def us(day: float) -> int:
    return (at(day) - EPOCH) // timedelta(microseconds=1)


def experiment_of(**changes: Any) -> Experiment:
    return Experiment.model_validate(EXPERIMENT | changes)


def random_rows(seed: int, num_users: int) -> list[Row]:
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(num_users):
        for moment in np.sort(draw.uniform(0, NUM_DAYS, 1 + draw.poisson(30))):
            rows.append((f"u{number:03d}", float(moment), str(draw.choice(["view", "buy"], p=[0.7, 0.3])), ""))
    return rows


def events_of(rows: Sequence[Row]) -> pl.DataFrame:
    """As the pure function takes them."""
    named = [(user, at(day), action) for user, day, action, _ in rows]
    frame = pl.DataFrame(named, schema=["user_id", "timestamp", "action"], orient="row")
    return frame.with_columns(surface=pl.lit("home"), value=pl.lit(2.0))


def write_snapshot(workspace: Workspace, rows: Sequence[Row], name: str = "s") -> None:
    """As `prepare` lays it out, users in the buckets of their digests; `id` "" is none."""
    records = [
        {
            "user_id": user, "item_id": "i0", "action": action, "timestamp": at(day), "event_id": given or None,
            "surface": "home", "value": 2.0, "request_id": None, "log_order": number,
        }
        for number, (user, day, action, given) in enumerate(rows)
    ]  # fmt: skip
    events = pa.Table.from_pylist(records, schema=EVENT_SCHEMA)
    buckets = bucket_of(pl.Series([row[0] for row in rows]), NUM_BUCKETS)
    history, entries = workspace.history(name), []
    for bucket in range(NUM_BUCKETS):
        found = assemble_bucket(events.filter(pa.array(buckets == bucket)), max_events_per_day=None).history
        bucket_file(history, bucket).write_table(found)
        num_events = sum(found.column("num_events").to_pylist())
        entries.append({"bucket": bucket, "users": found.num_rows, "events": num_events})
    moments = [us(day) for _, day, _, _ in rows]
    (history / MANIFEST).write_json(
        {"buckets": entries, "is_ordinal": False, "first_event_us": min(moments), "last_event_us": max(moments)}
    )
    replace(vocabulary_of(["a"]), actions=("view", "buy"), action_weights=(1.0, 1.0), surfaces=("home",)).save(
        workspace.items(name)
    )


def expose(workspace: Workspace, users: Sequence[tuple[str, str, float]], gateway: str = "g1") -> None:
    """A file of a gateway's own: user, arm, day."""
    rows = [
        {
            "experiment": "better", "version": 1, "arm": arm, "user_id": user, "exposed_at": at(day),
            "release": "r-1", "surface": "profile",
        }
        for user, arm, day in users
    ]  # fmt: skip
    folder = workspace.experiments / "better" / "exposures" / gateway
    (folder / f"{len(folder.files()):04d}.parquet").write_table(pa.Table.from_pylist(rows, schema=EXPOSURE_SCHEMA))


def online(*rows: Row) -> list[OnlineEvent]:
    return [OnlineEvent(given, user, "i0", action, us(day), "home", 2.0) for user, day, action, given in rows]


def append(workspace: Workspace, events: Sequence[OnlineEvent]) -> None:
    log = OnlineLog(workspace.online_log)
    log.append(events)
    log.close()


def of_user(measured: Measured, user_id: str) -> dict[str, Any]:
    return measured.users.row(by_predicate=pl.col("user_id") == user_id, named=True)
