"""Drivers of a model whose reasons are known: the right columns, signs, windows and words, and nothing sensitive."""

from __future__ import annotations

import numpy as np
import pytest
import xgboost
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sonder.scoring.drivers import DRIVERS_TYPE, LEAST_SHARE, Explainer, global_drivers, spoken
from sonder.scoring.specification import EMBEDDING_DRIVER, FeatureSpec

SPEC = FeatureSpec(windows_days=(7, 30), actions=("buy",), categories=("toys",), has_values=False, embedding_dim=3)
NAMES = [description for _, description in SPEC.columns]
BUYS_7D, BUYS_30D, SINCE, TOYS = (
    NAMES.index(name)
    for name in (
        "number of 'buy' events in the last 7 days",
        "number of 'buy' events in the last 30 days",
        "days since the last event",
        "share of events in category 'toys'",
    )
)
EMBEDDING = SPEC.num_plain + 1
STUMPS = {"objective": "binary:logistic", "max_depth": 1, "eta": 0.3, "nthread": 1, "seed": 0}


def features(num: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0, 10, (num, SPEC.num_features)).astype(np.float32)


def booster_of(weights: dict[int, float]) -> xgboost.Booster:
    """Stumps only, so the model is a sum of functions of one column."""
    x = features(2_000)
    logits = np.sum([weight * (x[:, column] - 5) for column, weight in weights.items()], axis=0)
    return xgboost.train(STUMPS, xgboost.DMatrix(x, logits > 0), num_boost_round=80)


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    """Buys of 30 days raise, days since the last event lower, one dimension of the embedding raises."""
    return Explainer.of(booster_of({BUYS_30D: 1.2, SINCE: -0.5, EMBEDDING: 0.3}), SPEC)


@pytest.fixture(scope="module")
def of_two_labels() -> Explainer:
    """The first output is about buys of 30 days, the second about toys."""
    x = features(2_000)
    labels = np.column_stack([x[:, BUYS_30D] > 5, x[:, TOYS] > 5])
    return Explainer.of(xgboost.train(STUMPS, xgboost.DMatrix(x, labels), num_boost_round=20), SPEC)


def test_contributions_of_an_additive_model_move_with_their_own_column_alone(explainer: Explainer) -> None:
    x = features(50, seed=1)
    changed = x.copy()
    changed[:, BUYS_30D] = 9.9
    before, after = explainer.contributions(x), explainer.contributions(changed)
    others = np.arange(SPEC.num_features) != BUYS_30D
    assert after[:, :-1][:, others] == pytest.approx(before[:, :-1][:, others], abs=1e-5)
    assert (after[:, BUYS_30D] >= before[:, BUYS_30D] - 1e-5).all()
    assert (after[:, -1] == before[:, -1]).all()


def test_a_reason_names_the_window_the_value_and_the_direction(explainer: Explainer) -> None:
    x = np.full((2, SPEC.num_features), 5.0, np.float32)
    x[0, BUYS_30D], x[1, BUYS_30D], x[1, SINCE] = 9.875, 0.0, np.nan
    keen, cool = explainer.drivers(x, num=SPEC.num_features).to_pylist()
    assert keen[0]["reason"] == "raises: number of 'buy' events in the last 30 days = 9.88"
    assert keen[0]["contribution"] > 1
    assert cool[0]["reason"] == "lowers: number of 'buy' events in the last 30 days = 0"
    assert cool[0]["contribution"] < -1
    assert any(reason["reason"].endswith(": days since the last event = none yet") for reason in cool)


def test_families_together_are_the_whole_margin(explainer: Explainer) -> None:
    x = features(20, seed=2)
    assert len(explainer.families) == len(set(explainer.families)) == explainer.family_F.max() + 1
    assert explainer.families[-1] == EMBEDDING_DRIVER
    margins = explainer.boosters[0].predict(xgboost.DMatrix(x), output_margin=True)
    assert explainer.by_family(explainer.contributions(x)).sum(axis=1) == pytest.approx(margins, abs=1e-3)


def test_columns_of_a_family_are_summed_wherever_they_stand(explainer: Explainer) -> None:
    exact = np.random.default_rng(0).normal(size=(5, SPEC.num_features + 1)).astype(np.float32)
    expected = [
        [sum(row[c] for c, (family, _) in enumerate(SPEC.columns) if family == name) for name in explainer.families]
        + [row[-1]]
        for row in exact
    ]
    assert explainer.by_family(exact) == pytest.approx(np.array(expected), abs=1e-5)


