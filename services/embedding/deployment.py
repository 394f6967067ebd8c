"""The embedding deployment: a thin shell around `sonder.encoder.inference.embed_users`."""

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray

from services.observed import observed, start_observing
from services.warming import sample_batch
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import load_encoder
from sonder.encoder.inference import embed_users
from sonder.profiles.packing import unpack_timelines
from sonder.releases.artefacts import Release


class Embedding:
    """Holds the encoder of one release; computes off the event loop, so that health checks are answered."""

    def __init__(self, workspace: str, release: str) -> None:
        start_observing("embedding")
        opened = Release.open(Workspace.at(workspace), release)
        self._encoder = load_encoder(opened.encoder)
        self._embed(*sample_batch(opened.manifest.as_of_us), opened.manifest.as_of_us)

    @observed("embedding")
    async def embed(self, user_ids: list[str], timelines: list[bytes], as_of_us: int) -> NDArray[np.float32]:
        """Vectors [B, D] of B users; the zero vector where nothing is known."""
        return await asyncio.to_thread(self._embed, user_ids, timelines, as_of_us)

    def _embed(self, user_ids: list[str], timelines: list[bytes], as_of_us: int) -> NDArray[np.float32]:
        return embed_users(self._encoder, unpack_timelines(user_ids, timelines), as_of_us=as_of_us)
