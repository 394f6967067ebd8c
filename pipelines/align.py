"""Bring a freshly trained encoder into the space of the release that it follows: `sonder.encoder.alignment` with files.

The parent is whose weights the training went on from, else what is served. One that cannot be read, of another width
or with another catalogue, is no reason to fail: the release then keeps its own space and says why.
"""

from __future__ import annotations

import logging
from typing import Any

from sonder.core.errors import ArtefactMismatch, NotFound
from sonder.core.workspace import Workspace
from sonder.encoder.alignment import Alignment, align
from sonder.encoder.artefact import Encoder, load_encoder
from sonder.history.vocabulary import Vocabulary
from sonder.releases.artefacts import Release

logger = logging.getLogger("sonder")


def align_onto(
    encoder: Encoder, vocabulary: Vocabulary, workspace: Workspace, parent: str | None
) -> tuple[Encoder, dict[str, Any] | None]:
    """The encoder in the space of a release, and how that went; None without a release to follow."""
    if parent is None:
        return encoder, None
    try:
        release = Release.open(workspace, parent)
        encoder, found = align(encoder, vocabulary, load_encoder(release.encoder), Vocabulary.load(release.items))
    except (ArtefactMismatch, NotFound) as error:
        found = Alignment(0, f"the encoder of {parent} cannot be read: {error}")
    if found.reason is None:
        logger.info(
            "train: aligned onto %s: mean cosine of %d shared items %.3f, before %.3f",
            parent, found.shared_items, found.cosine, found.cosine_raw,
        )  # fmt: skip
    else:
        logger.warning("train: not aligned onto %s: %s", parent, found.reason)
    return encoder, {"parent": parent, **found.to_dict()}
