"""Lifecycle states at 24 weekly moments, growth and cohorts of many users, beside a pandas groupby: one JSON line.

    OMP_NUM_THREADS=1 python -m benchmarks.growth --users 1000000 --peer-users 20000

Histories: log-normal numbers of events (mean about 25, at most 500) at times uniform in the last part of 24 weeks that
begins with the user's first event. Sonder: `LifecycleOverview.count`, from the times of the events to all counts, on
parts of 20,000 users as the buckets of a history would bring them; one process, one thread.
Peer: the obvious program with pandas, the states alone: for each moment filter the events, group by user for first
event, last event, active days and newest long gap, apply the rules. It is checked to give the same states, and timed
on the same work of `--peer-users` users, for which Sonder is timed too. Median, least and most of `--repeats` runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.segments.lifecycle import CASUAL, COLD, CORE, DORMANT, MARGINAL, NEW, RESURRECTED, STATES
from sonder.segments.moments import states_at, weekly_moments
from sonder.segments.overview import LifecycleOverview
from sonder.segments.thresholds import LifecycleThresholds

THRESHOLDS = LifecycleThresholds(new_days=7, dormant_days=30, core_active_share=0.3, casual_active_share=0.1)
NUM_MOMENTS, NUM_DAYS, SEED = 24, 24 * 7, 7
MEAN_EVENTS, SIGMA, MOST_EVENTS = 25, 1.0, 500
BUCKET_USERS = 20_000
Histories = tuple[NDArray[np.int64], NDArray[np.int64]]  # offsets, times_us


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--peer-users", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    moments = weekly_moments(0, NUM_DAYS * DAY)
    assert len(moments) == NUM_MOMENTS

    draw = np.random.default_rng(SEED)
    sizes = [BUCKET_USERS] * (arguments.users // BUCKET_USERS)
    buckets = [histories(draw, size) for size in sizes]
    small = histories(draw, arguments.peer_users)
    own = states_at(*small, moments, THRESHOLDS)
    frame = pd.DataFrame({"user": np.repeat(np.arange(arguments.peer_users), np.diff(small[0])), "time": small[1]})
    assert np.array_equal(by_pandas(frame, arguments.peer_users, moments), own), "the peer finds other states"
    assert len(np.unique(own)) == len(STATES)

    large = timed(lambda: overview(buckets), arguments.repeats)
    states = timed(lambda: states_at(*small, moments, THRESHOLDS), arguments.repeats)
    peer = timed(lambda: by_pandas(frame, arguments.peer_users, moments), arguments.repeats)
    num_users = sum(sizes)
    result = {
        "users": num_users,
        "events": sum(len(times) for _, times in buckets),
        "moments": NUM_MOMENTS,
        "seconds_all_counts": spread(large),
        "users_per_second_all_counts": round(num_users / float(np.median(large))),
        "peer_users": arguments.peer_users,
        "seconds_states": spread(states),
        "seconds_pandas": spread(peer),
        "users_per_second_states": round(arguments.peer_users / float(np.median(states))),
        "users_per_second_pandas": round(arguments.peer_users / float(np.median(peer))),
        "ratio": round(float(np.median(peer) / np.median(states)), 1),
        "repeats": arguments.repeats,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(json.dumps(result))


def histories(draw: np.random.Generator, num_users: int) -> Histories:
    """Event times of users who come at any time and leave at any later one."""
    mean = np.log(MEAN_EVENTS) - SIGMA**2 / 2
    lengths = np.clip(draw.lognormal(mean, SIGMA, num_users), 1, MOST_EVENTS).astype(np.int64)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    users = np.repeat(np.arange(num_users), lengths)
    start = draw.uniform(0, NUM_DAYS, num_users)
    stay = draw.uniform(0, 1, num_users) * (NUM_DAYS - start)
    times_us = ((start[users] + draw.uniform(0, 1, len(users)) * stay[users]) * DAY).astype(np.int64)
    return offsets, times_us[np.lexsort((times_us, users))]


def overview(buckets: list[Histories]) -> LifecycleOverview:
    """All counts of all buckets."""
    empty = LifecycleOverview.empty(0, NUM_DAYS * DAY, THRESHOLDS)
    found = empty
    for offsets, times_us in buckets:
        found = found + empty.count(offsets, times_us)
    return found


def by_pandas(frame: pd.DataFrame, num_users: int, moments: NDArray[np.int64]) -> NDArray[np.int8]:
    """The definitions of segments.lifecycle as one would first write them."""
    columns = []
    for moment in moments:
        known = frame[frame["time"] < moment].copy()
        known["day"] = (moment - 1 - known["time"]) // DAY
        known["gap"] = known.groupby("user")["time"].diff()
        users = known.groupby("user")["time"].agg(["min", "max"]).reindex(range(num_users))
        returned = known[known["gap"] >= THRESHOLDS.dormant_days * DAY].groupby("user")["time"].max()
        users["returned"] = returned.reindex(range(num_users))
        recent = known[known["day"] < THRESHOLDS.dormant_days]
        share = recent.groupby("user")["day"].nunique().reindex(range(num_users)).fillna(0) / THRESHOLDS.dormant_days
        new_after = moment - THRESHOLDS.new_days * DAY
        conditions = [
            users["min"].isna(),
            moment - users["max"] >= THRESHOLDS.dormant_days * DAY,
            users["min"] > new_after,
            users["returned"] > new_after,
            share >= THRESHOLDS.core_active_share,
            share >= THRESHOLDS.casual_active_share,
        ]
        columns.append(np.select(conditions, [COLD, DORMANT, NEW, RESURRECTED, CORE, CASUAL], MARGINAL))
    return np.stack(columns, axis=1).astype(np.int8)


def timed(work: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each run."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds


def spread(seconds: list[float]) -> dict[str, float]:
    return {
        "median": round(float(np.median(seconds)), 3),
        "least": round(min(seconds), 3),
        "most": round(max(seconds), 3),
    }


if __name__ == "__main__":
    main()
