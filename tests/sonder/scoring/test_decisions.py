"""Thresholds and choices on tables small enough for a head."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.core.errors import InvalidRequest
from sonder.scoring.decisions import CostTable, Payoff, affordable, choose, in_order, simple_payoff

MONEY = st.integers(-50, 50)


def scored(**scores: float) -> pl.DataFrame:
    return pl.DataFrame({"user_id": list(scores), "score": list(scores.values())})


def test_a_contact_of_20_cents_for_12_euro_pays_from_one_in_sixty_on() -> None:
    payoff = simple_payoff(cost=0.2, value=12)
    assert payoff.break_even == pytest.approx(1 / 60)
    assert payoff.acts() == "above"
    assert simple_payoff(cost=0.2, value=12, effect=0.1).break_even == pytest.approx(1 / 6)


@settings(deadline=None)
@given(MONEY, MONEY, MONEY, MONEY, st.floats(0, 1))
def test_acting_gains_exactly_where_the_expectation_of_the_table_says_so(
    tp: int, fp: int, fn: int, tn: int, p: float
) -> None:
    payoff = CostTable(tp, fp, fn, tn).payoff
    act, leave = p * tp + (1 - p) * fp, p * fn + (1 - p) * tn
    assert payoff.per_unit * p + payoff.fixed == pytest.approx(act - leave, abs=1e-9)


def test_the_simple_form_is_a_table_whose_misses_and_true_negatives_bring_nothing() -> None:
    table = CostTable.parse("true_positive=9.8, false_positive=-.2, false_negative=0, true_negative=0")
    assert table.payoff == simple_payoff(cost=0.2, value=10)


@pytest.mark.parametrize(
    ("payoff", "acts"),
    [(Payoff(10, -1), "above"), (Payoff(-10, 1), "below"), (Payoff(5, 1), "always"), (Payoff(5, -5), "never")],
)
def test_a_payoff_says_on_which_side_of_the_break_even_to_act(payoff: Payoff, acts: str) -> None:
    assert payoff.acts() == acts


def test_an_amount_without_an_upper_end_pays_from_some_amount_on() -> None:
    assert Payoff(0.3, -1).acts(highest=float("inf")) == "above"


def test_a_payoff_without_a_score_in_it_has_no_break_even() -> None:
    assert Payoff(0, -1).break_even is None


@pytest.mark.parametrize("text", ["true_positive=1", "true_positive=x", "1,2,3,4", ""])
def test_a_table_that_is_not_one_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"true_positive=9\.8"):
        CostTable.parse(text)


@pytest.mark.parametrize("wrong", [{"cost": -1.0}, {"effect": 0.0}, {"effect": 1.5}, {"value": float("nan")}])
def test_amounts_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest):
        simple_payoff(**({"cost": 1.0, "value": 1.0} | wrong))


def test_a_budget_buys_whole_contacts() -> None:
    assert affordable(5_000, 0.2) == 25_000
    assert affordable(0.3, 0.1) == 3  # 2.9999999999999996 in floats
    assert affordable(0.29, 0.1) == 2
    with pytest.raises(InvalidRequest, match="--size"):
        affordable(10, 0)


def test_the_best_come_first_and_equals_by_user_id() -> None:
    ordered = in_order(scored(c=0.5, a=0.5, b=0.9, d=0.1), Payoff(10, -2))
    assert ordered["user_id"].to_list() == ["b", "a", "c", "d"]
    assert ordered["expected_gain"].to_list() == pytest.approx([7, 3, 3, -1])


def test_nobody_is_chosen_whose_gain_is_not_above_zero_however_large_the_budget() -> None:
    chosen = choose(in_order(scored(a=0.2, b=0.21, c=0.0), Payoff(10, -2)), 100)
    assert chosen["user_id"].to_list() == ["b"]
    assert choose(in_order(scored(a=0.1), Payoff(10, -2)), None).height == 0


@settings(deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1), st.floats(0, 1), min_size=1), st.integers(0, 5))
def test_a_larger_budget_only_adds_users(scores: dict[str, float], limit: int) -> None:
    ordered = in_order(pl.DataFrame({"user_id": list(scores), "score": list(scores.values())}), Payoff(10, -2))
    smaller, larger = (choose(ordered, size)["user_id"].to_list() for size in (limit, limit + 1))
    assert larger[: len(smaller)] == smaller
