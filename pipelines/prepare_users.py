"""The user table of a snapshot: read, shuffled by the history's own buckets, one row per user (Ray Data).

Writes staging/history/users/bucket=NNN/part-0.parquet (USER_SCHEMA) for every bucket, after the history's files are
there. Everybody in the table is kept, users without any event too: their rows cost little, a later log may bring their
events, and whoever counts registered users needs them. Profiles are made of users with events only.
As in `prepare`, files are named by the input alone and nothing depends on workers, so a repeated task changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from pipelines.prepare_tasks import BUCKET, SPLIT, bound_shuffle, rows_of
from pipelines.ray_runtime import BEFORE_A_SHUFFLE, ensure_ray, worker_errors
from sonder.core.errors import DataError
from sonder.core.ids import bucket_of
from sonder.core.storage import Folder
from sonder.core.telemetry import carried, logger, stage
from sonder.events.contract import USER_SCHEMA, Col
from sonder.events.erasure import Erased, is_erased
from sonder.events.reading import LogSplit
from sonder.events.users import UserTable, assemble_users, empty_users, read_users
from sonder.history.snapshot import read_bucket, users_file

_COUNTS = "users-"  # begins the name of a part's counts in scratch/
BUCKET_COUNTS = pa.schema(
    [
        (BUCKET, pa.int32()),
        ("users", pa.int64()),
        ("repeated", pa.int64()),
        ("users_with_events", pa.int64()),
        ("digest", pa.string()),
    ]
)


def make_user_table(table: UserTable, num_buckets: int, staging: Folder, erased: Erased) -> dict[str, Any]:
    """Write the table beside the staged history -> what the manifest says of it: counts, and the bucket files."""
    with stage("prepare.users") as counts:
        buckets = _shuffle(table, table.splits(), num_buckets, staging, erased)
        totals = _read_counts(staging)
        for name in ("users", "repeated", "users_with_events"):
            totals[name] = sum(int(bucket[name]) for bucket in buckets)
        counts.update(totals)
    if totals["rows"] and not totals["users"]:
        raise DataError(
            f"None of the {totals['rows']:,} rows of the user table {table.config.path} has a user id",
            expected="one id a row, as in the log",
            do="Correct users.columns.user_id.",
        )
    if totals["users"] and not totals["users_with_events"]:
        logger.warning("prepare: no user of %s has an event in the log; are the ids the same?", table.config.path)
    return {
        "counts": dict(totals),
        "buckets": [{name: bucket[name] for name in (BUCKET, "users", "digest")} for bucket in buckets],
    }


def _shuffle(
    table: UserTable, splits: Sequence[LogSplit], num_buckets: int, staging: Folder, erased: Erased
) -> list[dict[str, Any]]:
    """Run the Ray Data pipeline -> one row of counts per bucket, in order."""
    rows: list[dict[str, Any]] = []
    if splits:
        ensure_ray()
        with worker_errors():
            bound_shuffle()
            read = ray.data.from_items(
                [{SPLIT: index} for index in range(len(splits))], override_num_blocks=len(splits)
            )
            flat = read.map_batches(
                carried("read users", read_users_part),
                fn_kwargs={
                    "splits": tuple(splits),
                    "table": table,
                    "staging": staging,
                    "num_buckets": num_buckets,
                    "erased": erased,
                },
                batch_size=None,  # one split a task
                batch_format="pyarrow",
                runtime_env=BEFORE_A_SHUFFLE,
            )
            written = flat.repartition(num_buckets, keys=[BUCKET]).map_batches(
                carried("write users", write_users_part),
                fn_kwargs={"table": table, "staging": staging},
                batch_size=None,  # a whole partition: a bucket must not be cut
                batch_format="pyarrow",
            )
            rows = rows_of(written)
    done = {int(row[BUCKET]): row for row in rows}
    if len(done) != len(rows):
        raise DataError("The shuffle cut a bucket in two", expected="whole buckets in every partition")
    empty = USER_SCHEMA.empty_table()
    return [done.get(bucket) or _write(empty, bucket, 0, staging) for bucket in range(num_buckets)]


def read_users_part(
    rows: pa.Table,
    *,
    splits: Sequence[LogSplit],
    table: UserTable,
    staging: Folder,
    num_buckets: int,
    erased: Erased,
) -> Iterator[pa.Table]:
    """Read the splits at these rows -> their flat tables with the bucket of each user."""
    for index in rows.column(SPLIT).to_pylist():
        counts = Counter[str]()
        yield _placed(empty_users(table), num_buckets)  # tells Ray the columns of a part without rows
        for flat, found in read_users(splits[index], table):
            counts.update(found)
            yield _placed(flat.filter(pa.array(~is_erased(flat.column(Col.USER_ID), erased))), num_buckets)
        (staging / "scratch" / f"{_COUNTS}{index:06d}.json").write_json(dict(counts))


def _placed(flat: pa.Table, num_buckets: int) -> pa.Table:
    """With the bucket of each user."""
    buckets = bucket_of(pl.Series(pl.from_arrow(flat.column(Col.USER_ID))), num_buckets)
    return flat.append_column(BUCKET, pa.array(buckets, pa.int32()))


def write_users_part(flat: pa.Table, *, table: UserTable, staging: Folder) -> pa.Table:
    """Write the buckets in a partition -> one row of counts per bucket."""
    written = []
    for bucket in pc.unique(flat.column(BUCKET)) if flat.num_rows else ():
        chosen = flat.filter(pc.equal(flat.column(BUCKET), bucket)).drop_columns(BUCKET)
        users = assemble_users(chosen, table.config)
        written.append(_write(users, bucket.as_py(), chosen.num_rows - users.num_rows, staging))
    return pa.Table.from_pylist(written, schema=BUCKET_COUNTS)


def _write(users: pa.Table, bucket: int, num_repeated: int, staging: Folder) -> dict[str, Any]:
    file = users_file(staging / "history", bucket)
    file.write_table(users)
    history = read_bucket(staging / "history", bucket, [Col.USER_ID]).column(Col.USER_ID)
    known = pc.is_in(users.column(Col.USER_ID), value_set=history.cast(pa.string()).combine_chunks())
    return {
        BUCKET: bucket,
        "users": users.num_rows,
        "repeated": num_repeated,
        "users_with_events": int(pc.sum(known).as_py() or 0),
        "digest": file.digest(),
    }


def _read_counts(staging: Folder) -> Counter[str]:
    totals = Counter[str]()
    for file in (staging / "scratch").children():
        if file.name.startswith(_COUNTS):
            totals.update(file.read_json())
    return totals
