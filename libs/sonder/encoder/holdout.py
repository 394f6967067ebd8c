"""Which users and events the training may see, and which wanted events of whom validate it. The test is never touched.

leave_one_out   all but the last event; of up to 5,000 users also without the one before, which validates
temporal        all before the cutoff; up to 5,000 users (one in ten at most) end a test window earlier and validate
                on their wanted events of that window, so validation asks what the test will ask
Of a log too large for its trainers a share of the users is drawn first, whose whole histories they then read.
Limits: users are chosen by a digest of their id; a share below 1 gives about, not exactly, the wanted number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sonder.core.ids import unit_interval
from sonder.history.cutoffs import Split, leave_one_out
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary

TRAINING_KEY = "sonder/encoder-training/1/"
VALIDATION_KEY = "sonder/encoder-validation/1/"
MOST_USERS = 5_000
LARGEST_SHARE = 0.1  # of the users, under `temporal`: they lose their newest window


@dataclass(frozen=True)
class Holdout:
    """`visible` is what training reads, events with a wish in them; `validation` has the held-out users alone."""

    visible: Timelines
    validation: Split


def draw_users(timelines: Timelines, *, share: float, draw: str) -> Timelines:
    """About this share of the users, all of them from 1 on; another `draw` is independent of this one."""
    if share >= 1:
        return timelines
    draws_U = unit_interval(pl.Series(timelines.user_ids, dtype=pl.String), f"{TRAINING_KEY}{draw}/")
    return timelines.take(np.flatnonzero(draws_U < share))


def count_eligible(timelines: Timelines, vocabulary: Vocabulary, *, cutoff_us: int | None, window_us: int) -> int:
    """Users that could validate; workers add these up."""
    return int(_can_validate(timelines, vocabulary, cutoff_us, window_us).sum())


def hold_out(
    timelines: Timelines, vocabulary: Vocabulary, *, cutoff_us: int | None, window_us: int, num_eligible: int
) -> Holdout:
    """Split for training; `cutoff_us` None means leave-one-out. `num_eligible` counts over all workers."""
    share = min(1.0 if cutoff_us is None else LARGEST_SHARE, MOST_USERS / max(num_eligible, 1))
    draws = unit_interval(pl.Series(timelines.user_ids, dtype=pl.String), VALIDATION_KEY)
    chosen_U = _can_validate(timelines, vocabulary, cutoff_us, window_us) & (draws < share)
    if cutoff_us is None:
        split = leave_one_out(timelines, part="validation")
        visible = leave_one_out(timelines, part="test").history
        is_held_back = chosen_U[visible.user_rows] & (visible.ages == 0)
    else:
        start_us = cutoff_us - window_us
        visible = timelines.before(cutoff_us)
        window = visible.between(start_us, cutoff_us)
        split = Split(visible.before(start_us), window.keep(vocabulary.weight_of(window.actions) > 0))
        is_held_back = chosen_U[visible.user_rows] & (visible.times_us >= start_us)
    cut = visible.keep(~is_held_back & (vocabulary.weight_of(visible.actions) != 0))
    rows = np.flatnonzero(chosen_U)
    return Holdout(visible=cut, validation=Split(split.history.take(rows), split.targets.take(rows)))


def _can_validate(
    timelines: Timelines, vocabulary: Vocabulary, cutoff_us: int | None, window_us: int
) -> NDArray[np.bool_]:
    """Users [U] with something to predict in the validation window and something known before it."""
    if cutoff_us is None:
        split = leave_one_out(timelines, part="validation")
        wanted = split.targets.keep(vocabulary.weight_of(split.targets.actions) > 0)
        return (wanted.lengths > 0) & (split.history.lengths > 0)
    start_us = cutoff_us - window_us
    window = timelines.between(start_us, cutoff_us)
    wanted = window.keep(vocabulary.weight_of(window.actions) > 0)
    return (wanted.lengths > 0) & (timelines.before(start_us).lengths > 0)
