"""A log of any size in minutes: events of users of like taste over 90 days, in files of one day's order.

Not the synthetic world, which simulates every person and takes an hour for what this draws in two minutes: a user's
activity falls with its number as a power law (the least active have two thirds of the mean), items are drawn from the
Zipf law around a favourite category of the user, a tenth of the events are buys. Times ascend through the files.
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import yaml

from sonder.core.storage import Folder

NUM_DAYS, SEED, NUM_CATEGORIES = 90, 7, 40
EVENTS_PER_FILE = 2_000_000
START_US = 1_735_689_600_000_000  # 2025-01-01
ACTIONS = ("view", "click", "save", "buy", "hide")
SHARES = (0.55, 0.25, 0.06, 0.10, 0.04)


def write_log(folder: Folder, num_events: int, num_users: int) -> None:
    """Events, items and the configuration to build from; kept if it is there."""
    if (folder / "sonder.yaml").exists():
        return
    num_items = int(np.clip(40 * math.sqrt(num_users), 1_000, 100_000))
    num_files = -(-num_events // EVENTS_PER_FILE)
    for number in range(num_files):
        size = min(EVENTS_PER_FILE, num_events - number * EVENTS_PER_FILE)
        span = (number / num_files, (number + 1) / num_files)
        table = draw_events(np.random.default_rng([SEED, number]), size, num_users, num_items, span)
        (folder / "events" / f"part-{number:05d}.parquet").write_table(table)
    items = pa.array([f"i{item}" for item in range(num_items)])
    paths = [f"c{item % NUM_CATEGORIES // 8}/c{item % NUM_CATEGORIES}" for item in range(num_items)]
    (folder / "items.parquet").write_table(pa.table({"item_id": items, "category": pa.array(paths)}))
    (folder / "sonder.yaml").write_bytes(yaml.safe_dump(_configuration(folder)).encode())


def draw_events(
    draw: np.random.Generator, size: int, num_users: int, num_items: int, span: tuple[float, float]
) -> pa.Table:
    users = (num_users * draw.random(size) ** 1.5).astype(np.int64)
    favourite = users * 7 % NUM_CATEGORIES
    ranks = (num_items // NUM_CATEGORIES * draw.random(size) ** 3).astype(np.int64)
    category = np.where(draw.random(size) < 0.7, favourite, draw.integers(0, NUM_CATEGORIES, size))
    times = START_US + NUM_DAYS * 86_400_000_000 * np.sort(span[0] + (span[1] - span[0]) * draw.random(size))
    text = pa.string()
    return pa.table(
        {
            "user_id": _prefixed("u", users),
            "item_id": _prefixed("i", ranks * NUM_CATEGORIES + category),
            "action": pa.DictionaryArray.from_arrays(
                pa.array(draw.choice(len(ACTIONS), size, p=SHARES).astype(np.int8)), pa.array(ACTIONS, text)
            ).cast(text),
            "timestamp": pa.array(times.astype(np.int64)).cast(pa.timestamp("us", "UTC")),
        }
    )


def _prefixed(letter: str, numbers: np.ndarray) -> pa.Array:  # type: ignore[type-arg]
    import pyarrow.compute as pc

    return pc.binary_join_element_wise(letter, pa.array(numbers).cast(pa.string()), "")


def _configuration(folder: Folder) -> dict[str, object]:
    return {
        "workspace": str(folder / "workspace"),
        "events": {
            "path": [str(folder / "events")],
            "columns": {name: name for name in ("user_id", "item_id", "action", "timestamp")},
            "action_weights": {"view": 0.0, "click": 1.0, "save": 2.0, "buy": 3.0, "hide": -1.0},
        },
        "items": {"path": str(folder / "items.parquet")},
        "scores": [
            {"name": "buy_7d", "action": "buy", "within_days": 7},
            {"name": "churn_14d", "churn": True, "within_days": 14},
        ],
        "scoring": {"trials": 1, "backtest_cutoffs": 0},  # each trial more is the same training again
        "evaluation": {"test_days": 14},
    }
