"""Interests of many users and of long ones, beside scikit-learn's Ward for each user on the same work: one JSON line.

    python -m benchmarks.interests                      # 100,000 users of 200 events, two processes
    python -m benchmarks.interests --users 10000 --peer-users 500

The synthetic users want 200 items each of a catalogue of 10,000 in 200 groups (width 64): 6 groups of their own, one
event in five anything. The buckets of 1,000 users are dealt to `--workers` processes of one thread, as `sonder segment`
deals its buckets; wall time from the first bucket to the last table. The peer is what one writes first: for each user
`AgglomerativeClustering(linkage="ward", distance_threshold=...)` on the vectors of its distinct items and the medoid
by all distances, in one process, on the first `--peer-users` users; it makes clusters and medoids only, no weights,
names, states. The numbers of clusters of both are compared. Long users: 5,000 events, on as many distinct items as they
come to, of a catalogue of 10,000 and of 200,000 items; at max_events = 200 and 5,000; median and range of five.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering

from sonder.core.config import InterestsConfig
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import ITEM_SCHEMA, Vocabulary
from sonder.interests.derive import derive_config
from sonder.interests.naming import Naming
from sonder.interests.ward import cluster_interests

DAYS, WIDTH, GROUPS, GROUPS_OF_USER = 100, 64, 200, 6
AS_OF_US = DAYS * MICROSECONDS_PER_DAY
USERS_OF_BUCKET = 1_000
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peer-users", type=int, default=500)
    arguments = parser.parse_args()
    vectors, group_I = catalogue(10_000)
    vocabulary = vocabulary_of(group_I)
    config = derive_config(InterestsConfig(), vectors, vocabulary, as_of_us=AS_OF_US)
    buckets = [(seed, arguments.events) for seed in range(-(-arguments.users // USERS_OF_BUCKET))]
    with multiprocessing.get_context("spawn").Pool(arguments.workers, _prepare) as pool:
        pool.map(_interests_of, buckets[: arguments.workers], chunksize=1)  # the processes start before the clock does
        started = time.perf_counter()
        counts = pool.map(_interests_of, buckets, chunksize=1)
        seconds = time.perf_counter() - started
    print(
        json.dumps(
            {
                "benchmark": "interests",
                "users": len(buckets) * USERS_OF_BUCKET,
                "events_of_user": arguments.events,
                "interests": sum(counts),
                "workers": arguments.workers,
                "seconds": round(seconds, 1),
                "users_per_second_and_worker": round(len(buckets) * USERS_OF_BUCKET / seconds / arguments.workers),
                "beside_scikit_learn": beside_peer(vectors, group_I, vocabulary, config, arguments),
                "long_users": [long_user(num, most) for num in (10_000, 200_000) for most in (200, 5_000)],
            }
        )
    )


def beside_peer(
    vectors: NDArray[np.float32],
    group_I: NDArray[np.int64],
    vocabulary: Vocabulary,
    config: InterestsConfig,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Both on the same users in this process, ours before and after the peer."""
    users = histories(group_I, USERS_OF_BUCKET, arguments.events, seed=0).take(np.arange(arguments.peer_users))
    everything = InterestsConfig.model_validate(config.model_dump() | {"max_interests": 1_000})
    naming = Naming.of(vocabulary, as_of_us=AS_OF_US)

    def ours() -> float:
        started = time.perf_counter()
        cluster_interests(users, vectors, vocabulary, as_of_us=AS_OF_US, config=config, naming=naming)
        return time.perf_counter() - started

    seconds = [ours()]
    started = time.perf_counter()
    assert config.merge_distance is not None
    medoids = [
        peer_medoids(vectors, np.unique(users.items[start:end]), config.merge_distance)
        for start, end in zip(users.offsets, users.offsets[1:], strict=False)
    ]
    peer = time.perf_counter() - started
    seconds.append(ours())
    table = cluster_interests(users, vectors, vocabulary, as_of_us=AS_OF_US, config=everything, naming=naming)
    ours_by_user = Counter(table["user_id"].to_pylist())
    ids = users.user_ids.to_pylist()
    num_equal = sum(ours_by_user[user] == len(found) for user, found in zip(ids, medoids, strict=True))
    return {
        "users": users.num_users,
        "our_seconds": [round(value, 2) for value in seconds],
        "peer_seconds": round(peer, 2),
        "ratio": round(peer / statistics.mean(seconds), 1),
        "users_with_as_many_clusters": num_equal,
    }


