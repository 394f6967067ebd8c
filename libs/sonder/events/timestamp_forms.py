"""Which form the timestamps of a log have, decided once from a sample of it and never batch by batch.

Numbers are told apart by their size (a second since 1990 has nine or ten digits, a millisecond three more), text by
which form reads most of it. 03/04/2011 is read by two patterns: the one that reads more of the sample wins (a day above
12 settles it), then the one under which the sample runs forward, since logs are mostly written in order.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sonder.events.timestamps import EARLIEST_US, LAST_US, is_native, parse
from sonder.events.values import nulls_of, number_of, one_array, text_of

_DATES = ("%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%m/%d/%y", "%d/%m/%y", "%Y.%m.%d")
_CLOCKS = (" %H:%M:%S", " %H:%M", " %I:%M:%S %p", " %I:%M %p", "")
PATTERNS = (
    *(date + clock for date in _DATES for clock in _CLOCKS),
    "%Y%m%dT%H%M%SZ",
    "%Y%m%dT%H%M%S",
    "%d/%b/%Y:%H:%M:%S %z",  # web server logs
    "%a, %d %b %Y %H:%M:%S %z",
    "%a, %d %b %Y %H:%M:%S GMT",
    "%a %b %d %H:%M:%S %z %Y",
    "%a %b %d %H:%M:%S %Y",
    "%d %b %Y %H:%M:%S",
    "%d %b %Y",
    "%d-%b-%Y",
    "%b %d, %Y",
    "%B %d, %Y",
    "%m %d, %Y",  # "01 20, 2014" of the Amazon reviews
)
MIN_SHARE = 0.5  # of the sample that a form must read to be taken for the log's form

_YEAR_2100_S = 4_102_444_800


def detect(column: pa.ChunkedArray | pa.Array) -> str | None:
    """The form of a sample of timestamps; None if nothing reads half of it."""
    array = one_array(column)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if is_native(array.type):
        return "iso"  # native values need no form; the text of another file of the same log would be ISO
    texts = text_of(array)
    present = pc.drop_null(texts.values)
    if len(present) == 0:
        return None
    numbers = number_of(present).values
    if 1 - nulls_of(numbers).mean() > MIN_SHARE:
        return _numeric_form(pc.drop_null(numbers).to_numpy(zero_copy_only=False), present)
    iso_share = _share(present, "iso")
    if iso_share >= 0.9:
        return "iso"
    best = max(PATTERNS, key=lambda pattern: _rank(present, pattern))
    best_share = _share(present, best)
    if max(best_share, iso_share) < MIN_SHARE:
        return None
    return best if best_share > iso_share else "iso"


def _numeric_form(numbers: NDArray[np.float64], texts: pa.LargeStringArray) -> str | None:
    middle = float(np.median(numbers))
    if 19_900_101 <= middle < 21_000_101 and _share(texts, "%Y%m%d") > 0.9:
        return "%Y%m%d"
    if 19_900_101_000_000 <= middle < 21_000_101_000_000 and _share(texts, "%Y%m%d%H%M%S") > 0.9:
        return "%Y%m%d%H%M%S"
    for unit, scale in (("epoch_s", 1), ("epoch_ms", 10**3), ("epoch_us", 10**6), ("epoch_ns", 10**9)):
        if EARLIEST_US // 1_000_000 * scale <= middle < _YEAR_2100_S * scale:
            return unit
    return "ordinal" if 0 <= middle < EARLIEST_US // 1_000_000 else None


def _share(texts: pa.LargeStringArray, form: str) -> float:
    times = parse(texts, form)
    return float((times.is_time & (times.us >= EARLIEST_US) & (times.us <= LAST_US)).mean())


def _rank(texts: pa.LargeStringArray, pattern: str) -> tuple[float, float]:
    times = parse(texts, pattern)
    is_time = times.is_time & (times.us >= EARLIEST_US) & (times.us <= LAST_US)
    if not is_time.any():
        return 0.0, 0.0
    steps = np.diff(times.us[is_time])
    return float(is_time.mean()), float((steps >= 0).mean()) if steps.size else 0.0
