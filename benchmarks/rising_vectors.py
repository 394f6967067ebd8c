"""Vectors of users at the cutoffs of score rows: everybody at each cutoff beside only who has wished for more since.

    make bench-rising-vectors
    python -m benchmarks.rising_vectors WORKSPACE [--users 10000] [--cutoffs 15] [--days 5] [--turns 3]

The newest release of the workspace, the first users of its first bucket, cutoffs of so many days back from its moment;
one process, in turns. Prints a Markdown table: seconds, median over the turns, and the largest difference between the
two in any number of any vector; ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from sonder.core.workspace import Workspace
from sonder.encoder.artefact import load_encoder
from sonder.encoder.inference import RisingVectors, embed_users
from sonder.history.snapshot import read_timelines
from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.history.vocabulary import Vocabulary
from sonder.releases.artefacts import Release
from sonder.releases.registry import Registry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--cutoffs", type=int, default=15)
    parser.add_argument("--days", type=float, default=5.0)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    workspace = Workspace.at(str(asked.workspace.resolve()))
    opened = Release(workspace, Registry(workspace).newest())
    encoder = load_encoder(opened.encoder)
    timelines = read_timelines(workspace.history(opened.manifest.snapshot), Vocabulary.load(opened.items), [0])
    timelines = timelines.take(np.arange(min(asked.users, timelines.num_users)))
    step_us = int(asked.days * MICROSECONDS_PER_DAY)
    cutoffs = [opened.manifest.as_of_us - step_us * back for back in reversed(range(asked.cutoffs))]
    seconds: dict[str, list[float]] = {"everybody at each": [], "who has wished for more": []}
    difference = 0.0
    for _ in range(asked.turns):
        started = time.perf_counter()
        whole = [embed_users(encoder, timelines, as_of_us=cutoff_us) for cutoff_us in cutoffs]
        seconds["everybody at each"].append(time.perf_counter() - started)
        started = time.perf_counter()
        rising = RisingVectors(encoder, timelines)
        risen = [rising.at(cutoff_us).copy() for cutoff_us in cutoffs]
        seconds["who has wished for more"].append(time.perf_counter() - started)
        difference = max(difference, *(float(np.abs(a - b).max()) for a, b in zip(whole, risen, strict=True)))
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    print(f"{timelines.num_users:,} users, {timelines.num_events / timelines.num_users:.1f} events each,", end=" ")
    print(f"{asked.cutoffs} cutoffs {asked.days:g} days apart; largest difference {difference:.1e}\n")
    print("| embedded | s |\n|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} |")
    print(json.dumps({"users": timelines.num_users, "cutoffs": asked.cutoffs, "difference": difference, **medians}))


if __name__ == "__main__":
    main()
