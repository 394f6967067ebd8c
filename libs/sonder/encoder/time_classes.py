"""What the time of an event is to the encoder: hour of the week, gap since the event before, age of the user.

Shapes: N events. Spans are told by their logarithm: gaps with two classes per doubling of the seconds, ages with one
per fourfold (a day or two, a week or two, two months, nine, three years). Finer ones fail where it matters: the users
to be served are always older than those of the training, so the oldest class has to be one that many have been in.
Limits: hours are of UTC.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sonder.history.timelines import Timelines

NUM_GAPS = 48  # classes of the time since the previous event; the first event has none
NUM_AGES = 16  # classes of the time since the user's first event
NUM_HOURS = 168  # hours of a week
_HOUR_US = 3_600_000_000
_THURSDAY = 72  # 1970-01-01 was a Thursday: hour 72 of a week that starts on Monday


def hours_of_week(events: Timelines) -> NDArray[np.int16]:
    """0 is the first hour of Monday [N]."""
    return ((events.times_us // _HOUR_US + _THURSDAY) % NUM_HOURS).astype(np.int16)


def gap_classes(events: Timelines) -> NDArray[np.int16]:
    """0 for the first event of a user, then by the logarithm of the seconds since the previous one [N]."""
    doublings = _doublings(np.diff(events.times_us, prepend=events.times_us[:1]))
    is_first = np.zeros(events.num_events, dtype=bool)
    is_first[events.offsets[:-1][events.lengths > 0]] = True
    return np.where(is_first, 0, 1 + np.minimum(2 * doublings, NUM_GAPS - 2)).astype(np.int16)


def age_classes(events: Timelines) -> NDArray[np.int16]:
    """By the logarithm of the seconds since the user's first event [N]."""
    firsts_us = events.times_us[np.repeat(events.offsets[:-1], events.lengths)]
    return np.minimum(_doublings(events.times_us - firsts_us) / 2, NUM_AGES - 1).astype(np.int16)


def _doublings(span_us: NDArray[np.int64]) -> NDArray[np.float64]:
    doublings: NDArray[np.float64] = np.log2(1 + np.maximum(span_us, 0) / 1e6)
    return doublings
