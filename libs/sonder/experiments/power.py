"""Users for an effect and an effect for users, over the arms of an experiment, by tea-tasting's power solver."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sonder.experiments.moments import Columns
from sonder.experiments.results import Record
from sonder.experiments.specification import Experiment

if TYPE_CHECKING:
    from tea_tasting.aggr import Aggregates


class Size(Record):
    """Users of each arm."""

    by_arm: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.by_arm.values())


class Solver:
    """tea-tasting's power solver over the arms of an experiment."""

    def __init__(self, experiment: Experiment, data: Aggregates, is_one_sided: bool) -> None:
        self.weights = {arm.name: arm.weight for arm in experiment.arms}
        self.control = experiment.control.name
        self.power, self.data = experiment.power, data
        self.alternative = "greater" if is_one_sided else "two-sided"

    def mean(self, columns: Columns) -> float:
        return float(self.data.mean(columns.value) / self.data.mean(columns.per))

    def variance(self, columns: Columns) -> float:
        """Of one user, after CUPED."""
        own = self.data.ratio_var(columns.value, columns.per)
        correlation = self.correlation(columns)
        return float(own if correlation is None else own * (1 - correlation**2))

    def correlation(self, columns: Columns) -> float | None:
        if columns.pre is None:
            return None
        both = self.data.ratio_cov(columns.value, columns.per, columns.pre, columns.pre_per)
        own, past = (
            self.data.ratio_var(*pair) for pair in ((columns.value, columns.per), (columns.pre, columns.pre_per))
        )
        return float(both / math.sqrt(own * past))

    def size(self, columns: Columns, level: float, effect: float | None) -> Size | None:
        """Of each arm, by its weight, so that the neediest treatment has the power; None without an effect to find."""
        if effect is None:
            return None
        per_weight = 0.0
        for arm, weight in self._treatments():
            solved = self._test(columns, level, arm, rel_effect_size=effect).solve_power(self.data, "n_obs")
            per_weight = max(per_weight, solved[0].n_obs / (self.weights[self.control] + weight))
        return Size(by_arm={arm: math.ceil(per_weight * weight) for arm, weight in self.weights.items()})

    def detectable(self, columns: Columns, level: float, num_users: float) -> float | None:
        """Smallest relative effect that is found with the power asked for; None of fewer than ten users an arm."""
        worst = 0.0
        for arm, weight in self._treatments():
            pair = num_users * (self.weights[self.control] + weight) / sum(self.weights.values())
            if pair < 20:
                return None
            solved = self._test(columns, level, arm, n_obs=int(pair)).solve_power(self.data, "rel_effect_size")
            worst = max(worst, float(solved[0].rel_effect_size))
        return worst

    def _treatments(self) -> list[tuple[str, float]]:
        return [(arm, weight) for arm, weight in self.weights.items() if arm != self.control]

    def _test(
        self,
        columns: Columns,
        level: float,
        arm: str,
        *,
        rel_effect_size: float | None = None,
        n_obs: int | None = None,
    ) -> Any:
        import tea_tasting

        return tea_tasting.RatioOfMeans(
            columns.value,
            columns.per,
            columns.pre,
            columns.pre_per,
            alternative=self.alternative,
            alpha=level,
            ratio=self.weights[arm] / self.weights[self.control],
            power=self.power,
            rel_effect_size=rel_effect_size,
            n_obs=n_obs,
        )
