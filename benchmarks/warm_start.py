"""A new day of events: training on from yesterday's weights beside training from nothing. One JSON line.

    python -m benchmarks.warm_start retail ../shared/data/online_retail.parquet --seeds 7 8 9
    python -m benchmarks.warm_start snapshot path/to/workspace     # the one snapshot that `sonder prepare` left

Temporal, the last 30 days are the test, all dials derived. The parent is trained on what lies before the day that ends
where the test begins, and, where the log is read as a file, on the catalogue as it was then. Then both get that day:
`warm` goes on from the parent's weights for a tenth of its epochs, `full` starts from nothing and stops by validation.
Both are tested on the same users and items; `stale` is the parent, untouched, over the new catalogue.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks.encoder import read, read_log, to_timelines
from sonder.core.config import EncoderConfig, EvaluationConfig
from sonder.encoder.artefact import Encoder
from sonder.encoder.content import item_content
from sonder.encoder.growth import carry_over, grown, warm_epochs
from sonder.encoder.holdout import count_eligible, hold_out
from sonder.encoder.inference import embed_users
from sonder.encoder.specification import derive, summarise
from sonder.encoder.training import Limits, TrainingRun
from sonder.evaluation.evaluate import evaluate_retrieval
from sonder.history.cutoffs import end_of_log_us, temporal, test_cutoff_us
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary

TEST_DAYS = 30


@dataclass(frozen=True)
class Trained:
    encoder: Encoder
    vocabulary: Vocabulary
    epochs: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", choices=["retail", "snapshot"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7])
    parser.add_argument("--days", type=int, default=1, help="of new events")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    timelines, vocabulary = read(arguments.log, arguments.path)
    end_us = end_of_log_us(timelines)
    cutoff_us = test_cutoff_us(end_us, TEST_DAYS)
    before_us = cutoff_us - arguments.days * MICROSECONDS_PER_DAY
    if arguments.log == "retail":
        past = read_log(arguments.log, arguments.path).filter(pl.col("time") < before_us)
        old_timelines, old_vocabulary = to_timelines(past)
    else:
        old_timelines, old_vocabulary = timelines.before(before_us), vocabulary
    seeds = []
    for seed in arguments.seeds:
        parent = train(old_timelines, old_vocabulary, before_us, seed)
        warm = train(timelines, vocabulary, cutoff_us, seed, parent)
        full = train(timelines, vocabulary, cutoff_us, seed)
        stale = Trained(*grown(parent.encoder, old_vocabulary, vocabulary), 0, 0.0)
        result: dict[str, Any] = {"seed": seed, "parent_epochs": parent.epochs}
        for name, trained in (("stale", stale), ("warm", warm), ("full", full)):
            result[name] = {
                "epochs": trained.epochs,
                "seconds": round(trained.seconds, 1),
                **measured(trained, timelines, cutoff_us, end_us),
            }
        seeds.append(result)
        logging.info("%s", result)
    counts = {"old": old_vocabulary.num_items, "new": vocabulary.num_items}
    print(
        json.dumps(
            {
                "benchmark": f"warm-start/{arguments.log}",
                "protocol": f"temporal, {TEST_DAYS} days of test, full ranking, k = 10",
                "days_of_new_events": arguments.days,
                "items": counts,
                "ndcg_ratio": mean_of(seeds, lambda s: s["warm"]["ndcg_at_10"] / s["full"]["ndcg_at_10"]),
                "hr_ratio": mean_of(seeds, lambda s: s["warm"]["hr_at_10"] / s["full"]["hr_at_10"]),
                "stale_ndcg_ratio": mean_of(seeds, lambda s: s["stale"]["ndcg_at_10"] / s["full"]["ndcg_at_10"]),
                "time_ratio": mean_of(seeds, lambda s: s["warm"]["seconds"] / s["full"]["seconds"]),
                "seeds": seeds,
            }
        )
    )


def train(
    timelines: Timelines,
    vocabulary: Vocabulary,
    cutoff_us: int,
    seed: int,
    parent: Trained | None = None,
    config: EncoderConfig | None = None,
) -> Trained:
    """Train on what lies before the cutoff; with a parent for a tenth of its epochs, from its weights."""
    config, window_us = config or EncoderConfig(), TEST_DAYS * MICROSECONDS_PER_DAY
    num_eligible = count_eligible(timelines, vocabulary, cutoff_us=cutoff_us, window_us=window_us)
    holdout = hold_out(timelines, vocabulary, cutoff_us=cutoff_us, window_us=window_us, num_eligible=num_eligible)
    summary, content = summarise(holdout.visible, vocabulary), item_content(vocabulary)
    evaluation = EvaluationConfig(protocol="temporal", test_days=TEST_DAYS)
    spec = derive(config, evaluation, vocabulary, summary, reads_time=True, seed=seed, content=content.shape)
    started = time.perf_counter()
    start = None if parent is None else carry_over(parent.encoder, parent.vocabulary, spec, vocabulary, content)
    run = TrainingRun(spec, [holdout], summary.targets, content=content, start=start)
    max_epochs = config.max_epochs if parent is None else warm_epochs(parent.epochs)
    run.fit(Limits(max_epochs, config.patience))
    seconds = time.perf_counter() - started
    return Trained(run.state().encoder(content), vocabulary, run.progress.epoch, seconds)


def measured(trained: Trained, timelines: Timelines, cutoff_us: int, end_us: int) -> dict[str, float]:
    """Metrics of the encoder alone on the test window."""
    test = temporal(timelines, trained.vocabulary, cutoff_us=cutoff_us, end_us=end_us)
    vectors = embed_users(trained.encoder, test.history, as_of_us=int(np.iinfo(np.int64).max))
    evaluation = evaluate_retrieval(
        test,
        None,
        trained.vocabulary,
        vectors,
        trained.encoder.item_vectors,
        protocol="temporal",
        item_bias_I=trained.encoder.item_bias,
        popularity_I=trained.encoder.popularity,
    )
    prefix = "retrieval.encoder."
    return {
        name.removeprefix(prefix): round(value, 4)
        for name, value in evaluation.metrics.items()
        if name.startswith((prefix + "hr", prefix + "ndcg"))
    }


def mean_of(seeds: list[dict[str, Any]], of: Any) -> float:
    return round(statistics.mean(of(seed) for seed in seeds), 3)


if __name__ == "__main__":
    main()
