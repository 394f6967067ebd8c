"""Histories and features -> scores with their drivers: the one function that the batch job and the online path call.

A user has a row for each task whose population it belongs to (tasks.eligible_users): a user silent for N days has no
chance to churn, and a user without events has no scores at all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.scoring.drivers import DRIVERS_TYPE, Explainer
from sonder.scoring.forest import Forest
from sonder.scoring.heads import ScoreHead, calibrate
from sonder.scoring.tasks import eligible_users

SCORE_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),  # of the task, or TASK/CATEGORY
        pa.field("value", pa.float32(), nullable=False),  # calibrated probability, or expected amount
        pa.field("drivers", DRIVERS_TYPE),  # heaviest first, in log-odds before calibration; null: not computed
    ]
)


@dataclass(frozen=True)
class Scorer:
    """Heads with what they read bound to a vocabulary; made once, used for every batch."""

    heads: tuple[ScoreHead, ...]
    vocabulary: Vocabulary
    forest: Forest | None  # the trees of all heads as one model, None without heads
    explainers: tuple[Explainer, ...]  # of each head

    @classmethod
    def of(cls, heads: Sequence[ScoreHead], vocabulary: Vocabulary, *, sensitive: Collection[str] = ()) -> Scorer:
        """`sensitive`: categories that no driver may name."""
        return cls(
            heads=tuple(heads),
            vocabulary=vocabulary,
            forest=Forest.of([head.booster for head in heads]) if heads else None,
            explainers=tuple(Explainer.of(head.booster, head.spec, sensitive=sensitive) for head in heads),
        )

    def score(
        self,
        timelines: Timelines,
        features_UF: NDArray[np.float32] | None,
        *,
        as_of_us: int,
        with_drivers: bool = True,
    ) -> pa.Table:
        """Scores from the events before `as_of` -> SCORE_SCHEMA, by user, then in the order of the configuration.

        The features (sonder.profiles.user_features) are of the same users at the same time; None without heads. Of a
        head with several outputs the leading one of each user has drivers. Exact drivers cost many times the scores.
        """
        if self.forest is None or features_UF is None:
            return SCORE_SCHEMA.empty_table()
        margins, parts = self.forest.margins(features_UF), []
        for place, head in enumerate(self.heads):
            asked = np.flatnonzero(eligible_users(head.task, timelines, self.vocabulary, cutoff_us=as_of_us))
            values_UK = calibrate(head.calibrators, margins[asked, self.forest.outputs_of(place)])
            told = (
                self.explainers[place].drivers(features_UF[asked], values_UK.argmax(axis=1)) if with_drivers else None
            )
            parts.append((np.repeat(asked, len(head.outputs)), _rows(head, timelines, asked, values_UK, told)))
        rows = np.concatenate([users for users, _ in parts])
        return pa.concat_tables([table for _, table in parts]).take(pa.array(np.argsort(rows, kind="stable")))


def _rows(
    head: ScoreHead,
    timelines: Timelines,
    asked_U: NDArray[np.int64],
    values_UK: NDArray[np.float64],
    drivers_U: pa.Array | None,
) -> pa.Table:
    num_users, num_outputs = values_UK.shape
    columns = [
        timelines.user_ids.take(pa.array(np.repeat(asked_U, num_outputs))),
        pa.array(np.tile(np.array(head.outputs, dtype=object), num_users), pa.string()),
        pa.array(values_UK.ravel(), pa.float32()),
        _beside_the_leading(values_UK, drivers_U),
    ]
    return pa.Table.from_arrays(columns, schema=SCORE_SCHEMA)


def _beside_the_leading(values_UK: NDArray[np.float64], drivers_U: pa.Array | None) -> pa.Array:
    """Drivers of each user beside the highest of the values, none beside the others -> [U * K]."""
    num_outputs = values_UK.shape[1]
    if drivers_U is None:
        return pa.nulls(values_UK.size, DRIVERS_TYPE)
    if num_outputs == 1:
        return drivers_U
    is_leading = np.arange(num_outputs) == values_UK.argmax(axis=1)[:, None]
    lengths = np.where(is_leading, np.diff(drivers_U.offsets.to_numpy())[:, None], 0).ravel()
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, drivers_U.values, type=DRIVERS_TYPE)
