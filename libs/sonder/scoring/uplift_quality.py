"""What an uplift model is worth on users that it was not fitted to, beside the two-model baseline and a random order.

Shapes: N held-out users of the experiment. Qini, its interval and the difference to the baseline are over the same
resamplings of the users, so the difference is a paired one. Fifths compare what was predicted with what the arms show.
Limits: the interval is of the held-out users; it knows nothing of other times or other treatments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonder.scoring.qini import (
    Curve,
    Experiment,
    area_under_uplift,
    average_effect,
    interval_of,
    qini_coefficient,
    qini_curve,
    resampled_coefficients,
    share_of_best,
)

NUM_GROUPS = 5
NUM_POINTS = 21  # of the curve that is kept

Floats = NDArray[np.float64]


def uplift_quality(experiment: Experiment, uplift_N: Floats, baseline_N: Floats, *, seed: int) -> dict[str, Any]:
    """Everything that is told of a model, as JSON; `is_better_than_random` if the interval of its Qini is above 0."""
    effect, effect_interval = average_effect(experiment)
    draws = resampled_coefficients(experiment, {"model": uplift_N, "baseline": baseline_N}, seed=seed)
    interval = interval_of(draws["model"])
    return {
        "users": len(uplift_N),
        "treated": int(experiment.treated.sum()),
        "average_effect": effect,
        "average_effect_interval": effect_interval,
        "outcome_of_controls": float(experiment.outcomes[~experiment.treated].mean()),
        "qini": qini_coefficient(experiment, uplift_N),
        "qini_interval": interval,
        "qini_share_of_best": share_of_best(experiment, uplift_N),
        "auuc": area_under_uplift(experiment, uplift_N),
        "auuc_of_random": effect / 2,
        "baseline_qini": qini_coefficient(experiment, baseline_N),
        "baseline_qini_interval": interval_of(draws["baseline"]),
        "over_baseline_interval": interval_of(draws["model"] - draws["baseline"]),
        "is_better_than_random": interval[0] > 0,
        "curve": _points(qini_curve(experiment, uplift_N)),
        "groups": groups(experiment, uplift_N),
    }


def groups(experiment: Experiment, uplift_N: Floats) -> list[dict[str, Any]]:
    """Fifths of the users from the highest predicted uplift down, with what the arms of each show."""
    told = []
    for rows in np.array_split(np.argsort(-uplift_N, kind="stable"), NUM_GROUPS):
        treated = experiment.treated[rows]
        if not len(rows) or treated.all() or not treated.any():
            continue
        effect, interval = average_effect(experiment.take(rows))
        told.append(
            {"users": len(rows), "predicted": float(uplift_N[rows].mean()), "observed": effect, "interval": interval}
        )
    return told


def verdict(quality: dict[str, Any]) -> str:
    """One sentence for whoever wants to act on the order."""
    low, high = quality["qini_interval"]
    said = f"Qini {quality['qini']:.4f}, 95 % interval {low:.4f} to {high:.4f}"
    if quality["is_better_than_random"]:
        return f"The order finds whom acting changes: {said}, random is 0."
    if high < 0:
        return f"The order is worse than random: {said}. Do not target by it."
    return f"No difference between users was found: {said}, covers 0. Do not target by this order."


def _points(curve: Curve) -> list[dict[str, float]]:
    shares = np.linspace(0, 1, NUM_POINTS)
    gains = np.interp(shares, curve.shares, curve.gains)
    return [{"share": float(share), "gain": float(gain)} for share, gain in zip(shares, gains, strict=True)]
