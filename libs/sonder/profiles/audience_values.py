"""The value of each field of a rule for one user, from the JSON record of a profile and the timeline beside it.

The readable meaning of profiles.audience_fields, and what the online path calls: see there for units and rounding.
Limits: an online store keeps the newest 2,000 events of a user (profiles.loading), so a window that holds more is cut.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.profiles.audience_fields import DAYS, DECIMALS, LISTS, NUMBER_PATTERN, is_below
from sonder.profiles.audience_windows import windowed_values
from sonder.segments.rules.schema import WINDOWED
from sonder.segments.rules.syntax import Field, Type, Value


def field_values(
    fields: Sequence[Field], profile: Mapping[str, Any], timeline: Timelines | None, actions: Sequence[str]
) -> dict[str, Value | None]:
    """Value of each field by its column, None where unknown.

    `profile` is a parsed record of profiles.record.to_json_records, `timeline` the one of the same user.
    """
    values = {field.column: _value(field, profile) for field in fields if field.kind not in WINDOWED}
    windowed = [field for field in fields if field.kind in WINDOWED]
    if windowed:
        assert timeline is not None, "a window is counted over a history"
        as_of_us = np.array([_time_us(profile["as_of"])], dtype=np.int64)
        counted = windowed_values(windowed, timeline, as_of_us, actions)
        values |= {name: float(values_U[0]) for name, values_U in counted.items()}
    return values


def _value(field: Field, profile: Mapping[str, Any]) -> Value | None:
    """The readable meaning of a field that does not read the history."""
    segments = profile.get("segments") or {}
    match field.kind:
        case "lifecycle" | "active_days" | "cluster":
            return _number(segments.get(field.kind)) if field.kind == "active_days" else segments.get(field.kind)
        case "since_days":
            return _days_before(segments.get("since"), profile)
        case "recency_days" | "tenure_days":
            return _days_before(profile.get(DAYS[field.kind]), profile)
        case "first_seen" | "last_seen":
            seen = profile.get(field.kind)
            return None if seen is None else _time_us(seen)
        case "interest":
            found = [
                float(np.float32(entry["weight"]))
                for entry in profile.get("interests") or ()
                if is_below(entry["category"] or entry["medoid_item_id"], field.key or "")
            ]
            return float(np.round(sum(found), DECIMALS))
        case "num_interests":
            return float(len(profile.get("interests") or ()))
        case kind if kind in LISTS:
            return _keyed_value(field, profile)
        case "is_cold":
            return bool(profile["is_cold"])
    return _number(profile.get(field.kind))


def _keyed_value(field: Field, profile: Mapping[str, Any]) -> Value | None:
    column, key, value = LISTS[field.kind]
    entries = profile.get(column)
    values = entries if isinstance(entries, dict) else {entry[key]: entry[value] for entry in entries or ()}
    found = values.get(field.key)
    if field.kind == "affinity" and entries is not None and found is None:
        return 0.0
    if found is None or field.type is not Type.NUMBER:
        return None if found is None else bool(found) if field.type is Type.TRUTH else str(found)
    if field.kind == "attribute":
        return float(found) if re.fullmatch(NUMBER_PATTERN[1:-1], found) else None
    return float(np.round(float(np.float32(found)), DECIMALS))


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _time_us(moment: str) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * 1_000_000)


def _days_before(moment: str | None, profile: Mapping[str, Any]) -> float | None:
    if moment is None:
        return None
    return (_time_us(profile["as_of"]) - _time_us(moment)) / MICROSECONDS_PER_DAY
