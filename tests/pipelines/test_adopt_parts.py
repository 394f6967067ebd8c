"""What adopt measures of two releases: rankings of the same users, costs, and a slot that was drawn by chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines.adopt_cost import compare_costs
from pipelines.adopt_off_policy import compare_off_policy, read_slot
from pipelines.adopt_ranking import RankingComparison, compare_rankings
from pipelines.probe import settle_moment
from sonder.core.config import SonderConfig
from sonder.core.errors import DataError, InvalidRequest, NotFound
from sonder.encoder.artefact import load_encoder
from sonder.encoder.inference import embed_users
from sonder.history.snapshot import buckets_of, read_timelines
from sonder.history.vocabulary import Vocabulary
from sonder.releases.artefacts import Release
from tests.probed import LATE, make_release, opened, two_releases


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SonderConfig:
    config = two_releases(tmp_path_factory.mktemp("adopt"))
    make_release(config, "r-other", "late", LATE, seed=3, dim=16)
    return config


# -- rankings ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(config: SonderConfig) -> RankingComparison:
    return compare_rankings(config, opened(config, "r-late"), opened(config, "r-early"))


def test_beside_itself_a_release_ranks_the_same(config: SonderConfig) -> None:
    release = opened(config, "r-late")
    found = compare_rankings(config, release, release)
    assert found.ndcg_at_10 is not None
    assert (found.overlap_at_10, found.ndcg_at_10.difference, found.ndcg_at_10.judgement) == (1.0, 0.0, "even")


def test_both_are_asked_about_the_same_users_whatever_items_they_know(compared: RankingComparison) -> None:
    assert compared.ndcg_at_10 is not None
    assert compared.users == compared.ndcg_at_10.users > 100
    assert 0 < compared.overlap_at_10 < 1
    assert sum(part.users for part in compared.by_lifecycle) <= compared.users


def test_the_other_way_round_the_difference_turns(config: SonderConfig, compared: RankingComparison) -> None:
    one, other = opened(config, "r-late"), opened(config, "r-other")
    there, back = (compare_rankings(config, *pair).ndcg_at_10 for pair in ((one, other), (other, one)))
    assert there is not None
    assert back is not None
    assert there.difference == pytest.approx(-back.difference, abs=1e-12)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-12)


def test_releases_that_saw_every_event_are_refused(config: SonderConfig) -> None:
    seen = make_release(config, "r-seen", "late", LATE, protocol="leave_one_out")
    with pytest.raises(InvalidRequest, match="trained on events up to"):
        compare_rankings(config, seen, opened(config, "r-early"))


# -- costs ------------------------------------------------------------------------------------------------------------


def test_a_vector_twice_as_wide_costs_twice_the_bytes(config: SonderConfig) -> None:
    late, early = (_with_profiles(opened(config, name)) for name in ("r-late", "r-early"))
    found = compare_costs(late, early)
    assert found.ratio("vector_bytes") == 2.0
    assert found.ratio("training_seconds") is None
    assert found.now.embedding_ms > 0


def _with_profiles(release: Release) -> Release:
    release.manifest.row_counts["profiles"] = 400
    return release


# -- a slot -----------------------------------------------------------------------------------------------------------

SLOT = [f"i{index}" for index in range(4)]
CHANCE = np.array([0.02, 0.1, 0.3, 0.6])  # of a reward, by item


def orders(release: Release, users: list[str], as_of_us: int) -> np.ndarray:
    """Slot items in the release's order for each user, computed as plainly as can be [U, A]."""
    history = release.workspace.history(release.manifest.snapshot)
    vocabulary, encoder = Vocabulary.load(release.items), load_encoder(release.encoder)
    timelines = read_timelines(history, vocabulary, buckets_of(history))
    row = {user: place for place, user in enumerate(timelines.user_ids.to_pylist())}
    vectors = embed_users(encoder, timelines, as_of_us=as_of_us)[[row[user] for user in users]]
    index = [vocabulary.item_ids.to_pylist().index(item) for item in SLOT]
    scores = vectors @ encoder.item_vectors[index].T + encoder.item_bias[index]
    return np.argsort(-scores, axis=1, kind="stable")


