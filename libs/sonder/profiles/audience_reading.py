"""Read what rules need of the users of a release: profiles, and the histories beside them where a window asks.

A history bucket is a random draw of users (core.ids.bucket_of), so whole buckets from the first are a random sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from sonder.core.ids import unit_interval
from sonder.core.storage import Folder
from sonder.events.contract import Col
from sonder.history.snapshot import buckets_of, read_bucket
from sonder.history.timelines import Timelines
from sonder.profiles.audience_counts import SAMPLE_KEY
from sonder.profiles.audience_fields import activity_of, profile_columns, reads_history
from sonder.profiles.loading import align
from sonder.profiles.record import PROFILE_SCHEMA, profile_file
from sonder.segments.rules.syntax import Field

_NOT_READ = ("embedding", "drivers")  # by no rule, and most of the bytes


@dataclass(frozen=True)
class ReleaseUsers:
    """Where the users of a release lie."""

    profiles: Folder  # bucket=NNN/part-0.parquet of PROFILE_SCHEMA
    history: Folder  # the snapshot that they were computed from
    actions: tuple[str, ...]  # of the release's vocabulary

    def read(self, bucket: int, fields: Sequence[Field] | None = None) -> tuple[pa.Table, Timelines | None]:
        """Profiles of one bucket and their timelines (None if no field reads them); for any rule without `fields`."""
        file = profile_file(self.profiles, bucket)
        if not file.exists():  # a bucket without users
            return PROFILE_SCHEMA.empty_table(), _timelines(None, self.actions)
        with file.open() as opened:
            parquet = pq.ParquetFile(opened)
            available = [parquet.schema.column(i).path for i in range(len(parquet.schema))]
            wanted = [name for name in available if not set(name.split(".")) & set(_NOT_READ)]
            profiles = parquet.read(profile_columns(fields, available) if fields is not None else wanted)
        if fields is not None and not reads_history(fields):
            return profiles, None
        history = read_bucket(self.history, bucket, [Col.USER_ID, Col.ACTION, Col.TIMESTAMP, Col.VALUE])
        timelines, user_ids = _timelines(history, self.actions), profiles.column("user_id").combine_chunks()
        # A release writes profiles in the order of its history, so there is rarely anything to move.
        return profiles, timelines if timelines.user_ids.equals(user_ids) else align(timelines, user_ids)

    def sample(self, num_users: int) -> tuple[pa.Table, Timelines]:
        """A random sample of about `num_users` users, everybody if there are no more; the same one each time."""
        tables, parts, held = [], [], 0
        for bucket in buckets_of(self.history):
            if held >= num_users:
                break
            profiles, timelines = self.read(bucket)
            assert timelines is not None
            tables.append(profiles)
            parts.append(timelines)
            held += profiles.num_rows
        profiles, timelines = pa.concat_tables(tables, promote_options="default"), Timelines.concat(parts)
        if held <= num_users:
            return profiles, timelines
        draws = unit_interval(pl.Series(profiles.column("user_id").to_pylist(), dtype=pl.String), SAMPLE_KEY)
        rows = np.sort(np.argsort(draws, kind="stable")[:num_users])
        return profiles.take(pa.array(rows)), timelines.take(rows)


def _timelines(history: pa.Table | None, actions: Sequence[str]) -> Timelines:
    if history is None:
        return Timelines(
            user_ids=pa.array([], pa.string()),
            offsets=np.zeros(1, dtype=np.int64),
            items=np.zeros(0, dtype=np.int32),
            actions=np.zeros(0, dtype=np.int16),
            surfaces=np.zeros(0, dtype=np.int16),
            times_us=np.zeros(0, dtype=np.int64),
            values=np.zeros(0),
        )
    return activity_of(history, actions)
