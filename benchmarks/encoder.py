"""Train the encoder on a log and rank all items for every user: one JSON line, the mean over the seeds. Without Ray.

    python benchmarks/encoder.py beauty ../shared/data/beauty.txt --set dim=64 --threads 2
    python benchmarks/encoder.py ml-1m path/to/ml-1m.inter
    python benchmarks/encoder.py sequences path/to/sports.txt   # any file of lines `user item item ...`
    python benchmarks/encoder.py retail ../shared/data/online_retail.parquet
    python benchmarks/encoder.py snapshot path/to/workspace   # temporal, the one snapshot that `sonder prepare` left

beauty, ml-1m   leave-one-out: the last item of each user is the test, the one before validates; ML-1M in the stable
                order (user, time, place in the file), all 3,706 items
retail          temporal: the last 30 days are the test; purchases and cancellations of known customers
`--set` overrides configuration dials, `--spec` derived ones. `--strict` keeps the second-last item of every user out
of the training, not only of those that validate.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch
import yaml

from sonder.core.config import EncoderConfig, EvaluationConfig, Protocol
from sonder.core.workspace import Workspace
from sonder.encoder.content import ItemContent, item_content
from sonder.encoder.holdout import Holdout, count_eligible, hold_out
from sonder.encoder.inference import embed_users
from sonder.encoder.peers import Peers
from sonder.encoder.specification import derive, summarise
from sonder.encoder.training import Limits, TrainingRun
from sonder.encoder.trend import log_shares
from sonder.encoder.validation import Exam, examine
from sonder.evaluation.evaluate import evaluate_retrieval
from sonder.history.cutoffs import Split, end_of_log_us, leave_one_out, temporal, test_cutoff_us
from sonder.history.snapshot import read_timelines
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import ITEM_SCHEMA, Vocabulary

TEST_DAYS = 30


def read_log(kind: str, path: Path) -> pl.DataFrame:
    """Events in order of (user, time, place in the file): user, item, action, time in microseconds."""
    if kind in ("beauty", "sequences"):
        lines = [line.split() for line in path.read_text().splitlines()]
        events = pl.DataFrame({"user": [line[0] for line in lines], "item": [line[1:] for line in lines]})
        events = events.explode("item", empty_as_null=False)
        return events.with_columns(time=pl.int_range(pl.len()).cast(pl.Int64) * 1_000_000, action=pl.lit("review"))
    if kind == "ml-1m":
        events = pl.read_csv(path, separator="\t", new_columns=["user", "item", "rating", "time"], infer_schema=False)
        events = events.with_columns(
            time=pl.col("time").cast(pl.Float64).cast(pl.Int64) * 1_000_000, action=pl.lit("rate")
        )
    else:
        events = pl.read_parquet(path).filter(pl.col("CustomerID").is_not_null())
        is_cancelled = pl.col("InvoiceNo").cast(pl.String).str.starts_with("C")
        events = events.select(
            user=pl.col("CustomerID").cast(pl.String),
            item=pl.col("StockCode").cast(pl.String),
            time=pl.col("InvoiceDate").cast(pl.Datetime("us")).cast(pl.Int64),
            action=pl.when(is_cancelled).then(pl.lit("cancel")).otherwise(pl.lit("buy")),
            value=(pl.col("Quantity") * pl.col("UnitPrice")).cast(pl.Float64),
            title=pl.col("Description").cast(pl.String),
        )
    return events.sort("user", "time", maintain_order=True)


def to_timelines(events: pl.DataFrame) -> tuple[Timelines, Vocabulary]:
    """Of `read_log`'s columns, and perhaps value and title (the first one of an item holds)."""
    titles = pl.col("title").drop_nulls().first() if "title" in events.columns else pl.lit(None, pl.String)
    counts = events.group_by("item").agg(len=pl.len(), title=titles).sort("len", "item", descending=[True, False])
    items = pa.table({"item_id": counts["item"].to_arrow(), "num_events": counts["len"].cast(pl.Int64).to_arrow()})
    columns = {name: pa.nulls(len(counts), ITEM_SCHEMA.field(name).type) for name in ITEM_SCHEMA.names}
    columns |= {"item_id": items["item_id"].cast(pa.string()), "num_events": items["num_events"]}
    columns["title"] = counts["title"].to_arrow().cast(pa.string())
    columns["item_index"] = pa.array(np.arange(len(counts), dtype=np.int32))
    actions = sorted(events["action"].unique())
    weights = tuple(-1.0 if action == "cancel" else 1.0 for action in actions)
    vocabulary = Vocabulary(pa.table(columns), tuple(actions), weights, ())
    users = events.group_by("user", maintain_order=True).len()
    return Timelines(
        user_ids=users["user"].to_arrow().cast(pa.string()),
        offsets=np.concatenate(([0], np.cumsum(users["len"].to_numpy(), dtype=np.int64))),
        items=vocabulary.item_index(events["item"].to_arrow()),
        actions=vocabulary.action_index(events["action"].to_arrow()),
        surfaces=np.full(len(events), -1, dtype=np.int16),
        times_us=events["time"].to_numpy(),
        values=events["value"].to_numpy() if "value" in events.columns else np.full(len(events), np.nan),
    ), vocabulary


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    timelines, vocabulary = read(arguments.log, arguments.path)
    seeds: list[dict[str, Any]] = []
    baselines: dict[str, float] = {}
    for seed in arguments.seeds:
        run, test, took = train(arguments, timelines, vocabulary, seed)
        seeds.append({"seed": seed, **test_metrics(run, test), **took})
        logging.info("%s", seeds[-1])
        if arguments.baselines and not baselines:
            baselines = baseline_metrics(run, test, timelines, vocabulary, arguments)
    prefix = "retrieval.encoder." + ("strict_" if arguments.strict else "")
    names = [name for name in seeds[0] if "_at_10" in name and not name.startswith("validation")]
    result = {
        "log": arguments.log,
        "protocol": protocol_of(arguments.log) + ", full ranking; _unseen: seen items filtered out",
        **{prefix + name: round(statistics.mean(seed[name] for seed in seeds), 4) for name in names},
        **baselines,
        "seeds": seeds,
        "threads": arguments.threads,
        "set": arguments.set,
        "spec": arguments.spec,
        "without": arguments.without,
    }
    print(json.dumps(result))


