"""Users who asked to be forgotten: what every later read of the log leaves out.

A tombstone is a small file named by a digest of the user id (core.ids), so the list of the forgotten names nobody.
It holds the time of the request: what the user does later is a new beginning and counts again. A log without real
times (`ordinal`) has no later, and none of its events count.
Whoever polls reads `CHANGED`, which every new tombstone rewrites, and the folder only when that has changed.
Limits: the digest has 64 bits, so one of a billion other users is left out by mistake with a chance of one in ten
billion for each tombstone; rows that are no events (quarantine) are kept as they were read.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from sonder.core.ids import stable_hash
from sonder.core.storage import Folder
from sonder.events.contract import Col

ERASURE_KEY = "sonder/erased/1/"
CHANGED = "CHANGED"
_READERS = 8  # of an object store, where a file costs a request
Erased = Mapping[int, int]  # digest of a user -> microseconds of the request


def digest_of(user_id: str) -> int:
    """Digest that stands for a user."""
    return int(stable_hash(pl.Series([user_id], dtype=pl.String), ERASURE_KEY)[0])


def record_erasure(folder: Folder, user_id: str, *, at_us: int) -> None:
    """Write or renew the tombstone of a user."""
    when = datetime.fromtimestamp(at_us / 1e6, tz=UTC).isoformat()
    (folder / f"{digest_of(user_id):016x}.json").write_json({"erased_at_us": at_us, "erased_at": when})
    (folder / CHANGED).write_bytes(uuid.uuid4().bytes)


def read_erasures(folder: Folder) -> dict[int, int]:
    """Every tombstone; empty where nobody was ever erased."""
    files = [file for file in folder.children() if file.name.endswith(".json")]
    with ThreadPoolExecutor(_READERS) as readers:
        moments = list(readers.map(lambda file: int(file.read_json()["erased_at_us"]), files))
    return {int(file.name.removesuffix(".json"), 16): moment for file, moment in zip(files, moments, strict=True)}


def is_erased(user_ids: pa.ChunkedArray | pa.Array, erased: Erased) -> NDArray[np.bool_]:
    """Which of the users have a tombstone [N]."""
    if not erased:
        return np.zeros(len(user_ids), dtype=np.bool_)
    return np.isin(_digests(user_ids), np.fromiter(erased, dtype=np.uint64, count=len(erased)))


def erased_until_us(user_ids: pa.ChunkedArray | pa.Array, erased: Erased) -> NDArray[np.int64]:
    """The moment of each user's request [N]: what the user did until then is gone; before all times without one."""
    never = np.full(len(user_ids), np.iinfo(np.int64).min)
    if not erased:
        return never
    tombstones = np.sort(np.fromiter(erased, dtype=np.uint64, count=len(erased)))
    moments = np.array([erased[int(digest)] for digest in tombstones], dtype=np.int64)
    digests = _digests(user_ids)
    places = np.minimum(np.searchsorted(tombstones, digests), len(tombstones) - 1)
    return np.where(tombstones[places] == digests, moments[places], never)


def without_erased(events: pa.Table, erased: Erased, *, is_ordinal: bool) -> pa.Table:
    """Events but those of erased users from before their request; of an ordinal log none of theirs is left."""
    if not erased or not events.num_rows:
        return events
    if is_ordinal:
        return events.filter(pa.array(~is_erased(events.column(Col.USER_ID), erased)))
    times_us = events.column(Col.TIMESTAMP).cast(pa.int64()).to_numpy()
    is_out = times_us <= erased_until_us(events.column(Col.USER_ID), erased)
    return events.filter(pa.array(~is_out))


def _digests(user_ids: pa.ChunkedArray | pa.Array) -> NDArray[np.uint64]:
    series = pl.from_arrow(user_ids.cast(pa.large_string()))
    assert isinstance(series, pl.Series)
    return stable_hash(series, ERASURE_KEY)
