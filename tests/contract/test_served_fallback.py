"""What evaluation takes for the fallback is what the gateway of a release of that moment would answer."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from services.gateway import opening
from sonder.core.storage import Folder
from sonder.evaluation import fallback
from sonder.evaluation.fallback import popular_items
from sonder.history.assemble import ITEM_STATS_SCHEMA
from sonder.history.item_table import build_vocabulary
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from tests.tiny_log import random_log, timelines_of

CUTOFF_US, NUM_ITEMS = 45 * DAY, 60
CATALOGUE = pa.table({"item_id": [f"i{item}" for item in range(NUM_ITEMS)]})


def vocabulary_at(end_us: int) -> Vocabulary:
    """Vocabulary of the log before `end_us`, by the step that makes that of a snapshot."""
    items = log().before(end_us).items
    rows = [
        {"item_id": f"i{item}", "num_events": int(num)}
        for item, num in enumerate(np.bincount(items, minlength=NUM_ITEMS))
        if num
    ]
    stats = pa.Table.from_pylist(rows, schema=ITEM_STATS_SCHEMA)
    return build_vocabulary([stats], [], CATALOGUE, {})


def log() -> Timelines:
    """Items are numbered as in CATALOGUE; fashions change at day 45."""
    early = random_log(3, num_users=40, num_items=NUM_ITEMS - 5, num_days=45)
    late = random_log(5, num_users=40, num_items=20, num_days=45)
    return timelines_of(
        {user: early[user] + [(day + 45, item, what) for day, item, what in late[user]] for user in early}
    )


def in_numbers_of(vocabulary: Vocabulary, timelines: Timelines) -> Timelines:
    return replace(timelines, items=vocabulary.item_index(pa.array([f"i{item}" for item in timelines.items])))


def answered_by_a_release_at(end_us: int, folder: Folder) -> list[str]:
    """Item ids of the gateway's popular items, best first."""
    vocabulary_at(end_us).save(folder)
    manifest = dict.fromkeys(("id", "created_at", "parent", "code_version", "snapshot", "config_digest", "metrics"))
    release = SimpleNamespace(
        manifest=SimpleNamespace(**manifest, as_of_us=end_us, created_at_us=end_us), items=folder, base_rates=dict
    )
    return [item.item_id for item in opening.describe(release, num_profiles=0).popular]


def test_the_fallback_at_the_cutoff_is_that_of_a_release_made_at_the_cutoff(tmp_path) -> None:
    whole = vocabulary_at(90 * DAY)
    assert whole.item_ids.to_pylist() != vocabulary_at(CUTOFF_US).item_ids.to_pylist()  # the future is another one
    history = in_numbers_of(whole, log()).before(CUTOFF_US)
    ids = whole.item_ids.take(pa.array(popular_items(history, whole).order_I)).to_pylist()
    assert ids == answered_by_a_release_at(CUTOFF_US, Folder.at(str(tmp_path)))


def test_both_keep_the_same_number_of_items() -> None:
    assert fallback.NUM_POPULAR == opening.NUM_POPULAR
