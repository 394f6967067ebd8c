"""The two kinds of tasks of `prepare`, each a thin shell around pure functions: read a split, assemble a bucket.

Files below the staging folder (all names follow from the input, so a repeated task overwrites its own):
history/bucket=NNN/part-0.parquet   quarantine/{read,bucket}-N.parquet   scratch/: counts and statistics for the driver
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from numpy.typing import NDArray
from ray.data._internal.execution.interfaces.task_context import TaskContext

from sonder.core.ids import bucket_of, digest_bytes, stable_hash
from sonder.core.input_config import EventsConfig
from sonder.core.storage import Folder
from sonder.events.contract import EVENT_SCHEMA, QUARANTINE_SCHEMA, Col
from sonder.events.erasure import Erased, without_erased
from sonder.events.mapping import Batch, map_batch
from sonder.events.quarantine import rows_as_json
from sonder.events.reading import LogSplit, read_split
from sonder.history.assemble import assemble_bucket
from sonder.history.snapshot import HISTORY_ENCODINGS, bucket_file

SPLIT, BUCKET = "split", "bucket"
TABLE_ORDER_KEY = "sonder/table-order/1/"
QUARANTINE_ROWS_PER_FILE = 100_000
BLOCK_BYTES = 64 << 20
SHUFFLE_INPUT_BYTES = 192 << 20  # held by one map task of the shuffle; Ray's default of 1 GiB takes 3 GiB of memory

COUNTS_SCHEMA = pa.schema(
    [
        (BUCKET, pa.int32()),
        ("users", pa.int64()),
        ("events", pa.int64()),
        ("digest", pa.string()),
        ("by_reason", pa.list_(pa.struct([("reason", pa.string()), ("rows", pa.int64())]))),
    ]
)


def bound_shuffle() -> None:
    """Keep a shuffle within bounded memory; call it within `worker_errors`, whose context ends with its block."""
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = BLOCK_BYTES
    context.shuffle_input_batch_bytes = SHUFFLE_INPUT_BYTES
    context.enable_progress_bars = sys.stderr.isatty()


def rows_of(shuffled: ray.data.Dataset) -> list[dict[str, Any]]:
    """All rows of a dataset that ends in a shuffle; few, they are counts of files that its tasks wrote.

    `take_all` alone asks for statistics once the first row is there, which walks the tasks of the shuffle while Ray's
    own thread adds to and takes from them: now and then "dictionary changed size during iteration" and a lost run (Ray
    2.60). `materialize` asks when all have ended.
    """
    return list(shuffled.materialize().take_all())


def read_part(
    rows: pa.Table,
    *,
    splits: Sequence[LogSplit],
    config: EventsConfig,
    staging: Folder,
    num_buckets: int,
    absent: Sequence[str],
    erased: Erased,
) -> Iterator[pa.Table]:
    """Read the splits at these rows -> their events with the bucket of each; the rest goes to the quarantine."""
    for index in rows.column(SPLIT).to_pylist():
        intake = Intake(staging, f"{index:06d}", num_buckets, absent, erased, is_ordinal=config.timestamp == "ordinal")
        for batch in read_split(splits[index], config):
            yield intake.take(batch)
        yield intake.finish()


def read_block(
    raw: pa.Table,
    *,
    source: str,
    latest_us: int,
    config: EventsConfig,
    staging: Folder,
    num_buckets: int,
    absent: Sequence[str],
    erased: Erased,
) -> Iterator[pa.Table]:
    """The same for a block of a table that Ray Data reads. A table has no order, so ties are broken by content."""
    log_order = (stable_hash(pl.Series(rows_as_json(raw)), TABLE_ORDER_KEY) >> np.uint64(1)).astype(np.int64)
    batch = map_batch(raw, config, source, 0, latest_us=latest_us)
    ordered = Batch(_with_order(batch.events, log_order), _with_order(batch.quarantined, log_order))
    task = TaskContext.get_current()
    name = f"{task.task_idx if task else 0:06d}-{digest_bytes(log_order.tobytes())}"
    intake = Intake(staging, name, num_buckets, absent, erased, is_ordinal=config.timestamp == "ordinal")
    yield intake.take(ordered)
    yield intake.finish()


class Intake:
    """Counts what is read under one name, keeps what is set aside, and passes events on with their bucket."""

    def __init__(
        self,
        staging: Folder,
        name: str,
        num_buckets: int,
        absent: Sequence[str],
        erased: Erased,
        *,
        is_ordinal: bool,
    ) -> None:
        self.staging, self.name, self.num_buckets, self.absent = staging, name, num_buckets, absent
        self.erased, self.is_ordinal = erased, is_ordinal
        self.num_events, self.num_files = 0, 0
        self.by_reason = Counter[str]()
        self.set_aside: list[pa.Table] = []

    def take(self, batch: Batch) -> pa.Table:
        """What an erased user did is as if it had never been in the log: not counted, not set aside."""
        events = without_erased(batch.events, self.erased, is_ordinal=self.is_ordinal)
        self.num_events += events.num_rows
        self.by_reason.update(count_reasons(batch.quarantined))
        self.set_aside.append(batch.quarantined)
        if sum(table.num_rows for table in self.set_aside) >= QUARANTINE_ROWS_PER_FILE:
            self._write_quarantine()
        return _shuffled_form(events, self.num_buckets, self.absent)

    def finish(self) -> pa.Table:
        """Write what is left and the counts; the empty table tells Ray the columns of a part without events."""
        self._write_quarantine()
        counts = {"events": self.num_events, "by_reason": dict(self.by_reason)}
        (self.staging / "scratch" / f"read-{self.name}.json").write_json(counts)
        return _shuffled_form(EVENT_SCHEMA.empty_table(), self.num_buckets, self.absent)

    def _write_quarantine(self) -> None:
        table = pa.concat_tables([QUARANTINE_SCHEMA.empty_table(), *self.set_aside])
        self.set_aside = []
        if table.num_rows:
            (self.staging / "quarantine" / f"read-{self.name}-{self.num_files:04d}.parquet").write_table(table)
            self.num_files += 1


def read_counts(staging: Folder) -> tuple[int, Counter[str]]:
    """Events read and rows set aside by reason, over all parts."""
    events, by_reason = 0, Counter[str]()
    for file in (staging / "scratch").children():
        if file.name.startswith("read-"):
            counts = file.read_json()
            events += counts["events"]
            by_reason.update(counts["by_reason"])
    return events, by_reason


def assemble_part(
    events: pa.Table, *, staging: Folder, max_events_per_day: int | None, sources: Mapping[int, str] | str
) -> pa.Table:
    """Assemble the buckets in a partition, write them -> one row of counts per bucket."""
    buckets = events.column(BUCKET)
    rows = [
        _assemble_one(
            event_form(events.filter(pc.equal(buckets, bucket))),
            bucket.as_py(),
            staging=staging,
            max_events_per_day=max_events_per_day,
            sources=sources,
        )
        for bucket in pc.unique(buckets)
    ]
    return pa.Table.from_pylist(rows, schema=COUNTS_SCHEMA)


def write_bucket(history: pa.Table, bucket: int, staging: Folder) -> dict[str, Any]:
    """Write one bucket of the history -> its counts and the digest of its file."""
    file = bucket_file(staging / "history", bucket)
    file.write_table(history, HISTORY_ENCODINGS)
    num_events = int(pc.sum(history.column(Col.NUM_EVENTS)).as_py() or 0)
    return {BUCKET: bucket, "users": history.num_rows, "events": num_events, "digest": file.digest()}


def _assemble_one(
    events: pa.Table, bucket: int, *, staging: Folder, max_events_per_day: int | None, sources: Mapping[int, str] | str
) -> dict[str, Any]:
    assembled = assemble_bucket(events, max_events_per_day=max_events_per_day, sources=sources)
    if assembled.quarantined.num_rows:
        (staging / "quarantine" / f"bucket-{bucket:03d}.parquet").write_table(assembled.quarantined)
    (staging / "scratch" / f"items-{bucket:03d}.parquet").write_table(assembled.item_stats)
    (staging / "scratch" / f"labels-{bucket:03d}.parquet").write_table(assembled.label_stats)
    set_aside = [{"reason": reason, "rows": rows} for reason, rows in count_reasons(assembled.quarantined).items()]
    return {**write_bucket(assembled.history, bucket, staging), "by_reason": set_aside}


def _shuffled_form(events: pa.Table, num_buckets: int, absent: Sequence[str]) -> pa.Table:
    """Events with their bucket, without the columns that this log does not have: they need not travel."""
    for name in absent:
        assert events.column(name).null_count == events.num_rows, f"{name} was thought absent"
    buckets = bucket_of(pl.Series(pl.from_arrow(events.column(Col.USER_ID))), num_buckets)
    return events.drop_columns(list(absent)).append_column(BUCKET, pa.array(buckets, pa.int32()))


def event_form(rows: pa.Table) -> pa.Table:
    """EVENT_SCHEMA again."""
    columns = [
        rows.column(field.name) if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
        for field in EVENT_SCHEMA
    ]
    return pa.Table.from_arrays(columns, names=EVENT_SCHEMA.names).cast(EVENT_SCHEMA)


def _with_order(table: pa.Table, log_order: NDArray[np.int64]) -> pa.Table:
    """Row numbers of a block -> log order of these rows."""
    column = table.schema.get_field_index(Col.LOG_ORDER)
    rows = table.column(column).to_numpy()
    return table.set_column(column, table.schema.field(column), pa.array(log_order[rows], pa.int64()))


def count_reasons(quarantined: pa.Table) -> dict[str, int]:
    """Rows by reason."""
    counts = pc.value_counts(quarantined.column("reason").combine_chunks())
    return dict(sorted((entry["values"], entry["counts"]) for entry in counts.to_pylist()))
