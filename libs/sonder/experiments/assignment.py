"""Which arm a user is in: two keyed draws of the user id, the same in batch, in the gateway and in the client.

The first draw places a user in [0, 1) of a layer; a running experiment owns an interval of it, so two of one layer
never share a user. Of that interval the first `share` is taken: a ramp that rises adds users and moves none. The
second draw, keyed by the experiment alone, picks the arm, so arms are independent of layers, ramps and everything else.
No store is asked; who is eligible is decided elsewhere, from what is known of a user.
Source: overlapping layers, Tang et al. 2010; BLAKE2b through `sonder.core.ids.unit_draw` (a microsecond a draw).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from sonder.core.ids import unit_draw
from sonder.experiments.specification import Experiment

LAYER_KEY = "sonder/experiments/layer/1/"
ARM_KEY = "sonder/experiments/arm/1/"


@dataclass(frozen=True)
class Allocation:
    """Whom an experiment may have: enough to assign anybody, anywhere. Small, JSON-able, the same for every caller."""

    experiment: str
    salt: str
    layer_salt: str
    lower: float  # of its interval in the layer
    arms: tuple[str, ...]  # control first
    weights: tuple[float, ...]

    @classmethod
    def of(cls, experiment: Experiment, *, lower: float = 0.0) -> Allocation:
        arms, weights = zip(*((arm.name, arm.weight) for arm in experiment.arms), strict=True)
        return cls(experiment.name, experiment.salt, experiment.layer_salt, lower, arms, weights)

    @cached_property
    def layer_draw(self) -> Callable[[str], float]:
        return unit_draw(f"{LAYER_KEY}{self.layer_salt}/")

    @cached_property
    def arm_draw(self) -> Callable[[str], float]:
        return unit_draw(f"{ARM_KEY}{self.salt}/")

    @cached_property
    def borders(self) -> tuple[float, ...]:
        """Upper end of each arm in [0, 1]; the last is 1."""
        total = sum(self.weights)
        return (*(sum(self.weights[: number + 1]) / total for number in range(len(self.weights) - 1)), 1.0)

    def is_in(self, user_id: str, share: float) -> bool:
        """Whether the user takes part at this share of all users."""
        return self.lower <= self.layer_draw(user_id) < self.lower + share

    def arm_of(self, user_id: str) -> str:
        """The arm that the user is in or would be in, whatever the share."""
        draw = self.arm_draw(user_id)
        return next(arm for arm, border in zip(self.arms, self.borders, strict=True) if draw < border)

    def assign(self, user_id: str, share: float) -> str | None:
        """The arm of a user who takes part, None for others."""
        return self.arm_of(user_id) if self.is_in(user_id, share) else None


def assign_users(allocation: Allocation, user_ids: pl.Series | Sequence[str], share: float) -> pl.Series:
    """The same of many users -> arm [N], null for who does not take part. About two microseconds a user."""
    ids = list(user_ids)
    place = np.fromiter(map(allocation.layer_draw, ids), dtype=np.float64, count=len(ids))
    drawn = np.fromiter(map(allocation.arm_draw, ids), dtype=np.float64, count=len(ids))
    arm = np.searchsorted(np.asarray(allocation.borders), drawn, side="right")
    is_in = (place >= allocation.lower) & (place < allocation.lower + share)
    chosen = pl.Series("arm", list(allocation.arms), dtype=pl.String).gather(arm)
    return pl.select(pl.when(pl.Series(is_in)).then(chosen).alias("arm")).to_series()
