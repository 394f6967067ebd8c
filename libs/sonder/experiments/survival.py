"""Hazard ratio and log-rank test of a time to event, by statsmodels.

The verdict rests on the restricted mean (effects), which needs no proportional hazards; this stands beside it.
Times are taken in 500 steps of the window, ties by Efron: statsmodels walks over distinct times, 15 s for 20,000 users
at full precision, 1 s so, and the ratio is the same to the fourth digit.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from sonder.experiments.moments import EVENT
from sonder.experiments.results import Survival
from sonder.experiments.specification import MetricSpec

MIN_EVENTS = 10  # of an arm
_STEPS = 500


def survival(control: pl.DataFrame, treatment: pl.DataFrame, metric: MetricSpec, alpha: float) -> Survival | None:
    """Of mature users; None without enough events in both arms."""
    events = [int(arm[metric.name + EVENT].sum()) for arm in (control, treatment)]
    if min(events) < MIN_EVENTS:
        return None
    from scipy.stats import chi2
    from statsmodels.duration.hazard_regression import PHReg
    from statsmodels.duration.survfunc import survdiff

    is_treated = np.repeat([0.0, 1.0], [control.height, treatment.height])
    days = np.concatenate([arm[metric.name].to_numpy() for arm in (control, treatment)])
    has_event = np.concatenate([arm[metric.name + EVENT].to_numpy() for arm in (control, treatment)]).astype(np.int64)
    step = metric.window_days / _STEPS
    fitted = PHReg(np.ceil(days / step) * step, is_treated[:, None], status=has_event, ties="efron").fit(disp=0)
    lower, upper = np.exp(fitted.conf_int(alpha=alpha)[0])
    return Survival(
        hazard_ratio=float(np.exp(fitted.params[0])),
        lower=float(lower),
        upper=float(upper),
        confidence=1 - alpha,
        p_log_rank=float(chi2.sf(survdiff(days, has_event, is_treated)[0], 1)),  # its own p is 0 below 1e-16
        num_events_control=events[0],
        num_events_treatment=events[1],
    )