def protocol_of(log: str) -> Protocol:
    return "temporal" if log in ("retail", "snapshot") else "leave_one_out"


def read(log: str, path: Path) -> tuple[Timelines, Vocabulary]:
    if log != "snapshot":
        return to_timelines(read_log(log, path))
    workspace = Workspace.at(str(path))
    (snapshot,) = (child.name for child in (workspace.root / "history").children())
    vocabulary = Vocabulary.load(workspace.items(snapshot))
    return read_timelines(workspace.history(snapshot), vocabulary), vocabulary


def train(
    arguments: argparse.Namespace, timelines: Timelines, vocabulary: Vocabulary, seed: int
) -> tuple[TrainingRun, Split, dict[str, Any]]:
    """Train with one seed -> the run with its best weights, the test, and how it went."""
    protocol = protocol_of(arguments.log)
    evaluation = EvaluationConfig(protocol=protocol, test_days=TEST_DAYS)
    config = EncoderConfig.model_validate(_pairs(arguments.set))
    end_us = end_of_log_us(timelines)
    cutoff_us = test_cutoff_us(end_us, TEST_DAYS) if protocol == "temporal" else None
    if cutoff_us is None:
        test = leave_one_out(timelines, part="test")
    else:
        test = temporal(timelines, vocabulary, cutoff_us=cutoff_us, end_us=end_us)
    window_us = TEST_DAYS * MICROSECONDS_PER_DAY
    num_eligible = count_eligible(timelines, vocabulary, cutoff_us=cutoff_us, window_us=window_us)
    holdout = hold_out(timelines, vocabulary, cutoff_us=cutoff_us, window_us=window_us, num_eligible=num_eligible)
    if arguments.strict:
        holdout = Holdout(leave_one_out(timelines, part="validation").history, holdout.validation)
    summary = summarise(holdout.visible, vocabulary)
    without = set(arguments.without)
    content = content_of(arguments, vocabulary)
    reads_time = arguments.log not in ("beauty", "sequences")
    spec = derive(config, evaluation, vocabulary, summary, reads_time=reads_time, seed=seed, content=content.shape)
    spec = replace(spec, **_pairs(arguments.spec))
    logging.info("%s", spec)
    started = time.perf_counter()
    run = TrainingRun(spec, [holdout], summary.targets, content=content)
    if "popularity" in without:
        run.model.popularity_weight.data.zero_()
        run.model.popularity_weight.requires_grad_(False)
    run.average.resume(run.model.state_dict())
    run.fit(Limits(config.max_epochs, config.patience, config.max_minutes))
    run.average.resume(run.best)
    took = {
        "validation_ndcg_at_10": round(run.progress.best_value, 4),
        "best_epoch": run.progress.best_epoch,
        "epochs": run.progress.epoch,
        "seconds": round(time.perf_counter() - started, 1),
    }
    return run, test, took


