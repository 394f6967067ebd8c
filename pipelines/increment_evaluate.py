"""A forward test of carried models: what they made of the days that came after them.

Users of whole buckets, SAMPLE_USERS at least, who acted since the parent release: from what they had done by then, with
the popularity of then, what they wanted after it. The protocol is `temporal` with the parent's `as_of` as cutoff, so
the window is as long as the increment and its numbers have names of their own, `forward.*`: one day is not held against
the thirty of a full build.
Limits: the baselines have the settings that an evaluation without a validation split gives them. Scores promise what
comes true in days that have not passed yet; their numbers are those of the release that fitted them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.segment import SAMPLE_USERS
from sonder.core.storage import Folder, read_manifest
from sonder.encoder.artefact import load_encoder, load_popularity
from sonder.encoder.inference import embed_users
from sonder.evaluation.evaluate import evaluate_retrieval
from sonder.history.bucket_sample import buckets_reaching
from sonder.history.cutoffs import temporal
from sonder.history.snapshot import read_timelines
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.releases.artefacts import Release


def evaluate_forward(
    history: Folder, target: Folder, parent: Release, *, since_us: int, as_of_us: int
) -> dict[str, dict[str, Any]]:
    """`metrics` (flat, forward.*), and `about`: cutoff, days and users, or why nothing was measured."""
    about: dict[str, Any] = {"protocol": "temporal", "cutoff_us": since_us, "until_us": as_of_us}
    if read_manifest(history)["is_ordinal"]:
        return {"metrics": {}, "about": about | {"reason": "the log has an order and no dates"}}
    if as_of_us <= since_us:
        return {"metrics": {}, "about": about | {"reason": "nothing happened after the parent release"}}
    vocabulary = Vocabulary.load(target / "items")
    timelines = _acted(read_timelines(history, vocabulary, buckets_reaching(history, SAMPLE_USERS)), since_us)
    split = temporal(timelines, vocabulary, cutoff_us=since_us, end_us=as_of_us)
    encoder, popularity_I = load_encoder(target / "encoder"), np.zeros(vocabulary.num_items)
    known_I = load_popularity(parent.items)
    popularity_I[: len(known_I)] = known_I
    found = evaluate_retrieval(
        split,
        None,
        vocabulary,
        embed_users(encoder, split.history, as_of_us=since_us),
        encoder.item_vectors,
        protocol="temporal",
        item_bias_I=encoder.with_popularity(popularity_I).item_bias,
        popularity_I=popularity_I,
    )
    days = (as_of_us - since_us) / MICROSECONDS_PER_DAY
    scored = int(found.health.get("users_scored", 0))
    metrics = {f"forward.{name.removeprefix('retrieval.')}": value for name, value in found.metrics.items()}
    if metrics:
        metrics |= {"forward.days": days, "forward.users_scored": scored}
    return {"metrics": metrics, "about": about | {"days": days, "users_scored": scored, "reason": found.reason}}


def _acted(timelines: Timelines, since_us: int) -> Timelines:
    """Users with an event from `since` on."""
    has_events = timelines.lengths > 0
    newest = np.full(timelines.num_users, -1, dtype=np.int64)
    newest[has_events] = timelines.times_us[timelines.offsets[1:][has_events] - 1]
    return timelines.take(np.flatnonzero(newest >= since_us))
