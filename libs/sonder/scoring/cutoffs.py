"""At which points in time a task is learnt, stopped, calibrated, tested and asked again by an older model.

Counted back from the newest complete label: `end - delay_days`, since an event may be logged that late. Between the
end of one part's label window and the cutoff of the next lies the task's gap (its embargo, at least its delay), so that
at every cutoff only labels are used that were known then. With N = within_days and G the gap:
test          [end - N, end)
calibration   one window and the gap before the test: half its users stop the boosting, all of them calibrate
training      the first a window and the gap before that, up to MAX_TRAINING_CUTOFFS, N/2 days apart, with N/2 days of
              log (one at least) before the oldest; their windows overlap, which fits trees of few users better than
              half as many rows and no worse otherwise (benchmarks/scores)
A log too short for that trains at the calibration cutoff and calibrates on users held out there; shorter is refused.
backtest      an older model, trained as above but before the first of K cutoffs that end with the test's, is asked at
              each of them: what happens to a model that nobody retrains. They lie N apart where the log is long
              enough, else closer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from sonder.core.score_config import ScoreTask
from sonder.history.timelines import MICROSECONDS_PER_DAY

MAX_TRAINING_CUTOFFS = 8
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
    """Points in time of one model of one task; `train_us` newest first, `asked_us` oldest first.

    The model of a release is asked at one cutoff, its test; the older one of the backtest at several.
    """

    train_us: tuple[int, ...]
    calibration_us: int
    asked_us: tuple[int, ...]
    calibrated_on: CalibratedOn

    @property
    def test_us(self) -> int:
        """The first cutoff that no part of the training may reach into."""
        return self.asked_us[0]

    @property
    def all_us(self) -> tuple[int, ...]:
        """Every distinct cutoff, oldest first."""
        return tuple(sorted({*self.train_us, self.calibration_us, *self.asked_us}))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CutoffPlan:
        lists = {name: tuple(content[name]) for name in ("train_us", "asked_us")}
        return cls(**(dict(content) | lists))


def plan_cutoffs(task: ScoreTask, *, first_us: int, end_us: int) -> CutoffPlan | TaskRefusal:
    """Points in time of a task's model on a log of [first, end), or why there are none."""
    test_us = end_us - (task.delay_days + task.within_days) * MICROSECONDS_PER_DAY
    plan = _plan_before(task, test_us, first_us)
    if plan is not None:
        return plan
    needed = 2 * task.within_days + task.delay_days + task.gap_days
    return TaskRefusal(
        task.name,
        f"the log is too short: {needed} days of labels and what lies between, and half a window of history before",
        {
            "log_days": round((end_us - first_us) / MICROSECONDS_PER_DAY, 2),
            "needed_days": needed + max(task.within_days / 2, 1.0),
        },
    )


def plan_backtest(task: ScoreTask, *, first_us: int, end_us: int, num_cutoffs: int) -> CutoffPlan | None:
    """Points in time of the older model, or None where the log holds no `num_cutoffs` (at least 2) after it."""
    if num_cutoffs < 2:
        return None
    newest_us = end_us - (task.delay_days + task.within_days) * MICROSECONDS_PER_DAY
    for parts in (1, 2, 4):
        step_us = task.within_days * MICROSECONDS_PER_DAY // parts
        asked_us = tuple(newest_us - back * step_us for back in reversed(range(num_cutoffs)))
        plan = _plan_before(task, asked_us[0], first_us)
        if plan is not None and plan.calibrated_on == "later_time":
            return replace(plan, asked_us=asked_us)
    return None


def _plan_before(task: ScoreTask, test_us: int, first_us: int) -> CutoffPlan | None:
    window_us = task.within_days * MICROSECONDS_PER_DAY
    step_us = window_us + task.gap_days * MICROSECONDS_PER_DAY
    oldest_us = first_us + max(window_us // 2, MICROSECONDS_PER_DAY)
    calibration_us = test_us - step_us
    train_us = tuple(
        cutoff_us
        for back in range(MAX_TRAINING_CUTOFFS)
        if (cutoff_us := calibration_us - step_us - back * window_us // 2) >= oldest_us
    )
    if train_us:
        return CutoffPlan(train_us, calibration_us, (test_us,), "later_time")
    if calibration_us >= oldest_us:
        return CutoffPlan((calibration_us,), calibration_us, (test_us,), "held_out_users")
    return None
