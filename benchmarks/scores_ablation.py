"""Aggregates alone, the embedding alone, or both? And does it hurt that the encoder has seen the training labels?

    python -m benchmarks.scores_ablation CONFIG --task buy_30d --end-back 30 --seeds 7 8 --out .bench/ablation

CONFIG's log must be prepared (`sonder prepare`). `--end-back` moves the end of the log back by so many days, so that a
choice is made on a window before the last one; 0 asks the last window and is for reporting alone.
Two encoders a seed:
seen      trained before the test cutoff, as a build does. At the training and calibration cutoffs of the heads its
          weights have seen the label windows; at the test cutoff they have not
unseen    trained before the oldest training cutoff: its vectors are out of time at every cutoff
The heads' plan, features, stopping and calibration are those of the product (N/2 days between training cutoffs).
Of a task with several outputs (next_category) every figure is the mean over the outputs.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray

from benchmarks.scores_metrics import METRICS, measure, paired_differences, verdict
from pipelines.train import train_encoder
from sonder.core.config import ScoreTask, SonderConfig, load
from sonder.core.storage import Folder, read_manifest
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import load_encoder
from sonder.encoder.inference import embed_users
from sonder.history.snapshot import read_timelines
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.scoring.calibration import fit_calibrator
from sonder.scoring.features import compute_features
from sonder.scoring.specification import bind, derive_spec
from sonder.scoring.tasks import label_task, outputs_of

AGGREGATES = "aggregates"
ROUNDS, PATIENCE = 1_000, 40
PARAMETERS: dict[str, Any] = {
    "objective": "binary:logistic",
    "eval_metric": "logloss",
    "tree_method": "hist",
    "nthread": 2,
    "eta": 0.03,
    "max_depth": 3,
    "min_child_weight": 20,
    "subsample": 0.8,
    "colsample_bytree": 0.25,
    "reg_lambda": 5,
}


@dataclass(frozen=True)
class Question:
    """One task with the points in time of its heads."""

    task: ScoreTask
    outputs: tuple[str, ...]
    timelines: Timelines
    vocabulary: Vocabulary
    train_us: list[int]
    calibration_us: int
    test_us: int

    def labelled(self, cutoff_us: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Rows of the users who are asked, and what came true [N, K]."""
        asked, labels = label_task(self.task, self.outputs, self.timelines, self.vocabulary, cutoff_us=cutoff_us)
        rows = np.flatnonzero(asked)
        return rows, labels[rows].reshape(len(rows), -1) > 0


