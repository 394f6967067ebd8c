"""What a score promises: its population, its label, the points in time it is learnt and tested at.

ACTION within N days   population: users with an event before the cutoff
                       label: an event of that action in [cutoff, cutoff + N days)
churn within N days    population: users with an event in [cutoff - N days, cutoff): who is already gone cannot leave
                       label: no event at all in [cutoff, cutoff + N days)

Windows, counted back from the end of the log (label windows never overlap):
test          [end - N, end)
calibration   [end - 2N, end - N)
training      cutoffs end - 3N, end - 4N, … at most four, each with N/2 days of log (one at least) before it
A log too short for that trains at end - 2N and calibrates on users held out there; too short for that is refused.
Limits: every event is activity, whatever its action (as in segments.lifecycle).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sonder.core.config import ScoreTask
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary

MAX_TRAINING_CUTOFFS = 4
MIN_OF_A_KIND = {
    "train": 50,
    "stop": 25,
    "calibration": 25,
    "test": 10,
}  # positives, and negatives, that a part must hold

CalibratedOn = Literal["later_time", "held_out_users"]


@dataclass(frozen=True)
class TaskRefusal:
    """A task that cannot be learnt from this log, with the reason and the numbers behind it."""

    task: str
    reason: str
    numbers: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class CutoffPlan:
    """Points in time of one task; `train_us` newest first."""

    train_us: tuple[int, ...]
    calibration_us: int
    test_us: int
    calibrated_on: CalibratedOn

    @property
    def all_us(self) -> tuple[int, ...]:
        """Every distinct cutoff, oldest first."""
        return tuple(sorted({*self.train_us, self.calibration_us, self.test_us}))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CutoffPlan:
        return cls(**(dict(content) | {"train_us": tuple(content["train_us"])}))


def plan_cutoffs(task: ScoreTask, *, first_us: int, end_us: int) -> CutoffPlan | TaskRefusal:
    """Points in time of a task on a log of [first, end), or why there are none."""
    window_us = task.within_days * MICROSECONDS_PER_DAY
    oldest_us = first_us + max(window_us // 2, MICROSECONDS_PER_DAY)
    train_us = tuple(
        end_us - back * window_us
        for back in range(3, 3 + MAX_TRAINING_CUTOFFS)
        if end_us - back * window_us >= oldest_us
    )
    test_us, before_us = end_us - window_us, end_us - 2 * window_us
    if train_us:
        return CutoffPlan(train_us, before_us, test_us, "later_time")
    if before_us >= oldest_us:
        return CutoffPlan((before_us,), before_us, test_us, "held_out_users")
    return TaskRefusal(
        task.name,
        f"the log is too short: {2 * task.within_days} days of labels and half a window of history before them",
        {
            "log_days": round((end_us - first_us) / MICROSECONDS_PER_DAY, 2),
            "needed_days": (end_us - before_us + oldest_us - first_us) / MICROSECONDS_PER_DAY,
        },
    )


def check_task(task: ScoreTask, vocabulary: Vocabulary, *, is_ordinal: bool) -> TaskRefusal | None:
    """Refuse what no amount of data would make learnable."""
    if is_ordinal:
        return TaskRefusal(task.name, "the log has order but no time: days mean nothing", {})
    if task.action is not None and task.action not in vocabulary.actions:
        known = ", ".join(vocabulary.actions)
        return TaskRefusal(task.name, f"no action {task.action!r} in the log; it has: {known}", {})
    return None


def check_counts(task: ScoreTask, counts: dict[str, tuple[int, int]]) -> TaskRefusal | None:
    """Refuse a task with too few positives or negatives; `counts` maps a part to (users, positives)."""
    for part, least in MIN_OF_A_KIND.items():
        users, positives = counts[part]
        if min(positives, users - positives) < least:
            return TaskRefusal(
                task.name,
                f"too few of a kind in the {part} rows: {least} positives and {least} negatives are needed",
                {"users": users, "positives": positives, "negatives": users - positives},
            )
    return None


def label_task(
    task: ScoreTask, timelines: Timelines, vocabulary: Vocabulary, *, cutoff_us: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Who is asked and what came true -> (is_eligible [U], label [U]); the label reads [cutoff, cutoff + N) alone."""
    window = timelines.between(cutoff_us, cutoff_us + task.within_days * MICROSECONDS_PER_DAY)
    eligible = eligible_users(task, timelines, cutoff_us=cutoff_us)
    if task.churn:
        return eligible, window.lengths == 0
    if task.action not in vocabulary.actions:
        raise ValueError(f"no action {task.action!r} in the vocabulary: check_task refuses such a task")
    wanted = window.actions == vocabulary.actions.index(task.action)
    return eligible, np.bincount(window.user_rows[wanted], minlength=timelines.num_users) > 0


def eligible_users(task: ScoreTask, timelines: Timelines, *, cutoff_us: int) -> NDArray[np.bool_]:
    """The population of a task [U] at a cutoff: a function of the events before it."""
    start_us = cutoff_us - task.within_days * MICROSECONDS_PER_DAY if task.churn else np.iinfo(np.int64).min
    is_eligible: NDArray[np.bool_] = timelines.between(int(start_us), cutoff_us).lengths > 0
    return is_eligible
