"""Users who come into an experiment, day by day, as its ramp rises."""

from __future__ import annotations

from sonder.experiments.specification import Experiment


def enrolled(experiment: Experiment, users_per_day: float, days: float) -> float:
    """Users exposed after so many days, where `users_per_day` of all users (share 1) would be new each day."""
    total, past = 0.0, 0.0
    for until, share in _steps(experiment):
        total += users_per_day * share * max(0.0, min(days, until) - past)
        past = until
    return total


def days_to_enrol(experiment: Experiment, users_per_day: float, num_users: float) -> float:
    """Days until so many users are exposed; infinite if none come."""
    total, past = 0.0, 0.0
    for until, share in _steps(experiment):
        daily = users_per_day * share
        if daily * (until - past) >= num_users - total and daily > 0:
            return past + (num_users - total) / daily
        total, past = total + daily * (until - past) if daily else total, until
    return float("inf")


def _steps(experiment: Experiment) -> list[tuple[float, float]]:
    """(day at which it ends, share); the last share of a ramp stays."""
    steps, day = [], 0.0
    for step in experiment.ramp:
        day += step.hours / 24
        steps.append((day, step.share))
    return [*steps, (float("inf"), steps[-1][1] if steps else experiment.share)]
