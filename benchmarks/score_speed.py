"""Ten score heads as one forest beside ten boosters one by one: latency of a user, of 256, and the batch rate.

    OMP_NUM_THREADS=2 python -m benchmarks.score_speed [--calls 1000] [--batch 100000]

2,000 synthetic users with 200 events each over 180 days give the features (about 150 plain columns and 64 of an
embedding). Ten heads (6 binary, 2 Poisson, 2 Tweedie; 100 to 400 trees, depth 4 to 6) learn labels that depend on them;
the binary ones are calibrated by isotonic functions. Every figure is wall time in one process, without HTTP:

one by one       inplace_predict of each booster                      forest        Forest.margins
calibrated       the forest and every calibrator                      with features compute_features before it
with drivers     Explainer.drivers of all heads after it

Batch: rows drawn from the 2,000, all heads; raw is xgboost's own inplace_predict, and predict on a DMatrix built
beforehand. Contenders take turns, the ratio is of medians. Prints a Markdown table and ends in one JSON line; status 1
if margins differ in any bit, a calibrated user takes 1 ms or more, 256 take 10 ms or more (medians), or the calibrated
batch keeps less than 90 % of the faster raw rate.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import xgboost
from numpy.typing import NDArray

from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import ITEM_SCHEMA, Vocabulary
from sonder.scoring.calibration import Calibrator, fit_method
from sonder.scoring.drivers import Explainer
from sonder.scoring.features import compute_features
from sonder.scoring.forest import Forest
from sonder.scoring.specification import BoundSpec, bind, derive_spec

NUM_USERS, NUM_EVENTS, NUM_DAYS, NUM_ITEMS, DIM = 2_000, 200, 180, 500, 64
ACTIONS = ("view", "click", "save", "share", "cart", "buy", "return", "hide")
OBJECTIVES = ("binary:logistic",) * 6 + ("count:poisson",) * 2 + ("reg:tweedie",) * 2
ROUNDS, DEPTHS = (100, 200, 300, 400), (4, 5, 6)
CUTOFF_US = NUM_DAYS * DAY
LIMIT_ONE_MS, LIMIT_256_MS, LIMIT_RATE = 1.0, 10.0, 0.9


@dataclass(frozen=True)
class Scores:
    bound: BoundSpec
    boosters: list[xgboost.Booster]
    calibrators: list[Calibrator | None]
    forest: Forest
    explainers: list[Explainer]

    def one_by_one(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.column_stack([b.inplace_predict(x, predict_type="margin") for b in self.boosters])

    def on_matrix(self, matrix: xgboost.DMatrix) -> NDArray[np.float32]:
        return np.column_stack([b.predict(matrix, output_margin=True) for b in self.boosters])

    def calibrated(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        margins, values = self.forest.margins(x), np.empty((len(x), len(self.boosters)))
        for place, calibrator in enumerate(self.calibrators):
            column = margins[:, place]
            values[:, place] = calibrator(column) if calibrator else np.exp(column)
        return values

    def drivers(self, x: NDArray[np.float32]) -> list[pa.Array]:
        return [explainer.drivers(x) for explainer in self.explainers]


def make_histories() -> tuple[Timelines, Vocabulary, NDArray[np.float32]]:
    draw = np.random.default_rng(0)
    shape = (NUM_USERS, NUM_EVENTS)
    rhythm = np.sort(CUTOFF_US - (draw.gamma(0.8, 30 * DAY, shape) % CUTOFF_US).astype(np.int64) - 1, axis=1)
    timelines = Timelines(
        user_ids=pa.array([f"u{user:05d}" for user in range(NUM_USERS)]),
        offsets=np.arange(NUM_USERS + 1, dtype=np.int64) * NUM_EVENTS,
        items=draw.integers(0, NUM_ITEMS, shape).astype(np.int32).ravel(),
        actions=draw.integers(0, len(ACTIONS), shape).astype(np.int16).ravel(),
        surfaces=np.full(NUM_USERS * NUM_EVENTS, -1, np.int16),
        times_us=rhythm.ravel(),
        values=draw.gamma(2.0, 10.0, NUM_USERS * NUM_EVENTS),
    )
    columns = {field.name: pa.nulls(NUM_ITEMS, field.type) for field in ITEM_SCHEMA}
    columns["item_index"] = pa.array(range(NUM_ITEMS), pa.int32())
    columns["item_id"] = pa.array([f"i{item}" for item in range(NUM_ITEMS)])
    columns["category"] = pa.array([f"top{item % 16}/leaf{item % 80}" for item in range(NUM_ITEMS)])
    columns["num_events"] = pa.array([1] * NUM_ITEMS, pa.int64())
    vocabulary = Vocabulary(pa.table(columns, schema=ITEM_SCHEMA), ACTIONS, (1.0,) * len(ACTIONS), ())
    return timelines, vocabulary, draw.normal(0, 0.125, (NUM_USERS, DIM)).astype(np.float32)


def train_scores(bound: BoundSpec, features: NDArray[np.float32]) -> Scores:
    draw = np.random.default_rng(1)
    known = np.nan_to_num((features - np.nanmean(features, axis=0)) / (np.nanstd(features, axis=0) + 1e-6))
    boosters: list[xgboost.Booster] = []
    calibrators: list[Calibrator | None] = []
    for place, objective in enumerate(OBJECTIVES):
        weights = draw.normal(size=known.shape[1]) * (draw.random(known.shape[1]) < 0.2)
        signal = known @ weights / np.sqrt(np.count_nonzero(weights)) + draw.normal(0, 0.7, len(known))
        labels: NDArray[Any] = {
            "binary:logistic": signal > 0.5,
            "count:poisson": draw.poisson(np.exp(0.5 * signal)),
            "reg:tweedie": np.maximum(signal, 0) * 20,
        }[objective]
        parameters = {
            "objective": objective,
            "max_depth": DEPTHS[place % len(DEPTHS)],
            "eta": 0.03,
            "min_child_weight": 5,
            "subsample": 0.8,
            "colsample_bytree": 0.5,
            "seed": place,
        }
        booster = xgboost.train(parameters, xgboost.DMatrix(features, labels), ROUNDS[place % len(ROUNDS)])
        margins = booster.inplace_predict(features, predict_type="margin")
        boosters.append(booster)
        calibrators.append(fit_method("isotonic", margins, labels) if objective == "binary:logistic" else None)
    explainers = [Explainer.of(booster, bound.spec) for booster in boosters]
    return Scores(bound, boosters, calibrators, Forest.of(boosters), explainers)


def latency_ms(call: Callable[[], Any], num_calls: int) -> dict[str, float]:
    """Median, 90th and 99th percentile over the calls, after five that do not count."""
    for _ in range(5):
        call()
    taken = []
    for _ in range(num_calls):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    p50, p90, p99 = np.quantile(taken, [0.5, 0.9, 0.99]) * 1e3
    return {"n": num_calls, "p50": round(p50, 3), "p90": round(p90, 3), "p99": round(p99, 3)}


def measure_online(
    scores: Scores, timelines: Timelines, vectors: NDArray[np.float32], num_users: int, num_calls: int
) -> dict[str, dict[str, float]]:
    some, vectors = timelines.take(np.arange(num_users)), vectors[:num_users]

    def features() -> NDArray[np.float32]:
        return compute_features(scores.bound, some, cutoff_us=CUTOFF_US, embeddings_UD=vectors)

    x = features()
    two_threads = scores.forest.all_threads
    return {
        "one by one": latency_ms(lambda: scores.one_by_one(x), num_calls),
        "forest": latency_ms(lambda: scores.forest.margins(x), num_calls),
        "forest, all threads": latency_ms(lambda: two_threads.inplace_predict(x, predict_type="margin"), num_calls),
        "calibrated": latency_ms(lambda: scores.calibrated(x), num_calls),
        "features alone": latency_ms(features, num_calls),
        "with features": latency_ms(lambda: scores.calibrated(features()), num_calls),
        "with drivers": latency_ms(lambda: (scores.calibrated(x), scores.drivers(x)), max(num_calls // 50, 5)),
    }


def measure_batch(scores: Scores, features: NDArray[np.float32], num_users: int, num_turns: int) -> dict[str, Any]:
    x = features[np.random.default_rng(2).integers(0, len(features), num_users)]
    matrices = [xgboost.DMatrix(x) for _ in range(num_turns)]  # a booster remembers what it predicted for a matrix
    contenders: dict[str, Callable[[], Any]] = {
        "raw, inplace": lambda: scores.one_by_one(x),
        "raw, on a DMatrix": lambda: scores.on_matrix(matrices.pop()),
        "forest": lambda: scores.forest.margins(x),
        "calibrated": lambda: scores.calibrated(x),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(num_turns):
        for name, call in contenders.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    rates = {name: round(num_users / float(np.median(taken))) for name, taken in seconds.items()}
    spread = {name: [round(min(taken), 2), round(max(taken), 2)] for name, taken in seconds.items()}
    fastest = max(rates["raw, inplace"], rates["raw, on a DMatrix"])
    return {"users_per_s": rates, "seconds": spread, "n": num_turns, "kept": round(rates["calibrated"] / fastest, 3)}


def run(num_calls: int, batch: int) -> bool:
    timelines, vocabulary, vectors = make_histories()
    spec = derive_spec(timelines, vocabulary, first_us=0, cutoff_us=CUTOFF_US, embedding_dim=DIM)
    bound = bind(spec, vocabulary)
    features = compute_features(bound, timelines, cutoff_us=CUTOFF_US, embeddings_UD=vectors)
    scores = train_scores(bound, features)
    result: dict[str, Any] = {
        "columns": spec.num_features,
        "trees": sum(booster.num_boosted_rounds() for booster in scores.boosters),
        "is_bit_equal": scores.forest.margins(features).tobytes() == scores.one_by_one(features).tobytes(),
        "latency_ms": {
            str(num_users): measure_online(scores, timelines, vectors, num_users, calls)
            for num_users, calls in ((1, num_calls), (256, max(num_calls // 20, 10)))
        },
        "batch": measure_batch(scores, features, batch, 5),
    }
    print("| users | what | n | p50 ms | p90 ms | p99 ms |\n|---|---|---|---|---|---|")
    for num_users, rows in result["latency_ms"].items():
        for what, ms in rows.items():
            print(f"| {num_users} | {what} | {ms['n']} | {ms['p50']:.3f} | {ms['p90']:.3f} | {ms['p99']:.3f} |")
    print(json.dumps(result))
    one, many = (result["latency_ms"][users]["calibrated"]["p50"] for users in ("1", "256"))
    holds = one < LIMIT_ONE_MS and many < LIMIT_256_MS and result["batch"]["kept"] >= LIMIT_RATE
    return bool(holds and result["is_bit_equal"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1_000)
    parser.add_argument("--batch", type=int, default=100_000)
    arguments = parser.parse_args()
    sys.exit(0 if run(arguments.calls, arguments.batch) else 1)
