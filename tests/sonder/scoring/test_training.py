"""Growing trees: stopped in time, the same after a kill, bound by what is declared, true to rare events and amounts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xgboost
from numpy.typing import NDArray
from scipy.special import expit

from sonder.core.errors import ConfigurationError
from sonder.core.score_config import ScoreTask
from sonder.scoring.specification import FeatureSpec
from sonder.scoring.training import (
    COMMON,
    LEAST_GAIN,
    MAX_ROUNDS,
    PATIENCE,
    SAVE_EVERY,
    TRIALS,
    Progress,
    Trial,
    best_trees,
    choose,
    fill_missing,
    grow,
    monotone_constraints,
    objective_of,
)

BUY = ScoreTask(name="buy", action="buy", within_days=7)
SPEC = FeatureSpec(windows_days=(7,), actions=("buy",), categories=(), has_values=False, embedding_dim=0)


def parameters(task: ScoreTask) -> dict[str, Any]:
    return {**COMMON, **TRIALS[1], **objective_of(task).parameters(), "seed": 7, "nthread": 1}


def features(num: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(num, 8)).astype(np.float32)


def matrices(x: NDArray[np.float32], y: NDArray[Any]) -> tuple[xgboost.DMatrix, xgboost.DMatrix]:
    half = len(x) // 2
    return xgboost.DMatrix(x[:half], y[:half]), xgboost.DMatrix(x[half:], y[half:])


def happened(logits: NDArray[Any], seed: int = 1) -> NDArray[np.bool_]:
    drawn: NDArray[np.bool_] = np.random.default_rng(seed).random(len(logits)) < expit(logits)
    return drawn


def test_boosting_ends_when_later_time_says_so_and_keeps_the_best_trees() -> None:
    x = features(1000)
    grown = grow(*matrices(x, happened(x[:, 0])), parameters(BUY))
    assert grown.is_done
    assert PATIENCE < len(grown.losses) <= grown.best_round + 1 + PATIENCE
    assert grown.losses[grown.best_round] == min(grown.losses)
    assert best_trees(grown).num_boosted_rounds() == grown.best_round + 1


def first_end(losses: NDArray[np.float64]) -> int:
    return next(end for end in range(len(losses) + 1) if Progress(None, tuple(losses[:end])).is_done)


def test_rounds_that_bring_next_to_nothing_are_the_last_whatever_a_loss_is_measured_in() -> None:
    """Each 20 rounds take half of what is left: the last PATIENCE, 40, took three times of it. A Poisson loss may lie
    below 0, and one of amounts is in any currency."""
    falling = 0.4 + 0.3 * 0.5 ** (np.arange(MAX_ROUNDS) / 20)
    end = first_end(falling)
    assert end == pytest.approx(20 * np.log2(3 / LEAST_GAIN), abs=2)
    assert first_end(1000 * falling - 900) == end
    assert first_end(np.full(MAX_ROUNDS, 0.5)) == first_end(np.full(MAX_ROUNDS, np.nan)) == PATIENCE + 1
    assert first_end(np.linspace(0.9, 0.1, MAX_ROUNDS + 9)) == MAX_ROUNDS


def test_a_run_that_goes_on_from_any_save_ends_with_the_same_trees() -> None:
    x = features(2000)
    train, stop = matrices(x, happened(2 * x[:, 0] * x[:, 1]))
    saved: list[tuple[bytes, tuple[float, ...]]] = []
    full = grow(
        train, stop, parameters(BUY),
        save=lambda progress: saved.append((bytes(progress.booster.save_raw("json")), progress.losses)),  # type: ignore[union-attr]
    )  # fmt: skip
    assert [len(losses) for _, losses in saved[:2]] == [SAVE_EVERY, 2 * SAVE_EVERY]
    for raw, losses in saved[:2]:
        again = grow(train, stop, parameters(BUY), start=Progress(xgboost.Booster(model_file=bytearray(raw)), losses))
        assert again.losses == full.losses
        assert best_trees(again).save_raw("json") == best_trees(full).save_raw("json")


def test_the_least_loss_wins_and_of_equals_the_first() -> None:
    assert choose([Trial({}, 1, 0.3), Trial({}, 1, 0.2), Trial({}, 1, 0.2)]) == 1


def test_a_rare_event_keeps_its_frequency() -> None:
    x = features(60_000)
    logits = x[:, 0] - 6.5
    grown = grow(*matrices(x, happened(logits)), parameters(BUY))
    fresh = features(60_000, seed=2)
    told = best_trees(grown).inplace_predict(fresh)
    true = expit(fresh[:, 0].astype(np.float64) - 6.5)
    assert true.mean() < 0.004
    assert told.mean() == pytest.approx(true.mean(), rel=0.15)
    top = np.argsort(-told)[:6000]
    assert told[top].mean() == pytest.approx(true[top].mean(), rel=0.25)


@pytest.mark.parametrize("kind", ["count", "value"])
def test_an_amount_is_expected_where_most_have_none(kind: str) -> None:
    task = ScoreTask.model_validate({"name": "amount", kind: True, "within_days": 7})
    x, draw = features(20_000), np.random.default_rng(3)
    mean = np.exp(0.7 * x[:, 0] - 1.5)
    came = draw.poisson(mean)
    amounts = came if kind == "count" else came * draw.gamma(2.0, 5.0, len(came))
    assert (amounts == 0).mean() > 0.6
    told = best_trees(grow(*matrices(x, amounts), parameters(task))).inplace_predict(x)
    expected = mean if kind == "count" else 10 * mean
    assert told.mean() == pytest.approx(expected.mean(), rel=0.1)
    assert np.corrcoef(np.log(told), np.log(expected))[0, 1] > 0.9


def test_a_declared_direction_is_kept_whatever_the_rows_say() -> None:
    task = BUY.model_copy(update={"monotone": {"number of 'buy' events": "increasing"}})
    columns = [family for family, _ in SPEC.columns]
    place = columns.index("number of 'buy' events")
    x = np.random.default_rng(0).normal(size=(2000, SPEC.num_features)).astype(np.float32)
    falling = happened(-2 * x[:, place])
    bound = parameters(task) | monotone_constraints(task, SPEC)
    booster = best_trees(grow(*matrices(x, falling), bound))
    probe = np.zeros((50, SPEC.num_features), np.float32)
    probe[:, place] = np.linspace(-3, 3, 50)
    assert (np.diff(booster.inplace_predict(probe)) >= 0).all()
    assert monotone_constraints(BUY, SPEC) == {}


def test_a_direction_for_a_family_that_is_not_there_is_refused_with_those_that_are() -> None:
    task = BUY.model_copy(update={"monotone": {"number of buys": "increasing"}})
    with pytest.raises(ConfigurationError, match="number of 'buy' events"):
        monotone_constraints(task, SPEC)


def test_a_missing_value_goes_where_the_number_beyond_all_others_went() -> None:
    draw = np.random.default_rng(2)
    days = draw.uniform(0, 90, 4_000).astype(np.float32)
    days[draw.random(4_000) < 0.3] = np.nan
    rates = np.where(np.isnan(days), 0.1, np.where(days < 30, 0.8, 0.3))
    x = np.column_stack([days, draw.random(4_000)]).astype(np.float32)
    filled = x.copy()
    fill_missing(filled)
    assert np.isnan(x).any()
    assert not np.isnan(filled).any()
    grown = grow(*matrices(filled, happened(np.log(rates / (1 - rates)))), parameters(BUY))
    kept = best_trees(grown)
    assert np.array_equal(kept.inplace_predict(x), kept.inplace_predict(filled))
    assert grown.booster is not None
    assert np.array_equal(kept.inplace_predict(filled), grown.booster.inplace_predict(
        filled, iteration_range=(0, grown.best_round + 1)))  # fmt: skip
    never, old, new = (kept.inplace_predict(np.array([[value, 0.5]], np.float32))[0] for value in (np.nan, 80.0, 5.0))
    assert never == pytest.approx(0.1, abs=0.1)
    assert old == pytest.approx(0.3, abs=0.12)
    assert new == pytest.approx(0.8, abs=0.15)
