"""Fifty audiences over a million profiles: Sonder's rules beside pandas, on the same files, with the same counts.

    OMP_NUM_THREADS=1 POLARS_MAX_THREADS=2 python -m benchmarks.audiences --out .bench/audiences [--users 1000000]

Writes synthetic profiles (4 interests, 3 scores) and histories (20 events) once, in buckets of 125,000 users, as a
release holds them. Both sides then read the columns that the rules need and decide every user for every rule, one
bucket after the other in one process. Sonder also writes the stays of each audience, which pandas does not.
pandas reads and explodes each list once a bucket and computes each distinct field once, as Sonder does.
Prints a Markdown table and one JSON line; ends with status 1 if the two disagree or Sonder needs more than 20 s.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from pipelines.audience import RefreshBucket
from sonder.core.storage import Folder
from sonder.history.snapshot import HISTORY_SCHEMA, bucket_file
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.profiles.record import PROFILE_SCHEMA, profile_file

AS_OF_US = 20_000 * DAY
USERS_PER_BUCKET, NUM_INTERESTS, NUM_EVENTS = 125_000, 4, 20
ACTIONS = ("view", "save", "buy", "hide")
STATES = ("new", "core", "casual", "marginal", "dormant")
CATEGORIES = [f"top{top}/mid{mid}/leaf{leaf}" for top in range(10) for mid in range(5) for leaf in range(4)]
SCORES = ("buy_30d", "save_30d", "churn_60d")
LIMIT_S = 20.0
# An audience is (state, path, weight above, score, above, action, days, at least).
AUDIENCES = [
    (
        STATES[number % 5],
        f"top{number % 10}" + (f"/mid{number % 5}" if number % 2 else ""),
        (0.1, 0.3)[number % 2],
        SCORES[number % 3],
        (0.2, 0.5, 0.8)[number % 3],
        ACTIONS[number % 4],
        (7, 28, 90)[number % 3],
        1 + number % 3,
    )
    for number in range(50)
]


def rule_of(audience: tuple[str, str, float, str, float, str, int, int]) -> str:
    state, path, weight, score, above, action, days, least = audience
    return (
        f"(lifecycle = '{state}' or interest('{path}') > {weight}) and score.{score} > {above}"
        f" and (count({action}, {days}d) >= {least} or recency_days < 2)"
    )


def write_world(profiles: Folder, history: Folder, num_users: int) -> None:
    """The files of a release, as far as rules read them."""
    buckets = range(-(-num_users // USERS_PER_BUCKET))
    for bucket in buckets:
        num = min(USERS_PER_BUCKET, num_users - bucket * USERS_PER_BUCKET)
        draw = np.random.default_rng(bucket)
        ids = pa.array([f"u{bucket * USERS_PER_BUCKET + user:08d}" for user in range(num)])
        times = np.sort(AS_OF_US - draw.integers(1, 120 * DAY, (num, NUM_EVENTS)), axis=1)
        profile_file(profiles, bucket).write_table(_profiles(draw, ids, times))
        bucket_file(history, bucket).write_table(_history(draw, ids, times))
    (history / "manifest.json").write_json({"buckets": [{"bucket": bucket} for bucket in buckets]})


def _profiles(draw: np.random.Generator, ids: pa.Array, times: np.ndarray) -> pa.Table:
    num = len(ids)
    weights = draw.dirichlet(np.ones(NUM_INTERESTS), num).astype(np.float32).ravel()
    flat = {
        "rank": pa.array(np.tile(np.arange(1, NUM_INTERESTS + 1, dtype=np.int16), num)),
        "medoid_item_id": pa.array(np.char.add("i", draw.integers(0, 50_000, num * NUM_INTERESTS).astype(str))),
        "category": pa.array(np.array(CATEGORIES)[draw.integers(0, len(CATEGORIES), num * NUM_INTERESTS)]),
        "weight": pa.array(weights),
    }
    scores = {
        "name": pa.array(np.tile(np.array(SCORES), num)),
        "value": pa.array(draw.random(num * len(SCORES), dtype=np.float32)),
    }
    columns = {
        "user_id": ids,
        "as_of": _times(np.full(num, AS_OF_US)),
        "is_cold": pa.array(np.zeros(num, dtype=bool)),
        "num_events": pa.array(np.full(num, NUM_EVENTS, dtype=np.int32)),
        "first_seen": _times(times[:, 0]),
        "last_seen": _times(times[:, -1]),
        "segments": _struct("segments", {"lifecycle": pa.array(np.array(STATES)[draw.integers(0, 5, num)])}, num),
        "interests": _lists("interests", flat, num, NUM_INTERESTS),
        "scores": _lists("scores", scores, num, len(SCORES)),
    }
    return pa.table([columns.get(f.name, pa.nulls(num, f.type)) for f in PROFILE_SCHEMA], schema=PROFILE_SCHEMA)


def _history(draw: np.random.Generator, ids: pa.Array, times: np.ndarray) -> pa.Table:
    num = times.size
    flat = {
        "item_id": pa.nulls(num, pa.large_string()),
        "action": pa.array(np.array(ACTIONS)[draw.choice(4, num, p=[0.6, 0.2, 0.15, 0.05])], pa.large_string()),
        "timestamp": _times(times.ravel()),
        "surface": pa.nulls(num, pa.large_string()),
        "value": pa.array(draw.random(num)),
        "request_id": pa.nulls(num, pa.large_string()),
        "event_key": pa.array(np.arange(num, dtype=np.uint64)),
    }
    offsets = pa.array(np.arange(0, num + 1, NUM_EVENTS))
    lists = [pa.LargeListArray.from_arrays(offsets, column) for column in flat.values()]
    lengths = pa.array(np.full(len(ids), NUM_EVENTS, dtype=np.int32))
    return pa.Table.from_arrays([ids.cast(pa.large_string()), *lists, lengths], schema=HISTORY_SCHEMA)


def _times(times_us: np.ndarray) -> pa.Array:
    return pa.array(times_us.astype(np.int64)).cast(pa.timestamp("us", "UTC"))


def _struct(name: str, columns: dict[str, pa.Array], num: int, *, entry: pa.DataType | None = None) -> pa.StructArray:
    fields = list(entry or PROFILE_SCHEMA.field(name).type)
    return pa.StructArray.from_arrays([columns.get(f.name, pa.nulls(num, f.type)) for f in fields], fields=fields)


def _lists(name: str, columns: dict[str, pa.Array], num: int, width: int) -> pa.ListArray:
    entry = PROFILE_SCHEMA.field(name).type.value_type
    offsets = pa.array(np.arange(0, num * width + 1, width, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, _struct(name, columns, num * width, entry=entry))


def with_sonder(profiles: Folder, history: Folder, target: Folder, num_buckets: int) -> tuple[float, list[int]]:
    """Seconds, and members of each audience."""
    target.remove()
    started = time.perf_counter()
    evaluations = [
        {
            "rule": rule_of(audience),
            "version": 1,
            "as_of_us": AS_OF_US,
            "previous": None,
            "target": f"{target}/{number}",
        }
        for number, audience in enumerate(AUDIENCES)
    ]
    task = RefreshBucket(profiles.uri, history.uri, list(ACTIONS), evaluations)
    summaries = [task(bucket) for bucket in range(num_buckets)]
    seconds = time.perf_counter() - started
    return seconds, [sum(s[f"{target}/{number}"]["members"] for s in summaries) for number in range(len(AUDIENCES))]


def with_pandas(profiles: Folder, history: Folder, num_buckets: int) -> tuple[float, list[int]]:
    """The same without the writing."""
    started, sizes = time.perf_counter(), np.zeros(len(AUDIENCES), dtype=np.int64)
    for bucket in range(num_buckets):
        columns = ["user_id", "last_seen", "segments", "interests", "scores"]
        users = pd.read_parquet(str(profile_file(profiles, bucket)), columns=columns).set_index("user_id")
        events = pd.read_parquet(str(bucket_file(history, bucket)), columns=["user_id", "action", "timestamp"])
        events = events.set_index("user_id").explode(["action", "timestamp"])
        events["timestamp"] = pd.to_datetime(events["timestamp"], utc=True)
        lists = {name: pd.DataFrame(users[name].explode()) for name in ("interests", "scores")}
        lists = {name: pd.DataFrame(e[name].tolist(), index=e.index) for name, e in lists.items()}
        sizes += _pandas_sizes(users, lists["interests"], lists["scores"], events)
    return time.perf_counter() - started, sizes.tolist()


def _pandas_sizes(
    users: pd.DataFrame, interests: pd.DataFrame, scores: pd.DataFrame, events: pd.DataFrame
) -> np.ndarray:
    as_of = pd.Timestamp(AS_OF_US, unit="us", tz="UTC")
    lifecycle = pd.Series([segment["lifecycle"] for segment in users["segments"]], index=users.index)
    is_recent = (as_of - users["last_seen"]) / pd.Timedelta(days=1) < 2
    score = {name: scores.loc[scores["name"] == name, "value"].reindex(users.index) for name in SCORES}
    interest, count = {}, {}
    for _, path, _, _, _, action, days, _ in AUDIENCES:
        if path not in interest:
            below = (interests["category"] == path) | interests["category"].str.startswith(path + "/")
            summed = interests.loc[below, "weight"].astype("float64").groupby(level=0).sum()
            interest[path] = summed.reindex(users.index, fill_value=0.0).round(6)
        if (action, days) not in count:
            kept = (events["action"] == action) & (events["timestamp"] >= as_of - pd.Timedelta(days=days))
            count[action, days] = events.loc[kept].groupby(level=0).size().reindex(users.index, fill_value=0)
    return np.array(
        [
            (
                ((lifecycle == state) | (interest[path] > weight))
                & (score[name].astype("float64").round(6) > above)
                & ((count[action, days] >= least) | is_recent)
            ).sum()
            for state, path, weight, name, above, action, days, least in AUDIENCES
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3, help="of Sonder; pandas runs once")
    arguments = parser.parse_args()
    root = Folder.at(str(arguments.out.resolve() / str(arguments.users)))
    profiles, history, num_buckets = root / "profiles", root / "history", -(-arguments.users // USERS_PER_BUCKET)
    if not history.is_published():
        write_world(profiles, history, arguments.users)
    runs = [with_sonder(profiles, history, root / "stays", num_buckets) for _ in range(arguments.runs)]
    seconds = sorted(run[0] for run in runs)
    pandas_s, pandas_sizes = with_pandas(profiles, history, num_buckets)
    agree = all(sizes == pandas_sizes for _, sizes in runs)
    median = seconds[len(seconds) // 2]
    print(f"{arguments.users:,} users, {len(AUDIENCES)} audiences of {np.median(pandas_sizes):,.0f} members (median)\n")
    print("| | seconds | n |\n|---|---|---|")
    print(f"| Sonder, stays written | {median:.1f} (from {seconds[0]:.1f} to {seconds[-1]:.1f}) | {len(runs)} |")
    print(f"| pandas, nothing written | {pandas_s:.1f} | 1 |")
    print(f"\nratio {pandas_s / median:.1f}; audiences of the same sizes: {agree}")
    found = {
        "users": arguments.users,
        "audiences": len(AUDIENCES),
        "seconds": median,
        "range": [seconds[0], seconds[-1]],
    }
    print(json.dumps({**found, "pandas_seconds": pandas_s, "ratio": pandas_s / median, "same_sizes": agree}))
    return 0 if agree and median <= LIMIT_S else 1


if __name__ == "__main__":
    raise SystemExit(main())
