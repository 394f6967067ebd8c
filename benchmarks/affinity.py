"""Calibration of taxonomy affinity at a build's cutoff, beside the naive share, on workspaces that are built.

    python -m benchmarks.affinity sonder.yaml [other.yaml …]

Everything is fitted before the test window of the configuration (protocol temporal) and measured on it
(sonder.evaluation.affinity). With a catalogue it measures its categories, and the learned item groups in their place as
well. Reads the workspace, writes nothing.
"""

from __future__ import annotations

import argparse
import time

from sonder.core.config import SonderConfig, load
from sonder.core.storage import read_manifest
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import load_encoder
from sonder.evaluation.affinity import evaluate_affinity
from sonder.events.contract import Col
from sonder.history.cutoffs import end_of_log_us, test_cutoff_us
from sonder.history.snapshot import read_timelines
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.interests.item_groups import learn_groups
from sonder.interests.taxonomy import Taxonomy
from sonder.releases.registry import Registry


def measure(config: SonderConfig) -> None:
    """Print one table row per tree and level."""
    workspace = Workspace.at(config.workspace)
    current = Registry(workspace).current()
    assert current is not None, "promote a release first"
    manifest = Registry(workspace).show(current.release)
    vocabulary = Vocabulary.load(workspace.items(manifest.snapshot))
    timelines = read_timelines(workspace.history(manifest.snapshot), vocabulary)
    encoder = load_encoder(workspace.release(current.release) / "encoder")
    trees = {"learned groups": Taxonomy.of_paths(learn_groups(encoder.item_vectors, vocabulary))}
    categories = vocabulary.items.column(Col.CATEGORY)
    if categories.null_count < len(categories):
        trees = {"categories": Taxonomy.of_paths(categories)} | trees
    counts = read_manifest(workspace.history(manifest.snapshot))["counts"]
    print(f"{config.events.paths[0]}: {counts['events']:,} events, {counts['users']:,} users")
    for name, tree in trees.items():
        _measure_tree(config, timelines, vocabulary, name, tree)


def _measure_tree(
    config: SonderConfig, timelines: Timelines, vocabulary: Vocabulary, name: str, tree: Taxonomy
) -> None:
    days, end_us = config.evaluation.test_days, end_of_log_us(timelines)
    started = time.perf_counter()
    model, qualities = evaluate_affinity(
        timelines, vocabulary, tree, cutoff_us=test_cutoff_us(end_us, days), end_us=end_us, horizon_days=days
    )
    seconds = time.perf_counter() - started
    print(
        f"{name}: half-life {model.half_life_days:.1f} d, of the population {model.population_half_life_days:.1f} d, "
        f"fitted on {model.num_users:,} users and {model.horizon_days:.0f} d, fit and measurement {seconds:.1f} s"
    )
    print("| level | categories | users | pairs | k | aversion | ECE | naive | Brier | naive |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for quality in qualities:
        fitted = model.levels[quality.level - 1]
        print(
            f"| {quality.level} | {quality.categories} | {quality.users:,} | {quality.pairs:,} "
            f"| {fitted.prior_strength:.1f} | {fitted.aversion:.2f} | {quality.ece:.4f} | {quality.naive_ece:.4f} "
            f"| {quality.brier:.4f} | {quality.naive_brier:.4f} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+")
    for path in parser.parse_args().configs:
        measure(load(path))
