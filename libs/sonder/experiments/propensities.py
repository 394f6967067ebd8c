"""Explore a little, and log the truth about it: a softmax over scores, drawn item by item without replacement.

Shapes: A candidates, K places.
At each place the next item is drawn from the candidates that are left with
(1 - epsilon) * softmax(score / temperature) + epsilon * uniform. With epsilon 0 this is the Plackett-Luce model
(Luce, 1959; Plackett, 1975), the distribution that sorting scores with Gumbel noise draws from as well; drawing place
by place also allows the uniform part, which bounds every weight: no propensity is below epsilon / A.
What is logged is the chance of the item at its place *given the items above it*. At the first place that is the
item's chance there; further down it is not the chance over all lists, whose sum over orders nobody can compute for
long lists. Their product is exactly the chance of the whole order.
Evaluate with it: the items above are part of the round's context. `next_distribution` of the new policy's scores at
the logged items above is the evaluation policy's row of `LoggedFeedback`; the value is then that of choosing the next
item anew below what the logging policy put above.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from sonder.experiments.logged_feedback import Floats

__all__ = ["Exploration", "explore", "next_distribution"]


@dataclass(frozen=True)
class Exploration:
    """Indices of the candidates in the order to show, with the propensity of each given those above it."""

    order: tuple[int, ...]  # K
    propensities: tuple[float, ...]  # K

    @property
    def list_propensity(self) -> float:
        """Chance of this very order."""
        return float(np.prod(self.propensities))


def explore(
    scores: Floats, k: int, draw: Callable[[int], float], *, temperature: float, epsilon: float = 0.0
) -> Exploration:
    """Draw an order of `k` of the candidates; `draw(place)` is uniform in [0, 1), independent between places.

    Keep `draw` keyed by the request (as `coins_of_request` is) and the same request explores the same way.
    """
    if not 0 < k <= len(scores):
        raise ValueError(f"{k} places for {len(scores)} candidates")
    order: list[int] = []
    propensities: list[float] = []
    for place in range(k):
        chances = next_distribution(scores, order, temperature=temperature, epsilon=epsilon)
        chosen = _drawn(chances, draw(place))
        order.append(chosen)
        propensities.append(float(chances[chosen]))
    return Exploration(tuple(order), tuple(propensities))


def next_distribution(scores: Floats, above: Sequence[int], *, temperature: float, epsilon: float = 0.0) -> Floats:
    """Chance of each candidate for the next place [A], 0 for those above; sums to 1."""
    if not temperature > 0 or not 0 <= epsilon <= 1 or not np.isfinite(scores).all():
        raise ValueError(f"temperature {temperature:g} must be above 0, epsilon {epsilon:g} in [0, 1], scores finite")
    left = np.ones(len(scores), dtype=bool)
    left[list(above)] = False
    if not left.any():
        raise ValueError(f"no candidate is left after {len(above)}")
    chances = np.zeros(len(scores))
    chances[left] = (1 - epsilon) * softmax(scores[left] / temperature) + epsilon / left.sum()
    return chances


def _drawn(chances_A: Floats, uniform: float) -> int:
    """The candidate in whose stretch of the unit interval the draw falls; never one without a chance."""
    ends = np.cumsum(chances_A)
    # The last end differs from 1 by rounding: scaled by it and kept below it, no draw falls behind the last candidate.
    return int(np.searchsorted(ends, min(uniform * ends[-1], np.nextafter(ends[-1], 0.0)), side="right"))
