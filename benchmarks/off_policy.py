"""Off-policy estimates beside the truth: the Open Bandit Dataset's anchor, and a simulation whose value is known.

    make bench-off-policy
    python -m benchmarks.off_policy [--data .bench/data/obp] [--runs 300]

Open Bandit Dataset (Saito, Aihara, Matsutani & Narita, 2021), the sample inside the wheel obp 0.4.1: 10,000 rounds of
a uniformly random policy and 10,000 of a Bernoulli Thompson sampling policy (BTS) in the same week, lists of three.
anchor     the quick start of obp: IPW's value of BTS from the random policy's log, over that log's own mean reward;
           1.198126 is printed there. BTS's distribution is simulated as obp does it: 100,000 draws of Beta variates
           with the priors in the wheel, from the same random stream
estimates  each policy from the other's log, beside its own log's mean reward with its interval. The sample has no user
           ids: every round counts as independent, which intervals pay for if it is not so
simulation `benchmarks.logged_world`: bias, spread, the mean error told, coverage of both intervals over the runs

Prints Markdown tables and ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from benchmarks.logged_world import World
from sonder.experiments.clustered import estimate_ratio
from sonder.experiments.logged_feedback import Floats, LoggedFeedback
from sonder.experiments.off_policy import Estimator, PolicyValue, evaluate_policy

DATA = Path(".bench/data/obp")
PUBLISHED_RATIO = 1.198126
NUM_ACTIONS, NUM_POSITIONS = 80, 3
NUM_DRAWS, OBP_SEED = 100_000, 12345
WORLDS = ((0.6, 0.5), (1.0, 0.5), (1.0, 0.0))  # distance of the policies, exploration of the logging policy
NUM_USERS = 400


def read_log(data: Path, policy: str) -> LoggedFeedback:
    """One policy's log over all items, with the one-hot user features that obp takes as contexts."""
    rows = pl.read_csv(data / "dataset" / "obd" / policy / "all" / "all.csv")
    contexts = rows.select(f"user_feature_{n}" for n in range(4)).to_dummies(drop_first=True)
    return LoggedFeedback(
        actions=rows["item_id"].to_numpy().astype(np.int64),
        rewards=rows["click"].to_numpy().astype(np.float64),
        propensities=rows["propensity_score"].to_numpy(),
        num_actions=NUM_ACTIONS,
        positions=(rows["position"].to_numpy() - 1).astype(np.int64),
        contexts=contexts.to_numpy().astype(np.float64),
    )


def read_item_features(data: Path) -> Floats:
    """The price-like number and the one-hot categories of the items [A, G]."""
    items = pl.read_csv(data / "dataset" / "obd" / "random" / "all" / "item_context.csv").sort("item_id")
    categories = items.select(f"item_feature_{n}" for n in (1, 2, 3)).to_dummies(drop_first=True).to_numpy()
    return np.column_stack([items["item_feature_0"].to_numpy(), categories]).astype(np.float64)


def thompson_policy(data: Path, num_draws: int = NUM_DRAWS) -> Floats:
    """How often each item comes first, second and third among draws of the priors' Betas -> [1, A, L]."""
    priors = yaml.safe_load((data / "policy" / "conf" / "prior_bts.yaml").read_text(encoding="utf-8"))["all"]
    # One matrix takes the same numbers from the stream as obp's loop over draws does, row by row.
    draws = np.random.RandomState(OBP_SEED).beta(priors["alpha"], priors["beta"], size=(num_draws, NUM_ACTIONS))
    best = np.argsort(draws, axis=1)[:, ::-1][:, :NUM_POSITIONS]
    counts = np.stack([np.bincount(best[:, n], minlength=NUM_ACTIONS) for n in range(NUM_POSITIONS)], axis=1)
    return np.asarray(counts[None] / num_draws, dtype=np.float64)


def anchor_ratio(log: LoggedFeedback, policy: Floats) -> float:
    """IPS value of the policy over what the log itself earned."""
    return evaluate_policy(log, policy, estimators=["ips"])["ips"].value / float(log.rewards.mean())


