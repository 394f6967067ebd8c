"""The dials of the encoder, derived from the data where the configuration leaves them open, and recorded as they were.

Sources: dropout .5 on the small academic logs and .1-.2 on large ones, as the published recipes do; 2,048 shared
negatives and a rate of 2e-3 from the prototype that docs/experiments.md reports.
Limits: derived once, before the first step; a resumed run keeps the specification that it started with.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sonder.core.config import EncoderConfig, EvaluationConfig
from sonder.core.errors import ArtefactMismatch
from sonder.encoder.content import NOTHING_KNOWN, ContentShape, item_content
from sonder.encoder.time_classes import NUM_AGES, age_classes
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary

LONGEST = 200  # events; past it attention costs more than it brings on every public log
SPARSE_PAST = 16  # times the rows that a step may touch: from there on it pays to leave the others alone
RARELY = 0.05  # of the wanted events: where fewer are repeats, lists leave out what the user had
OLDEST = 0.05  # of the readable events: users older than all but these are read as if they were that old
HAVE_VALUES = 0.01  # of the readable events: below, values are not read
Objective = Literal["next_action", "all_action", "dense_all_action"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class EncoderSpec:
    """Everything that a forward pass or a training step needs to know besides the weights."""

    num_items: int
    num_actions: int
    num_surfaces: int
    action_weights: tuple[float, ...]
    reads_time: bool  # False for logs whose order is their only time
    dim: int
    num_blocks: int
    num_heads: int
    max_length: int
    dropout: float
    objective: Objective
    window_us: int  # of the objectives that have one, and how far ahead popularity shall tell; 0: it does not change
    num_negatives: int
    batch_tokens: int  # positions per step, over all workers
    learning_rate: float
    weight_decay: float
    average_decay: float  # of the running average of the weights, per step
    excludes_seen: bool  # whether validation ranks only items that are new to the user
    recalls: bool  # whether states start from the vectors of what the user wanted
    seed: int
    content: ContentShape = NOTHING_KNOWN
    oldest_age: int = NUM_AGES - 1  # class of age past which nothing was learnt; older users are read as this old
    reads_value: bool = False  # whether an event's value is part of its token
    has_unwanted: bool = False  # whether events of the log say what is not wanted: the loss counts them
    corrects_log_q: bool = True  # False only to show what it costs
    is_sparse: bool = False  # whether a step touches the rows of the item table that it needs, and no others
    precision: Precision = "float32"  # of the blocks and of the loss's products; weights are float32 always

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> EncoderSpec:
        try:
            parts = {
                "action_weights": tuple(content["action_weights"]),
                "content": ContentShape(**content["content"]),
            }
            return cls(**{**content, **parts})
        except (TypeError, KeyError) as error:
            raise ArtefactMismatch(
                f"An encoder specification that this version cannot read: {error}",
                expected=f"the keys {', '.join(cls.__dataclass_fields__)}",
                do="Train the encoder again with this version.",
            ) from error


@dataclass(frozen=True)
class DataSummary:
    """What the derivation needs to know of the training events. Summaries of disjoint users add up."""

    lengths: NDArray[np.int64]  # [LONGEST + 1] users by number of readable events, longer ones in the last
    ages: NDArray[np.int64]  # [NUM_AGES] readable events by class of the user's age
    targets: NDArray[np.int64]  # [I] wanted events by item
    repeats: int  # wanted events of an item that the user had already
    readable: int  # events with a wish in them
    unwanted: int  # of these, the ones that say what is not wanted
    valued: int  # of these, the ones with a value

    @property
    def num_wanted(self) -> int:
        return int(self.targets.sum())

    def to_vector(self) -> NDArray[np.int64]:
        """Flat form that workers add up: lengths, ages, targets, and the four numbers."""
        numbers = [self.repeats, self.readable, self.unwanted, self.valued]
        return np.concatenate([self.lengths, self.ages, self.targets, numbers])

    @classmethod
    def from_vector(cls, vector: NDArray[np.int64]) -> DataSummary:
        repeats, readable, unwanted, valued = (int(number) for number in vector[-4:])
        lengths, ages, targets = np.split(vector[:-4], [LONGEST + 1, LONGEST + 1 + NUM_AGES])
        return cls(lengths, ages, targets, repeats, readable, unwanted, valued)


def summarise(timelines: Timelines, vocabulary: Vocabulary) -> DataSummary:
    """Count what the training may see."""
    weights_N = vocabulary.weight_of(timelines.actions)
    readable = timelines.keep((weights_N != 0) & (timelines.items >= 0))
    lengths = np.minimum(readable.lengths, LONGEST)
    wanted = timelines.keep((weights_N > 0) & (timelines.items >= 0))
    pairs = np.sort(wanted.user_rows * max(vocabulary.num_items, 1) + wanted.items)
    return DataSummary(
        lengths=np.bincount(lengths[lengths > 0], minlength=LONGEST + 1),
        ages=np.bincount(age_classes(readable), minlength=NUM_AGES),
        targets=np.bincount(wanted.items, minlength=vocabulary.num_items),
        repeats=int((np.diff(pairs) == 0).sum()),
        readable=readable.num_events,
        unwanted=readable.num_events - wanted.num_events,
        valued=int(np.isfinite(readable.values).sum()),
    )


def derive(
    config: EncoderConfig,
    evaluation: EvaluationConfig,
    vocabulary: Vocabulary,
    summary: DataSummary,
    *,
    reads_time: bool,
    seed: int,
    content: ContentShape | None = None,
) -> EncoderSpec:
    """Fill every open dial from the data. `content` None: all that the vocabulary has."""
    by_protocol: Objective = "dense_all_action" if evaluation.protocol == "temporal" else "next_action"
    objective = by_protocol if config.objective == "auto" else config.objective
    has_window = (
        evaluation.protocol == "temporal" or objective != "next_action"
    )  # popularity of the moment needs it too
    per_item = summary.num_wanted / max(int((summary.targets > 0).sum()), 1)
    batch_tokens = _power_of_two(summary.num_wanted / 100, lowest=256, highest=8192)
    num_negatives = config.num_negatives or 2048
    content = item_content(vocabulary).shape if content is None else content
    num_rows = content.num_id_rows or vocabulary.num_items
    steps_per_epoch = max(summary.num_wanted / batch_tokens, 1.0)
    is_repeating = summary.repeats >= RARELY * max(summary.num_wanted, 1)
    return EncoderSpec(
        num_items=vocabulary.num_items,
        num_actions=len(vocabulary.actions),
        num_surfaces=len(vocabulary.surfaces),
        action_weights=vocabulary.action_weights,
        reads_time=reads_time,
        dim=config.dim,
        num_blocks=config.num_blocks,
        num_heads=config.num_heads,
        max_length=config.max_length or _covering_length(summary.lengths, share=0.95),
        dropout=_dropout(per_item) if config.dropout is None else config.dropout,
        objective=objective,
        window_us=evaluation.test_days * MICROSECONDS_PER_DAY if has_window else 0,
        num_negatives=num_negatives,
        batch_tokens=batch_tokens,
        learning_rate=config.learning_rate,
        weight_decay=0.01,
        average_decay=float(np.clip(1 - 1 / steps_per_epoch, 0.9, 0.999)),
        excludes_seen=not is_repeating,
        recalls=is_repeating,
        seed=seed,
        content=content,
        oldest_age=_oldest(summary.ages, share=OLDEST),
        reads_value=summary.valued >= max(HAVE_VALUES * summary.readable, 1),
        has_unwanted=summary.unwanted > 0,
        is_sparse=num_rows > SPARSE_PAST * (2 * batch_tokens + num_negatives) * content.rows_of_an_id,
        precision=config.precision,
    )


def _dropout(events_per_item: float) -> float:
    """.5 up to 20 wanted events an item, .25 at 200, .1 from 800 on."""
    return round(float(np.clip(0.5 - 0.25 * math.log10(max(events_per_item, 1) / 20), 0.1, 0.5)), 2)


def _covering_length(lengths: NDArray[np.int64], *, share: float) -> int:
    """Events that cover this share of the users, at least 8, at most LONGEST."""
    covered = np.cumsum(lengths) >= share * lengths.sum()
    return int(np.clip(np.argmax(covered), 8, LONGEST))


def _oldest(ages: NDArray[np.int64], *, share: float) -> int:
    """The last class that at least this share of the events has or is past: rows past it are hardly learnt.

    Tomorrow's users are older than any of the training, and a row that nothing was learnt for is noise.
    """
    at_least = np.cumsum(ages[::-1])[::-1]
    return int(np.flatnonzero(at_least >= share * max(int(ages.sum()), 1)).max(initial=0))


def _power_of_two(value: float, *, lowest: int, highest: int) -> int:
    return int(np.clip(2 ** round(math.log2(max(value, 1))), lowest, highest))
