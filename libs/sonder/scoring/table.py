"""Histories and vectors -> scores with their drivers: the one function that the batch job and the online path call.

A user has a row for each task whose population it belongs to (tasks.eligible_users): a user silent for N days has no
chance to churn, and a user without events has no scores at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.scoring.drivers import DRIVERS_TYPE, drivers
from sonder.scoring.features import compute_features
from sonder.scoring.heads import ScoreHead, predict, shared_spec
from sonder.scoring.specification import BoundSpec, bind
from sonder.scoring.tasks import eligible_users

SCORE_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),  # of the task
        pa.field("value", pa.float32(), nullable=False),  # calibrated probability
        pa.field("drivers", DRIVERS_TYPE, nullable=False),  # heaviest first, in log-odds before calibration
    ]
)


@dataclass(frozen=True)
class Scorer:
    """Heads with what they read bound to a vocabulary; made once, used for every batch."""

    heads: tuple[ScoreHead, ...]
    bound: BoundSpec | None  # None without heads

    @classmethod
    def of(cls, heads: Sequence[ScoreHead], vocabulary: Vocabulary) -> Scorer:
        return cls(tuple(heads), bind(shared_spec(heads), vocabulary) if heads else None)

    @property
    def needs_vectors(self) -> bool:
        """Whether any head reads the embedding."""
        return self.bound is not None and self.bound.spec.embedding_dim > 0

    def score(self, timelines: Timelines, vectors_UD: NDArray[np.float32] | None, *, as_of_us: int) -> pa.Table:
        """Scores from the events before `as_of` -> SCORE_SCHEMA, by user, then task in the order of the configuration.

        The vectors are those of the same users at the same time; they may be None where no head needs them.
        """
        if self.bound is None:
            return SCORE_SCHEMA.empty_table()
        if self.needs_vectors and vectors_UD is None:
            raise ValueError("a head reads the embedding and no vectors were given")
        embeddings = vectors_UD if self.needs_vectors else None
        features = compute_features(self.bound, timelines, cutoff_us=as_of_us, embeddings_UD=embeddings)
        parts = [self._score_head(head, timelines, features, as_of_us) for head in self.heads]
        rows = np.concatenate([users for users, _ in parts])
        return pa.concat_tables([table for _, table in parts]).take(pa.array(np.argsort(rows, kind="stable")))

    def _score_head(
        self, head: ScoreHead, timelines: Timelines, features_UF: NDArray[np.float32], as_of_us: int
    ) -> tuple[NDArray[np.int64], pa.Table]:
        users = np.flatnonzero(eligible_users(head.task, timelines, cutoff_us=as_of_us))
        features = features_UF[users]
        columns = [
            timelines.user_ids.take(pa.array(users)),
            pa.array(np.full(len(users), head.task.name, dtype=object), pa.string()),
            pa.array(predict([head], features)[:, 0], pa.float32()),
            drivers(head, features),
        ]
        return users, pa.Table.from_arrays(columns, schema=SCORE_SCHEMA)