def test_a_family_that_hardly_matters_is_not_told_and_the_heaviest_always_is(explainer: Explainer) -> None:
    x = features(200, seed=5)
    sums = explainer.by_family(explainer.contributions(x))[:, :-1]
    shares = np.abs(sums) / np.abs(sums).sum(axis=1, keepdims=True)
    told = explainer.tell(x, num=1_000)
    expected = np.maximum((shares >= LEAST_SHARE).sum(axis=1), 1)
    assert (told.families_UK >= 0).sum(axis=1).tolist() == expected.tolist()
    assert expected.max() < len(explainer.families)
    assert (told.families_UK[:, 0] == np.abs(sums).argmax(axis=1)).all()


def test_the_main_window_is_told_unless_another_weighs_more_than_twice_as_much() -> None:
    both = Explainer.of(booster_of({BUYS_30D: 1.0, BUYS_7D: 0.8}), SPEC)
    x = features(400, seed=6)
    place = both.families.index("number of 'buy' events")
    exact = both.contributions(x)
    told = both.tell(x, num=1_000)
    assert both.main_column_G[place] == BUYS_30D
    columns = told.columns_UK[told.families_UK == place]
    users = np.nonzero(told.families_UK == place)[0]
    pulls = np.sign(told.weights_UK[told.families_UK == place])
    main, other = exact[users, BUYS_30D] * pulls, exact[users, BUYS_7D] * pulls
    assert set(columns[main > other]) == {BUYS_30D}
    assert set(columns[other > 2.01 * np.maximum(main, 0)]) == {BUYS_7D}
    assert (exact[users, columns] * pulls > 0).all()


def test_a_sensitive_family_is_never_told_under_any_of_its_names() -> None:
    booster = booster_of({TOYS: 1.0, SINCE: -0.2})
    x = features(100, seed=7)
    plain = Explainer.of(booster, SPEC).drivers(x).to_pylist()
    assert any("'toys'" in reason["reason"] for reasons in plain for reason in reasons)
    for name in ("toys", "Toys", "shop/toys"):
        silent = Explainer.of(booster, SPEC, sensitive=[name])
        reasons = [reason["reason"] for told in silent.drivers(x, num=1_000).to_pylist() for reason in told]
        assert reasons
        assert not any("toys" in reason for reason in reasons)
        assert not any("toys" in driver.family for driver in global_drivers(silent, x))
    assert not Explainer.of(booster, SPEC, sensitive=["toy", "oys", ""]).is_sensitive_G.any()


def test_a_head_of_several_outputs_explains_the_one_that_is_asked_about(of_two_labels: Explainer) -> None:
    x = features(6, seed=8)
    asked = np.array([0, 1, 1, 0, 1, 0])
    told = of_two_labels.tell(x, asked, num=1)
    assert told.columns_UK[:, 0].tolist() == [TOYS if output else BUYS_30D for output in asked]
    with pytest.raises(ValueError, match="2 outputs"):
        of_two_labels.drivers(x)


def test_no_users_have_no_drivers_and_one_user_those_of_the_batch(explainer: Explainer) -> None:
    x = features(30, seed=3)
    assert explainer.drivers(x[:0]).to_pylist() == []
    assert explainer.drivers(x[:0]).type == DRIVERS_TYPE
    assert global_drivers(explainer, x[:0]) == []
    batch = explainer.drivers(x)
    assert [explainer.drivers(x[row : row + 1]).to_pylist()[0] for row in range(30)] == batch.to_pylist()


def test_the_global_picture_says_what_raises_and_what_lowers(explainer: Explainer) -> None:
    told = {driver.family: driver for driver in global_drivers(explainer, features(300, seed=4))}
    assert list(told)[:2] == ["number of 'buy' events", "days since the last event"]
    assert told["number of 'buy' events"].direction == 1
    assert told["days since the last event"].direction == -1
    assert told[EMBEDDING_DRIVER].direction == 0
    means = [driver.mean_contribution for driver in told.values()]
    assert means == sorted(means, reverse=True)


def test_a_column_that_is_the_same_for_everybody_has_no_direction(explainer: Explainer) -> None:
    x = features(50, seed=4)
    x[:, BUYS_30D] = 3.0
    directions = {driver.family: driver.direction for driver in global_drivers(explainer, x)}
    assert directions["number of 'buy' events"] == 0


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (3.0, "3"),
        (0.0, "0"),
        (9.875, "9.88"),
        (1_234_567.5, "1,234,567.5"),
        (100.0, "100"),
        (0.004, "less than 0.01"),
        (-2.25, "-2.25"),
        (-0.001, "just below 0"),
        (float("inf"), "none yet"),
    ],
)
def test_numbers_are_spoken_as_people_write_them(number: float, text: str) -> None:
    assert spoken(number) == text


@given(st.floats(-1e9, 1e9))
def test_a_spoken_number_has_two_decimals_at_most_and_is_near(number: float) -> None:
    text = spoken(number)
    if text in ("less than 0.01", "just below 0"):
        assert abs(number) < 0.005
    else:
        assert len(text.partition(".")[2]) <= 2
        assert abs(float(text.replace(",", "")) - number) <= 0.0051
