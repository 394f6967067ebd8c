"""Memory and time of the encoder over a catalogue of 10 M items: training, validation, the artefact. One JSON line.

    python -m benchmarks.large_catalogue --items 10000000

Each part runs in a process of its own, whose peak resident memory is what counts: `training` holds the vocabulary, the
users' events, the model, its running average and Adam's moments, trains some steps and ranks the whole catalogue for
some users; `artefact` makes the encoder of those weights, with a vector for every item, and writes it. Events follow a
Zipf law over all items; every item has a category of two levels. Beside it the same with a smaller catalogue whose
items have a row of their own, dense and sparse, so that what hashing and sparse steps are worth is seen.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from sonder.core.config import EncoderConfig, EvaluationConfig
from sonder.core.storage import Folder
from sonder.encoder.artefact import save_encoder
from sonder.encoder.batching import collate
from sonder.encoder.checkpoint import load_state, save_state
from sonder.encoder.content import item_content
from sonder.encoder.holdout import count_eligible, hold_out
from sonder.encoder.specification import derive, summarise
from sonder.encoder.training import TrainingRun
from sonder.encoder.validation import examine
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import ITEM_SCHEMA, Vocabulary

USERS, EVENTS, EXAMINED = 20_000, 30, 200


def catalogue(num_items: int) -> Vocabulary:
    indices = np.arange(num_items, dtype=np.int32)
    columns = {field.name: pa.nulls(num_items, field.type) for field in ITEM_SCHEMA}
    columns["item_index"] = pa.array(indices)
    columns["item_id"] = pa.array(indices).cast(pa.string())
    names = pa.array([f"{place // 30}/{place % 30}" for place in range(900)])
    columns["category"] = names.take(pa.array(indices % 900))
    columns["num_events"] = pa.array(np.zeros(num_items, dtype=np.int64))
    return Vocabulary(pa.table(columns), ("click",), (1.0,), ())


def histories(num_items: int) -> Timelines:
    random = np.random.default_rng(7)
    num = USERS * EVENTS
    ranks = np.minimum(num_items ** random.random(num), num_items - 1)  # Zipf with exponent 1
    times = np.sort(random.integers(0, 90 * 86_400, (USERS, EVENTS)), axis=1).ravel() * 1_000_000
    return Timelines(
        user_ids=pa.array([f"u{user}" for user in range(USERS)]),
        offsets=np.arange(USERS + 1) * EVENTS,
        items=ranks.astype(np.int32),
        actions=np.zeros(num, dtype=np.int16),
        surfaces=np.full(num, -1, dtype=np.int16),
        times_us=times,
        values=np.full(num, np.nan),
    )


def train(num_items: int, steps: int, threads: int, is_sparse: bool | None, folder: str) -> dict[str, Any]:
    torch.set_num_threads(threads)
    vocabulary, timelines = catalogue(num_items), histories(num_items)
    num_eligible = count_eligible(timelines, vocabulary, cutoff_us=None, window_us=0)
    holdout = hold_out(
        timelines, vocabulary, cutoff_us=None, window_us=0, num_eligible=num_eligible * 5_000 // EXAMINED
    )
    summary, content = summarise(holdout.visible, vocabulary), item_content(vocabulary)
    protocol = EvaluationConfig(protocol="leave_one_out")
    spec = derive(EncoderConfig(), protocol, vocabulary, summary, reads_time=True, seed=7, content=content.shape)
    spec = spec if is_sparse is None else replace(spec, is_sparse=is_sparse)
    run = TrainingRun(spec, [holdout], summary.targets, content=content)
    segments, random = run._segments(np.random.default_rng(0)), np.random.default_rng(0)
    drawn = run.goals.draw(random)
    seconds = []
    run.model.train()
    for rows in run._plan(segments, random)[:steps]:
        started = time.perf_counter()
        batch = collate(run.tokens, spec, segments.starts[rows], segments.stops[rows])
        run._step(batch, drawn, None, random)
        seconds.append(time.perf_counter() - started)
    logging.info("%d items: %d steps, %.3f s each", num_items, len(seconds), float(np.median(seconds)))
    started = time.perf_counter()
    examine(run.average.model, spec, run.exam, run.is_trained_I, run.peers, log_shares_I=run.exam_shares_I)
    examined = time.perf_counter() - started
    save_state(run.state(), Folder.at(folder))
    return {
        "id_rows": run.model.items.num_embeddings - 1,
        "is_sparse": spec.is_sparse,
        "step_seconds": round(float(np.median(seconds)), 4),
        "full_ranking_ms_per_user": round(1000 * examined / max(run.exam.tokens.num_users, 1), 1),
    }


def write(num_items: int, folder: str) -> dict[str, Any]:
    started = time.perf_counter()
    encoder = load_state(Folder.at(folder)).encoder(item_content(catalogue(num_items)))
    save_encoder(encoder, Folder.at(folder) / "encoder")
    return {"candidates": int(encoder.candidates.sum()), "seconds": round(time.perf_counter() - started, 1)}


def apart(part: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run in a new process -> its answer with its peak memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (part, arguments))


def _measured(part: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    answer = part(*arguments)
    return answer | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--beside", type=int, default=1_000_000, help="a catalogue whose items have a row each")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    result: dict[str, Any] = {"benchmark": "large-catalogue", "items": arguments.items, "beside": arguments.beside}
    with tempfile.TemporaryDirectory() as folder:
        dials = arguments.steps, arguments.threads
        result["training"] = apart(train, arguments.items, *dials, None, folder)
        result["artefact"] = apart(write, arguments.items, folder)
        for name, is_sparse in (("own_rows_sparse", True), ("own_rows_dense", False)):
            result[name] = apart(train, arguments.beside, *dials, is_sparse, folder)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
