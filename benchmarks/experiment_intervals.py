"""How often an experiment's intervals, its size and its verdict are wrong, against what they promise.

    make bench-experiment-intervals
    python -m benchmarks.experiment_intervals [--runs 2000]

Every world (benchmarks.experiment_draws) is simulated `--runs` times:
    fixed        one look, 1,000 users an arm: `effects.estimate` misses no effect, and a true one of 10 %
    many         the same without an effect, five times as often, on arrays
    always       30 looks until the planned size, and 30 more: the always-valid interval misses the truth at any of them
    looking      the fixed interval at the same looks, as people do who look without it
    plan         at the size that `planning.plan` gives: how often the effect is found
    verdict      30 looks, stopped at the first decision: called better or worse without an effect, and with one
    three arms   the same of two treatments; guardrails: shown to hold where they do, and where they do not
    checks       false alarms of the sample ratio check; of the tests that cuts differ and that days have a trend
A rate is held against its promise by the binomial distribution: `ok` is false where chance in a thousand does not
explain it ("at most" rates from above only). Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl
from scipy.stats import binom, t

from benchmarks import experiment_draws as draws
from benchmarks.experiment_draws import WORLDS, Array, World
from sonder.experiments import sequential
from sonder.experiments.cuts import p_differ
from sonder.experiments.effects import estimate, standard_errors
from sonder.experiments.novelty import trend_of
from sonder.experiments.planning import Plan, plan
from sonder.experiments.sample_ratio import BROKEN_BELOW, ratio_p_value
from sonder.experiments.specification import Experiment

ALPHA, POWER, UP = 0.05, 0.8, 1.1
LOOKS, BATCH = 30, 200
CHANCE = 0.001


@dataclass(frozen=True)
class Rate:
    """How often something happened; `promise` with `bound` "at" or "at most" or "at least"."""

    what: str
    world: str
    hits: int
    runs: int
    promise: float
    bound: str = "at"

    @property
    def is_ok(self) -> bool:
        tails = {"at": CHANCE / 2, "at most": CHANCE, "at least": CHANCE}[self.bound]
        too_few = self.bound != "at most" and binom.cdf(self.hits, self.runs, self.promise) < tails
        too_many = self.bound != "at least" and binom.sf(self.hits - 1, self.runs, self.promise) < tails
        return not (too_few or too_many)

    def told(self) -> str:
        rate = self.hits / self.runs
        mark = "" if self.is_ok else "   <- not as promised"
        return f"{self.what:34} {self.world:22} {rate:7.2%}  {self.bound} {self.promise:.2%} of {self.runs}{mark}"


def fixed(runs: int, num_users: int = 1_000) -> Iterator[Rate]:
    """The interval at one look, without an effect and with one."""
    for number, (name, world) in enumerate(WORLDS.items()):
        for up in (1.0, UP):
            if up > 1 and world.cap is not None:
                continue  # what a cap at a sample's quantile leaves of an effect has no closed form
            rng = np.random.default_rng([1, number, round(10 * up)])
            truth = (0.0, 0.0) if up == 1 else draws.true_difference(world, up)
            missed = np.zeros(2, dtype=int)
            for _ in range(runs):
                arms = [world.draw(rng, (num_users,), one) for one in (1.0, up)]
                if world.cap is not None:
                    arms = [{"m": part} for part in draws.capped([arm["m"] for arm in arms], world.cap)]
                made = estimate(*(world.aggregates(arm) for arm in arms), world.columns, world.kind, ALPHA)
                assert made is not None, "users differ"
                it = made.interval
                missed += [
                    not it.lower <= truth[0] <= it.upper,
                    not it.relative_lower <= truth[1] <= it.relative_upper,
                ]
            what = "no effect" if up == 1 else "effect of 10 %"
            yield Rate(f"fixed, {what}: missed", name, int(missed[0]), runs, ALPHA)
            yield Rate(f"fixed, {what}: missed relative", name, int(missed[1]), runs, ALPHA)


def many(runs: int, num_users: int = 1_000) -> Iterator[Rate]:
    """Five times as many runs without an effect, on arrays: tea-tasting's numbers without its objects."""
    for number, (name, world) in enumerate(WORLDS.items()):
        missed, total = 0, 5 * runs
        for start in range(0, total, BATCH):
            rng = np.random.default_rng([10, number, start])
            shape = (min(BATCH, total - start), num_users)
            arms = [world.draw(rng, shape, 1.0) for _ in range(2)]
            if world.cap is not None:
                arms = [{"m": part} for part in draws.capped([arm["m"] for arm in arms], world.cap)]
            difference, error, users = draws.errors_of(*map(world.aggregates, arms), world.columns)
            missed += int((np.abs(difference) > t.isf(ALPHA / 2, users - 2) * error).sum())
        yield Rate("fixed, no effect, arrays: missed", name, missed, total, ALPHA)


