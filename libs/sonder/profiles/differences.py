"""What is different between two records of a user: by field, and not by the last digits of numbers.

A record's numbers are float32 as they came out of a batch, and who else was in it moves the last digits; so numbers
count as the same within a part in 100,000. When a record was computed is no difference.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import orjson

from sonder.profiles.store import StoredProfile

TOLERANCE = 1e-5
WHOLE_RECORD = "record"
_NO_DIFFERENCE = ("computed_at",)
_NESTED = ("segments",)


def differences(stored: StoredProfile | None, computed: StoredProfile) -> tuple[str, ...]:
    """Fields of the JSON record (segments by their own), `embedding` and `timeline`; `record` where none can be read.

    None: there is no record, or one that is broken.
    """
    if stored is None:
        return (WHOLE_RECORD,)
    try:
        held = _fields(stored.body)
    except orjson.JSONDecodeError:
        return (WHOLE_RECORD,)
    right = _fields(computed.body)
    found = [name for name in sorted(held.keys() | right.keys()) if not _same(held.get(name), right.get(name))]
    if not _same_vector(stored.embedding, computed.embedding):
        found.append("embedding")
    if stored.timeline != computed.timeline:
        found.append("timeline")
    return tuple(found)


def _fields(body: bytes) -> dict[str, Any]:
    content: dict[str, Any] = orjson.loads(body)
    flat = {name: value for name, value in content.items() if name not in (*_NO_DIFFERENCE, *_NESTED)}
    for name in _NESTED:
        flat |= {f"{name}.{inner}": value for inner, value in (content.get(name) or {}).items()}
    return flat


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, float) or isinstance(right, float):
        both = isinstance(left, int | float) and isinstance(right, int | float)
        return both and math.isclose(left, right, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(left == right)


def _same_vector(left: bytes, right: bytes) -> bool:
    if len(left) != len(right) or len(left) % 4:
        return left == right
    held, computed = np.frombuffer(left, dtype="<f4"), np.frombuffer(right, dtype="<f4")
    return bool(np.allclose(held, computed, rtol=TOLERANCE, atol=TOLERANCE))
