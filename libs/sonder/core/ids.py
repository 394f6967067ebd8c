"""Stable, keyed digests: the same in every process, on every machine, in every release.

Source: XXH64 (xxHash 0.8 specification) through `polars-hash`, over the key followed by the UTF-8 bytes of the id.
Python's `hash()` differs between workers and Polars' own `hash()` between versions, so neither is ever used.
Limits: 64 bits, not cryptographic; two of a billion ids collide with probability 3 %, so a digest places or
deduplicates within one user and never identifies a user.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import polars as pl
import polars_hash as plh
from numpy.typing import NDArray

BUCKET_KEY = "sonder/bucket/1/"
EVENT_KEY = "sonder/event/1/"


def stable_hash(values: pl.Series, key: str) -> NDArray[np.uint64]:
    """Digest each string -> uint64 [N]. Null hashes like the empty string."""
    frame = pl.DataFrame({"id": values.cast(pl.String).fill_null("")})
    return frame.select(plh.concat_str(pl.lit(key), pl.col("id")).nchash.xxhash64()).to_series().to_numpy()


def bucket_of(user_ids: pl.Series, num_buckets: int) -> NDArray[np.int32]:
    """History bucket of each user id -> int32 [N] in [0, num_buckets)."""
    return (stable_hash(user_ids, BUCKET_KEY) % np.uint64(num_buckets)).astype(np.int32)


def unit_interval(ids: pl.Series, key: str) -> NDArray[np.float64]:
    """Map each id to [0, 1) by its digest: a reproducible random draw per id and purpose (`key`)."""
    return (stable_hash(ids, key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def digest_json(content: Any) -> str:
    """16 hex digits over canonical JSON."""
    return digest_bytes(orjson.dumps(content, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY))


def digest_bytes(content: bytes) -> str:
    """16 hex digits over bytes."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def unit_draw(key: str) -> Callable[[str], float]:
    """A function from one id to [0, 1), as `unit_interval` is for many; for decisions that a request waits for.

    BLAKE2b from a state that has read the key already: about a microsecond an id, where a frame of one row costs a
    hundred. Two keys draw independently, and neither is the draw of `unit_interval`.
    """
    keyed = hashlib.blake2b(key.encode(), digest_size=8)

    def draw(of: str) -> float:
        state = keyed.copy()
        state.update(of.encode())
        return (int.from_bytes(state.digest(), "little") >> 11) * 2.0**-53

    return draw
