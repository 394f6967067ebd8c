"""Is the verdict right at the promised rate? Simulated experiments whose true effect is known, hundreds of them.

    make bench-adoption
    python -m benchmarks.adoption [--users 12288] [--same 600] [--better 240] [--worse 60] [--off-policy 40]

Users of the synthetic world react to lists of known quality; assignment, exposures, metrics, analysis and verdict are
those of the product (benchmarks.adoption_world). Told are, each with n and a 95 % binomial interval: verdicts on arms
that are the same (`aa_rate`), true effects of the planned minimum that end in `ship` (`power`), intervals that hold the
truth, wrong verdicts, and the error of off-policy estimates (benchmarks.adoption_off_policy). Lines of each experiment
lie in OUT/experiments.jsonl; another run goes on from there. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.adoption_off_policy import errors
from benchmarks.adoption_simulation import SCENARIOS, simulate, summary, true_effects
from benchmarks.adoption_world import LOOKS, METRICS, build_stage, declared, plan_size

SPARE = 1.1  # users enrolled over users planned


def measure(
    num_users: int, counts: dict[str, int], off_policy: int, *, minimum_effect: float, seed: int, out: Path
) -> dict[str, Any]:
    """Everything, with the CPU seconds that this process took."""
    started = time.process_time()
    stage = build_stage(num_users, seed, minimum_effect)
    planned = plan_size(stage, minimum_effect, seed)
    truth = true_effects(stage)
    share = min(1.0, SPARE * planned.total_users / truth["same"]["clicks"][-1].num_users)
    experiment = declared("size", share, minimum_effect)
    out.mkdir(parents=True, exist_ok=True)
    print(f"{planned.total_users:,} users planned, {share:.1%} of {num_users:,} take part", flush=True)
    lines = []
    for line in simulate(
        stage, truth, planned, share, minimum_effect, counts, out / f"experiments-{num_users}-{seed}.jsonl"
    ):
        lines.append(line)
        if len(lines) % 100 == 0:
            print(f"{len(lines):,} experiments, {time.process_time() - started:,.0f} CPU seconds", flush=True)
    return {
        "bench": "adoption",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "users_of_the_world": num_users,
        "planned_users": planned.total_users,
        "minimum_effect": minimum_effect,
        "looks_days": list(LOOKS),
        **summary(lines, experiment.alpha, experiment.power),
        "true_effects": {
            scenario: {name: round(effects[-1].relative, 4) for name, effects in truth[scenario].items()}
            for scenario in SCENARIOS
        },
        "variance_reduction": round(sum(line["variance_reduction"] or 0 for line in lines) / max(1, len(lines)), 3),
        "off_policy_error": errors(stage.world, num_rounds=10_000, repetitions=off_policy, seed=seed),
        "metrics": [metric.name for metric in METRICS],
        "cpu_s": round(time.process_time() - started),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=12_288)
    parser.add_argument("--same", type=int, default=600)
    parser.add_argument("--better", type=int, default=240)
    parser.add_argument("--worse", type=int, default=60)
    parser.add_argument("--off-policy", type=int, default=40)
    parser.add_argument("--minimum-effect", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(".bench/adoption"))
    given = parser.parse_args()
    counts = {scenario: getattr(given, scenario) for scenario in SCENARIOS}
    result = measure(
        given.users, counts, given.off_policy, minimum_effect=given.minimum_effect, seed=given.seed, out=given.out
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
