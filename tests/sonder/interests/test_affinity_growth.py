"""A fitted affinity model over a catalogue that has grown."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from sonder.core.storage import Folder
from sonder.interests.affinity import AffinityModel, LevelModel
from sonder.interests.affinity_artefact import ItemPaths, load_affinity, save_affinity
from sonder.interests.affinity_growth import carry_affinity, with_categories
from sonder.interests.taxonomy import Taxonomy
from tests.tiny_log import vocabulary_of

MODEL = AffinityModel(
    half_life_days=30.0,
    population_half_life_days=10.0,
    horizon_days=30.0,
    levels=(LevelModel(("a", "c"), (0.75, 0.25), prior_strength=2.0, aversion=0.5),),
    num_users=100,
)


def test_a_new_category_has_the_share_of_the_rarest_and_shares_sum_to_one() -> None:
    grown = with_categories(MODEL, Taxonomy.of_paths(pa.array(["a", "b", "c"])))
    assert grown.levels[0].names == ("a", "b", "c")
    assert grown.levels[0].population == pytest.approx((0.6, 0.2, 0.2))
    assert grown.levels[0].prior_strength == 2.0


def test_a_new_level_takes_over_what_was_fitted_above_it() -> None:
    grown = with_categories(MODEL, Taxonomy.of_paths(pa.array(["a/x", "a/y", "c"])))
    assert grown.levels[0] == MODEL.levels[0]
    assert grown.levels[1].names == ("a/x", "a/y")
    assert grown.levels[1].population == (0.5, 0.5)
    assert grown.levels[1].aversion == 0.5


@pytest.mark.parametrize("is_learned", [False, True])
def test_what_is_carried_opens_over_the_grown_catalogue(tmp_path: Path, is_learned: bool) -> None:
    parent, target = Folder.at(str(tmp_path / "parent")), Folder.at(str(tmp_path / "target"))
    save_affinity(MODEL, ItemPaths(pa.array(["a", "c"]), is_learned=is_learned), parent)
    catalogue = vocabulary_of([None, None, None] if is_learned else ["a", "c", "b"])
    carry_affinity(parent, target, catalogue)
    taxonomy, model = load_affinity(target, catalogue)
    assert tuple(level.names for level in model.levels) == taxonomy.names
    assert taxonomy.codes_LI[0].tolist() == ([0, 1, -1] if is_learned else [0, 2, 1])
