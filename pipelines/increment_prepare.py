"""Merge the new files of a log into the history of a release: a new snapshot beside it (Ray Data).

    new files -> read and map -> shuffle by the parent's buckets -> one merge task per bucket with news
        -> the other buckets, as they are -> user table, item table -> publish

The merged snapshot holds what a full prepare of the same files in the order of their delivery would, byte by byte
(sonder.history.merge says where not), and `touched/bucket=NNN/part-0.parquet`: whose history changed. As in `prepare`,
everything is staged and history is published last; each merged bucket leaves its summary, so the same command after a
kill goes on at the first bucket that has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from pipelines.bucket_tasks import over_buckets
from pipelines.increment_plan import Delivery
from pipelines.prepare import (
    Totals,
    publish_quarantine,
    refuse_bad_log,
    republish,
    snapshot_manifest,
    write_items,
)
from pipelines.prepare_plan import ROWS_PER_BUCKET
from pipelines.prepare_tasks import (
    BUCKET,
    SPLIT,
    bound_shuffle,
    count_reasons,
    event_form,
    read_counts,
    read_part,
    rows_of,
    write_bucket,
)
from pipelines.prepare_users import make_user_table
from pipelines.ray_runtime import BEFORE_A_SHUFFLE, ensure_ray, worker_errors
from sonder.core.config import SonderConfig
from sonder.core.storage import Folder, publish
from sonder.core.telemetry import carried, logger, stage
from sonder.core.workspace import Workspace
from sonder.events.contract import EVENT_SCHEMA, Col
from sonder.events.erasure import Erased, is_erased
from sonder.events.quarantine import empty_quarantine
from sonder.history.assemble import item_stats_of, label_stats_of
from sonder.history.item_table import item_stats_table, label_table
from sonder.history.merge import flat_events, merge_bucket
from sonder.history.snapshot import bucket_file, read_bucket, touched_file
from sonder.history.vocabulary import ITEMS_FILE

SHUFFLED = "shuffled.json"  # says that the new events lie in their buckets


def merge_delivery(config: SonderConfig, delivery: Delivery) -> str:
    """Merge -> id of the merged snapshot, published; at once if this delivery was merged into this parent before."""
    plan, workspace = delivery.plan, Workspace.at(config.workspace)
    final = workspace.history(plan.snapshot)
    if final.is_published():
        logger.info("increment: already merged, %s", final)
        return plan.snapshot
    staging = workspace.staging(f"merge-{plan.snapshot}")
    parent = workspace.history(delivery.parent)
    with stage("increment.read", files=len(delivery.new_files), splits=len(plan.splits)) as counts:
        counts["buckets"] = len(_shuffle(delivery, staging))
    with stage("increment.merge", snapshot=plan.snapshot) as counts:
        summaries = _merge(delivery, parent, workspace.quarantine(delivery.parent), staging)
        totals = _add_up(delivery, summaries, staging, config, workspace)
        counts |= {"merged": len(summaries), "added": sum(summary["added"] for summary in summaries)}
    user_table = make_user_table(plan.users, plan.num_buckets, staging, plan.erased) if plan.users else None
    _write_items(config, delivery, totals, summaries, staging, workspace)
    _gather_quarantine(plan.snapshot, workspace.quarantine(delivery.parent), staging)
    publish_quarantine(totals, staging, workspace.quarantine(plan.snapshot))
    republish(staging / "items", workspace.items(plan.snapshot), {"items": totals.items})
    publish(staging / "history", final, _manifest(delivery, totals, summaries, user_table))
    staging.remove()
    logger.info("increment: wrote %s", final)
    return plan.snapshot


def _shuffle(delivery: Delivery, staging: Folder) -> list[int]:
    """Write the new events of each bucket to scratch/new -> the buckets that have any."""
    done = staging / "scratch" / SHUFFLED
    if done.exists():
        return [int(bucket) for bucket in done.read_json()]
    staging.remove()  # what a killed run left there is half of something
    plan, buckets = delivery.plan, list[int]()
    if plan.splits:
        ensure_ray()
        with worker_errors():
            bound_shuffle()
            rows = [{SPLIT: index} for index in range(len(plan.splits))]
            written = (
                ray.data.from_items(rows, override_num_blocks=len(rows))
                .map_batches(
                    carried("read events", read_part),
                    fn_kwargs={
                        "splits": tuple(plan.splits),
                        "config": plan.events,
                        "staging": staging,
                        "num_buckets": plan.num_buckets,
                        "absent": plan.absent,
                        "erased": plan.erased,
                    },
                    batch_size=None,  # one split a task
                    batch_format="pyarrow",
                    runtime_env=BEFORE_A_SHUFFLE,
                )
                .repartition(_num_partitions(delivery), keys=[BUCKET])
                .map_batches(
                    carried("keep new events", keep_part),
                    fn_kwargs={"staging": staging},
                    batch_size=None,  # a whole partition: a bucket must not be cut
                    batch_format="pyarrow",
                )
            )
            buckets = sorted(int(row[BUCKET]) for row in rows_of(written))
    assert len(set(buckets)) == len(buckets), "the shuffle cut a bucket in two"
    done.write_json(buckets)
    return buckets


def _num_partitions(delivery: Delivery) -> int:
    """Few where little is new: a partition holds several buckets then."""
    rows = sum(split.num_rows or split.size_bytes // 20 for split in delivery.plan.splits)
    return min(delivery.plan.num_buckets, max(2, -(-rows // ROWS_PER_BUCKET)))


def keep_part(events: pa.Table, *, staging: Folder) -> pa.Table:
    """Write the new events of the buckets in a partition -> one row per bucket."""
    buckets = pc.unique(events.column(BUCKET)) if events.num_rows else pa.array([], pa.int32())
    for bucket in buckets:
        chosen = events.filter(pc.equal(events.column(BUCKET), bucket)).drop_columns([BUCKET])
        new_events_file(staging, bucket.as_py()).write_table(chosen)
    return pa.table({BUCKET: buckets.cast(pa.int32())})


def new_events_file(staging: Folder, bucket: int) -> Folder:
    return staging / "scratch" / "new" / f"bucket={bucket:03d}.parquet"


def _merge(delivery: Delivery, parent: Folder, quarantine: Folder, staging: Folder) -> list[dict[str, Any]]:
    """Merge the buckets with news and copy the others -> a summary of each that was merged, in order."""
    plan = delivery.plan
    with_news = {int(bucket) for bucket in (staging / "scratch" / SHUFFLED).read_json()}
    with_news |= set(_buckets_of_erased(parent, plan.num_buckets, delivery.erased))
    arguments = {
        "parent": parent.uri,
        "quarantine": quarantine.uri,
        "staging": staging.uri,
        "max_events_per_day": None if plan.is_ordinal else plan.events.max_events_per_day,
        "sources": plan.sources if plan.splits else {},
        "erased": dict(delivery.erased),
        "is_ordinal": plan.is_ordinal,
    }
    summaries = over_buckets(MergeBucket, arguments, sorted(with_news))
    for bucket in sorted(set(range(plan.num_buckets)) - with_news):
        _copy(bucket_file(parent, bucket), bucket_file(staging / "history", bucket))
    return summaries


class MergeBucket:
    """The bucket task: reads the parent's bucket and what is new of it, writes the merged one."""

    def __init__(
        self,
        parent: str,
        quarantine: str,
        staging: str,
        max_events_per_day: int | None,
        sources: Mapping[int, str] | str,
        erased: Erased,
        is_ordinal: bool,
    ) -> None:
        self.parent, self.quarantine, self.staging = Folder.at(parent), Folder.at(quarantine), Folder.at(staging)
        self.options: dict[str, Any] = {
            "max_events_per_day": max_events_per_day,
            "sources": sources,
            "erased": erased,
            "is_ordinal": is_ordinal,
        }

    def __call__(self, bucket: int) -> dict[str, Any]:
        done = self.staging / "scratch" / "merged" / f"bucket={bucket:03d}.json"
        if not done.exists():
            done.write_json(self._merge(bucket))
        summary: dict[str, Any] = done.read_json()
        return summary

    def _merge(self, bucket: int) -> dict[str, Any]:
        new, kept = new_events_file(self.staging, bucket), self.quarantine / f"bucket-{bucket:03d}.parquet"
        events = event_form(new.read_table()) if new.exists() else EVENT_SCHEMA.empty_table()
        set_aside = kept.read_table() if kept.exists() else empty_quarantine()
        merged = merge_bucket(read_bucket(self.parent, bucket), set_aside, events, **self.options)
        if merged.quarantined.num_rows:
            (self.staging / "quarantine" / f"bucket-{bucket:03d}.parquet").write_table(merged.quarantined)
        touched_file(self.staging / "history", bucket).write_table(merged.touched)
        scratch = self.staging / "scratch"
        (scratch / f"items-{bucket:03d}.parquet").write_table(merged.item_stats)
        (scratch / f"labels-{bucket:03d}.parquet").write_table(merged.label_stats)
        before, after = Counter(count_reasons(set_aside)), Counter(count_reasons(merged.quarantined))
        after.subtract(before)
        return {
            **write_bucket(merged.history, bucket, self.staging),
            "new": events.num_rows,
            "added": merged.num_added,
            "removed": merged.num_removed,
            "touched": merged.touched.num_rows,
            "by_reason": {reason: rows for reason, rows in after.items() if rows},
        }