@pytest.fixture(scope="module")
def slot(config: SonderConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], int]:
    """A slot of four items, shown at random with known chances to everybody, forty times."""
    release = opened(config, "r-late")
    history = release.workspace.history("late")
    users = read_timelines(history, Vocabulary.load(release.items), buckets_of(history)).user_ids.to_pylist()
    rng, chances = np.random.default_rng(8), np.array([0.4, 0.3, 0.2, 0.1])
    rows = np.repeat(np.arange(len(users)), 40)
    shown = rng.choice(4, len(rows), p=chances)
    table = pl.DataFrame(
        {
            "user_id": [users[row] for row in rows],
            "item_id": [SLOT[item] for item in shown],
            "propensity": chances[shown],
            "reward": (rng.random(len(rows)) < CHANCE[shown]).astype(float),
        }
    )
    file = tmp_path_factory.mktemp("slot") / "slot.parquet"
    table.write_parquet(file)
    late, other = opened(config, "r-late"), opened(config, "r-other")
    return file, users, settle_moment(late, [late, other]).cutoff_us


def test_off_policy_values_hold_what_the_releases_would_have_earned(
    config: SonderConfig, slot: tuple[Path, list[str], int]
) -> None:
    file, users, as_of_us = slot
    late, other = opened(config, "r-late"), opened(config, "r-other")
    found = compare_off_policy(late, other, file, as_of_us=as_of_us, seed=1)
    true_late, true_other = (CHANCE[orders(release, users, as_of_us)[:, 0]].mean() for release in (late, other))
    for values, truth in ((found.now, true_late), (found.was, true_other)):
        for name in ("ips", "snips", "dr"):
            assert abs(values[name].value - truth) < 4 * values[name].standard_error, name
    assert found.low < true_late - true_other < found.high
    assert found.is_supported
    assert (found.rounds, found.users, found.actions) == (40 * len(users), len(users), 4)


def test_a_log_with_hardly_a_round_like_theirs_decides_nothing(
    config: SonderConfig, slot: tuple[Path, list[str], int], tmp_path: Path
) -> None:
    file, _, as_of_us = slot
    pl.read_parquet(file).head(120).write_csv(tmp_path / "few.csv")
    found = compare_off_policy(
        opened(config, "r-late"), opened(config, "r-other"), tmp_path / "few.csv", as_of_us=as_of_us, seed=1
    )
    assert (found.is_supported, found.judgement) == (False, "unknown")


def test_what_is_no_slot_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="propensity"):
        read_slot(tmp_path / "none.csv")
    (tmp_path / "short.csv").write_text("user_id,item_id,reward\nu1,i1,1\n")
    with pytest.raises(DataError, match="has no column propensity"):
        read_slot(tmp_path / "short.csv")
    (tmp_path / "odd.csv").write_text("user_id,item_id,propensity,reward\nu1,i1,often,1\n")
    with pytest.raises(DataError, match=r"propensity \(1\) of 1 rows"):
        read_slot(tmp_path / "odd.csv")
    (tmp_path / "garbage.parquet").write_bytes(b"\x00garbage" * 9)
    with pytest.raises(DataError, match="cannot be read"):
        read_slot(tmp_path / "garbage.parquet")
    (tmp_path / "ids.csv").write_text("user_id,item_id,propensity,reward\n0012,007,0.5,1\n")
    assert read_slot(tmp_path / "ids.csv").row(0)[:2] == ("0012", "007")
    (tmp_path / "empty.csv").write_text("user_id,item_id,propensity,reward\n")
    with pytest.raises(DataError, match="has no row"):
        read_slot(tmp_path / "empty.csv")
