"""All that is measured of interests and segments, one program after the other; ends in one JSON line.

    make bench-segments
    python -m benchmarks.segments --scale 0.1     # a tenth of the users, to see that it runs

interests   100,000 users of 200 events, scikit-learn's Ward for each user beside it (benchmarks.interests)
growth      1,000,000 users at 24 weekly moments, pandas beside it (benchmarks.growth)
clusters    1,000,000 vectors through Ray Data, scikit-learn's MiniBatchKMeans beside it (benchmarks.clusters)
audiences   50 rules over 1,000,000 profiles, pandas beside it (benchmarks.audiences)
truth       a synthetic world of 5,000 users over 90 days, built with the defaults: what the release says of it beside
            what the world knows (temporal, the last 30 days are the test): purity and completeness of interests,
            agreement of lifecycle states, ARI of clusters; calibration of affinities, error of the forecast
Each is a process of its own, with its own clock; see there for what its seconds hold. Lookalikes and the retrieval by
several interests need trained encoders and have their own commands (benchmarks.lookalikes, .interest_retrieval).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

WORLD_USERS = 5_000
REPORTED = ("truth.", "interests.", "lifecycle.", "segments.")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of users")
    parser.add_argument("--out", type=Path, default=Path(".bench/segments"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    many, some = str(int(1_000_000 * arguments.scale)), str(int(100_000 * arguments.scale))
    interests = last_line("benchmarks.interests", "--users", some)
    growth = last_line("benchmarks.growth", "--users", many)
    clusters = last_line("benchmarks.clusters", "--users", many, "--folder", str(arguments.out / f"clusters-{many}"))
    audiences = last_line("benchmarks.audiences", "--users", many, "--out", str(arguments.out / "audiences"))
    print(
        json.dumps(
            {
                "interests_seconds": interests["seconds"],
                "interests_ratio": interests["beside_scikit_learn"]["ratio"],
                "interests_long_user_seconds": max(user["seconds"] for user in interests["long_users"]),
                "growth_seconds": growth["seconds_all_counts"],
                "growth_ratio": growth["ratio"],
                "clusters": clusters,
                "audiences_seconds": audiences["seconds"],
                "audiences_ratio": audiences["ratio"],
                **world_metrics(arguments.out, int(WORLD_USERS * max(arguments.scale, 0.1))),
                "scale": arguments.scale,
            }
        )
    )


def last_line(module: str, *arguments: str) -> dict[str, Any]:
    """The JSON that a benchmark ends with; what it says before goes to the terminal."""
    print(f"-- {module} {' '.join(arguments)}", file=sys.stderr, flush=True)
    ended = subprocess.run(
        [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True, env=os.environ | ONE_THREAD
    )
    lines = ended.stdout.strip().splitlines()
    print(ended.stdout, file=sys.stderr, flush=True)
    if not lines or not lines[-1].startswith("{"):
        raise SystemExit(f"{module} ended with status {ended.returncode} and without its JSON line")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def world_metrics(out: Path, num_users: int) -> dict[str, float]:
    """Metrics of the release of a synthetic world of this size, built where it is not yet."""
    world = out / f"world-{num_users}"
    sonder = [sys.executable, "-m", "pipelines.cli"]
    if not (world / "sonder.yaml").exists():
        subprocess.run(
            [*sonder, "synth", "--out", str(world), "--users", str(num_users)], check=True, stdout=sys.stderr
        )
    build = [*sonder, "build", "--config", str(world / "sonder.yaml"), "--promote"]
    subprocess.run(build, check=True, stdout=sys.stderr)
    current = json.loads((world / "workspace" / "releases" / "CURRENT").read_text())["release"]
    metrics = json.loads((world / "workspace" / "releases" / current / "report" / "metrics.json").read_text())
    return {name: value for name, value in metrics.items() if name.startswith(REPORTED)}


if __name__ == "__main__":
    main()
