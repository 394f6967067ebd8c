"""The joined forest says what its boosters say, bit for bit, whatever they were trained for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sonder.core.errors import ArtefactMismatch
from sonder.scoring.forest import Forest, single_outputs

NUM_FEATURES = 7
OBJECTIVES = ("binary:logistic", "multi-label", "count:poisson", "reg:tweedie")


def matrix(num: int, seed: int = 0, share_missing: float = 0.2) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, NUM_FEATURES)).astype(np.float32)
    x[rng.random(x.shape) < share_missing] = np.nan
    return x


def train(
    kind: str, *, seed: int = 0, rounds: int = 5, width: int = NUM_FEATURES, **parameters: Any
) -> xgboost.Booster:
    x = matrix(120, seed)
    known = np.nan_to_num(x) + np.random.default_rng(seed + 1).normal(size=x.shape)
    labels: dict[str, NDArray[Any]] = {
        "binary:logistic": known[:, 0] > 0.8,
        "multi-label": known[:, :3] > 0.3,
        "count:poisson": np.floor(np.abs(known[:, 1]) * 2),
        "reg:tweedie": np.maximum(known[:, 2], 0) * 30,
    }
    objective = "binary:logistic" if kind == "multi-label" else kind
    fixed = {"objective": objective, "nthread": 1, "seed": seed, "max_depth": 3, "verbosity": 0}
    return xgboost.train(fixed | parameters, xgboost.DMatrix(x[:, :width], labels[kind]), rounds)


def own_margins(boosters: list[xgboost.Booster], x: NDArray[np.float32]) -> NDArray[np.float32]:
    parts = [b.inplace_predict(x[:, : b.num_features()], predict_type="margin") for b in boosters]
    return np.concatenate([part.reshape(len(x), -1) for part in parts], axis=1)


booster_recipes = st.tuples(
    st.sampled_from(OBJECTIVES),
    st.integers(0, 3),  # seed
    st.integers(1, 12),  # rounds
    st.integers(3, NUM_FEATURES),  # width
    st.integers(0, 4),  # rounds cut off at the end, as early stopping does
)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(booster_recipes, min_size=1, max_size=5),
    st.integers(1, 300),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 2),
)
def test_margins_are_those_of_each_booster_bit_for_bit(
    recipes: list[tuple[str, int, int, int, int]], num_users: int, share_missing: float, num_threads: int
) -> None:
    boosters = []
    for kind, seed, rounds, width, cut in recipes:
        booster = train(kind, seed=seed, rounds=rounds, width=width)
        boosters.append(booster[: max(rounds - cut, 1)])
    x = matrix(num_users, seed=9, share_missing=share_missing)
    forest = Forest.of(boosters, num_threads=num_threads)
    assert forest.num_features == max(booster.num_features() for booster in boosters)
    assert forest.margins(x).tobytes() == own_margins(boosters, x).tobytes()


def test_every_booster_has_its_columns_in_order() -> None:
    boosters = [train(kind, seed=place) for place, kind in enumerate(OBJECTIVES)]
    forest = Forest.of(boosters)
    x = matrix(10)
    assert forest.num_outputs == 6
    for place, booster in enumerate(boosters):
        assert forest.margins(x)[:, forest.outputs_of(place)].tobytes() == own_margins([booster], x).tobytes()


def test_infinite_and_constant_inputs_go_where_they_went() -> None:
    boosters = [train("binary:logistic"), train("count:poisson")]
    x = np.repeat(np.array([np.inf, -np.inf, 0.0], np.float32)[:, None], NUM_FEATURES, axis=1)
    assert Forest.of(boosters).margins(x).tobytes() == own_margins(boosters, x).tobytes()


def test_a_task_without_positives_keeps_its_intercept() -> None:
    hopeless = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(matrix(50), np.zeros(50)), 2)
    x = matrix(3)
    forest = Forest.of([hopeless, train("reg:tweedie")])
    assert forest.margins(x)[:, 0].tobytes() == own_margins([hopeless], x).tobytes()


def test_a_user_alone_has_the_bits_of_the_batch() -> None:
    forest = Forest.of([train("multi-label"), train("binary:logistic")])
    x = matrix(200)
    alone = np.concatenate([forest.margins(x[row : row + 1]) for row in range(200)])
    assert alone.tobytes() == forest.margins(x).tobytes()


def test_no_users_have_no_margins() -> None:
    assert Forest.of([train("multi-label")]).margins(matrix(0)).shape == (0, 3)


def test_columns_that_nobody_reads_change_nothing_and_missing_ones_are_refused() -> None:
    forest = Forest.of([train("binary:logistic", width=5)])
    x = matrix(4)
    other = x.copy()
    other[:, 5:] = 99.0
    assert forest.margins(x).tobytes() == forest.margins(other).tobytes()
    with pytest.raises(ArtefactMismatch, match="read 5 features and got 4"):
        forest.margins(x[:, :4])


def test_a_loaded_booster_joins_like_a_trained_one() -> None:
    trained = train("reg:tweedie")
    loaded = xgboost.Booster(model_file=bytearray(trained.save_raw("json")))
    x = matrix(20)
    assert Forest.of([loaded]).margins(x).tobytes() == own_margins([trained], x).tobytes()


def test_joining_leaves_the_boosters_as_they_were() -> None:
    booster = train("multi-label")
    before = bytes(booster.save_raw("json"))
    Forest.of([booster, booster])
    single_outputs(booster)
    assert bytes(booster.save_raw("json")) == before


def test_a_single_output_of_a_multi_label_booster_is_the_booster_of_that_label() -> None:
    booster = train("multi-label")
    x = matrix(30)
    parts = single_outputs(booster)
    assert own_margins(parts, x).tobytes() == own_margins([booster], x).tobytes()
    whole = booster.predict(xgboost.DMatrix(x), pred_contribs=True)
    for place, part in enumerate(parts):
        assert part.predict(xgboost.DMatrix(x), pred_contribs=True) == pytest.approx(whole[:, place], abs=1e-6)


def test_what_cannot_be_joined_exactly_is_refused() -> None:
    with pytest.raises(ValueError, match="no boosters"):
        Forest.of([])
    with pytest.raises(ValueError, match="only gbtree"):
        Forest.of([train("binary:logistic", booster="dart")])
    with pytest.raises(ValueError, match="one-output trees"):
        Forest.of([train("multi-label", multi_strategy="multi_output_tree", tree_method="hist")])
