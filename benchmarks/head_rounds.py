"""When a score head stops growing: rounds, seconds and losses by the least gain that is asked of PATIENCE rounds.

    make bench-head-rounds
    python -m benchmarks.head_rounds CONFIG [CONFIG ...] --out FOLDER [--gains 0 3e-4 1e-3 3e-3 1e-2]

Each CONFIG's release must be built (`sonder build`): its snapshot and its encoder are read, every head and its older
self of the backtest are trained again in this process, with all settings of the search that CONFIG asks for, twice:

without   until no round of the last PATIENCE was better than the best before them (a least gain of 0)
with      as the product does, `scoring.training.LEAST_GAIN`

Every gain of `--gains` is read off the losses of the run without, on the rows that stop a head (users of a later time,
neither calibrated nor tested on): nothing here is chosen on the test. The last window, which no training, stopping or
calibration saw, is told beside: of probabilities log loss and AUC, with the paired interval of with minus without.
Seconds are those of growing trees alone, wall time, all cores. Prints Markdown tables and ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl

from benchmarks.scores_metrics import measure, paired_differences
from pipelines.build import open_build
from pipelines.score import train_scores
from sonder.core.config import load
from sonder.core.storage import Folder
from sonder.releases.artefacts import Release
from sonder.releases.registry import Registry
from sonder.scoring import training
from sonder.scoring.heads import load_heads
from sonder.scoring.training import LEAST_GAIN, Progress

TOLD = ("log_loss", "auc")


@dataclass
class Growth:
    """Losses of every run of trees of one training of all heads, in their order, and the seconds of all of them."""

    losses: list[tuple[float, ...]] = field(default_factory=list)
    seconds: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for the heads")
    parser.add_argument("--gains", type=float, nargs="+", default=[0, 3e-4, 1e-3, 3e-3, 1e-2])
    arguments = parser.parse_args()
    results = {}
    for config in arguments.configs:
        target = Folder.at(str(arguments.out.resolve() / config.parent.name))
        target.remove()
        results[config.parent.name] = compare(config, target, arguments.gains)
    print(json.dumps(results))


def compare(file: Path, target: Folder, gains: list[float]) -> dict[str, Any]:
    without, with_gain = (trained(file, target / name, gain) for name, gain in (("without", 0.0), ("with", LEAST_GAIN)))
    read_off = {str(gain): stopped(without.losses, gain) for gain in gains}
    print(f"\n## {file.parent.name}: {len(without.losses)} runs of trees\n")
    print("| least gain | rounds of all | share of the fall in loss that is missed: mean, worst |\n|---|---|---|")
    for gain, (num_rounds, lost) in read_off.items():
        print(f"| {gain} | {num_rounds:,} | {np.mean(lost):.5f}, {max(lost):.5f} |")
    seconds = {"without": without.seconds, "with": with_gain.seconds}
    rounds = {name: sum(map(len, grown.losses)) for name, grown in (("without", without), ("with", with_gain))}
    print(f"\nWithout {seconds['without']:.0f} s, with {seconds['with']:.0f} s of growing; the last window:\n")
    print("| head | users | " + " | ".join(f"{name} without | with | difference" for name in TOLD) + " |")
    print("|---|---|" + "---|" * 3 * len(TOLD))
    heads = dict(tested(target / "without", target / "with"))
    for name, found in heads.items():
        cells = [
            f"{before:.4f} | {after:.4f} | {change:+.5f} [{low:+.5f}, {high:+.5f}]"
            for before, after, (change, low, high) in (found[metric] for metric in TOLD)
        ]
        print(f"| {name} | {found['users']:,} | " + " | ".join(cells) + " |", flush=True)
    return {"gains": read_off, "seconds": seconds, "rounds": rounds, "heads": heads}


def trained(file: Path, target: Folder, least_gain: float) -> Growth:
    config = load(str(file))
    build = open_build(config)
    of_snapshot = [manifest for manifest in Registry(build.workspace).list() if manifest.snapshot == build.snapshot]
    if not of_snapshot:
        raise SystemExit(f"{file}: no release of what its log is now. Run `sonder build -c {file}` first.")
    release = Release.open(build.workspace, max(of_snapshot, key=lambda manifest: manifest.created_at).id)
    encoder_cutoff_us = build.end_us if build.cutoff_us is None else build.cutoff_us
    with recorded(least_gain) as growth:
        train_scores(
            config,
            build.snapshot,
            release.encoder,
            target,
            end_us=build.end_us,
            encoder_cutoff_us=encoder_cutoff_us,
            num_workers=0,
        )
    return growth


@contextmanager
def recorded(least_gain: float) -> Iterator[Growth]:
    """What the product's `grow` does in this process, with a least gain."""
    growth, grow = Growth(), training.grow

    def watched(*arguments: Any, **named: Any) -> Progress:
        start = time.perf_counter()
        progress = grow(*arguments, **named)
        growth.seconds += time.perf_counter() - start
        growth.losses.append(progress.losses)
        return progress

    with patch("pipelines.score_train.grow", watched), patch.object(training, "LEAST_GAIN", least_gain):
        yield growth


def stopped(runs: list[tuple[float, ...]], gain: float) -> tuple[int, list[float]]:
    """Rounds that all runs take with a least gain, and of each the share of its fall in loss that it misses."""
    rounds, lost = 0, []
    with patch.object(training, "LEAST_GAIN", gain):
        for run in runs:
            end = next(end for end in range(len(run) + 1) if end == len(run) or Progress(None, run[:end]).is_done)
            rounds += end
            lost.append((min(run[:end]) - min(run)) / max(run[0] - min(run), 1e-12))
    return rounds, lost


def tested(without: Folder, with_gain: Folder) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each probability on the last window: TOLD of both, and the paired interval of their difference."""
    for head in load_heads(without):
        if not head.task.is_probability or len(head.outputs) > 1:
            continue
        frames = [
            pl.DataFrame(pl.from_arrow((folder / "test" / f"{head.task.name}.parquet").read_table()))
            for folder in (without, with_gain)
        ]
        first, second = (frame.sort("user_id") for frame in frames)
        assert first.select("user_id", "label").equals(second.select("user_id", "label"))
        labels = first["label"].to_numpy() > 0
        values = [frame["value"].to_numpy().astype(np.float64) for frame in (first, second)]
        before, after = (measure(labels, scores) for scores in values)
        changes = paired_differences(labels, values[1], values[0])
        yield (
            head.task.name,
            {"users": len(labels), **{name: (before[name], after[name], changes[name]) for name in TOLD}},
        )


if __name__ == "__main__":
    main()