@dataclass(frozen=True)
class Part:
    """Rows of one or more cutoffs: features by name of the block, labels [N, K], users."""

    blocks: dict[str, NDArray[np.float32]]
    labels: NDArray[np.bool_]
    users: NDArray[np.int64]

    def matrix(self, names: tuple[str, ...]) -> NDArray[np.float32]:
        return np.concatenate([self.blocks[name] for name in names], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--task", required=True)
    parser.add_argument("--end-back", type=int, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8])
    parser.add_argument("--most-cutoffs", type=int, default=8, help="training cutoffs; the product's own most is 8")
    parser.add_argument("--out", type=Path, required=True, help="folder of the encoders")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    config = load(arguments.config, arguments.overrides)
    workspace = Workspace.at(config.workspace)
    snapshot = min(child.name for child in (workspace.root / "history").children())
    manifest = read_manifest(workspace.history(snapshot))
    vocabulary = Vocabulary.load(workspace.items(snapshot))
    buckets = sorted(int(entry["bucket"]) for entry in manifest["buckets"])
    timelines = read_timelines(workspace.history(snapshot), vocabulary, buckets)
    task = next(task for task in config.scores if task.name == arguments.task)
    window_us = task.within_days * MICROSECONDS_PER_DAY
    end_us = int(manifest["last_event_us"]) + 1 - arguments.end_back * MICROSECONDS_PER_DAY
    oldest_us = int(manifest["first_event_us"]) + max(window_us // 2, MICROSECONDS_PER_DAY)
    places = [end_us - 3 * window_us - back * window_us // 2 for back in range(arguments.most_cutoffs)]
    train_us = [cutoff for cutoff in places if cutoff >= oldest_us]
    calibration_us, test_us = end_us - 2 * window_us, end_us - window_us
    outputs = outputs_of(task, timelines, vocabulary, cutoff_us=test_us)
    asked = Question(task, outputs, timelines, vocabulary, train_us, calibration_us, test_us)
    results: dict[str, Any] = {}
    for seed in arguments.seeds:
        folder = arguments.out.resolve() / f"{task.name}-{arguments.end_back}-{seed}"
        encoders = {"seen": asked.test_us, "unseen": min(train_us)}
        for name, cutoff_us in encoders.items():
            train_once(config, seed, snapshot, Folder.at(str(folder / name)), cutoff_us)
        answers, labels = answer(
            asked, {name: folder / name for name in encoders}, int(manifest["first_event_us"]), seed
        )
        results[f"seed {seed}"] = report(f"{task.name}, {arguments.end_back} days back, seed {seed}", answers, labels)
    print(json.dumps(results))


def train_once(config: SonderConfig, seed: int, snapshot: str, target: Folder, cutoff_us: int) -> None:
    if not (target / "encoder.json").exists():
        seeded = SonderConfig.model_validate(config.model_dump(mode="json") | {"seed": seed})
        train_encoder(seeded, snapshot, target, cutoff_us=cutoff_us, num_workers=0)


def answer(
    asked: Question, encoders: dict[str, Path], first_us: int, seed: int
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.bool_]]:
    """What heads over each choice of blocks say of the test users."""
    spec = derive_spec(asked.timelines, asked.vocabulary, first_us=first_us, cutoff_us=asked.test_us, embedding_dim=0)
    bound = bind(spec, asked.vocabulary)
    loaded = {name: load_encoder(Folder.at(str(folder))) for name, folder in encoders.items()}

    def part(cutoffs_us: list[int]) -> Part:
        pieces = []
        for cutoff_us in cutoffs_us:
            rows, labels = asked.labelled(cutoff_us)
            users = asked.timelines.take(rows)
            blocks = {AGGREGATES: compute_features(bound, users, cutoff_us=cutoff_us)}
            for name, encoder in loaded.items():
                blocks[name] = embed_users(encoder, users, as_of_us=cutoff_us)
            pieces.append(Part(blocks, labels, rows))
        return Part(
            {name: np.concatenate([piece.blocks[name] for piece in pieces]) for name in pieces[0].blocks},
            np.concatenate([piece.labels for piece in pieces]),
            np.concatenate([piece.users for piece in pieces]),
        )

    train, held_out, test = part(list(asked.train_us)), part([asked.calibration_us]), part([asked.test_us])
    choices: dict[str, tuple[str, ...]] = {AGGREGATES: (AGGREGATES,)}
    for name in encoders:
        choices |= {f"embedding, {name}": (name,), f"both, {name}": (AGGREGATES, name)}
    return {label: head(train, held_out, test, names, seed) for label, names in choices.items()}, test.labels


def head(train: Part, held_out: Part, test: Part, names: tuple[str, ...], seed: int) -> NDArray[np.float64]:
    stops = held_out.users % 2 == 0
    held = held_out.matrix(names)
    booster = xgboost.train(
        PARAMETERS | {"seed": seed},
        xgboost.DMatrix(train.matrix(names), train.labels),
        ROUNDS,
        evals=[(xgboost.DMatrix(held[stops], held_out.labels[stops]), "stop")],
        early_stopping_rounds=PATIENCE,
        verbose_eval=False,
    )
    booster = booster[: booster.best_iteration + 1]
    shape = (-1, held_out.labels.shape[1])
    before = booster.inplace_predict(held, predict_type="margin").reshape(shape)
    after = booster.inplace_predict(test.matrix(names), predict_type="margin").reshape(shape)
    calibrators = [fit_calibrator(before[:, k], held_out.labels[:, k]) for k in range(shape[1])]
    return np.column_stack([calibrator(after[:, k]) for k, calibrator in enumerate(calibrators)])


def mean_measures(labels_UK: NDArray[np.bool_], scores_UK: NDArray[np.float64]) -> dict[str, float]:
    """All METRICS, the mean over the outputs."""
    measured = [measure(labels, scores) for labels, scores in zip(labels_UK.T, scores_UK.T, strict=True)]
    return {name: float(np.mean([metrics[name] for metrics in measured])) for name in METRICS}


def report(title: str, answers: dict[str, NDArray[np.float64]], labels: NDArray[np.bool_]) -> dict[str, Any]:
    print(f"\n## {title}\n\n{len(labels):,} users, base rate {labels.mean():.4f}; differences to {AGGREGATES}\n")
    print("| features | " + " | ".join(METRICS) + " |\n|---|" + "---|" * len(METRICS))
    result: dict[str, Any] = {}
    for name, values in answers.items():
        metrics = mean_measures(labels, values)
        differences = paired_differences(labels, values, answers[AGGREGATES], measure=mean_measures)
        result[name] = {"metrics": metrics, "minus_aggregates": differences}
        cells = []
        for metric in METRICS:
            change, low, high = differences[metric]
            told = f" ({change:+.4f} [{low:+.4f}, {high:+.4f}] {verdict(metric, differences[metric])})"
            cells.append(f"{metrics[metric]:.4f}{'' if name == AGGREGATES else told}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    return result


if __name__ == "__main__":
    main()
