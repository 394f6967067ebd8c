"""The two evaluation protocols: what a model may read, and what it is asked to predict.

temporal        read everything before T, predict the wanted events of [T, end): what production sees
leave_one_out   read all but the user's last event(s), predict the next one: the academic tables
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary


@dataclass(frozen=True)
class Split:
    """The same U users twice or three times: `history` is readable, `targets` is to be predicted, `unwanted` is what
    they refused meanwhile; None where the protocol has no such meanwhile."""

    history: Timelines
    targets: Timelines
    unwanted: Timelines | None = None

    @property
    def is_scored(self) -> NDArray[np.bool_]:
        """Users [U] with something to predict and something to predict it from."""
        has_both: NDArray[np.bool_] = (self.targets.lengths > 0) & (self.history.lengths > 0)
        return has_both

    @classmethod
    def concat(cls, parts: list[Split]) -> Split:
        """Join disjoint sets of users; `unwanted` where all have it."""
        unwanted = [part.unwanted for part in parts if part.unwanted is not None]
        return cls(
            history=Timelines.concat([part.history for part in parts]),
            targets=Timelines.concat([part.targets for part in parts]),
            unwanted=Timelines.concat(unwanted) if len(unwanted) == len(parts) else None,
        )

    @property
    def is_cold(self) -> NDArray[np.bool_]:
        """Users [U] with something to predict and no history at the cutoff; counted apart."""
        has_no_history: NDArray[np.bool_] = (self.targets.lengths > 0) & (self.history.lengths == 0)
        return has_no_history


def temporal(timelines: Timelines, vocabulary: Vocabulary, *, cutoff_us: int, end_us: int) -> Split:
    """Targets are the wanted events of [cutoff, end); an item may repeat, metrics count distinct items.

    One item may be a target and unwanted too: bought, then cancelled.
    """
    window = timelines.between(cutoff_us, end_us)
    weights = vocabulary.weight_of(window.actions)
    return Split(timelines.before(cutoff_us), targets=window.keep(weights > 0), unwanted=window.keep(weights < 0))


def leave_one_out(timelines: Timelines, *, part: Literal["validation", "test"]) -> Split:
    """Test: the last event, read all before it. Validation: the one before, read all before that.

    Users with fewer than three events stay in the history and are asked nothing, as in the published tables.
    """
    held_back = 1 if part == "test" else 2
    is_target = (timelines.ages == held_back - 1) & (timelines.lengths >= 3)[timelines.user_rows]
    is_held_back = (timelines.ages < held_back) & (timelines.lengths >= 3)[timelines.user_rows]
    return Split(history=timelines.keep(~is_held_back), targets=timelines.keep(is_target))


def end_of_log_us(timelines: Timelines) -> int:
    """One microsecond after the newest event: the `as_of` of everything computed from the whole log."""
    return int(timelines.times_us.max(initial=0)) + 1


def test_cutoff_us(end_us: int, test_days: int) -> int:
    """Start of the temporal test window of `test_days` that ends with the log."""
    return end_us - test_days * MICROSECONDS_PER_DAY
