"""A user's arm without a request: the same draws as the gateway's, from what `/v1/experiments` says.

Limits: a share that rises is known ALLOCATIONS_FOR_S later than by the gateway, whose answers count; an eligibility
rule is not evaluated here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sonder.client.calls import RunningExperiment
from sonder.core.errors import InvalidRequest, NotFound

if TYPE_CHECKING:
    from sonder.experiments.assignment import Allocation

ALLOCATIONS_FOR_S = 30.0


class _Known(NamedTuple):
    allocation: Allocation
    share: float
    eligibility: str | None


class Allocations:
    """Of the experiments that run, as they were when they were asked for last."""

    def __init__(self, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s, self._until_s = clock_s, float("-inf")
        self._known: dict[str, _Known] = {}

    @property
    def are_old(self) -> bool:
        return self._clock_s() >= self._until_s

    def replace(self, running: Sequence[RunningExperiment]) -> None:
        self._known = {one["name"]: _known(one) for one in running}
        self._until_s = self._clock_s() + ALLOCATIONS_FOR_S

    def assign(self, name: str, user_id: str, *, is_eligible: bool | None) -> str | None:
        """The arm; None for who takes no part. NotFound where no such experiment runs."""
        known = self._known.get(name)
        if known is None:
            raise NotFound(f"No experiment {name[:64]!r} is running", expected=f"one of {', '.join(self._known)}")
        if known.eligibility is not None and is_eligible is None:
            raise InvalidRequest(
                f"{name} is for users of whom this holds: {known.eligibility}",
                expected="is_eligible, where the caller knows it",
                do="Ask the gateway with `assignment`.",
            )
        if known.eligibility is not None and not is_eligible:
            return None
        return known.allocation.assign(user_id, known.share)


def _known(one: RunningExperiment) -> _Known:
    from sonder.experiments.assignment import Allocation  # brings Polars and the rules: most clients need neither

    allocation = Allocation(
        experiment=one["name"],
        salt=one["salt"],
        layer_salt=one["layer_salt"],
        lower=one["lower"],
        arms=tuple(arm["name"] for arm in one["arms"]),
        weights=tuple(arm["weight"] for arm in one["arms"]),
    )
    return _Known(allocation, one["share"], one["eligibility"])