def open_bandit(data: Path) -> dict[str, Any]:
    logs = {name: read_log(data, name) for name in ("random", "bts")}
    policies = {"random": np.full((1, NUM_ACTIONS), 1 / NUM_ACTIONS), "bts": thompson_policy(data)}
    ratio = anchor_ratio(logs["random"], policies["bts"])
    print("\n## Open Bandit Dataset, all items, 10,000 rounds a log; clicks per 1,000 shown items\n")
    print(f"Anchor: {ratio:.7f}; published {PUBLISHED_RATIO} (printed with six decimals).")
    result: dict[str, Any] = {"anchor": ratio, "published": PUBLISHED_RATIO}
    for source, target in (("random", "bts"), ("bts", "random")):
        own = logs[target].rewards
        truth = estimate_ratio(own, np.ones_like(own), np.arange(len(own)))
        answers = evaluate_policy(logs[source], policies[target], action_features=read_item_features(data))
        support = next(iter(answers.values())).support
        print(
            f"\n### {target} from the log of {source}: truth {1000 * truth.value:.2f} {_per_mille(truth.interval)}, "
            f"effective rounds {support.effective_rounds:,.0f}, effective rewards {support.effective_rewards:.1f}, "
            f"largest weight {support.max_weight:.1f}, mean weight {support.mean_weight:.4f} "
            f"(error {support.mean_weight_error:.4f}), unsupported {support.unsupported_share:.2%}\n"
        )
        print("| estimator | value | error | normal | bootstrap | threshold |\n|---|---|---|---|---|---|")
        for answer in answers.values():
            print(_row(answer))
        print("\n" + "\n".join(f"- {text}" for text in support.warnings))
        result[f"{target} from {source}"] = {"truth": truth.value} | {n: a.value for n, a in answers.items()}
    return result


def _row(answer: PolicyValue) -> str:
    threshold = "" if answer.threshold is None else f"{answer.threshold:.4g}"
    return (
        f"| {answer.estimator} | {1000 * answer.value:.2f} | {1000 * answer.standard_error:.2f} | "
        f"{_per_mille(answer.interval)} | {_per_mille(answer.bootstrap_interval)} | {threshold} |"
    )


def _per_mille(interval: tuple[float, float]) -> str:
    return f"[{1000 * interval[0]:.2f}, {1000 * interval[1]:.2f}]"


def simulate(num_runs: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for distance, exploration in WORLDS:
        world = World.of(distance=distance, exploration=exploration)
        rows: dict[Estimator, list[list[float]]] = {}
        effective = []
        for seed in range(num_runs):
            feedback, policy, _ = world.log(NUM_USERS, seed)
            answers = evaluate_policy(feedback, policy, num_resamples=300, seed=seed)
            effective.append(answers["ips"].effective_rounds)
            for name, found in answers.items():
                inside = [low <= world.value <= high for low, high in (found.interval, found.bootstrap_interval)]
                rows.setdefault(name, []).append([found.value, found.standard_error, *inside])
        print(
            f"\n## Simulation, distance {distance}, exploration {exploration}: truth {world.value:.4f}, "
            f"{num_runs} logs of {NUM_USERS} users and {len(feedback):,} rounds, "
            f"{np.mean(effective):,.0f} of them effective\n"
        )
        print(
            "| estimator | bias | spread | told error | normal covers | bootstrap covers |\n|---|---|---|---|---|---|"
        )
        told = {name: _summary(np.array(values, dtype=float), world.value) for name, values in rows.items()}
        for estimator, numbers in told.items():
            print(f"| {estimator} | " + " | ".join(f"{number:.4f}" for number in numbers) + " |")
        result[f"distance {distance} exploration {exploration}"] = {
            "truth": world.value,
            "effective": float(np.mean(effective)),
            **told,
        }
    return result


def _summary(runs_R4: Floats, truth: float) -> list[float]:
    """Bias, spread, mean error told, coverage of the normal and of the bootstrap interval."""
    spread = float(runs_R4[:, 0].std(ddof=1))
    return [round(float(n), 5) for n in (runs_R4[:, 0].mean() - truth, spread, *runs_R4[:, 1:].mean(axis=0))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="the package folder of obp 0.4.1")
    parser.add_argument("--runs", type=int, default=300)
    arguments = parser.parse_args()
    print(json.dumps({"benchmark": "off-policy", **open_bandit(arguments.data), **simulate(arguments.runs)}))


if __name__ == "__main__":
    main()