def _buckets_of_erased(parent: Folder, num_buckets: int, erased: Erased) -> Iterator[int]:
    """Buckets that hold an erased user: a digest does not say which, so the ids of all are looked at."""
    for bucket in range(num_buckets) if erased else ():
        if is_erased(read_bucket(parent, bucket, [Col.USER_ID]).column(0), erased).any():
            yield bucket


def _copy(source: Folder, target: Folder) -> None:
    if not target.exists():
        target.write_bytes(source.read_bytes())


def _add_up(
    delivery: Delivery,
    summaries: Sequence[Mapping[str, Any]],
    staging: Folder,
    config: SonderConfig,
    workspace: Workspace,
) -> Totals:
    """Counts of the merged snapshot; the delivery alone is held against `max_bad_fraction`."""
    num_read, read_aside = read_counts(staging)
    merged_aside = Counter[str]()
    for summary in summaries:
        merged_aside.update(summary["by_reason"])
    known, added = delivery.known["counts"], sum(int(summary["added"]) for summary in summaries)
    new = sum(int(summary["new"]) for summary in summaries)
    assert new == num_read, f"{num_read:,} events were read and {new:,} came to a bucket"
    by_bucket = {int(summary[BUCKET]): summary for summary in summaries}
    buckets = [by_bucket.get(int(entry[BUCKET]), entry) for entry in delivery.known["buckets"]]
    alone = Totals(num_read + read_aside.total(), num_read, 0, read_aside + _positive(merged_aside))
    if alone.events or alone.num_bad:  # a day on which nothing happened is none to refuse
        refuse_bad_log(delivery.plan, alone, config.events.max_bad_fraction, staging, workspace)
    by_reason = Counter(known["by_reason"])
    by_reason.update(read_aside)
    by_reason.update(merged_aside)
    events = sum(int(bucket["events"]) for bucket in buckets)
    by_reason = _positive(by_reason)
    totals = Totals(
        rows_read=events + by_reason.total(),
        events=events,
        users=sum(int(bucket["users"]) for bucket in buckets),
        by_reason=by_reason,
    )
    removed = sum(int(summary["removed"]) for summary in summaries)
    assert events == known["events"] + added - removed, "every event is in the history or set aside, once"
    return totals


