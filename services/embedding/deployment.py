"""The embedding deployment: a thin shell around `sonder.encoder.inference.embed_users`."""

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray

from services.held import Held
from services.observed import observed, start_observing
from services.warming import sample_batch
from sonder.encoder.artefact import load_encoder
from sonder.encoder.inference import embed_users
from sonder.profiles.packing import unpack_timelines
from sonder.releases.artefacts import Release


class Embedding:
    """Holds encoders; computes off the event loop, so that health checks are answered."""

    def __init__(self, workspace: str, release: str | None = None) -> None:
        start_observing("embedding")
        self._held = Held(workspace, release, _Encoding)

    @observed("embedding")
    async def embed(
        self, user_ids: list[str], timelines: list[bytes], as_of_us: int, *, release: str | None = None
    ) -> NDArray[np.float32]:
        """Vectors [B, D] of B users; the zero vector where nothing is known."""
        held = await self._held.of(release)
        return await asyncio.to_thread(held.embed, user_ids, timelines, as_of_us)


class _Encoding:
    """The encoder of one release."""

    def __init__(self, opened: Release) -> None:
        self._encoder = load_encoder(opened.encoder)
        self.embed(*sample_batch(opened.manifest.as_of_us), opened.manifest.as_of_us)

    def embed(self, user_ids: list[str], timelines: list[bytes], as_of_us: int) -> NDArray[np.float32]:
        return embed_users(self._encoder, unpack_timelines(user_ids, timelines), as_of_us=as_of_us)
