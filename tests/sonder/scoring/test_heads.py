"""Heads and their drivers: learning, saving, explaining; the scores table that batch and online share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xgboost
from numpy.typing import NDArray

from sonder.core.errors import ArtefactMismatch
from sonder.core.score_config import ScoreTask
from sonder.core.storage import Folder
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.scoring.calibration import Calibrator
from sonder.scoring.cutoffs import TaskRefusal
from sonder.scoring.drivers import Explainer
from sonder.scoring.features import compute_features
from sonder.scoring.heads import (
    ScoreHead,
    load_heads,
    load_refusals,
    predict,
    raw_margins,
    save_heads,
    shared_spec,
)
from sonder.scoring.specification import EMBEDDING_DRIVER, bind, derive_spec
from sonder.scoring.table import SCORE_SCHEMA, Scorer
from sonder.scoring.tasks import label_task
from sonder.scoring.training import COMMON, TRIALS, best_trees, grow, objective_of
from tests.tiny_log import random_log, timelines_of, vocabulary_of

NUM_USERS, DIM, CUTOFF = 400, 4, 60 * DAY
VOCABULARY = vocabulary_of(["garden", "books", "toys"])
TIMELINES = timelines_of(random_log(2, num_users=NUM_USERS, num_items=3, num_days=90))
TASKS = (
    ScoreTask(name="churn_20d", churn=True, within_days=20),
    ScoreTask(name="buy_20d", action="buy", within_days=20),
)
VECTORS = np.random.default_rng(3).normal(size=(NUM_USERS, DIM)).astype(np.float32)
SPEC = derive_spec(TIMELINES, VOCABULARY, first_us=0, cutoff_us=CUTOFF, embedding_dim=DIM)
FEATURES = compute_features(bind(SPEC, VOCABULARY), TIMELINES, cutoff_us=CUTOFF, embeddings_UD=VECTORS)


def train(task: ScoreTask, *, with_embedding: bool) -> ScoreHead:
    spec = SPEC if with_embedding else SPEC.without_embedding()
    eligible, labels = label_task(task, (task.name,), TIMELINES, VOCABULARY, cutoff_us=CUTOFF)
    is_train = np.arange(NUM_USERS) % 2 == 0
    x = FEATURES[:, : spec.num_features]
    matrices = [xgboost.DMatrix(x[eligible & part], labels[eligible & part]) for part in (is_train, ~is_train)]
    parameters = {**COMMON, **TRIALS[1], **objective_of(task).parameters(), "seed": 1, "nthread": 1}
    booster = best_trees(grow(*matrices, parameters))
    metrics = {"mean_labels": [float(labels.mean())]}
    return ScoreHead(task, (task.name,), booster, (Calibrator("platt", 0.9, 0.1),), spec, metrics)


@pytest.fixture(scope="module")
def heads() -> list[ScoreHead]:
    """The first reads the embedding, the second does not."""
    return [train(TASKS[0], with_embedding=True), train(TASKS[1], with_embedding=False)]


def explainer_of(head: ScoreHead) -> Explainer:
    return Explainer.of(head.booster, head.spec)


def auc(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    above = scores[labels][:, None] > scores[~labels][None, :]
    return float(above.mean())


def test_a_head_finds_who_left_in_a_log_where_some_leave(heads: list[ScoreHead]) -> None:
    later = CUTOFF + 5 * DAY
    eligible, labels = label_task(TASKS[0], ("churn_20d",), TIMELINES, VOCABULARY, cutoff_us=later)
    features = compute_features(bind(SPEC, VOCABULARY), TIMELINES, cutoff_us=later, embeddings_UD=VECTORS)
    assert auc(labels[eligible] > 0, predict(heads, features)[eligible, 0]) > 0.75


def test_saved_heads_predict_the_same_bits(heads: list[ScoreHead], tmp_path: Path) -> None:
    refusal = TaskRefusal("gift_20d", "no action 'gift'", {"users": 3})
    save_heads(heads, [refusal], Folder.at(str(tmp_path)))
    loaded = load_heads(Folder.at(str(tmp_path)))
    assert predict(loaded, FEATURES).tobytes() == predict(heads, FEATURES).tobytes()
    assert [(h.task, h.outputs, h.calibrators, h.spec, h.metrics) for h in loaded] == [
        (h.task, h.outputs, h.calibrators, h.spec, h.metrics) for h in heads
    ]
    assert load_refusals(Folder.at(str(tmp_path))) == [refusal]


def test_a_folder_where_every_task_was_refused_has_no_heads(tmp_path: Path) -> None:
    save_heads([], [], Folder.at(str(tmp_path)))
    assert load_heads(Folder.at(str(tmp_path))) == []


def test_drivers_sum_to_the_raw_margin(heads: list[ScoreHead]) -> None:
    for head in heads:
        margins = raw_margins(head.booster, FEATURES[:, : head.spec.num_features], 1)[:, 0]
        explainer = explainer_of(head)
        exact = explainer.contributions(FEATURES)
        assert exact.sum(axis=1) == pytest.approx(margins, abs=1e-4)
        assert explainer.by_family(exact).sum(axis=1) == pytest.approx(margins, abs=1e-4)


def test_drivers_are_told_heaviest_first_with_their_direction(heads: list[ScoreHead]) -> None:
    explainer = explainer_of(heads[0])
    told = explainer.drivers(FEATURES, num=3).to_pylist()
    sums = explainer.by_family(explainer.contributions(FEATURES))[:, :-1]
    assert len(told) == NUM_USERS
    for row, reasons in enumerate(told):
        weights = [reason["contribution"] for reason in reasons]
        assert np.abs(weights).tolist() == sorted(np.abs(sums[row]).tolist(), reverse=True)[: len(weights)]
        for reason in reasons:
            assert reason["reason"].startswith("raises: " if reason["contribution"] >= 0 else "lowers: ")


def test_the_whole_embedding_is_one_driver_without_a_value() -> None:
    head = train(TASKS[0], with_embedding=True)
    told = explainer_of(head).drivers(FEATURES, num=1_000).to_pylist()
    about = [[r["reason"] for r in reasons if "embedding" in r["reason"]] for reasons in told]
    assert max(len(reasons) for reasons in about) == 1
    assert {reason for reasons in about for reason in reasons} <= {
        f"raises: {EMBEDDING_DRIVER}",
        f"lowers: {EMBEDDING_DRIVER}",
    }


def test_a_driver_names_the_value_that_weighs_most(heads: list[ScoreHead]) -> None:
    names = [description for _, description in SPEC.columns]
    for row, reasons in enumerate(explainer_of(heads[1]).drivers(FEATURES, num=2).to_pylist()):
        for reason in reasons:
            statement, _, value = reason["reason"].split(": ", 1)[1].rpartition(" = ")
            expected = FEATURES[row, names.index(statement)]
            assert value == "none yet" if np.isnan(expected) else float(value) == pytest.approx(expected, abs=0.006)


def test_batch_and_online_tables_agree(heads: list[ScoreHead]) -> None:
    scorer = Scorer.of(heads, VOCABULARY)
    batch = scorer.score(TIMELINES, FEATURES, as_of_us=CUTOFF)
    assert batch.schema == SCORE_SCHEMA
    rows = np.array([11, 5])
    some = scorer.score(TIMELINES.take(rows), FEATURES[rows], as_of_us=CUTOFF).to_pylist()
    expected = [row for user in ("u0011", "u0005") for row in batch.to_pylist() if row["user_id"] == user]
    assert some == expected


def test_who_does_not_belong_to_a_population_has_no_score(heads: list[ScoreHead]) -> None:
    users = {"gone": [(1.0, 0, "view")], "here": [(55.0, 0, "view")], "unknown": []}
    table = Scorer.of(heads, VOCABULARY).score(timelines_of(users), FEATURES[:3], as_of_us=CUTOFF)
    found = list(zip(table["user_id"].to_pylist(), table["name"].to_pylist(), strict=True))
    assert found == [("gone", "buy_20d"), ("here", "churn_20d"), ("here", "buy_20d")]


def test_without_heads_there_are_no_scores() -> None:
    assert Scorer.of([], VOCABULARY).score(TIMELINES, None, as_of_us=CUTOFF).num_rows == 0


def test_a_matrix_that_lacks_the_embedding_is_refused(heads: list[ScoreHead]) -> None:
    assert shared_spec(heads) == SPEC
    with pytest.raises(ArtefactMismatch, match="features"):
        predict(heads, FEATURES[:, : SPEC.num_plain])
