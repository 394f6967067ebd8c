"""Scores of everybody, as a build's last part of `score` writes them: vectors computed again beside vectors read.

    make bench-score-everybody
    OMP_NUM_THREADS=1 python -m benchmarks.score_everybody WORKSPACE [--turns 3]

The newest release of the workspace, all its heads and exact drivers, all buckets one after the other in one process;
read are the vectors that the release's segmentation wrote. Prints a Markdown table: microseconds a user, median (least,
most) over the turns; ends in one JSON line. Status 1 if a file differs in any byte.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from pipelines.bucket_tasks import bucket_numbers, part_file
from pipelines.score import ScoreBucket
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.releases.artefacts import Release
from sonder.releases.registry import Registry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    workspace = Workspace.at(str(asked.workspace.resolve()))
    release = Release(workspace, Registry(workspace).newest())
    history = workspace.history(release.manifest.snapshot)
    buckets, contents = bucket_numbers(history), {}
    us_user: dict[str, list[float]] = {"computed": [], "read": []}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(asked.turns):
            for name, vectors in (("computed", None), ("read", (release.folder / "vectors").uri)):
                target = Folder.at(f"{scratch}/{name}-{turn}")
                score = ScoreBucket(
                    history=history.uri,
                    items=release.items.uri,
                    encoder=release.encoder.uri,
                    scores=(release.folder / "scores").uri,
                    target=target.uri,
                    summaries=(target / "interests").uri,
                    as_of_us=release.manifest.as_of_us,
                    vectors=vectors,
                )
                started = time.perf_counter()
                for bucket in buckets:
                    score(bucket)
                us_user[name].append((time.perf_counter() - started) / num_users(release, buckets) * 1e6)
                contents[name] = [part_file(target, bucket).read_bytes() for bucket in buckets]
    print("| vectors | µs a user |\n|---|---|")
    for name, taken in us_user.items():
        print(f"| {name} | {statistics.median(taken):.0f} ({min(taken):.0f}, {max(taken):.0f}) |")
    print(json.dumps({name: statistics.median(taken) for name, taken in us_user.items()}))
    if contents["computed"] != contents["read"]:
        sys.exit("The two differ.")


def num_users(release: Release, buckets: list[int]) -> int:
    return sum(part_file(release.folder / "vectors", bucket).read_table(["user_id"]).num_rows for bucket in buckets)


if __name__ == "__main__":
    main()
