"""What is promised of intervals, tests and verdicts, held against simulation (benchmarks.experiment_intervals).

A rate fails where chance once in a thousand does not explain it; seeds are fixed.
"""

from collections.abc import Callable, Iterator
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from benchmarks import experiment_intervals as benchmark
from benchmarks.experiment_draws import WORLDS, at_looks, errors_of
from benchmarks.experiment_intervals import Rate
from sonder.experiments import sequential
from sonder.experiments.analysis import analyse
from sonder.experiments.planning import Plan
from tests.user_frames import START

Part = Callable[[int], Iterator[Rate]]
PARTS: list[Part] = [
    benchmark.fixed,
    benchmark.many,
    benchmark.always_valid,
    benchmark.verdicts,
    benchmark.three_arms,
    benchmark.guardrails,
    benchmark.checks,
]


@pytest.mark.parametrize(
    ("part", "runs"), [(benchmark.fixed, 50), (benchmark.always_valid, 60), (benchmark.checks, 100)]
)
def test_few_runs_are_as_promised(part: Part, runs: int) -> None:
    assert [rate.told() for rate in part(runs) if not rate.is_ok] == []


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("part", PARTS)
def test_two_thousand_runs_are_as_promised(part: Part) -> None:
    assert [rate.told() for rate in part(2_000) if not rate.is_ok] == []


def test_a_rate_that_is_wrong_is_seen() -> None:
    assert not Rate("missed", "w", 140, 2_000, 0.05).is_ok
    assert not Rate("missed", "w", 60, 2_000, 0.05).is_ok
    assert not Rate("missed", "w", 140, 2_000, 0.05, "at most").is_ok
    assert Rate("missed", "w", 60, 2_000, 0.05, "at most").is_ok
    assert not Rate("found", "w", 1_530, 2_000, 0.8, "at least").is_ok


@pytest.mark.parametrize("up", [1.0, 1.2])
def test_the_simulated_rule_is_the_verdicts(up: float) -> None:
    """One run, five looks: `analyse` of the frame at each look against the rule on arrays, as the benchmark has it."""
    world, looks, per_look = WORLDS["mean, CUPED"], 5, 130
    what = benchmark.planned_experiment(world, 0.1)
    size = looks * per_look
    made = benchmark.plan_of(world, 0.1)
    made = Plan.model_validate({**made.model_dump(), "users_by_arm": {"arm0": size, "arm1": size}})
    rng = np.random.default_rng(21)
    drawn = [world.draw(rng, (1, looks, per_look), one) for one in (1.0, up)]
    level = made.alpha_of_each_arm
    batch = errors_of(*at_looks(world, drawn), world.columns)
    signs = benchmark._signs(*batch, sequential.tuning(2 * size, level), level, sequential.last_level(level))[0]
    frame = pl.concat(
        pl.DataFrame(
            {
                "user_id": [f"{arm}-{number}" for number in range(size)],
                "arm": f"arm{arm}",
                "exposed_at": [START + timedelta(hours=number // per_look) for number in range(size)],
                **{name: array.reshape(-1) for name, array in users.items()},
            }
        )
        for arm, users in enumerate(drawn)
    )
    for look, sign in enumerate(signs, start=1):
        until = START + timedelta(days=3, hours=look - 1)
        seen = frame.filter(pl.col("exposed_at") <= until - timedelta(days=3))
        found = analyse(
            what,
            seen,
            exposures_by_arm={"arm0": look * per_look, "arm1": look * per_look},
            num_in_several=0,
            until=until,
            planned=made,
        )
        nothing = "no_effect" if look == looks else "continue"
        assert found.verdict.decision == {1: "ship", -1: "no", 0: nothing}[int(sign)]
