"""Equality with what scipy, statsmodels and tea-tasting say of the same users."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import statsmodels.api as sm
import tea_tasting
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep
from tea_tasting.aggr import read_aggregates

from sonder.experiments.effects import always_valid, estimate, standard_errors, variance_reduction
from sonder.experiments.moments import Columns, moments, pooled
from tests.user_frames import draw_users

USERS = draw_users(3_000, effect=0.1)


def _pair(columns: Columns, users: pl.DataFrame = USERS):  # type: ignore[no-untyped-def]
    groups = moments(users, ["arm"], columns)
    return groups.get(("old",)), groups.get(("new",))


def _values(name: str) -> tuple[np.ndarray, np.ndarray]:
    return tuple(USERS.filter(arm=arm)[name].to_numpy() for arm in ("old", "new"))  # type: ignore[return-value]


def test_moments_are_those_of_tea_tastings_reader() -> None:
    columns = Columns("clicks", "clicks.per", "clicks.pre", "clicks.pre.per")
    ours = moments(USERS, ["arm"], columns)
    metric = tea_tasting.RatioOfMeans(*columns.names)
    theirs = read_aggregates(USERS, "arm", **metric.aggr_cols._asdict())
    for arm in ("old", "new"):
        assert ours[(arm,)].count_ == theirs[arm].count_
        for field in ("mean_", "var_", "cov_"):
            assert getattr(ours[(arm,)], field) == pytest.approx(getattr(theirs[arm], field))


def test_moments_of_days_together_are_those_of_all_even_where_a_day_has_one_user() -> None:
    columns = Columns("opens", None, "opens.pre", None)
    sizes = [0, 1, 3, 500, 501, 3_000]
    parts = [USERS[left:right] for left, right in pairwise(sizes)]
    total = pooled([moments(part.with_columns(all=1), ["all"], columns)[(1,)] for part in parts])
    whole = moments(USERS.with_columns(all=1), ["all"], columns)[(1,)]
    assert total is not None
    assert total.var_ == pytest.approx(whole.var_)
    assert total.cov_ == pytest.approx(whole.cov_)


def test_a_mean_is_scipys_welch_test() -> None:
    made = estimate(*_pair(Columns("opens")), Columns("opens"), "count", 0.05)
    old, new = _values("opens")
    welch = stats.ttest_ind(new, old, equal_var=False)
    assert made is not None
    assert made.interval.p_value == pytest.approx(welch.pvalue)
    assert (made.interval.lower, made.interval.upper) == pytest.approx(tuple(welch.confidence_interval(0.95)))
    assert made.interval.relative == pytest.approx(new.mean() / old.mean() - 1)


def test_cuped_is_least_squares_on_what_came_before() -> None:
    columns = Columns("opens", None, "opens.pre", None)
    made = estimate(*_pair(columns), columns, "count", 0.05)
    treated = (USERS["arm"] == "new").to_numpy().astype(float)
    past = USERS["opens.pre"].to_numpy()
    fitted = sm.OLS(USERS["opens"].to_numpy(), np.column_stack([np.ones(len(past)), treated, past])).fit(cov_type="HC2")
    assert made is not None
    # CUPED's slope is that of all users together, least squares' is within arms: alike up to the arms' difference.
    assert made.interval.difference == pytest.approx(fitted.params[1], rel=0.01)
    assert made.interval.upper - made.interval.difference == pytest.approx(1.96 * fitted.bse[1], rel=0.01)
    correlation = np.corrcoef(USERS["opens"], past)[0, 1]
    assert variance_reduction(*_pair(columns), columns) == pytest.approx(correlation**2, abs=0.03)


def test_a_share_without_a_past_is_the_unpooled_test_of_two_proportions() -> None:
    made = estimate(*_pair(Columns("bought")), Columns("bought"), "conversion", 0.05)
    old, new = _values("bought")
    bounds = confint_proportions_2indep(new.sum(), len(new), old.sum(), len(old), compare="diff", method="wald")
    assert made is not None
    assert (made.interval.lower, made.interval.upper) == pytest.approx(bounds)
    assert made.interval.p_value == pytest.approx(
        2 * stats.norm.sf(abs(new.mean() - old.mean()) / ((bounds[1] - bounds[0]) / 2 / stats.norm.isf(0.025)))
    )


def test_a_ratios_delta_method_is_the_bootstraps_spread() -> None:
    columns = Columns("clicks", "clicks.per")
    error, log_error = standard_errors(*_pair(columns), columns)
    rng = np.random.default_rng(3)
    ratios = []
    for arm in ("old", "new"):
        part = USERS.filter(arm=arm).select("clicks", "clicks.per").to_numpy()
        drawn = part[rng.integers(0, len(part), (2_000, len(part)))].sum(1)
        ratios.append(drawn[:, 0] / drawn[:, 1])
    # The deviation of 2,000 draws has a relative error of 1 / sqrt(4,000).
    assert error == pytest.approx((ratios[1] - ratios[0]).std(), rel=3.3 / 4_000**0.5)
    assert log_error == pytest.approx(np.log(ratios[1] / ratios[0]).std(), rel=3.3 / 4_000**0.5)


def test_tea_tastings_own_example_comes_out_the_same() -> None:
    users = tea_tasting.make_users_data(rng=42, covariates=True, return_type="polars")
    columns = Columns("orders", "sessions", "orders_covariate", "sessions_covariate")
    metric = tea_tasting.RatioOfMeans(*columns.names)
    theirs = tea_tasting.Experiment(m=metric).analyze(users)["m"]
    groups = moments(users, ["variant"], columns)
    made = estimate(groups[(0,)], groups[(1,)], columns, "ratio", 0.05)
    assert made is not None
    ours = made.interval
    assert (made.control, made.treatment, ours.lower, ours.upper, ours.p_value) == pytest.approx(
        (theirs.control, theirs.treatment, theirs.effect_size_ci_lower, theirs.effect_size_ci_upper, theirs.pvalue)
    )
    assert (ours.relative_lower, ours.relative_upper) == pytest.approx(
        (theirs.rel_effect_size_ci_lower, theirs.rel_effect_size_ci_upper)
    )


def test_users_without_a_past_are_compared_without_it() -> None:
    columns = Columns("clicks", "clicks.per", "clicks.pre", "clicks.pre.per")
    strangers = USERS.with_columns(pl.lit(0.0).alias("clicks.pre"), pl.lit(0.0).alias("clicks.pre.per"))
    assert estimate(*_pair(columns, strangers), columns, "ratio", 0.05) == estimate(
        *_pair(columns.unadjusted), columns.unadjusted, "ratio", 0.05
    )


def test_nothing_is_said_of_users_who_are_all_alike_or_too_few() -> None:
    columns = Columns("opens")
    assert estimate(*_pair(columns, USERS.with_columns(opens=1.0)), columns, "count", 0.05) is None
    assert estimate(*_pair(columns, USERS[:1]), columns, "count", 0.05) is None
    assert always_valid(*_pair(columns, USERS[:150]), columns, 0.001, 0.05) is None


def test_an_always_valid_interval_is_wider_by_the_boundarys_factor_in_both_scales() -> None:
    columns = Columns("opens", None, "opens.pre", None)
    pair = _pair(columns)
    fixed, always = estimate(*pair, columns, "count", 0.05), always_valid(*pair, columns, 8 / 3_000, 0.05)
    assert fixed is not None
    assert always is not None

    def width(interval):  # type: ignore[no-untyped-def]
        return interval.upper - interval.lower, np.log1p(interval.relative_upper) - np.log1p(interval.relative_lower)

    factors = np.divide(width(always), width(fixed.interval))
    assert factors == pytest.approx([1.548, 1.548], abs=0.002)