def _positive(counts: Counter[str]) -> Counter[str]:
    return Counter({reason: rows for reason, rows in counts.items() if rows > 0})


def _write_items(
    config: SonderConfig,
    delivery: Delivery,
    totals: Totals,
    summaries: Sequence[Mapping[str, Any]],
    staging: Folder,
    workspace: Workspace,
) -> None:
    """What is new is added to what was; where events left the history, everything is counted again."""
    scratch, history = staging / "scratch", staging / "history"
    if any(summary["removed"] for summary in summaries):
        parts = [_stats_of(read_bucket(history, bucket)) for bucket in range(delivery.plan.num_buckets)]
        item_stats, label_stats = [items for items, _ in parts], [labels for _, labels in parts]
    else:
        known = (workspace.items(delivery.parent) / ITEMS_FILE).read_table()
        buckets = [int(summary[BUCKET]) for summary in summaries]
        item_stats = [(scratch / f"items-{bucket:03d}.parquet").read_table() for bucket in buckets]
        label_stats = [(scratch / f"labels-{bucket:03d}.parquet").read_table() for bucket in buckets]
        item_stats.append(item_stats_table(known))
        label_stats.append(label_table(delivery.known["labels"]))
    with stage("increment.items") as counts:
        write_items(config, delivery.plan, totals, staging, item_stats, label_stats)
        counts["items"] = totals.items


def _stats_of(history: pa.Table) -> tuple[pa.Table, pa.Table]:
    events = pl.DataFrame(pl.from_arrow(flat_events(history)))
    return item_stats_of(events), label_stats_of(events)


def _gather_quarantine(snapshot: str, parent: Folder, staging: Folder) -> None:
    """What was set aside before under its names, what is new under names of its own."""
    folder = staging / "quarantine"
    for name in folder.files():
        if name.startswith("read-"):
            _copy(folder / name, folder / f"since-{snapshot}-{name}")
            (folder / name).remove()
    merged = {f"bucket-{int(name[-8:-5]):03d}.parquet" for name in _merged_names(staging)}
    for name in parent.files():
        if name.endswith(".parquet") and name not in merged:
            _copy(parent / name, folder / name)


def _merged_names(staging: Folder) -> list[str]:
    return [name for name in (staging / "scratch" / "merged").files() if name.endswith(".json")]


def _manifest(
    delivery: Delivery,
    totals: Totals,
    summaries: Sequence[Mapping[str, Any]],
    user_table: dict[str, Any] | None,
) -> dict[str, Any]:
    by_bucket = {int(summary[BUCKET]): summary for summary in summaries}
    buckets = [by_bucket.get(int(entry[BUCKET]), entry) for entry in delivery.known["buckets"]]
    return {
        **snapshot_manifest(delivery.plan, totals, buckets, user_table),
        "parent": delivery.parent,
        "delivery": {
            "files": len(delivery.new_files),
            "erased": len(delivery.erased),
            "merged_buckets": [int(summary[BUCKET]) for summary in summaries],
            **{
                name: sum(int(summary[name]) for summary in summaries)
                for name in ("new", "added", "removed", "touched")
            },
        },
    }
