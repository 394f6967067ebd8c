"""Fixed readers of frozen vectors: the truth is found, noise is noise, equal encoders are equal, all of it paired."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from sonder.core.ids import unit_interval
from sonder.evaluation.probe_comparison import compare_probes
from sonder.evaluation.probe_questions import SPLIT_KEY, TEST_SHARE, Kind, Question, Questions
from sonder.evaluation.probes import FEATURES, Probes, run_probes

NUM_USERS, NUM_HIDDEN, DIM = 1_500, 4, 12
DRAW = np.random.default_rng(11)
HIDDEN = DRAW.normal(size=(NUM_USERS, NUM_HIDDEN))  # all that decides what users do, but for luck
NOISE, OTHER_NOISE = DRAW.normal(size=(2, NUM_USERS, DIM))
TRUTH = np.hstack([HIDDEN @ DRAW.normal(size=(NUM_HIDDEN, NUM_HIDDEN)), NOISE[:, NUM_HIDDEN:]])
WEAK = TRUTH + 3 * OTHER_NOISE


def make_questions() -> Questions:
    """Users whose recency knows a little of the first hidden number, and nothing of the others."""
    chances = 1 / (1 + np.exp(1 - 1.5 * HIDDEN @ DRAW.normal(size=(NUM_HIDDEN, 5))))
    counts = DRAW.poisson(np.exp(0.8 * HIDDEN[:, :1] + 0.5 * HIDDEN[:, 1:2])).astype(float)
    everybody, some = np.arange(NUM_USERS), np.arange(0, NUM_USERS, 2)
    answers = (DRAW.random(chances.shape) < chances).astype(float)

    def question(name: str, kind: Kind, rows: np.ndarray, labels: np.ndarray) -> Question:
        return Question(name, kind, name, tuple(f"o{place}" for place in range(labels.shape[1])), rows, labels[rows])

    asked = (
        question("churn", "binary", some, answers[:, :1]),
        question("category_propensity", "binary", everybody, answers),
        question("activity", "count", everybody, counts),
        question("value", "amount", everybody, counts * DRAW.gamma(2.0, 10.0, counts.shape)),
    )
    ids = pl.Series([f"u{row}" for row in range(NUM_USERS)])
    recency = HIDDEN[:, :1] + DRAW.normal(size=(NUM_USERS, 1))
    return Questions(ids, 0, 30, unit_interval(ids, SPLIT_KEY) < TEST_SHARE, recency, asked, {})


QUESTIONS = make_questions()


def probed(vectors: np.ndarray, seed: int = 0) -> Probes:
    return run_probes(vectors, QUESTIONS, num_resamples=100, seed=seed)


@pytest.fixture(scope="module")
def truth() -> Probes:
    return probed(TRUTH)


@pytest.fixture(scope="module")
def noise() -> Probes:
    return probed(NOISE)


@pytest.mark.parametrize("reader", ["linear", "network"])
@pytest.mark.parametrize("question", QUESTIONS.asked, ids=lambda question: question.name)
def test_a_vector_that_holds_the_truth_beats_noise_and_noise_is_chance(
    truth: Probes, noise: Probes, question: Question, reader: str
) -> None:
    chance = 0.5 if question.kind == "binary" else 0.0
    found, nothing = (probes.headline(question, reader, "vector") for probes in (truth, noise))  # type: ignore[arg-type]
    assert found.less(nothing).interval is not None
    assert found.less(nothing).interval[0] > 0.05  # type: ignore[index]
    spread = nothing.resampled_R.std()
    assert abs(nothing.value - chance) < 3.5 * spread  # 1 in 2,000 by luck; the draw is fixed
    assert truth.headline(question, reader, "none").value == pytest.approx(chance)  # type: ignore[arg-type]


def test_noise_adds_nothing_to_rfm_and_the_truth_does(truth: Probes, noise: Probes) -> None:
    for question in QUESTIONS.asked:
        for probes, adds in ((truth, True), (noise, False)):
            added = probes.headline(question, "linear", "vector_rfm").less(probes.headline(question, "linear", "rfm"))
            assert added.interval is not None
            assert (added.interval[0] > 0) == adds, question.name
            if not adds:  # what is learnt from noise costs a little
                assert abs(added.value) < 0.05
            assert added.interval[0] < added.value < added.interval[1]


def test_errors_are_those_of_a_constant_without_a_vector_and_smaller_with_one(truth: Probes) -> None:
    deviances, errors = (
        {features: truth.found[name, "linear", features][metric].value for features in FEATURES}
        for name, metric in (("activity", "poisson_deviance"), ("value", "nmae"))
    )
    labels = QUESTIONS.asked[2].labels_AK[:, 0]
    came, known = labels[QUESTIONS.is_test_U], labels[~QUESTIONS.is_test_U].mean()
    terms = np.where(came > 0, came * np.log(np.maximum(came, 1) / known), 0) - came + known
    assert deviances["none"] == pytest.approx(2 * terms.mean())
    assert errors["none"] == pytest.approx(1)
    for by_features in (deviances, errors):
        assert by_features["vector"] < by_features["rfm"] < by_features["none"]


def test_the_order_of_encoders_is_found_and_borda_counts_questions(truth: Probes) -> None:
    compared = compare_probes(truth, probed(WEAK))
    for reader in ("linear", "network"):
        borda = compared["borda"][reader]
        assert (borda["a"], borda["b"]) == (4, 0)
        assert borda["clear"] >= 3
        assert compared["score"][reader]["vector"]["better"] == "a"
    assert compared["questions"]["activity"]["linear"]["vector"]["poisson_deviance"]["better"] == "a"
    assert compared["questions"]["activity"]["linear"]["vector"]["poisson_deviance"]["value"] < 0


def test_equal_encoders_do_not_differ_and_two_of_noise_not_beyond_chance(noise: Probes) -> None:
    same = compare_probes(noise, probed(NOISE))
    assert same["score"]["linear"]["vector"] | {"users": 0} == {
        "value": 0, "interval": (0, 0), "users": 0, "better": None,
    }  # fmt: skip
    assert same["borda"]["network"] == {"a": 2, "b": 2, "clear": 0}
    assert compare_probes(noise, probed(OTHER_NOISE))["score"]["linear"]["vector"]["better"] is None


def test_a_rotation_of_the_space_changes_nothing_that_a_linear_reader_sees(truth: Probes) -> None:
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(DIM, DIM)))[0]
    both = run_probes(TRUTH @ turn, QUESTIONS, readers=("linear",), num_resamples=2), truth
    for question in QUESTIONS.asked:
        turned, here = (probes.headline(question, "linear", "vector").value for probes in both)
        assert turned == pytest.approx(here, abs=0.01)  # inputs are standardised, so the penalty is not quite the same


def test_only_probes_of_the_same_users_and_answers_are_compared(truth: Probes) -> None:
    flipped = replace(QUESTIONS.asked[0], labels_AK=1 - QUESTIONS.asked[0].labels_AK)
    other = replace(QUESTIONS, asked=(flipped, *QUESTIONS.asked[1:]))
    with pytest.raises(ValueError, match="nothing is paired"):
        compare_probes(truth, replace(truth, questions=other))
    with pytest.raises(ValueError, match="nothing is paired"):
        compare_probes(truth, replace(truth, seed=1))
    with pytest.raises(ValueError, match="one for each"):
        run_probes(TRUTH[1:], QUESTIONS)
    with pytest.raises(ValueError, match="finite"):
        run_probes(np.full_like(TRUTH, np.nan), QUESTIONS)


def test_what_is_told_names_users_intervals_and_flat_metrics(truth: Probes) -> None:
    told = truth.to_dict()
    question = told["questions"]["churn"]
    assert question["users_train"] + question["users_test"] == NUM_USERS / 2
    reading = question["readers"]["network"]["vector"]["auc"]
    assert reading["users"] == question["users_test"]
    assert reading["interval"][0] < reading["value"] < reading["interval"][1]
    assert told["metrics"]["probes.network.churn.auc"] == reading["value"]
    headlines = [2 * told["metrics"][f"probes.linear.{name}.auc"] - 1 for name in ("churn", "category_propensity")]
    headlines += [told["metrics"][f"probes.linear.{name}.spearman"] for name in ("activity", "value")]
    assert told["metrics"]["probes.linear.score"] == pytest.approx(np.mean(headlines))
    assert told["score"]["linear"]["none"]["value"] == pytest.approx(0)


def test_without_a_question_there_is_no_score() -> None:
    found = run_probes(TRUTH, replace(QUESTIONS, asked=()), num_resamples=3)
    assert found.to_dict()["score"]["linear"]["vector"] is None
    assert found.metrics() == {}
    assert compare_probes(found, found)["score"]["network"]["vector"] is None
