"""Our score heads beside logistic regression on RFM and BG/NBD: same users, cutoffs and labels, paired intervals.

    make bench-scores
    python -m benchmarks.scores online_retail cdnow --out .bench/scores --bgnbd .bench/lifetimes/bin/python

Builds a release of each log as a user would (`sonder build`; one that exists is not built again), reads what its heads
said of the last window of the log beside what came true, and asks the others about the very same users. What is
learnt or chosen lies before that window. Prints a Markdown table a task and ends with one JSON line.
Ours wins where the 95 % interval of the difference lies on its side of 0, and is even with the other where it holds 0.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from benchmarks.scores_baselines import Asked, bg_nbd, logistic
from benchmarks.scores_metrics import METRICS, measure, paired_differences, verdict
from sonder.core.storage import read_manifest
from sonder.core.workspace import Workspace
from sonder.history.snapshot import read_timelines
from sonder.history.vocabulary import Vocabulary
from sonder.releases.artefacts import Release
from sonder.releases.registry import Registry
from sonder.scoring.heads import load_heads, load_refusals

SHARED = Path(__file__).parents[2] / "shared" / "data"
PACKAGES = Path(".bench/data")  # where the wheel of CDNOW was put
OURS = "ours"
BUY = {"action": "buy"}
# The test of a task that reads the embedding begins after the encoder's training: test_days is the longest window.
LOGS: dict[str, dict[str, Any]] = {
    "online_retail": {
        "events": {"path": str(SHARED / "online_retail.parquet"), "format": "online_retail"},
        "evaluation": {"protocol": "temporal", "test_days": 60},
        "encoder": {"max_epochs": 6},
        "scores": [
            {"name": "buy_30d", "within_days": 30, **BUY},
            {"name": "churn_30d", "within_days": 30, "churn": True},
            {"name": "churn_60d", "within_days": 60, "churn": True},
        ],
    },
    "cdnow": {
        "events": {"path": "auto", "format": "cdnow"},
        "evaluation": {"protocol": "temporal", "test_days": 90},
        "encoder": {"max_epochs": 5},  # a log of one item
        "scores": [
            {"name": "buy_30d", "within_days": 30, **BUY},
            {"name": "buy_90d", "within_days": 90, **BUY},
            {"name": "churn_90d", "within_days": 90, "churn": True},
        ],
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", choices=list(LOGS))
    parser.add_argument("--out", type=Path, required=True, help="folder for workspaces")
    parser.add_argument("--bgnbd", type=Path, required=True, help="python that has `lifetimes` and pyarrow")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in arguments.logs:
        release = built(name, arguments.out / name)
        for refusal in load_refusals(release.folder / "scores"):
            print(f"\n{name}: {refusal.task} refused: {refusal.reason} {refusal.numbers}")
        for asked, metrics in asked_of(release):
            title = f"{name}.{asked.task.name}"
            labels, answers = answers_of(asked, release, arguments.bgnbd, arguments.out / name / "scratch")
            results[title] = compare(labels, answers)
            print_table(title, labels, results[title], metrics)
    print(json.dumps(results))


def built(name: str, folder: Path) -> Release:
    folder.mkdir(parents=True, exist_ok=True)
    config = LOGS[name] | {"workspace": str((folder / "workspace").resolve())}
    file = folder / "sonder.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    paths = [str(PACKAGES.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "pipelines.cli", "build", "--config", str(file)]
    subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)})
    workspace = Workspace.at(config["workspace"])
    newest = max(Registry(workspace).list(), key=lambda manifest: manifest.created_at)
    return Release.open(workspace, newest.id)


def asked_of(release: Release) -> Iterator[tuple[Asked, dict[str, Any]]]:
    """Each trained task with its points in time."""
    history = release.workspace.history(release.manifest.snapshot)
    vocabulary = Vocabulary.load(release.workspace.items(release.manifest.snapshot))
    buckets = sorted(int(entry["bucket"]) for entry in read_manifest(history)["buckets"])
    timelines = read_timelines(history, vocabulary, buckets)
    for head in load_heads(release.folder / "scores"):
        test_us, window_us = int(head.metrics["cutoff_us"]), head.task.within_days * 86_400_000_000
        train_us = [int(cutoff) for cutoff in head.metrics["train_cutoffs_us"]]
        yield Asked(head.task, timelines, vocabulary, train_us, test_us - window_us, test_us), head.metrics


def answers_of(
    asked: Asked, release: Release, python: Path, scratch: Path
) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.float64]]]:
    """What came true and what everybody said of it, one entry per user of the test cutoff."""
    rows, labels = asked.labelled(asked.test_us)
    users = pl.DataFrame({"user_id": asked.timelines.user_ids.take(rows).to_pylist()})
    file = release.folder / "scores" / "test" / f"{asked.task.name}.parquet"
    said = pl.from_arrow(file.read_table())
    assert isinstance(said, pl.DataFrame)
    ours = users.join(said, on="user_id", how="left", maintain_order="left")
    if ours["value"].null_count() or len(said) != len(users) or (ours["label"].to_numpy() != labels).any():
        raise SystemExit(f"{asked.task.name}: our test rows are not the population and labels of the others")
    values = ours["value"].to_numpy().astype(np.float64)
    return labels, {OURS: values, **logistic(asked), **bg_nbd(asked, python, scratch)}


def compare(labels: NDArray[np.bool_], answers: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, values in answers.items():
        result[name] = {"metrics": measure(labels, values)}
        if name != OURS:
            result[name]["ours_minus"] = paired_differences(labels, answers[OURS], values)
    return result


def print_table(title: str, labels: NDArray[np.bool_], result: dict[str, Any], metrics: dict[str, Any]) -> None:
    print(f"\n## {title}\n\n{len(labels):,} users, base rate {labels.mean():.4f}, ", end="")
    print(f"{len(metrics['train_cutoffs_us'])} training cutoffs, calibration {metrics.get('calibration')}\n")
    print("| score | " + " | ".join(METRICS) + " |\n|---|" + "---|" * len(METRICS))
    for name, found in result.items():
        cells = [f"{found['metrics'][metric]:.4f}" for metric in METRICS]
        print(f"| {name} | " + " | ".join(cells) + " |")
        if "ours_minus" in found:
            cells = []
            for metric in METRICS:
                difference, low, high = found["ours_minus"][metric]
                told = verdict(metric, (difference, low, high))
                cells.append(f"{difference:+.4f} [{low:+.4f}, {high:+.4f}] {told}")
            print("| · ours minus this | " + " | ".join(cells) + " |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
