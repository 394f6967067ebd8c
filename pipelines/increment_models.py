"""The models of a release over the snapshot of the next day: carried, not fitted.

An encoder that is trained again moves everybody's vector, and with it every cluster, interest and score: "keep the
rest" and "retrain" exclude each other (docs/decisions/0007). So an increment takes over encoder, item numbers, interest
and lifecycle settings, affinities, clusters and score heads as they are. What is new to them is added where that moves
nothing that was there: an item gets a number after the known ones and the vector of its content, a category the share
of the rarest; a new action or surface is unknown to the encoder until the next training, and is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow.compute as pc

from pipelines.cluster import entries_of
from pipelines.segment import INTERESTS_FILE, THRESHOLDS_FILE
from sonder.core.storage import Folder
from sonder.core.telemetry import logger
from sonder.encoder.artefact import load_encoder, save_encoder, training_of
from sonder.encoder.growth import continued as continued_encoder
from sonder.events.contract import Col
from sonder.history.item_table import continued as continued_items
from sonder.history.vocabulary import Vocabulary
from sonder.interests.affinity_growth import carry_affinity
from sonder.releases.artefacts import Release
from sonder.segments.clusters import CLUSTERS_FILE


@dataclass(frozen=True)
class Carried:
    """What the users' part of an increment needs to know of the models."""

    named_as_of_us: int  # the moment whose catalogue names interests: that of the release the models were fitted for
    keeps_interests: bool  # whether names and categories of known items are what they were
    new_items: int
    unknown_actions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"unknown_actions": list(self.unknown_actions)}


def carry_models(parent: Release, snapshot_items: Folder, target: Folder) -> Carried:
    """Write the models of `parent` to `target`, over the items of the merged snapshot."""
    known, newer = Vocabulary.load(parent.items), Vocabulary.load(snapshot_items)
    vocabulary = continued_items(known, newer)
    vocabulary.save(target / "items")
    encoder = continued_encoder(load_encoder(parent.encoder), known, vocabulary)
    save_encoder(encoder, target / "encoder", metrics=training_of(parent.encoder))
    carry_affinity(parent.affinities, target / "affinities", vocabulary)
    _copy(parent.thresholds, target / "segments" / THRESHOLDS_FILE)
    _copy(parent.interests_config, target / "interests" / INTERESTS_FILE)
    for part in ("clusters", "scores"):
        for name in (parent.folder / part).files():
            if "bucket=" not in name:  # those say who is where, or what is promised to whom: said anew
                _copy(parent.folder / part / name, target / part / name)
    unknown = tuple(action for action in newer.actions if action not in known.actions)
    if unknown:
        logger.warning("increment: the models do not know %s; a build with --retrain learns it", ", ".join(unknown))
    carried = Carried(
        named_as_of_us=parent.named_as_of_us,
        keeps_interests=_is_named_alike(known, vocabulary, parent.named_as_of_us),
        new_items=vocabulary.num_items - known.num_items,
        unknown_actions=unknown,
    )
    if not carried.keeps_interests:
        logger.info("increment: known items are called otherwise than before, so everybody's interests are named anew")
    return carried


def add_cluster_counts(parent: Release, target: Folder, summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """clusters.json again, with who is in them now -> its content and metrics."""
    content: dict[str, Any] = (target / "clusters" / CLUSTERS_FILE).read_json()
    both, moved = (sum(int(summary[name]) for summary in summaries) for name in ("in_both", "moved"))
    ids = tuple(entry["id"] for entry in content["clusters"])
    content["clusters"] = entries_of(ids, content["clusters"], summaries)
    content["users_without"] = sum(int(summary["without"]) for summary in summaries)
    share_moved = moved / both if both else None
    content["matching"] |= {"parent": parent.id, "common_users": both, "share_moved": share_moved, "ari": None}
    (target / "clusters" / CLUSTERS_FILE).write_json(content)
    metrics = {"segments.cluster_share_moved": share_moved} if share_moved is not None else {}
    return content | {"metrics": metrics}


def _is_named_alike(known: Vocabulary, vocabulary: Vocabulary, as_of_us: int) -> bool:
    """Whether known items have their titles and categories, and names are drawn from the same part of the catalogue."""
    named = [Col.ITEM_ID, Col.TITLE, Col.CATEGORY]
    if not vocabulary.items.slice(0, known.num_items).select(named).equals(known.items.select(named)):
        return False
    seen = [
        pl.Series(items.column(Col.ITEM_ID).filter(pc.less(items.column(Col.FIRST_SEEN).cast("int64"), as_of_us)))
        for items in (known.items, vocabulary.items)
    ]
    return set(seen[0]) == set(seen[1])


def _copy(source: Folder, target: Folder) -> None:
    target.write_bytes(source.read_bytes())