def _batches(
    world: World, runs: int, looks: int, per_look: int, up: float, seed: list[int]
) -> Iterator[tuple[Array, Array, Array]]:
    """Differences, standard errors and users [R, L]; checked against the library's own in the first run."""
    for start in range(0, runs, BATCH):
        rng = np.random.default_rng([*seed, start])
        shape = (min(BATCH, runs - start), looks, per_look)
        arms = draws.at_looks(world, [world.draw(rng, shape, one) for one in (1.0, up)])
        found = draws.errors_of(*arms, world.columns)
        own = standard_errors(*(draws.one_of(arm, 0, looks - 1) for arm in arms), world.columns)[0]
        assert np.isclose(own, found[1][0, -1], rtol=1e-9), "the arrays are tea-tasting's numbers"
        yield found


def always_valid(runs: int, per_look: int = 50) -> Iterator[Rate]:
    """60 looks, the size planned for the 30th; and looking at all 3,000 users of a mean, one after the other."""
    rho2 = sequential.tuning(2 * LOOKS * per_look, ALPHA)
    for number, (name, world) in enumerate(WORLDS.items()):
        out = {"always": 0, "planned": 0, "looking": 0}
        for difference, error, users in _batches(world, runs, 2 * LOOKS, per_look, 1.0, [2, number]):
            may = users >= 2 * sequential.MIN_USERS
            leaves = may & (np.abs(difference) > sequential.half_width(error, users, rho2, ALPHA))
            out["always"] += int(leaves.any(1).sum())
            out["planned"] += int(leaves[:, :LOOKS].any(1).sum())
            out["looking"] += int((may & (np.abs(difference) > 1.96 * error))[:, :LOOKS].any(1).sum())
        yield Rate("always-valid, 60 looks: missed", name, out["always"], runs, ALPHA, "at most")
        yield Rate("always-valid, 30 looks: missed", name, out["planned"], runs, ALPHA, "at most")
        yield Rate("fixed, 30 looks: missed", name, out["looking"], runs, ALPHA, "at least")
    hits = 0
    for difference, error, users in _batches(WORLDS["mean"], runs, 1_500, 2, 1.0, [3]):
        leaves = (users >= 2 * sequential.MIN_USERS) & (
            np.abs(difference) > sequential.half_width(error, users, sequential.tuning(3_000, ALPHA), ALPHA)
        )
        hits += int(leaves.any(1).sum())
    yield Rate("always-valid, 1,500 looks: missed", "mean", hits, runs, ALPHA, "at most")


def planned_experiment(world: World, minimum_effect: float, num_arms: int = 2, guarded: bool = False) -> Experiment:
    action = {"action": "act", "within_days": 3.0}
    metric = {
        "name": "m",
        "kind": world.kind,
        **({"day": 1} if world.kind == "retention" else action),
        **({"per": "view"} if world.kind == "ratio" else {}),
        **({"cap": world.cap} if world.cap else {}),
        "wanted": "decrease" if world.kind == "time_to_event" else "increase",
    }
    other = {"name": "primary", "kind": "count", **action}
    return Experiment.model_validate(
        {
            "name": "simulated",
            "hypothesis": "it is as it was drawn",
            "arms": [{"name": f"arm{number}", "release": f"r{number}"} for number in range(num_arms)],
            "metrics": [metric, other] if guarded else [metric],
            "primary": "primary" if guarded else "m",
            "guardrails": [{"metric": "m", "margin": minimum_effect}] if guarded else [],
            "minimum_effect": minimum_effect,
            "alpha": ALPHA,
            "power": POWER,
        }
    )


