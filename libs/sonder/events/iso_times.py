"""ISO 8601 text -> microseconds since 1970, UTC, digit by digit for all rows at once.

Read: `2010-12-01`, `2010/12/01 08:26`, `2010-12-01T08:26:00.123456789+01:00`, `2010-12-01 08:26:00 UTC`; hours alone
(`T08`), a comma before the decimals and zones as `Z`, `UTC`, `GMT`, `+01:00`, `+0100`, `+01` too. No zone is UTC.
Shapes: N rows of one length L have their digits in the same places, so they are one [L, N] matrix of bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sonder.events.values import nulls_of, text_buffers

_CORE_LENGTHS = frozenset((10, 13, 16, 19, *range(21, 30)))  # date; hours; minutes; seconds; 1 to 9 decimals
_SHORTEST, _LONGEST = 10, 36

Mask = NDArray[np.bool_]
Bytes = NDArray[np.uint8]


def parse_iso(texts: pa.LargeStringArray) -> tuple[NDArray[np.int64], Mask]:
    """Microseconds [N], and where a time was read [N]."""
    starts, ends, data = text_buffers(texts)
    us, is_time = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.bool_)
    lengths = np.where(nulls_of(texts), 0, ends - starts)
    for length in np.flatnonzero(np.bincount(np.minimum(lengths, _LONGEST + 1))):
        if not _SHORTEST <= length <= _LONGEST:
            continue
        rows = np.flatnonzero(lengths == length)
        chars_LN = _matrix(data, starts[rows], int(length))
        for chosen, core_length, zone_minutes in _zones(chars_LN):
            if core_length not in _CORE_LENGTHS or not chosen.any():
                continue
            core_LN = chars_LN[:core_length] if chosen.all() else chars_LN[:core_length, chosen]
            core_us, is_core = _read_core(core_LN)
            minutes = zone_minutes[chosen]
            us[rows[chosen]] = core_us - np.where(is_core, minutes, 0) * 60_000_000
            is_time[rows[chosen]] = is_core & (np.abs(minutes) < 24 * 60)
    return us, is_time


def _matrix(data: Bytes, starts: NDArray[np.int64], length: int) -> Bytes:
    if len(starts) > 1 and bool((np.diff(starts) == length).all()):  # a whole column of one length: no gathering
        block = data[starts[0] : starts[0] + len(starts) * length]
        return np.ascontiguousarray(block.reshape(len(starts), length).T)
    return np.stack([data[starts + place] for place in range(length)])


def _zones(chars_LN: Bytes) -> Iterator[tuple[Mask, int, NDArray[np.int64]]]:
    """Split rows by how their zone is written: rows, length of what stands before it, its offset in minutes."""
    length, num = chars_LN.shape
    rest = np.ones(num, np.bool_)
    none = np.zeros(num, np.int64)
    if length >= 14:
        last, third = chars_LN[-1], chars_LN[-3]
        is_z = (last == ord("Z")) | (last == ord("z"))
        is_name = _spells(chars_LN, b"UTC") | _spells(chars_LN, b"GMT")
        is_long = _is_sign(chars_LN, 6) & (third == ord(":")) & (length >= 19)
        is_compact = _is_sign(chars_LN, 5) & (length >= 18) & ~is_long
        is_short = _is_sign(chars_LN, 3) & (length >= 16) & ~is_compact & ~is_long
        for chosen, cut in ((is_z, 1), (is_name, 3), (is_long, 6), (is_compact, 5), (is_short, 3)):
            if not chosen.any():
                continue
            rest &= ~chosen
            minutes = _offset_minutes(chars_LN[length - cut :]) if cut in (3, 5, 6) and chosen is not is_name else none
            has_space = chars_LN[length - cut - 1] == ord(" ")
            yield chosen & has_space, length - cut - 1, minutes
            yield chosen & ~has_space, length - cut, minutes
    yield rest, length, none


def _spells(chars_LN: Bytes, name: bytes) -> Mask:
    found: Mask = (chars_LN[-3] == name[0]) & (chars_LN[-2] == name[1]) & (chars_LN[-1] == name[2])
    return found


def _is_sign(chars_LN: Bytes, back: int) -> Mask:
    if back > len(chars_LN):
        return np.zeros(chars_LN.shape[1], np.bool_)
    found: Mask = (chars_LN[-back] == ord("+")) | (chars_LN[-back] == ord("-"))
    return found


def _offset_minutes(zone_LN: Bytes) -> NDArray[np.int64]:
    """`+01:00`, `+0100` or `+01` -> 60; a whole day where it is no offset."""
    digits_LN = [(zone_LN[place] - np.uint8(48)).astype(np.int64) for place in range(len(zone_LN))]
    places = {3: (1, 2), 5: (1, 2, 3, 4), 6: (1, 2, 4, 5)}[len(zone_LN)]
    is_offset = np.logical_and.reduce([digits_LN[place] <= 9 for place in places])
    hours = digits_LN[1] * 10 + digits_LN[2]
    minutes = digits_LN[places[2]] * 10 + digits_LN[places[3]] if len(places) == 4 else np.zeros_like(hours)
    is_offset &= (hours <= 18) & (minutes <= 59)
    sign = np.where(zone_LN[0] == ord("-"), -1, 1)
    return np.where(is_offset, sign * (hours * 60 + minutes), 24 * 60)


def _read_core(chars_LN: Bytes) -> tuple[NDArray[np.int64], Mask]:
    length, num = chars_LN.shape
    digits_LN = chars_LN - np.uint8(48)  # wraps: what is not a digit becomes larger than 9
    places = [p for p in (0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18, *range(20, 29)) if p < length]
    is_time: Mask = np.ones(num, np.bool_)
    for place in places:
        is_time &= digits_LN[place] <= 9
    is_time &= (chars_LN[4] == chars_LN[7]) & ((chars_LN[4] == ord("-")) | (chars_LN[4] == ord("/")))

    def pair(place: int) -> NDArray[np.int32]:
        number: NDArray[np.int32] = digits_LN[place].astype(np.int32) * 10 + digits_LN[place + 1]
        return number

    days, is_date = _days_of(pair(0) * 100 + pair(2), pair(5), pair(8))
    is_time &= is_date
    seconds = np.zeros(num, np.int32)
    for place, marks, most, weight in ((11, b"Tt ", 23, 3600), (14, b":", 59, 60), (17, b":", 59, 1)):
        if place < length:
            part = pair(place)
            is_mark = np.logical_or.reduce([chars_LN[place - 1] == mark for mark in marks])
            is_time &= is_mark & (part <= most)
            seconds += part * np.int32(weight)
    us = (days * 86_400 + seconds) * 1_000_000
    if length > 19:
        is_time &= (chars_LN[19] == ord(".")) | (chars_LN[19] == ord(","))
        for place in range(20, min(length, 26)):
            us += digits_LN[place].astype(np.int64) * 10 ** (25 - place)
    return us, is_time


def _days_of(
    year: NDArray[np.int32], month: NDArray[np.int32], day: NDArray[np.int32]
) -> tuple[NDArray[np.int64], Mask]:
    """Days since 1970-01-01 of a Gregorian date, and whether that date exists."""
    is_month = (month >= 1) & (month <= 12) & (year <= 9999)
    num_months = np.where(is_month, (year - 1970) * 12 + month - 1, 0)
    known, which = _first_days(), num_months - _FIRST_MONTH
    is_month &= (which >= 0) & (which < len(known) - 1)
    which = np.where(is_month, which, 0)
    first = known[which]
    return first + day - 1, is_month & (day >= 1) & (day <= known[which + 1] - first)


_FIRST_MONTH = -1970 * 12  # of the year 0, counted from January 1970


@cache
def _first_days() -> NDArray[np.int64]:
    """Days since 1970 of the first of each month of the years 0 to 9999."""
    months = np.arange(_FIRST_MONTH, 8_030 * 12 + 1).astype("datetime64[M]")
    return months.astype("datetime64[D]").astype(np.int64)
