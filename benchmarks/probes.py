"""What is a user vector worth to small models of its consumers? An encoder beside RFM and luck. One JSON line.

    python -m benchmarks.probes synthetic --users 6000 --out .bench/probes      # writes the world where there is none
    python -m benchmarks.probes retail ../shared/data/online_retail.parquet

Temporal: everything is learnt from what lies before the last TEST_DAYS days, labels are of those days. Vectors:
trained     our encoder, for at most --minutes or `--set max_epochs=…`, all other dials derived
untrained   the same with its weights as they were drawn; an item's vector is then luck, its history is not
items       mean over the user's wanted events of a random unit vector for each item: what a bag of items knows
luck        a random vector for each user
Questions, readers and metrics are those of `sonder probe`; beside each vector stand RFM and both together. Differences
of vectors are paired over test users. Several --seeds are several trainings, each on the same users and questions.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from benchmarks.encoder import read_log, to_timelines
from benchmarks.stability import categories_of, read_world
from sonder.core.config import EncoderConfig, EvaluationConfig
from sonder.core.storage import Folder
from sonder.encoder.artefact import Encoder
from sonder.encoder.content import item_content
from sonder.encoder.holdout import count_eligible, hold_out
from sonder.encoder.inference import embed_users
from sonder.encoder.specification import derive, summarise
from sonder.encoder.training import Limits, TrainingRun
from sonder.evaluation.probe_comparison import compare_probes
from sonder.evaluation.probe_questions import Questions, cut_questions
from sonder.evaluation.probes import Probes, run_probes
from sonder.events.synthetic import WorldConfig, write_world
from sonder.history.cutoffs import end_of_log_us, test_cutoff_us
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import ITEM_SCHEMA, Vocabulary

TEST_DAYS, WORLD_DAYS, WORLD_SEED = 30, 120, 7
UNWANTED = {"cancel": -1.0, "hide": -1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", choices=["synthetic", "retail"])
    parser.add_argument("path", type=Path, nargs="?", help="of Online Retail")
    parser.add_argument("--users", type=int, default=6_000, help="of the synthetic world")
    parser.add_argument("--out", type=Path, default=Path(".bench/probes"), help="where the world lies")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7])
    parser.add_argument("--minutes", type=float, help="of training at most")
    parser.add_argument("--set", nargs="+", default=[], metavar="DIAL=NUMBER", help="of the encoder: max_epochs=3")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    timelines, vocabulary = read(arguments)
    cutoff_us = test_cutoff_us(end_of_log_us(timelines), TEST_DAYS)
    questions = cut_questions(timelines, vocabulary, cutoff_us=cutoff_us, within_days=TEST_DAYS)
    result: dict[str, Any] = {
        "benchmark": f"probes/{arguments.log}",
        "protocol": f"temporal, {TEST_DAYS} days after the cutoff, 30 % of users are the test",
        "users": len(questions.user_ids),
        "events": timelines.num_events,
        "asked": {
            q.name: [len(q.rows_A), len(q.outputs), round(float(q.labels_AK.mean()), 4)] for q in questions.asked
        },
        "refused": questions.refused,
        "seeds": [],
    }
    dials = dict(dial.split("=") for dial in arguments.set)
    config = EncoderConfig.model_validate(dials | {"max_minutes": arguments.minutes})
    result["set"] = config.model_dump(mode="json", exclude_unset=True)
    for seed in arguments.seeds:
        result["seeds"].append(one_seed(timelines, vocabulary, cutoff_us, seed, config, questions))
        logging.info("so far: %s", json.dumps(result))
    print(json.dumps(result))


def read(arguments: argparse.Namespace) -> tuple[Timelines, Vocabulary]:
    """The log and its catalogue; what was only shown is left out."""
    if arguments.log == "retail":
        return to_timelines(read_log("retail", arguments.path))
    world = arguments.out / f"world-{arguments.users}"
    if not (world / "events").exists():
        write_world(
            WorldConfig(num_users=arguments.users, num_days=WORLD_DAYS, seed=WORLD_SEED),
            Folder.at(str(world.resolve())),
        )
    timelines, vocabulary = to_timelines(read_world(world))
    categories = categories_of(world)
    column = pa.array([categories.get(item) for item in vocabulary.item_ids.to_pylist()], pa.string())
    items = vocabulary.items.set_column(ITEM_SCHEMA.get_field_index("category"), "category", column)
    weights = tuple(UNWANTED.get(action, 1.0) for action in vocabulary.actions)
    return timelines, replace(vocabulary, items=items, action_weights=weights)


def one_seed(
    timelines: Timelines, vocabulary: Vocabulary, cutoff_us: int, seed: int, config: EncoderConfig, questions: Questions
) -> dict[str, Any]:
    """All vectors, read and compared."""
    started = time.process_time()
    trained, untrained, epochs = encoders(timelines, vocabulary, cutoff_us, seed, config)
    training_s = time.process_time() - started
    draw = np.random.default_rng(seed)
    dim = trained.spec.dim
    vectors = {
        "trained": embed_users(trained, timelines, as_of_us=cutoff_us),
        "untrained": embed_users(untrained, timelines, as_of_us=cutoff_us),
        "items": mean_items(timelines.before(cutoff_us), vocabulary, draw.normal(size=(vocabulary.num_items + 1, dim))),
        "luck": draw.normal(size=(timelines.num_users, dim)),
    }
    probes, seconds = {}, {}
    for name, vectors_UD in vectors.items():
        started = time.process_time()
        probes[name] = run_probes(vectors_UD, questions, seed=seed)
        seconds[name] = round(time.process_time() - started, 1)
        logging.info("%s: %s", name, json.dumps(told(probes[name])))
    compared = {name: compare_probes(probes["trained"], other) for name, other in probes.items() if name != "trained"}
    return {
        "seed": seed,
        "epochs": epochs,
        "dim": dim,
        "training_cpu_seconds": round(training_s, 1),
        "probe_cpu_seconds": seconds,
        "probes": {name: told(found) for name, found in probes.items()},
        "trained_less": {name: differences(found) for name, found in compared.items()},
    }


def encoders(
    timelines: Timelines, vocabulary: Vocabulary, cutoff_us: int, seed: int, config: EncoderConfig
) -> tuple[Encoder, Encoder, int]:
    """Trained on what lies before the cutoff, and before its first step; every known item has a vector in both."""
    window_us = TEST_DAYS * MICROSECONDS_PER_DAY
    num_eligible = count_eligible(timelines, vocabulary, cutoff_us=cutoff_us, window_us=window_us)
    holdout = hold_out(timelines, vocabulary, cutoff_us=cutoff_us, window_us=window_us, num_eligible=num_eligible)
    summary, content = summarise(holdout.visible, vocabulary), item_content(vocabulary)
    evaluation = EvaluationConfig(protocol="temporal", test_days=TEST_DAYS)
    spec = derive(config, evaluation, vocabulary, summary, reads_time=True, seed=seed, content=content.shape)
    run = TrainingRun(spec, [holdout], summary.targets, content=content)
    drawn = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.fit(Limits(config.max_epochs, config.patience, config.max_minutes))
    trained = run.state().encoder(content)
    return trained, Encoder.of(spec, drawn, trained.trained_items, content=content), run.progress.epoch


def mean_items(history: Timelines, vocabulary: Vocabulary, items_ID: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the items' vectors over the wanted events of each user, zero without any."""
    wanted = history.keep((vocabulary.weight_of(history.actions) > 0) & (history.items >= 0))
    sums = np.zeros((history.num_users, items_ID.shape[1]))
    np.add.at(sums, wanted.user_rows, items_ID[wanted.items])
    means: NDArray[np.float64] = sums / np.maximum(wanted.lengths, 1)[:, None]
    return means


def told(probes: Probes) -> dict[str, Any]:
    """Number and interval by reader, question, metric and features."""
    content = probes.to_dict()
    readings: dict[str, Any] = {}
    for reader in probes.readers:
        readings[reader] = {
            name: {
                features: {metric: rounded(part) for metric, part in parts.items()}
                for features, parts in question["readers"][reader].items()
            }
            for name, question in content["questions"].items()
        }
        readings[reader]["score"] = {
            features: rounded(part) for features, part in content["score"][reader].items() if part is not None
        }
    return readings


def differences(compared: dict[str, Any]) -> dict[str, Any]:
    """Of the vectors alone."""
    found = {
        name: {
            reader: {metric: rounded(part) for metric, part in sets["vector"].items()}
            for reader, sets in readers.items()
        }
        for name, readers in compared["questions"].items()
    }
    return {
        **found,
        "score": {reader: rounded(sets["vector"]) for reader, sets in compared["score"].items()},
        "borda": compared["borda"],
    }


def rounded(measured: dict[str, Any]) -> list[float]:
    return [round(float(value), 4) for value in (measured["value"], *(measured["interval"] or ()))]


if __name__ == "__main__":
    main()
