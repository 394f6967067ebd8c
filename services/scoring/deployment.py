"""The scoring deployment: a thin shell around `sonder.scoring.table.Scorer`."""

from __future__ import annotations

import asyncio

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from services.warming import sample_batch
from sonder.core.workspace import Workspace
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.packing import unpack_timelines
from sonder.releases.artefacts import Release
from sonder.scoring.heads import load_heads
from sonder.scoring.table import Scorer


class Scoring:
    """Holds the score heads of one release."""

    def __init__(self, workspace: str, release: str) -> None:
        opened = Release.open(Workspace.at(workspace), release)
        self._scorer = Scorer.of(load_heads(opened.scores), Vocabulary.load(opened.items))
        user_ids, timelines = sample_batch(opened.manifest.as_of_us)
        bound = self._scorer.bound
        vectors_BD = np.zeros((len(user_ids), bound.spec.embedding_dim if bound else 0), np.float32)
        self._score(user_ids, timelines, vectors_BD, opened.manifest.as_of_us)

    async def score(
        self, user_ids: list[str], timelines: list[bytes], vectors_BD: NDArray[np.float32], as_of_us: int
    ) -> pa.Table:
        """Scores with drivers (SCORE_SCHEMA) of B users."""
        return await asyncio.to_thread(self._score, user_ids, timelines, vectors_BD, as_of_us)

    def _score(
        self, user_ids: list[str], timelines: list[bytes], vectors_BD: NDArray[np.float32], as_of_us: int
    ) -> pa.Table:
        return self._scorer.score(unpack_timelines(user_ids, timelines), vectors_BD, as_of_us=as_of_us)
