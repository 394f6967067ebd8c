"""The user frame: one row per exposed user, as `experiments.metrics` makes it and the analysis reads it.

user_id, arm, exposed_at; for each metric its number, null until the user's window is over, `.per` of a ratio, `.event`
of a time to event, `.pre` and `.pre.per` before exposure; lifecycle and segment as of exposure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl

from sonder.core.errors import ConfigurationError, DataError
from sonder.experiments.moments import EVENT, PER, capped, mature
from sonder.experiments.results import Capping
from sonder.experiments.specification import Experiment, MetricSpec


@dataclass(frozen=True)
class UserFrame:
    """Users of an experiment, checked once."""

    experiment: Experiment
    users: pl.DataFrame

    @classmethod
    def of(cls, experiment: Experiment, users: pl.DataFrame) -> UserFrame:
        """ConfigurationError for an interleaved experiment, DataError for a frame that is not of this experiment."""
        if experiment.method == "interleave":
            raise ConfigurationError(
                f"{experiment.name} interleaves two rankings",
                expected="an experiment that splits users",
                do="Its clicks are compared within users: see sonder.experiments.interleaving.",
            )
        if missing := [name for name in _columns(experiment) if name not in users.columns]:
            raise DataError(
                f"The user frame has no column {missing[0]!r}",
                expected=f"what the metrics of {experiment.name} need: {', '.join(_columns(experiment))}",
            )
        names = {arm.name for arm in experiment.arms}
        if strangers := sorted(set(users["arm"].unique()) - names):
            raise DataError(
                f"The user frame has users in the arm {strangers[0]!r}", expected=f"one of {', '.join(sorted(names))}"
            )
        return cls(experiment, users)

    @property
    def num_exposed(self) -> dict[str, int]:
        counted: dict[str, int] = dict(self.users["arm"].value_counts().iter_rows())
        return {arm.name: counted.get(arm.name, 0) for arm in self.experiment.arms}

    @property
    def primary(self) -> MetricSpec:
        return self.experiment.metric(self.experiment.primary)

    def known(self, metric: MetricSpec) -> tuple[pl.DataFrame, Capping | None]:
        """Users whose window is over, capped, and by what."""
        return capped(mature(self.users, metric), metric)

    def first_of(self, size: Mapping[str, int]) -> UserFrame | None:
        """The first so many users of each named arm in order of exposure whose primary metric is known; None before
        they are there. Whoever looks later finds the same users."""
        known = mature(self.users, self.primary).sort("exposed_at", "user_id")
        parts = [known.filter(pl.col("arm") == arm).head(count) for arm, count in size.items()]
        if any(part.height < count for part, count in zip(parts, size.values(), strict=True)):
            return None
        return UserFrame(self.experiment, pl.concat(parts))

    def has_time_left(self, until: datetime) -> bool:
        """Whether users still come, or the window of the last is not over in what the verdict asks for."""
        start = self.users["exposed_at"].min()
        if not isinstance(start, datetime):
            return True
        asked = {self.experiment.primary, *(guardrail.metric for guardrail in self.experiment.guardrails)}
        window = max(self.experiment.metric(name).window_days for name in asked)
        return until < start + timedelta(days=self.experiment.max_days + window)


def _columns(experiment: Experiment) -> list[str]:
    names = ["user_id", "arm", "exposed_at"]
    for metric in experiment.metrics:
        suffix = {"ratio": [PER], "time_to_event": [EVENT]}.get(metric.kind, [])
        names += [metric.name, *(metric.name + one for one in suffix)]
    return names
