"""`sonder prepare`: a log becomes a history snapshot, an item table, a vocabulary and a quarantine (Ray Data).

    splits of the log -> read and map -> shuffle by bucket of the user -> assemble each bucket
        -> user table by the same buckets (`prepare_users`) -> item table -> publish

Every task writes its own files under a name that depends on the input alone, into a staging folder; a repeated task
writes the same bytes again and a killed run leaves nothing that a reader could see. The folder is published only when
the counts add up: every row read is in the history or in the quarantine, once. History is published last.
Nothing in the output depends on the clock, on the number of workers or on the order in which they finish.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from pipelines.prepare_plan import Plan, archive_online, make_plan
from pipelines.prepare_tasks import (
    BUCKET,
    SPLIT,
    assemble_part,
    bound_shuffle,
    read_counts,
    read_part,
    rows_of,
    write_bucket,
)
from pipelines.prepare_users import make_user_table
from pipelines.ray_runtime import BEFORE_A_SHUFFLE, ensure_ray, worker_errors
from pipelines.table_formats import is_table_format, read_table
from sonder.core.config import SonderConfig
from sonder.core.errors import DataError, TooManyBadRows
from sonder.core.storage import Folder, publish, read_manifest
from sonder.core.telemetry import carried, logger, stage
from sonder.core.workspace import Workspace
from sonder.events.catalogue import read_items
from sonder.events.contract import Col, Reason
from sonder.events.reading import LogSplit
from sonder.history.inputs import LAYOUT_VERSION
from sonder.history.item_table import build_vocabulary, count_labels
from sonder.history.snapshot import HISTORY_SCHEMA


@dataclass
class Totals:
    """Every row read, by what became of it."""

    rows_read: int
    events: int
    users: int
    by_reason: Counter[str]
    items: int = 0
    first_event: datetime | None = None
    last_event: datetime | None = None
    labels: dict[str, dict[str, int]] = field(default_factory=dict)  # events by action, and by surface

    @property
    def bad(self) -> Counter[str]:
        """What counts towards `max_bad_fraction`."""
        return Counter({reason: rows for reason, rows in self.by_reason.items() if Reason(reason).is_bad})

    @property
    def num_bad(self) -> int:
        return self.bad.total()

    def counts(self) -> dict[str, Any]:
        return {
            "rows_read": self.rows_read,
            "events": self.events,
            "users": self.users,
            "items": self.items,
            "quarantined": self.by_reason.total(),
            "by_reason": dict(sorted(self.by_reason.items())),
        }


def prepare_now(config: SonderConfig) -> dict[str, Any]:
    """The command: prepare the log as it is now, with what arrived online until now -> snapshot and its counts."""
    archive_online(config)
    snapshot = prepare(config)
    counts = read_manifest(Workspace.at(config.workspace).history(snapshot))["counts"]
    return {"snapshot": snapshot, **counts}


def prepare(config: SonderConfig) -> str:
    """Prepare the log -> snapshot id, published in the workspace; at once if these inputs were prepared before."""
    with stage("prepare.plan") as counts:
        plan = make_plan(config)
        counts.update(snapshot=plan.snapshot, files=len(plan.inputs), splits=len(plan.splits), buckets=plan.num_buckets)
    workspace = Workspace.at(config.workspace)
    final = workspace.history(plan.snapshot)
    staging = workspace.staging(f"prepare-{plan.snapshot}")
    staging.remove()  # left by a run that was killed, or by a last task of it after the next run had ended
    if final.is_published():
        logger.info("prepare: already prepared, %s", final)
        return plan.snapshot
    with stage("prepare.history") as counts:
        buckets = _make_history(plan, staging)
        totals = _add_up(staging, buckets)
        counts.update({name: value for name, value in totals.counts().items() if isinstance(value, int)})
    refuse_bad_log(plan, totals, config.events.max_bad_fraction, staging, workspace)
    user_table = make_user_table(plan.users, plan.num_buckets, staging, plan.erased) if plan.users else None
    with stage("prepare.items") as counts:
        _make_items(config, plan, totals, staging)
        counts["items"] = totals.items
    publish_quarantine(totals, staging, workspace.quarantine(plan.snapshot))
    republish(staging / "items", workspace.items(plan.snapshot), {"items": totals.items})
    publish(staging / "history", final, snapshot_manifest(plan, totals, buckets, user_table))
    staging.remove()
    logger.info("prepare: wrote %s", final)
    return plan.snapshot


def _make_history(plan: Plan, staging: Folder) -> list[dict[str, Any]]:
    """Run the Ray Data pipeline -> one row of counts per bucket, in order."""
    ensure_ray()
    with worker_errors():
        bound_shuffle()
        assembled = (
            _read(plan, staging)
            .repartition(plan.num_buckets, keys=[BUCKET])
            .map_batches(
                carried("assemble", assemble_part),
                fn_kwargs={
                    "staging": staging,
                    "max_events_per_day": None if plan.is_ordinal else plan.events.max_events_per_day,
                    "sources": plan.sources,
                },
                batch_size=None,  # a whole partition: a bucket must not be cut
                batch_format="pyarrow",
            )
        )
        rows = rows_of(assembled)
    done = {int(row[BUCKET]): row for row in rows}
    if len(done) != len(rows):
        raise DataError("The shuffle cut a bucket in two", expected="whole buckets in every partition")
    empty = HISTORY_SCHEMA.empty_table()
    return [
        done[bucket] if bucket in done else {**write_bucket(empty, bucket, staging), "by_reason": []}
        for bucket in range(plan.num_buckets)
    ]


def _read(plan: Plan, staging: Folder) -> ray.data.Dataset:
    """Every event of the log with its bucket."""
    intake = {
        "config": plan.events,
        "staging": staging,
        "num_buckets": plan.num_buckets,
        "absent": plan.absent,
        "erased": plan.erased,
    }
    if is_table_format(plan.events):
        table = read_table(plan.events, plan.inputs[0]["version"], intake)
        return table.union(_read_splits(plan.splits, intake)) if plan.splits else table
    return _read_splits(plan.splits, intake)


def _read_splits(splits: Sequence[LogSplit], intake: Mapping[str, Any]) -> ray.data.Dataset:
    rows = [{SPLIT: index} for index in range(len(splits))]
    return ray.data.from_items(rows, override_num_blocks=max(1, len(rows))).map_batches(
        carried("read events", read_part),
        fn_kwargs={"splits": tuple(splits), **intake},
        batch_size=None,  # one split a task
        batch_format="pyarrow",
        runtime_env=BEFORE_A_SHUFFLE,
    )


def _add_up(staging: Folder, buckets: Sequence[Mapping[str, Any]]) -> Totals:
    """Count, and check that every event read is in the history or set aside, once."""
    num_read, by_reason = read_counts(staging)
    rows_read = num_read + by_reason.total()
    set_aside = Counter[str]()
    for bucket in buckets:
        set_aside.update({str(entry["reason"]): int(entry["rows"]) for entry in bucket["by_reason"]})
    events = sum(int(bucket["events"]) for bucket in buckets)
    if events + set_aside.total() != num_read:
        raise DataError(
            f"{num_read:,} events were read, {events:,} are in the history and {set_aside.total():,} set aside",
            expected="every event in exactly one of the two",
        )
    users = sum(int(bucket["users"]) for bucket in buckets)
    return Totals(rows_read=rows_read, events=events, users=users, by_reason=by_reason + set_aside)


def refuse_bad_log(plan: Plan, totals: Totals, limit: float, staging: Folder, workspace: Workspace) -> None:
    """Fail on a log that is mostly not events; its quarantine is published all the same."""
    is_bad = totals.num_bad > limit * totals.rows_read
    if not is_bad and totals.events:
        return
    quarantine = workspace.quarantine(plan.snapshot)
    publish_quarantine(totals, staging, quarantine)
    staging.remove()
    if not is_bad:
        reasons = _told(totals.by_reason)
        raise DataError(
            f"None of the {totals.rows_read:,} rows of the log is an event" + (f" ({reasons})" if reasons else ""),
            expected="rows with a user, an item, an action and a time",
            do=f"Look at {quarantine} and correct events.columns.",
        )
    raise TooManyBadRows(
        f"{totals.num_bad:,} of {totals.rows_read:,} rows ({totals.num_bad / totals.rows_read * 100:.3g} %) are bad:"
        f" {_told(totals.bad)}",
        expected=f"at most {limit * 100:.3g} % (events.max_bad_fraction)",
        do=f"The rows and their reasons are in {quarantine}; correct events.columns,"
        " or accept them with --set events.max_bad_fraction=SHARE.",
    )


def _told(by_reason: Counter[str]) -> str:
    """The most frequent reasons."""
    return ", ".join(f"{rows:,} {reason}" for reason, rows in by_reason.most_common(3))


def _make_items(config: SonderConfig, plan: Plan, totals: Totals, staging: Folder) -> None:
    scratch = (staging / "scratch").children()
    item_stats = [file.read_table() for file in scratch if file.name.startswith("items-")]
    label_stats = [file.read_table() for file in scratch if file.name.startswith("labels-")]
    write_items(config, plan, totals, staging, item_stats, label_stats)


def write_items(
    config: SonderConfig,
    plan: Plan,
    totals: Totals,
    staging: Folder,
    item_stats: Sequence[pa.Table],
    label_stats: Sequence[pa.Table],
) -> None:
    """Write staging/items from the statistics of all events, and complete the totals by them."""
    catalogue = read_items(config.items, plan.events)
    vocabulary = build_vocabulary(item_stats, label_stats, catalogue, plan.events.action_weights)
    vocabulary.save(staging / "items")
    totals.items = vocabulary.num_items
    totals.first_event = pc.min(vocabulary.items.column(Col.FIRST_SEEN)).as_py()
    totals.last_event = pc.max(vocabulary.items.column(Col.LAST_SEEN)).as_py()
    totals.labels = count_labels(label_stats)


def snapshot_manifest(
    plan: Plan, totals: Totals, buckets: Sequence[Mapping[str, Any]], user_table: dict[str, Any] | None
) -> dict[str, Any]:
    """What is said of a snapshot beside its files."""
    assert totals.first_event is not None
    assert totals.last_event is not None
    return {
        "snapshot": plan.snapshot,
        "counts": totals.counts(),
        "first_event": totals.first_event.astimezone(UTC).isoformat(),
        "last_event": totals.last_event.astimezone(UTC).isoformat(),
        "first_event_us": _us(totals.first_event),
        "last_event_us": _us(totals.last_event),
        "is_ordinal": plan.is_ordinal,
        "buckets": [{name: bucket[name] for name in (BUCKET, "users", "events", "digest")} for bucket in buckets],
        "inputs": plan.inputs,
        "num_log_files": plan.num_log_files,
        "labels": totals.labels,
        "config_digest": plan.config_digest,
        "mapping_digest": plan.mapping_digest,
        "layout": LAYOUT_VERSION,
        **(
            {"erased": {f"{digest:016x}": plan.erased[digest] for digest in sorted(plan.erased)}} if plan.erased else {}
        ),
        **({"user_table": user_table} if user_table else {}),
    }


def _us(time: datetime) -> int:
    """Microseconds since 1970, exactly."""
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def publish_quarantine(totals: Totals, staging: Folder, final: Folder) -> None:
    """Publish staging/quarantine with its counts."""
    counts = totals.counts()
    republish(staging / "quarantine", final, {name: counts[name] for name in ("rows_read", "quarantined", "by_reason")})


def republish(staged: Folder, final: Folder, manifest: dict[str, Any]) -> None:
    """Publish what belongs to a history that is not published yet: a killed or refused run may have left it there."""
    final.remove()
    publish(staged, final, manifest)
