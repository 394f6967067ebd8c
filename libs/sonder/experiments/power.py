"""Users for an effect and an effect for users, over the arms of an experiment, by tea-tasting's power solver.

The solver takes all arms to be as spread as the baseline. An effect is mostly proportional, so a tenth more is also
spread a tenth wider: the users for a wanted increase are raised by what that adds to the difference's variance (10 %
for a tenth more in one of two equal arms), else the power would be 76 % where 80 % was asked for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sonder.experiments.effects import SHARES
from sonder.experiments.moments import Columns
from sonder.experiments.results import Record
from sonder.experiments.sequential import MIN_USERS
from sonder.experiments.specification import Experiment, MetricSpec

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

    def __init__(self, experiment: Experiment, metric: MetricSpec, data: Aggregates, is_one_sided: bool) -> None:
        self.metric, self.is_one_sided = metric, is_one_sided
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
        """Of each arm, by its weight, so that the neediest treatment has the power, and no fewer than asymptotics need;
        None without an effect to find."""
        if effect is None:
            return None
        per_weight = 0.0
        for arm, weight in self._treatments():
            needed = self._needed(columns, level, arm, effect) * self._spread(columns, weight, effect)
            per_weight = max(per_weight, needed / (self.weights[self.control] + weight))
        per_weight = max(per_weight, MIN_USERS / min(self.weights.values()))
        return Size(by_arm={arm: math.ceil(per_weight * weight) for arm, weight in self.weights.items()})

    def _needed(self, columns: Columns, level: float, arm: str, effect: float) -> float:
        """Users of both arms; the solver looks for no fewer than it starts with."""
        few = 2 * MIN_USERS
        has_enough = self._test(columns, level, arm, rel_effect_size=effect, n_obs=few).solve_power(self.data, "power")
        if has_enough[0].power >= self.power:
            return float(few)
        solved = self._test(columns, level, arm, rel_effect_size=effect).solve_power(self.data, "n_obs")
        return float(solved[0].n_obs)

    def detectable(self, columns: Columns, level: float, num_users: float) -> float | None:
        """Smallest relative effect that is found with the power asked for; None of fewer than ten users an arm."""
        worst = 0.0
        for arm, weight in self._treatments():
            pair = num_users * (self.weights[self.control] + weight) / sum(self.weights.values())
            if pair < 20:
                return None
            found = 0.0
            for _ in range(3):  # the effect that is found spreads what finds it
                num_obs = int(pair / self._spread(columns, weight, found))
                solved = self._test(columns, level, arm, n_obs=num_obs).solve_power(self.data, "rel_effect_size")
                found = float(solved[0].rel_effect_size)
            worst = max(worst, found)
        return worst

    def _spread(self, columns: Columns, weight: float, effect: float) -> float:
        """Variance of the difference under a proportional effect, over that without; 1 where no effect is sought."""
        if self.is_one_sided or self.metric.wanted == "decrease":
            return 1.0
        treated = (1 + effect) ** 2
        if self.metric.kind in SHARES:
            share = self.mean(columns)
            treated = max(0.0, (1 + effect) * (1 - share * (1 + effect)) / (1 - share))
        control = self.weights[self.control]
        return max(1.0, (weight + treated * control) / (weight + control))

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
            use_t=False,  # scipy's non-central t has no value for some thousands of degrees of freedom
            rel_effect_size=rel_effect_size,
            n_obs=n_obs,
        )
