"""Taxonomy affinity on disk: `config.json`, what was fitted, and `groups.parquet`, the item groups if they were learnt.

The tree is the catalogue's where any item has a category; else it is one level of learned groups (.item_groups), kept
as one path per item in the order of the item table. Batch and serving open both with `load_affinity`, so they decide
alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sonder.core.errors import ArtefactMismatch
from sonder.core.storage import Folder
from sonder.events.contract import Col
from sonder.history.vocabulary import Vocabulary
from sonder.interests.affinity import AffinityModel
from sonder.interests.item_groups import learn_groups
from sonder.interests.taxonomy import Taxonomy

CONFIG_FILE = "config.json"
GROUPS_FILE = "groups.parquet"


@dataclass(frozen=True)
class ItemPaths:
    """One category path per item [I]; `is_learned` where k-means made them."""

    paths: pa.Array
    is_learned: bool

    @property
    def taxonomy(self) -> Taxonomy:
        return Taxonomy.of_paths(self.paths)


def item_paths(vocabulary: Vocabulary, vectors_ID: NDArray[np.float32]) -> ItemPaths:
    """The catalogue's categories, or learned groups where it has none."""
    column = vocabulary.items.column(Col.CATEGORY)
    if column.null_count < len(column):
        return ItemPaths(column.combine_chunks(), is_learned=False)
    return ItemPaths(learn_groups(vectors_ID, vocabulary), is_learned=True)


def save_affinity(model: AffinityModel, items: ItemPaths, folder: Folder) -> None:
    if items.is_learned:
        (folder / GROUPS_FILE).write_table(pa.table({Col.CATEGORY: items.paths}))
    (folder / CONFIG_FILE).write_json({"is_learned": items.is_learned, "model": model.to_dict()})


def load_affinity(folder: Folder, vocabulary: Vocabulary) -> tuple[Taxonomy, AffinityModel]:
    """The tree over the vocabulary's items, and the model that was fitted on it."""
    content = (folder / CONFIG_FILE).read_json()
    model = AffinityModel.from_dict(content["model"])
    if not content["is_learned"]:
        return Taxonomy.of_paths(vocabulary.items.column(Col.CATEGORY)), model
    paths = (folder / GROUPS_FILE).read_table().column(Col.CATEGORY)
    if len(paths) != vocabulary.num_items:
        raise ArtefactMismatch(
            f"{len(paths)} items in {folder / GROUPS_FILE}",
            expected=f"{vocabulary.num_items}, as in the item table beside it",
            do="Restore the release, or build it again.",
        )
    return Taxonomy.of_paths(paths), model
