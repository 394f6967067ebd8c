"""What a score promises and how scores are learnt: the `scores` and `scoring` sections of the configuration.

A task is declared, never coded. Its kind follows from its keys:
action         `action: buy`                 probability of at least one such event in [cutoff, cutoff + within_days)
churn          `churn: true`                 probability of no event at all in that window
next_category  `next_category: 20`           probability, for each of the 20 commonest categories, of an event in it
value          `value: true`                 expected sum of the events' `value` in that window, never below 0
count          `count: true`                 expected number of events in that window
The last three look at the events of `action` where it is given, else at all.
`within_days: [7, 30]` declares one task for each horizon, named NAME_7d and NAME_30d.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from sonder.core.section import Section

Kind = Literal["action", "churn", "next_category", "value", "count"]
Direction = Literal["increasing", "decreasing"]


class Eligibility(Section):
    """Who is asked: a function of the user's events before the cutoff. All conditions must hold."""

    active_within_days: int | None = Field(None, gt=0, description="an event in the last N days; churn: within_days")
    min_events: int = Field(1, gt=0, description="events ever")
    did: tuple[str, ...] = Field((), description="actions done at least once, each")


class ScoreTask(Section):
    """One promise about one window of days after a cutoff."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    action: str | None = None
    churn: bool = False
    next_category: int | None = Field(None, ge=2, le=200)
    value: bool = False
    count: bool = False
    within_days: int = Field(gt=0)
    delay_days: int = Field(0, ge=0, description="an event of the window may be logged this many days late")
    embargo_days: int | None = Field(None, ge=0, description="days between a label window and the next cutoff; delay")
    eligible: Eligibility = Eligibility()
    monotone: dict[str, Direction] = Field({}, description="families of features -> direction of their effect")

    @model_validator(mode="after")
    def _one_kind(self) -> ScoreTask:
        special = [name for name in ("churn", "next_category", "value", "count") if getattr(self, name)]
        if len(special) > 1 or (self.churn and self.action) or not (special or self.action):
            found = [*special, *(["action"] if self.action else [])]
            raise ValueError(
                f"score {self.name!r} has {' and '.join(found) or 'no kind'}, expected one of `action: NAME`,"
                " `churn: true`, `next_category: K`, `value: true`, `count: true` (these three may name an action)"
            )
        return self

    @property
    def kind(self) -> Kind:
        if self.churn:
            return "churn"
        if self.next_category:
            return "next_category"
        return "value" if self.value else "count" if self.count else "action"

    @property
    def is_probability(self) -> bool:
        """Whether the score lies in [0, 1]; else it is an expected amount."""
        return self.kind in ("action", "churn", "next_category")

    @property
    def gap_days(self) -> int:
        """Days between the end of a label window and the first cutoff that may know its labels."""
        return self.delay_days if self.embargo_days is None else max(self.embargo_days, self.delay_days)


class ScoringConfig(Section):
    """How all tasks are learnt."""

    trials: int = Field(4, gt=0, le=32, description="settings of the trees tried per task, judged on later time")
    backtest_cutoffs: int = Field(4, ge=0, le=52, description="cutoffs at which an older model is asked; 0: none")
    max_training_rows: int = Field(20_000_000, ge=1_000, description="users beyond that are sampled")
    max_matrix_gib: float = Field(4.0, gt=0, description="training matrix beyond which it is kept on disk")
    sensitive_categories: tuple[str, ...] = Field((), description="category paths that no score reads or names")


def expand_horizons(declared: Sequence[Any]) -> list[Any]:
    """Part every task with a list of horizons into one task for each, before it is checked."""
    tasks: list[Any] = []
    for task in declared:
        horizons = task.get("within_days") if isinstance(task, dict) else None
        if isinstance(horizons, list | tuple):
            tasks += [task | {"name": f"{task.get('name')}_{days}d", "within_days": days} for days in horizons]
        else:
            tasks.append(task)
    return tasks
