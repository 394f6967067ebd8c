"""What one number of users needs: the arithmetic of docs/capacity.md, linear in users and events."""

from __future__ import annotations

import math
from typing import NamedTuple

from benchmarks.capacity_constants import Values

GIB, DAY_S, MONTH_H = 1 << 30, 86_400, 730.0


class Plan(NamedTuple):
    """What one size needs."""

    users: float
    events: float
    stages_core_h: dict[str, float]  # of one full build
    train_h: float
    work_pods: int
    request_pods: int  # for the requests alone
    vector_pods: int  # for two retrieval replicas, which hold every vector
    redis_gib: float
    object_store_gib: float
    reads_s: float
    events_s: float
    monthly: dict[str, float]

    @property
    def serving_pods(self) -> int:
        return max(2, self.request_pods, self.vector_pods)

    @property
    def build_core_h(self) -> float:
        return sum(self.stages_core_h.values())


def trained_events(users: float, v: Values) -> float:
    """Events that the encoder's training reads: of a larger log users are drawn."""
    return min(users * v["events_per_user"], v["train_max_events"])


def plan(users: float, v: Values) -> Plan:
    events = users * v["events_per_user"]
    steps = trained_events(users, v) / v["train_positions"] * v["warm_epochs"]
    step_s = (v["train_fixed_ms"] + v["train_step_ms"] / v["train_workers"] + v["train_exchange_ms"]) / 1e3
    train_h = steps * step_s / 3600
    stages_us = {
        "prepare": events * v["prepare_us_event"],
        "segment": events * v["segment_us_event"],
        "cluster": users * v["cluster_us_user"],
        "growth": users * v["growth_us_user"],
        "score, everybody": users * v["score_us_user"],
        "profiles": users * v["profiles_us_user"],
        "evaluation and report": users * v["judge_us_user"],
        "load the store": users * v["load_us_user"],
    }
    stages = {name: cost / 1e6 / 3600 for name, cost in stages_us.items()}
    stages["score, training"] = v["tasks"] * (v["score_rows_core_s"] + v["score_trees_core_s"]) / 3600
    spread_core_h = sum(stages.values())
    stages["train"] = train_h * v["train_workers"]
    work_pods = math.ceil(spread_core_h / max(v["night_h"] - train_h, 1.0) / v["use"] / v["work_vcpu"])
    reads_s = users * v["reads_per_user_day"] / DAY_S * v["peak"]
    events_s = events / v["history_days"] / DAY_S * v["peak"]
    redis_gib = 2 * users / 1e6 * v["redis_mib_million"] / 1024  # a new release is loaded beside the served one
    vectors_gib = 2 * users / 1e6 * v["index_gib_million"]  # both are held while they change over
    serving_cores = reads_s / v["reads_core"] / v["use"] + 2 * events_s / v["fresh_s"] / v["use"]
    request_pods = math.ceil(serving_cores / v["serving_vcpu"])
    vector_pods = 2 * math.ceil(vectors_gib / v["serving_gib"])
    serving_pods = max(2, request_pods, vector_pods)
    object_store = (v["kept_releases"] * users * v["release_bytes_user"] + 2 * events * v["history_bytes_event"]) / GIB
    trainers = train_h * v["train_workers"] / v["training_vcpu"]  # pod hours
    work = spread_core_h / v["use"] / v["work_vcpu"]
    night = {
        "vcpu": work * v["work_vcpu"] + trainers * v["training_vcpu"],
        "gib": work * v["work_gib"] + trainers * v["training_gib"],
    }
    monthly = {
        "builds": 30 * (night["vcpu"] * v["vcpu_hour"] + night["gib"] * v["gib_hour"]),
        "serving": MONTH_H * (serving_pods * (v["serving_vcpu"] * v["vcpu_hour"] + v["serving_gib"] * v["gib_hour"])
                              + 2 * (v["head_vcpu"] * v["vcpu_hour"] + v["head_gib"] * v["gib_hour"])),
        "Redis' memory": MONTH_H * redis_gib * v["gib_hour"],
        "object store": object_store * v["gib_month"],
    }  # fmt: skip
    return Plan(
        users,
        events,
        stages,
        train_h,
        work_pods,
        request_pods,
        vector_pods,
        redis_gib,
        object_store,
        reads_s,
        events_s,
        monthly,
    )