def content_of(arguments: argparse.Namespace, vocabulary: Vocabulary) -> ItemContent:
    return ItemContent.nothing(vocabulary.num_items) if "content" in arguments.without else item_content(vocabulary)


def baseline_metrics(
    run: TrainingRun, test: Split, timelines: Timelines, vocabulary: Vocabulary, arguments: argparse.Namespace
) -> dict[str, float]:
    """Popularity and item-kNN on the same test, their settings chosen on validation, and the encoder's coverage."""
    encoder = run.state().encoder(content_of(arguments, vocabulary))
    evaluation = evaluate_retrieval(
        test,
        leave_one_out(timelines, part="validation") if protocol_of(arguments.log) == "leave_one_out" else None,
        vocabulary,
        embed_users(encoder, test.history, as_of_us=np.iinfo(np.int64).max),
        encoder.item_vectors,
        protocol=protocol_of(arguments.log),
        item_bias_I=encoder.item_bias,
        popularity_I=encoder.popularity,
    )
    is_ours = re.compile(r"retrieval\.encoder\.(hr|ndcg)").match
    return {name: round(value, 4) for name, value in evaluation.metrics.items() if not is_ours(name)}


def test_metrics(run: TrainingRun, test: Split) -> dict[str, float]:
    """Metrics at 10 on the test, with seen items in the ranking and without (`_unseen`)."""
    metrics = {}
    shares_I = torch.from_numpy(log_shares(run.trend.newest_I))
    for suffix, excludes_seen in (("", False), ("_unseen", True)):
        spec = replace(run.spec, excludes_seen=excludes_seen)
        scored = Split(
            test.history.take(np.flatnonzero(test.is_scored)), test.targets.take(np.flatnonzero(test.is_scored))
        )
        found = examine(
            run.average.model, spec, Exam.of(scored, spec), run.is_trained_I, Peers(), log_shares_I=shares_I
        )
        metrics |= {f"{name}{suffix}": round(value, 4) for name, value in found.items()}
    return metrics


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", choices=["beauty", "sequences", "ml-1m", "retail", "snapshot"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="DIAL=VALUE")
    parser.add_argument("--spec", action="append", default=[], metavar="DIAL=VALUE")
    parser.add_argument("--without", nargs="+", default=[], choices=["popularity", "content"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[7])
    parser.add_argument("--baselines", action="store_true", help="popularity and item-kNN beside it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--strict", action="store_true")
    return parser.parse_args()


def _pairs(assignments: list[str]) -> dict[str, Any]:
    return {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in assignments)}


if __name__ == "__main__":
    main()
