"""The primary metric's effect by lifecycle and by segment, for understanding; the verdict never asks them.

Whether cuts differ at all is Cochran's Q (statsmodels), Holm-adjusted over cuts and arms: among ten cuts without any
difference, one interval in two analyses excludes zero by luck.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sonder.experiments.effects import estimate, standard_errors
from sonder.experiments.moments import Columns, moments
from sonder.experiments.multiplicity import holm
from sonder.experiments.results import Cut, CutEffect
from sonder.experiments.specification import Experiment

if TYPE_CHECKING:
    from tea_tasting.aggr import Aggregates

CUTS = ("lifecycle", "segment")
MIN_CUT_USERS = 100  # of each arm


def primary_by_cut(experiment: Experiment, users: pl.DataFrame, columns: Columns) -> tuple[Cut, ...]:
    """Of mature users, capped already; a cut that the frame has no column for is left out."""
    arms = [arm.name for arm in experiment.arms[1:]]
    kind = experiment.metric(experiment.primary).kind
    found: list[Cut] = []
    for by in (name for name in CUTS if name in users.columns):
        groups = moments(users.with_columns(pl.col(by).fill_null("none")), [by, "arm"], columns)
        found.extend(_cut(by, experiment.control.name, arm, groups, columns, kind, experiment.alpha) for arm in arms)
    adjusted = holm({(cut.by, cut.arm): cut.p_differ for cut in found})
    return tuple(Cut(**{**dict(cut), "p_differ_adjusted": adjusted.get((cut.by, cut.arm))}) for cut in found)


def _cut(
    by: str,
    control: str,
    arm: str,
    groups: Mapping[tuple[Any, ...], Aggregates],
    columns: Columns,
    kind: Any,
    alpha: float,
) -> Cut:
    effects, differences, errors = [], [], []
    for value in sorted({key[0] for key in groups}):
        pair = groups.get((value, control)), groups.get((value, arm))
        counts = [0 if one is None else one.count() for one in pair]
        if min(counts) < MIN_CUT_USERS:
            why = f"{min(counts)} users in the smaller arm, {MIN_CUT_USERS} are needed"
        elif (made := estimate(*pair, columns, kind, alpha)) is None:
            why = "all users are alike"
        else:
            assert pair[0] is not None, "it was estimated"
            assert pair[1] is not None, "it was estimated"
            effects.append(
                CutEffect(value=value, num_control=counts[0], num_treatment=counts[1], interval=made.interval)
            )
            differences.append(made.interval.difference or 0.0)
            errors.append(standard_errors(pair[0], pair[1], columns)[0])
            continue
        effects.append(
            CutEffect(value=value, num_control=counts[0], num_treatment=counts[1], interval=None, refused=why)
        )
    return Cut(by=by, arm=arm, effects=tuple(effects), p_differ=p_differ(differences, errors), p_differ_adjusted=None)


def p_differ(differences: list[float], errors: list[float]) -> float | None:
    """Cochran's Q that independent estimates have one truth; None of fewer than two."""
    if len(differences) < 2:
        return None
    from statsmodels.stats.meta_analysis import combine_effects

    with np.errstate(invalid="ignore"):  # its random effects, which are not read, take the root of what may be negative
        combined = combine_effects(np.array(differences), np.array(errors) ** 2, method_re="chi2")
    return float(combined.test_homogeneity().pvalue)