def peer_medoids(vectors: NDArray[np.float32], items: NDArray[np.int32], distance: float) -> list[int]:
    x_nD = vectors[items].astype(np.float64)
    labels = AgglomerativeClustering(n_clusters=None, linkage="ward", distance_threshold=distance).fit_predict(x_nD)
    medoids = []
    for label in range(labels.max() + 1):
        members = x_nD[labels == label]
        cost = ((members[:, None] - members[None]) ** 2).sum(axis=(1, 2))
        medoids.append(int(items[labels == label][cost.argmin()]))
    return medoids


def long_user(num_items: int, max_events: int) -> dict[str, Any]:
    vectors, group_I = catalogue(num_items)
    vocabulary = vocabulary_of(group_I)
    user = histories(group_I, 1, 5_000, seed=3)
    config = derive_config(InterestsConfig(max_events=max_events), vectors, vocabulary, as_of_us=AS_OF_US)
    naming = Naming.of(vocabulary, as_of_us=AS_OF_US)
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        cluster_interests(user, vectors, vocabulary, as_of_us=AS_OF_US, config=config, naming=naming)
        seconds.append(time.perf_counter() - started)
    return {
        "items": num_items,
        "max_events": max_events,
        "distinct_items": len(np.unique(user.items[-max_events:])),
        "seconds": round(statistics.median(seconds), 3),
        "range": [round(min(seconds), 3), round(max(seconds), 3)],
    }


# -- the synthetic work -----------------------------------------------------------------------------------------------

_held: dict[str, Any] = {}


def _prepare() -> None:
    vectors, group_I = catalogue(10_000)
    vocabulary = vocabulary_of(group_I)
    _held["catalogue"] = vectors, group_I, vocabulary, Naming.of(vocabulary, as_of_us=AS_OF_US)
    _held["config"] = derive_config(InterestsConfig(), vectors, vocabulary, as_of_us=AS_OF_US)


def _interests_of(bucket: tuple[int, int]) -> int:
    seed, num_events = bucket
    vectors, group_I, vocabulary, naming = _held["catalogue"]
    users = histories(group_I, USERS_OF_BUCKET, num_events, seed=seed)
    return int(
        cluster_interests(users, vectors, vocabulary, as_of_us=AS_OF_US, config=_held["config"], naming=naming).num_rows
    )


def catalogue(num_items: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    draw = np.random.default_rng(1)
    group_I = draw.integers(0, GROUPS, num_items)
    vectors = draw.normal(size=(GROUPS, WIDTH))[group_I] + 0.5 * draw.normal(size=(num_items, WIDTH))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), group_I


def vocabulary_of(group_I: NDArray[np.int64]) -> Vocabulary:
    num = len(group_I)
    columns = {field.name: pa.nulls(num, field.type) for field in ITEM_SCHEMA}
    columns["item_index"] = pa.array(range(num), pa.int32())
    columns["item_id"] = pa.array([f"i{index}" for index in range(num)])
    columns["title"] = pa.array([f"thing{group} of kind{index % 97}" for index, group in enumerate(group_I)])
    columns["category"] = pa.array([f"c{group % 10}/d{group}" for group in group_I])
    columns["num_events"] = pa.array(np.ones(num, np.int64))
    columns["first_seen"] = columns["last_seen"] = pa.array(np.zeros(num, np.int64)).cast(pa.timestamp("us", tz="UTC"))
    return Vocabulary(pa.table(columns, schema=ITEM_SCHEMA), ("buy",), (1.0,), ())


def histories(group_I: NDArray[np.int64], num_users: int, num_events: int, *, seed: int) -> Timelines:
    draw = np.random.default_rng(100 + seed)
    order = np.argsort(group_I, kind="stable")
    bounds = np.searchsorted(group_I[order], np.arange(GROUPS + 1))
    num = num_users * num_events
    groups = draw.integers(0, GROUPS, (num_users, GROUPS_OF_USER))[
        np.repeat(np.arange(num_users), num_events), draw.integers(0, GROUPS_OF_USER, num)
    ]
    items = order[bounds[groups] + (draw.random(num) * (bounds[groups + 1] - bounds[groups])).astype(np.int64)]
    items = np.where(draw.random(num) < 0.2, draw.integers(0, len(group_I), num), items)
    return Timelines(
        user_ids=pa.array([f"u{seed}-{user}" for user in range(num_users)]),
        offsets=np.arange(num_users + 1) * num_events,
        items=items.astype(np.int32),
        actions=np.zeros(num, np.int16),
        surfaces=np.full(num, -1, np.int16),
        times_us=np.sort(draw.integers(0, AS_OF_US, (num_users, num_events)), axis=1).ravel(),
        values=np.full(num, np.nan),
    )


if __name__ == "__main__":
    main()
