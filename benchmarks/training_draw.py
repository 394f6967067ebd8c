"""The encoder of a log too large for its trainers: what a draw of the users costs, and what another draw each night.

    make bench-training-draw
    python -m benchmarks.training_draw retail ../shared/data/online_retail.parquet --seeds 7 8 9
    python -m benchmarks.training_draw snapshot path/to/workspace     # the one snapshot that `sonder prepare` left

Temporal, the last 30 days are the test, full ranking, k = 10; every user is tested, whoever was drawn.
`cold`    trained from nothing on each share of the users, drawn as `encoder.max_training_events` draws them
`nights`  trained from nothing on the last share as it was some days before the test, then a warm start a day, on
          `all` users, on `other` users each night (what builds do), or on the `same` ones again

Prints a Markdown table of medians over the seeds and ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.encoder import read
from benchmarks.warm_start import TEST_DAYS, Trained, measured, train
from sonder.encoder.holdout import draw_users
from sonder.history.cutoffs import end_of_log_us, test_cutoff_us
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary

METRICS = ("ndcg_at_10", "hr_at_10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", choices=["retail", "snapshot"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7])
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.5, 0.25, 0.125])
    parser.add_argument("--nights", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_num_threads(asked.threads)
    timelines, vocabulary = read(asked.log, asked.path)
    end_us = end_of_log_us(timelines)
    cutoff_us = test_cutoff_us(end_us, TEST_DAYS)
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in asked.seeds:
        for name, trained in variants(timelines, vocabulary, cutoff_us, seed, asked.shares, asked.nights):
            found = measured(trained, timelines, cutoff_us, end_us)
            covered = float(trained.encoder.candidates.mean())
            rows.setdefault(name, []).append({**found, "seconds": trained.seconds, "items": covered})
            logging.warning("seed %d, %s: %s", seed, name, rows[name][-1])
    columns = (*METRICS, "items", "seconds")
    medians = {
        name: {of: statistics.median(one[of] for one in seeds) for of in columns} for name, seeds in rows.items()
    }
    whole = next(iter(medians.values()))
    print(
        f"{asked.log}: {timelines.num_users:,} users, {timelines.num_events:,} events, {vocabulary.num_items:,} items\n"
    )
    print("| | NDCG@10 | of all users' | HR@10 | of all users' | items with a vector | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name, median in medians.items():
        metrics = " | ".join(f"{median[of]:.4f} | {median[of] / whole[of]:.3f}" for of in METRICS)
        print(f"| {name} | {metrics} | {median['items']:.1%} | {median['seconds']:.0f} |")
    print(json.dumps({"benchmark": f"training-draw/{asked.log}", "seeds": asked.seeds, "rows": rows}))


def variants(
    timelines: Timelines, vocabulary: Vocabulary, cutoff_us: int, seed: int, shares: list[float], nights: int
) -> Iterator[tuple[str, Trained]]:
    """Each way of training, by name; the first one reads everybody."""

    def drawn(share: float, draw: str) -> Timelines:
        return draw_users(timelines, share=share, draw=f"{seed}-{draw}")

    for share in shares:
        yield f"cold, {share:.3g} of the users", train(drawn(share, "cold"), vocabulary, cutoff_us, seed)
    share = shares[-1]
    parent = train(drawn(share, "0"), vocabulary, cutoff_us - nights * MICROSECONDS_PER_DAY, seed)
    for kind in ("all", "other", "same"):
        trained = parent
        for night in range(1, nights + 1):
            read_by = timelines if kind == "all" else drawn(share, str(night) if kind == "other" else "0")
            until_us = cutoff_us - (nights - night) * MICROSECONDS_PER_DAY
            newest = train(read_by, vocabulary, until_us, seed, trained)
            # the parent's epochs rule those of every descendant
            trained = Trained(newest.encoder, vocabulary, parent.epochs, newest.seconds)
        yield f"{nights} nights on {kind} users, from {share:.3g}", trained


if __name__ == "__main__":
    main()
