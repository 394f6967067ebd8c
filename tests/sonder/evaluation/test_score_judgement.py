from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from sonder.evaluation.score_judgement import judge_score
from sonder.history.timelines import MICROSECONDS_PER_DAY

DAY_20000_US = 20_000 * MICROSECONDS_PER_DAY  # 2024-10-04


def rows(labels: np.ndarray, values: np.ndarray, cutoff_us: int = DAY_20000_US) -> pa.Table:
    """A test file: one row a user, lists where there are several outputs."""
    num = len(labels)
    column = {
        name: pa.array(given.tolist(), pa.list_(kind) if given.ndim == 2 else kind)
        for name, given, kind in (("label", labels.astype(np.float64), pa.float64()), ("value", values, pa.float32()))
    }
    return pa.table(
        {
            "user_id": [f"u{place}" for place in range(num)],
            "cutoff": pa.array(np.full(num, cutoff_us)).cast(pa.timestamp("us", tz="UTC")),
            **column,
            "lifecycle": [("core", "new", "dormant")[place % 3] for place in range(num)],
            "tenure_days": pa.array(np.arange(num) % 80 + 0.5, pa.float32()),
        }
    )


def drawn(num: int = 600, outputs: int = 0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    chances = rng.beta(1, 3, (num, outputs) if outputs else num)
    return rng.random(chances.shape) < chances, chances


def backtest_of(labels: np.ndarray, values: np.ndarray) -> pa.Table:
    return pa.concat_tables(
        [rows(labels, values, DAY_20000_US - back * 7 * MICROSECONDS_PER_DAY) for back in (6, 5, 4, 3)]
    )


def test_a_probability_is_judged_whole_by_slice_and_over_time() -> None:
    labels, values = drawn()
    found = judge_score(
        "action",
        rows(labels, values),
        outputs=("buy_7d",),
        backtest=backtest_of(labels, values),
        trained_until_us=DAY_20000_US - 50 * MICROSECONDS_PER_DAY,
        num_resamples=40,
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["protocol"].startswith("600 users asked at 2024-10-04, compared with what came after;")
    assert found["cutoffs"] == ["2024-10-04"]
    assert found["metrics"]["scores.buy_7d.auc"] == found["quality"]["auc"] > 0.6
    assert [entry["name"] for entry in found["slices"]["lifecycle"]] == ["new", "core", "dormant"]
    assert sum(entry["users"] for entry in found["slices"]["tenure"]) == 600
    assert len(found["slices"]["score"]) == 10
    assert found["outside"]["judged"] == 3 + 4 + 10
    assert [point["age_days"] for point in found["backtest"]["points"]] == [8.0, 15.0, 22.0, 29.0]
    assert found["sentences"][-1] == found["backtest"]["drift"]["sentence"]
    assert any("within chance" in sentence for sentence in found["sentences"])


def test_a_model_that_promises_twice_as_much_is_told_so() -> None:
    labels, values = drawn()
    found = judge_score("churn", rows(labels, np.minimum(2 * values, 1)), outputs=("churn_30d",), num_resamples=40)
    assert any("miscalibrated beyond chance" in sentence for sentence in found["sentences"])
    assert any("Furthest apart: " in sentence for sentence in found["sentences"])
    assert found["outside"]["outside"] > 5
    assert found["backtest"] is None


@pytest.mark.parametrize(("kind", "power"), [("value", 1.5), ("count", 1.0)])
def test_means_are_judged_as_means(kind: str, power: float) -> None:
    labels, values = drawn()
    table = rows(labels * 3.0, values * 3)
    found = judge_score(kind, table, outputs=("spend_30d",), backtest=backtest_of(labels, values), num_resamples=40)  # type: ignore[arg-type]
    assert found["quality"]["power"] == power
    assert found["metrics"]["scores.spend_30d.gini"] > 0
    assert found["backtest"]["points"][0]["auc"] is None
    assert found["sentences"][0].startswith("The best-scored tenth of users brings ")


def test_chances_per_category_are_judged_as_pairs() -> None:
    labels, values = drawn(outputs=3)
    outputs = ("category_30d/garden", "category_30d/books", "category_30d/toys")
    found = judge_score(
        "next_category",
        rows(labels, values),
        outputs=outputs,
        backtest=backtest_of(labels, values),
        popularity=[0.1, 0.7, 0.2],
        num_resamples=40,
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [point["name"] for point in found["quality"]["per_category"]] == ["garden", "books", "toys"]
    assert found["quality"]["popular_precision_at_1"] == pytest.approx(labels[:, 1].mean())  # books
    assert found["metrics"]["scores.category_30d.macro_auc"] > 0.6
    assert sum(entry["users"] for entry in found["slices"]["lifecycle"]) == 600  # users, not pairs


def test_fixed_lists_are_read_as_lists() -> None:
    labels, values = drawn(num=80, outputs=2)
    table = rows(labels, values)
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float32()), 2)
    again = table.set_column(table.column_names.index("value"), "value", fixed)
    quality = [
        judge_score("next_category", given, outputs=("c/a", "c/b"), num_resamples=0)["quality"]
        for given in (table, again)
    ]
    assert quality[0] == quality[1]


def test_without_state_and_tenure_there_are_levels_alone() -> None:
    table = rows(*drawn()).drop_columns(["lifecycle", "tenure_days"])
    assert list(judge_score("action", table, outputs=("buy",), num_resamples=0)["slices"]) == ["score"]


def test_no_rows_give_a_reason_and_no_number() -> None:
    found = judge_score("action", rows(*drawn()).slice(0, 0), outputs=("buy",))
    assert found["sentences"] == ["Not measured: no user to measure on."]
    assert found["metrics"] == {"scores.buy.users": 0}
    assert found["slices"] == {}


def test_a_column_that_does_not_fit_its_outputs_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one number for each of 2 outputs"):
        judge_score("next_category", rows(*drawn()), outputs=("c/a", "c/b"))


def test_the_same_seed_gives_the_same_judgement_whatever_the_order_of_the_rows() -> None:
    table = rows(*drawn())
    first, again = (judge_score("action", table, outputs=("buy",), num_resamples=20) for _ in range(2))
    assert first == again
    turned = judge_score("action", table.take(np.arange(599, -1, -1)), outputs=("buy",), num_resamples=20)
    for key in ("auc", "pr_auc", "ece", "top_decile_lift"):
        assert turned["quality"][key] == pytest.approx(first["quality"][key])