def plan_of(world: World, minimum_effect: float, num_arms: int = 2) -> Plan:
    """From 100,000 users of another draw."""
    users = world.draw(np.random.default_rng(4), (100_000,), 1.0)
    kept = {name: users[name] for name in world.columns.names}
    return plan(planned_experiment(world, minimum_effect, num_arms), pl.DataFrame(kept), users_per_day=None)


def decisions(world: World, made: Plan, runs: int, up: float, seed: list[int]) -> tuple[Array, Array]:
    """Of the verdict's rule [R]: +1 better, -1 worse, 0 neither; at the last look, and at the first that decides."""
    per_look = -(-made.users_by_arm["arm0"] // LOOKS)
    size = 2 * made.users_by_arm["arm0"]
    level = made.alpha_of_each_arm
    rho2, last = sequential.tuning(size, level), sequential.last_level(level)
    final, stopped = [], []
    for batch in _batches(world, runs, LOOKS, per_look, up, seed):
        sign = _signs(*batch, rho2, level, last)
        final.append(sign[:, -1])
        first = (sign != 0).argmax(1)
        stopped.append(sign[np.arange(len(sign)), first])
    return np.concatenate(final), np.concatenate(stopped)


def guardrails(runs: int) -> Iterator[Rate]:
    """Shown to hold where nothing changed, at the size planned for it; and where it is worse by all of the margin."""
    margin = 0.1
    for number, name in enumerate(("mean, CUPED", "ratio", "retention")):
        world = WORLDS[name]
        users = world.draw(np.random.default_rng(8), (100_000,), 1.0)
        baseline = pl.DataFrame({**{one: users[one] for one in world.columns.names}, "primary": users["m"]})
        planned = plan(planned_experiment(world, margin, guarded=True), baseline, users_per_day=None).metric("m")
        assert planned.needed is not None, "a guardrail needs users"
        size = planned.needed.by_arm["arm0"]
        for up, what, promise, bound in (
            (1.0, "no effect: holds", POWER, "at least"),
            (1 - margin, "worse by the margin: holds", ALPHA, "at most"),
        ):
            rng = np.random.default_rng([8, number, round(10 * up)])
            hits = 0
            for _ in range(runs):
                arms = [world.aggregates(world.draw(rng, (size,), one)) for one in (1.0, up)]
                made = estimate(*arms, world.columns, world.kind, 2 * planned.planned_level)
                assert made is not None, "users differ"
                assert made.interval.relative_lower is not None, "means are positive"
                hits += made.interval.relative_lower > -margin
            yield Rate(f"guardrail, {what}", f"{name} ({size:,})", hits, runs, promise, bound)


def three_arms(runs: int) -> Iterator[Rate]:
    """Two treatments without an effect beside one control: either is called better or worse."""
    world = WORLDS["mean, CUPED"]
    made = plan_of(world, 0.1, num_arms=3)
    per_look = -(-made.users_by_arm["arm0"] // LOOKS)
    level = made.alpha_of_each_arm
    rho2, last = sequential.tuning(2 * made.users_by_arm["arm0"], level), sequential.last_level(level)
    hits = 0
    for start in range(0, runs, BATCH):
        rng = np.random.default_rng([9, start])
        shape = (min(BATCH, runs - start), LOOKS, per_look)
        control, *others = draws.at_looks(world, [world.draw(rng, shape, 1.0) for _ in range(3)])
        signs = [_signs(*draws.errors_of(control, arm, world.columns), rho2, level, last) for arm in others]
        hits += int(np.any([(sign != 0).any(1) for sign in signs], axis=0).sum())
    yield Rate("verdict, no effect: better or worse", "mean, CUPED, 3 arms", hits, runs, ALPHA, "at most")


def _signs(difference: Array, error: Array, users: Array, rho2: float, level: float, last: float) -> Array:
    """What the rule says at each look [R, L]: +1 better, -1 worse, 0 nothing yet; the last look is the planned size."""
    width = sequential.half_width(error, users, rho2, level)
    width[users < 2 * sequential.MIN_USERS] = np.inf
    width[:, -1] = t.isf(last / 2, users[:, -1] - 2) * error[:, -1]
    return np.where(difference > width, 1, np.where(difference < -width, -1, 0))


def verdicts(runs: int) -> Iterator[Rate]:
    """Power at the planned size, and how often the whole rule is wrong."""
    for number, (name, world) in enumerate(WORLDS.items()):
        if world.cap is not None:
            continue
        effect = 0.2 if world.kind == "conversion" else 0.1
        made = plan_of(world, effect)
        up, wanted = 1 + effect, 1
        if world.kind == "time_to_event":  # a rate so much higher that the mean is a tenth lower
            rates = np.linspace(1, 3, 20_001)
            up = float(rates[np.argmin([abs(draws.true_difference(world, rate)[1] + effect) for rate in rates])])
            wanted = -1
        final, stopped = decisions(world, made, runs, up, [5, number])
        users = f"{name} ({made.users_by_arm['arm0']:,})"
        yield Rate("plan: found at the planned size", users, int((final == wanted).sum()), runs, POWER, "at least")
        yield Rate("verdict, effect: better", users, int((stopped == wanted).sum()), runs, POWER, "at least")
        yield Rate("verdict, effect: worse", users, int((stopped == -wanted).sum()), runs, ALPHA / 2, "at most")
        _, stopped = decisions(world, made, runs, 1.0, [6, number])
        yield Rate("verdict, no effect: better or worse", users, int((stopped != 0).sum()), runs, ALPHA, "at most")
        yield Rate("verdict, no effect: better", users, int((stopped == 1).sum()), runs, ALPHA / 2, "at most")


def checks(runs: int) -> Iterator[Rate]:
    """Tests about the experiment itself, where nothing is wrong."""
    rng = np.random.default_rng(7)
    p = np.array([ratio_p_value([n, 10_000 - n], [1, 1]) for n in rng.binomial(10_000, 0.5, runs).tolist()])
    yield Rate("sample ratio: p < .05", "2 arms", int((p < 0.05).sum()), runs, 0.05)
    yield Rate("sample ratio: blocked", "2 arms", int((p < BROKEN_BELOW).sum()), runs, BROKEN_BELOW)
    shares = [0.5, 0.3, 0.2]
    p = np.array([ratio_p_value(n.tolist(), shares) for n in rng.multinomial(10_000, shares, runs)])
    yield Rate("sample ratio: p < .05", "3 arms, 5:3:2", int((p < 0.05).sum()), runs, 0.05)
    yield Rate("sample ratio: blocked", "3 arms, 5:3:2", int((p < BROKEN_BELOW).sum()), runs, BROKEN_BELOW)
    for name in ("mean, CUPED", "ratio", "conversion"):
        world, parts = WORLDS[name], 6
        shape = (runs, parts, 300)
        arms = [world.aggregates(world.draw(rng, shape, UP)) for _ in range(2)]
        difference, error, _ = draws.errors_of(*arms, world.columns)
        rows = [
            (list(map(float, left)), list(map(float, right))) for left, right in zip(difference, error, strict=True)
        ]
        differ = sum((p_differ(*row) or 0) < ALPHA for row in rows)
        slope = sum((trend_of(range(parts), *row)[1] or 0) < ALPHA for row in rows)
        yield Rate("cuts differ: p < .05", name, differ, runs, ALPHA)
        yield Rate("days have a trend: p < .05", name, slope, runs, ALPHA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=2_000)
    runs = parser.parse_args().runs
    rates, seconds = [], {}
    for part in (fixed, many, always_valid, verdicts, three_arms, guardrails, checks):
        start = time.perf_counter()
        for rate in part(runs):
            print(rate.told(), flush=True)
            rates.append(rate)
        seconds[part.__name__] = round(time.perf_counter() - start, 1)
    wrong = [f"{rate.what}, {rate.world}" for rate in rates if not rate.is_ok]
    table = [{**asdict(rate), "rate": round(rate.hits / rate.runs, 5), "ok": rate.is_ok} for rate in rates]
    print(json.dumps({"runs": runs, "rates": table, "not_as_promised": wrong, "seconds": seconds}))


if __name__ == "__main__":
    main()
