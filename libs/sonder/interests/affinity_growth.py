"""A fitted affinity model meets categories that it was not fitted with; what it knows stays as it is.

A new category has the share of the rarest known one of its level, and all shares are drawn to sum 1 again; a new level
takes over what was fitted for the level above it, with even shares. Shares of the population are those of the fit.
Learned item groups (no catalogue) are not learned again: an item that is new lies in none until they are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from sonder.core.storage import Folder
from sonder.events.contract import Col
from sonder.history.vocabulary import Vocabulary
from sonder.interests.affinity import AffinityModel, LevelModel
from sonder.interests.affinity_artefact import CONFIG_FILE, GROUPS_FILE, ItemPaths, save_affinity
from sonder.interests.taxonomy import Taxonomy


def carry_affinity(parent: Folder, target: Folder, vocabulary: Vocabulary) -> None:
    """Write what `parent` holds to `target`, over a vocabulary whose first items are the parent's."""
    content = (parent / CONFIG_FILE).read_json()
    model = AffinityModel.from_dict(content["model"])
    if content["is_learned"]:
        known = (parent / GROUPS_FILE).read_table().column(Col.CATEGORY).combine_chunks().cast(pa.string())
        new = pa.nulls(vocabulary.num_items - len(known), pa.string())
        paths = ItemPaths(pa.concat_arrays([known, new]), is_learned=True)
    else:
        paths = ItemPaths(vocabulary.items.column(Col.CATEGORY).combine_chunks(), is_learned=False)
    save_affinity(with_categories(model, paths.taxonomy), paths, target)


def with_categories(model: AffinityModel, taxonomy: Taxonomy) -> AffinityModel:
    """The model over the categories of a tree, in its order."""
    levels: list[LevelModel] = []
    for level, names in enumerate(taxonomy.names):
        fitted = model.levels[level] if level < len(model.levels) else replace(levels[-1], names=(), population=())
        levels.append(_with_names(fitted, names))
    return replace(model, levels=tuple(levels))


def _with_names(level: LevelModel, names: tuple[str, ...]) -> LevelModel:
    if names == level.names:
        return level
    known = dict(zip(level.names, level.population, strict=True))
    rarest = min((share for share in level.population if share > 0), default=1.0)
    shares = np.array([known.get(name, rarest) for name in names])
    return replace(level, names=names, population=tuple((shares / shares.sum()).tolist()))
