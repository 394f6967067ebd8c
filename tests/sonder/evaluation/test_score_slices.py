from __future__ import annotations

import numpy as np
import pytest

from sonder.evaluation.resampling import share_interval
from sonder.evaluation.score_slices import (
    ScoreRows,
    mean_interval,
    outside_counts,
    slices_by,
    slices_by_score,
    slices_by_tenure,
    tenure_names,
)


def share_rows(labels: object, chances: object) -> ScoreRows:
    outcomes, predictions = np.asarray(labels, dtype=np.float64), np.asarray(chances, dtype=np.float64)
    return ScoreRows(outcomes, predictions, np.arange(len(outcomes)), is_share=True)


def test_a_slice_says_what_was_promised_and_what_came() -> None:
    labels = [1] * 10 + [0] * 50 + [1] * 40 + [0] * 20
    rows = share_rows(labels, [0.2] * 60 + [0.2] * 60)
    core, new = slices_by(rows, ["new"] * 60 + ["core"] * 60, order=("core", "new"))
    assert (core.name, core.users, core.positives) == ("core", 60, 40)
    assert core.observed == pytest.approx(2 / 3)
    assert core.is_inside is False  # 0.2 was promised, two thirds came
    assert new.is_inside is True
    assert (new.observed_low, new.observed_high) == pytest.approx(share_interval(np.array(labels[:60])))
    assert core.ece == pytest.approx(2 / 3 - 0.2)
    assert core.ece_by_chance is not None
    assert core.ece_by_chance < 0.1


def test_a_small_slice_is_shown_but_not_judged() -> None:
    (small,) = slices_by(share_rows([0] * 49, [0.9] * 49), ["new"] * 49)
    assert small.is_inside is None
    assert small.users == 49
    assert outside_counts([small]) == {"judged": 0, "outside": 0, "outside_by_chance": 0.0}


def test_of_a_calibrated_score_about_one_slice_in_twenty_lies_outside() -> None:
    rng = np.random.default_rng(8)
    chances = rng.beta(1, 4, 20_000)
    rows = share_rows(rng.random(20_000) < chances, chances)
    counts = outside_counts(slices_by(rows, rng.integers(200, size=20_000).astype(str), num_resamples=0))
    assert counts["judged"] == 200
    assert counts["outside_by_chance"] == pytest.approx(10)
    assert 2 <= counts["outside"] <= 20


def test_tenure_classes_are_cut_at_the_quartiles_of_the_rows_in_whole_days() -> None:
    days = np.array([0.5, 1.2, 3.9, 7.1, 8.0, 30.0, 60.5, 90.0])
    classes = slices_by_tenure(share_rows([0] * 8, [0.1] * 8), days)
    assert [entry.name for entry in classes] == ["under 3 days", "3 to 7 days", "8 to 59 days", "60 days and more"]
    assert [entry.users for entry in classes] == [2, 2, 2, 2]


def test_users_of_one_tenure_are_one_class() -> None:
    classes = slices_by_tenure(share_rows([0, 1], [0.1, 0.2]), np.array([5.0, 5.5]))
    assert [(entry.name, entry.users) for entry in classes] == [("all", 2)]
    assert tenure_names([7, 8]) == ["under 7 days", "7 days", "8 days and more"]


def test_levels_of_the_score_stand_lowest_first_and_keep_equal_scores_together() -> None:
    levels = slices_by_score(share_rows([0] * 30, np.repeat([0.3, 0.1, 0.2], 10)))
    assert [(entry.name, entry.predicted) for entry in levels] == [
        ("level 1 of 3", pytest.approx(0.1)),
        ("level 2 of 3", pytest.approx(0.2)),
        ("level 3 of 3", pytest.approx(0.3)),
    ]
    many = slices_by_score(share_rows([0] * 120, np.arange(120) / 120))
    assert [entry.name for entry in many][-2:] == ["level 9 of 10", "level 10 of 10"]


def test_means_have_a_bootstrap_interval_and_need_users_who_brought_anything() -> None:
    values = np.concatenate([np.full(9, 50.0), np.zeros(91)])
    rows = ScoreRows(values, np.full(100, 4.5), np.arange(100), is_share=False)
    (entry,) = slices_by(rows, ["all"] * 100)
    assert entry.is_inside is None  # nine users with an outcome
    assert entry.observed_low < 4.5 < entry.observed_high
    assert entry.ece is None
    more = ScoreRows(np.tile(values, 2), np.full(200, 4.5), np.arange(200), is_share=False)
    assert slices_by(more, ["all"] * 200)[0].is_inside is True
    assert mean_interval(rows, num_resamples=0) == (4.5, 4.5)


def test_several_rows_of_a_user_count_as_one_user() -> None:
    rows = ScoreRows(np.zeros(4), np.full(4, 0.1), np.array([7, 7, 9, 9]), is_share=True)
    assert [entry.users for entry in slices_by(rows, ["a", "b", "a", "b"])] == [2, 2]
    assert [entry.users for entry in slices_by(rows, ["a", "a", "b", "b"])] == [1, 1]
