"""Turn the space of a retrain onto its parent's: one orthogonal matrix, fitted on the items that both have learnt.

Two trainings that agree on every score still lay their vectors in unrelated directions, and whoever has learnt
something from the old ones reads noise from the new. The rotation R that minimises |X R - Y| over the shared items is
U V' of the singular value decomposition of X'Y. It is applied to every vector that leaves the encoder, item or user
(`Encoder.aligned`), so cosines, rankings and metrics of the release stay what they were; the weights are not touched,
so a training goes on from them as before.

Shapes: S shared items, D width; rows are unit vectors.
Source: Schonemann 1966 (the orthogonal Procrustes problem); reflections are allowed, they keep dot products too.
Limits: fewer than ITEMS_PER_DIMENSION shared items a dimension fit any rotation and fix none: then, and where widths
differ, nothing is turned and the reason is said. Directions in which no shared item points stay where they are.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonder.encoder.artefact import Encoder
from sonder.encoder.growth import places_of
from sonder.history.vocabulary import Vocabulary

ITEMS_PER_DIMENSION = 2  # so that each half of them, for the cosine held out, still spans the space
_STAYS = 1e-7  # of the largest singular value: what float32 vectors cannot tell from nothing leaves the axes alone


@dataclass(frozen=True)
class Alignment:
    """How an encoder was turned onto its parent's space, or why it was not."""

    shared_items: int
    reason: str | None = None  # why nothing was turned; None: it was
    cosine_raw: float | None = None  # mean over the shared items, before
    cosine: float | None = None  # after
    cosine_held_out: float | None = None  # after, of each half by the rotation that the other half gives
    turned: float | None = None  # how far R is from the identity: 0 none, 1 as far as random ones, 2 all inverted

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def align(encoder: Encoder, items: Vocabulary, parent: Encoder, parent_items: Vocabulary) -> tuple[Encoder, Alignment]:
    """The encoder in its parent's space, and how well that went; the encoder as it is where that cannot be done."""
    own_I, of_parent_I = shared_items(encoder, items, parent, parent_items)
    num, dim = len(own_I), encoder.spec.dim
    if dim != parent.spec.dim:
        return encoder, Alignment(num, f"vectors have {dim} dimensions, the parent's {parent.spec.dim}")
    if num < ITEMS_PER_DIMENSION * dim:
        return encoder, Alignment(num, f"{num} items in common, at least {ITEMS_PER_DIMENSION * dim} are needed")
    raw_SD, onto_SD = encoder.raw_item_vectors[own_I], parent.item_vectors[of_parent_I]
    rotation_DD = procrustes(raw_SD, onto_SD)
    found = Alignment(
        shared_items=num,
        cosine_raw=mean_cosine(raw_SD, onto_SD),
        cosine=mean_cosine(raw_SD @ rotation_DD, onto_SD),
        cosine_held_out=_held_out(raw_SD, onto_SD),
        turned=float(1 - np.trace(rotation_DD) / dim),
    )
    return encoder.aligned(rotation_DD), found


def shared_items(
    encoder: Encoder, items: Vocabulary, parent: Encoder, parent_items: Vocabulary
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index of each item that both have learnt, in the one and in the other catalogue [S], [S]."""
    places_I = places_of(items.item_ids, parent_items.item_ids)
    both_I = (places_I >= 0) & encoder.trained_items & parent.trained_items[places_I]
    return np.flatnonzero(both_I), places_I[both_I]


def procrustes(vectors_SD: NDArray[Any], onto_SD: NDArray[Any]) -> NDArray[np.float64]:
    """The orthogonal matrix [D, D] that brings rows nearest to `onto_SD`; unique, whatever rank they have."""
    products_DD = vectors_SD.astype(np.float64).T @ onto_SD.astype(np.float64)
    stays = _STAYS * np.linalg.norm(products_DD, 2) or 1.0
    left_DD, _, right_DD = np.linalg.svd(products_DD + stays * np.eye(len(products_DD)))
    rotation_DD: NDArray[np.float64] = left_DD @ right_DD
    return rotation_DD


def mean_cosine(vectors_SD: NDArray[Any], onto_SD: NDArray[Any]) -> float:
    """Of unit rows, pair by pair."""
    return float(np.einsum("sd,sd->s", vectors_SD.astype(np.float64), onto_SD.astype(np.float64)).mean())


def _held_out(vectors_SD: NDArray[np.float32], onto_SD: NDArray[np.float32]) -> float:
    halves = [np.arange(first, len(vectors_SD), 2) for first in (0, 1)]
    cosines = [
        mean_cosine(vectors_SD[judged] @ procrustes(vectors_SD[fitted], onto_SD[fitted]), onto_SD[judged])
        for fitted, judged in (halves, halves[::-1])
    ]
    return float(np.mean(cosines))
