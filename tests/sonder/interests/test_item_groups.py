"""Item groups in place of categories: found again, named, and independent of how items are numbered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sonder.core.errors import ArtefactMismatch
from sonder.core.storage import Folder
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.vocabulary import Vocabulary
from sonder.interests.affinity import affinity_table
from sonder.interests.affinity_artefact import item_paths, load_affinity, save_affinity
from sonder.interests.affinity_fit import fit_affinity
from sonder.interests.item_groups import learn_groups, num_groups
from tests.tiny_log import timelines_of, vocabulary_of

TITLES = ["Red mug", "Blue mug", "Green MUG 12", "Garden rake", "Steel rake", "Long rake", "Old rake", "None"]


def vocabulary(titles: list[str | None], category: str | None = None) -> Vocabulary:
    plain = vocabulary_of([category] * len(titles))
    place = plain.items.column_names.index("title")
    return Vocabulary(plain.items.set_column(place, "title", pa.array(titles, pa.string())), *_rest(plain))


def _rest(plain: Vocabulary) -> tuple[tuple[str, ...], tuple[float, ...], tuple[str, ...]]:
    return plain.actions, plain.action_weights, plain.surfaces


def two_heaps(num: int = 8) -> np.ndarray:
    """The first three items near one axis, the others near another, the last unknown."""
    x_ID = np.random.default_rng(1).normal(0, 0.05, (num, 4)).astype(np.float32)
    x_ID[:3, 0] += 1
    x_ID[3:, 1] += 2
    x_ID[-1] = 0
    return x_ID


def test_groups_are_the_heaps_and_are_named_by_their_titles() -> None:
    groups = learn_groups(two_heaps(), vocabulary([*TITLES])).to_pylist()
    assert [name.split()[0] for name in groups[:7]] == ["mug"] * 3 + ["rake"] * 4
    assert groups[7] is None


def test_without_titles_a_group_is_named_by_its_most_central_item() -> None:
    groups = learn_groups(two_heaps(), vocabulary([None] * 8)).to_pylist()
    assert len(set(groups[:3])) == len(set(groups[3:7])) == 1
    assert groups[0] in {"like i0", "like i1", "like i2"}
    assert groups[3] in {"like i3", "like i4", "like i5", "like i6"}


def test_groups_do_not_depend_on_how_items_are_numbered() -> None:
    known, shuffled = vocabulary([*TITLES]), np.array([4, 2, 7, 0, 6, 1, 5, 3])
    other = Vocabulary(known.items.take(pa.array(shuffled)), *_rest(known))
    groups = learn_groups(two_heaps(), known).take(pa.array(shuffled))
    assert learn_groups(two_heaps()[shuffled], other).to_pylist() == groups.to_pylist()


def test_the_number_of_groups_grows_with_the_catalogue_and_ends() -> None:
    assert [num_groups(num) for num in (0, 1, 2, 8, 5_000, 10_000_000)] == [0, 1, 2, 2, 50, 100]


def test_equal_items_are_one_group_and_no_item_is_none() -> None:
    same = np.ones((6, 4), np.float32)
    assert len(set(learn_groups(same, vocabulary(["mug"] * 6)).to_pylist())) == 1
    assert learn_groups(np.zeros((6, 4), np.float32), vocabulary(["mug"] * 6)).null_count == 6


def test_a_log_without_catalogue_has_affinities_to_groups_through_a_folder(tmp_path: Path) -> None:
    folder, known = Folder.at(str(tmp_path)), vocabulary([*TITLES])
    log = timelines_of({"ada": [(1, 0, "buy"), (2, 1, "buy")], "bob": [(1, 3, "buy"), (2, 7, "buy")]})
    items = item_paths(known, two_heaps())
    assert items.is_learned
    save_affinity(fit_affinity(log, known, items.taxonomy, as_of_us=9 * DAY, horizon_days=2), items, folder)
    tree, model = load_affinity(folder, known)
    found = affinity_table(log, known, tree, model, as_of_us=9 * DAY, max_affinities=5).to_pylist()
    assert [(row["user_id"], row["category"].split()[0]) for row in found] == [("ada", "mug"), ("bob", "rake")]
    assert all(row["strength"] > 0 for row in found)
    with pytest.raises(ArtefactMismatch, match="8 items"):
        load_affinity(folder, vocabulary([*TITLES, "new"]))


def test_a_catalogue_goes_before_groups() -> None:
    assert item_paths(vocabulary(["mug"] * 8, category="a/b"), two_heaps()).taxonomy.names == (("a",), ("a/b",))
