"""The scoring deployment: a thin shell around `sonder.profiles.user_features` and `sonder.scoring.table.Scorer`.

A share of the users has what was read of them logged (sonder.profiles.feature_log), for `sonder features verify`.
"""

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray

from services.held import Held
from services.observed import observed, start_observing
from services.travelling import packed
from services.warming import sample_batch
from sonder.encoder.artefact import load_encoder
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.feature_log import FeatureLog, logged_rows
from sonder.profiles.packing import unpack_timelines
from sonder.profiles.user_features import UserFeatures
from sonder.releases.artefacts import Release
from sonder.scoring.heads import load_heads
from sonder.scoring.table import Scorer


class Scoring:
    """Holds score heads and all that their features need; computes off the event loop."""

    def __init__(self, workspace: str, release: str | None = None, log_features: float = 0.0) -> None:
        start_observing("scoring")
        self._held = Held(workspace, release, lambda opened: _Heads(opened, log_features))

    @observed("scoring")
    async def score(
        self,
        user_ids: list[str],
        timelines: list[bytes],
        vectors_BD: NDArray[np.float32],
        as_of_us: int,
        with_drivers: bool,
        interests_BI: NDArray[np.float64] | None = None,
        *,
        release: str | None = None,
    ) -> bytes:
        """Scores (SCORE_SCHEMA) of B users, packed. Exact drivers cost a hundred times as much, so they are asked for.

        `interests_BI`: the users' interests in numbers as segmentation found them; None: they are found here again.
        """
        held = await self._held.of(release)
        asked = (user_ids, timelines, vectors_BD, as_of_us, with_drivers, interests_BI)
        return await asyncio.to_thread(held.score, *asked)

    def close(self) -> None:
        """Write what is logged and waits."""
        for held in self._held.all():
            held.close()


class _Heads:
    """The score heads of one release."""

    def __init__(self, opened: Release, log_features: float) -> None:
        sensitive = opened.manifest.config.get("scoring", {}).get("sensitive_categories", ())
        vocabulary, encoder = Vocabulary.load(opened.items), load_encoder(opened.encoder)
        self._release, self._share, self._log = opened.id, 0.0, None
        self._scorer = Scorer.of(load_heads(opened.scores), vocabulary, sensitive=sensitive)
        self._features = UserFeatures.of_heads(self._scorer.heads, vocabulary, encoder.item_vectors)
        user_ids, timelines = sample_batch(opened.manifest.as_of_us)
        vectors_BD = np.zeros((len(user_ids), encoder.spec.dim), np.float32)
        self.score(user_ids, timelines, vectors_BD, opened.manifest.as_of_us, True)
        if log_features:
            self._share, self._log = log_features, FeatureLog(opened.workspace.feature_log(opened.id))

    def score(
        self,
        user_ids: list[str],
        timelines: list[bytes],
        vectors_BD: NDArray[np.float32],
        as_of_us: int,
        with_drivers: bool,
        interests_BI: NDArray[np.float64] | None = None,
    ) -> bytes:
        histories, features = unpack_timelines(user_ids, timelines), None
        if self._features is not None:
            features = self._features.compute(histories, vectors_BD, as_of_us=as_of_us, interests_UI=interests_BI)
            if self._log is not None:
                share = self._share
                self._log.offer(logged_rows(histories, features, as_of_us=as_of_us, release=self._release, share=share))
        return packed(self._scorer.score(histories, features, as_of_us=as_of_us, with_drivers=with_drivers))

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
