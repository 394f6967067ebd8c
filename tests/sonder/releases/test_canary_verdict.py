"""The rule by which a canary is rolled back, on simulated traffic: never for equal arms, soon for a worse one."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from benchmarks.canary_traffic import LIMITS, Traffic, binned_scores
from sonder.releases.canary_counts import Counts, Tally, latency_bin, score_bin
from sonder.releases.canary_verdict import broken, compare, noise_floor, p99, psi


def test_equal_arms_are_not_rolled_back() -> None:
    """120 trials of 40 looks; benchmarks/canary.py makes the longer run whose rate is stated."""
    for share, per_slot in ((0.05, 300), (0.5, 60), (0.01, 3_000)):
        for seed in range(40):
            traffic = Traffic(seed, share=share, per_slot=per_slot)
            assert traffic.slots_until_broken(40) is None, traffic.counts


@pytest.mark.parametrize(
    ("worse", "what"),
    [
        ({"factor": 4.0}, "p99 stored"),
        ({"degraded": 0.2}, "degraded stored"),
        ({"errors": 0.1}, "errors stored"),
        ({"shift": 0.05}, "psi buy_30d"),
    ],
)
def test_a_worse_candidate_is_found_within_minutes(worse: dict[str, float], what: str) -> None:
    for seed in range(10):
        traffic = Traffic(seed, share=0.2)
        taken = traffic.slots_until_broken(60, **worse)
        assert taken is not None, f"seed {seed}"
        assert taken <= (18 if "psi" not in what else 30)
        assert what in str(broken(compare(traffic.counts, LIMITS)))


def test_what_breaks_after_a_good_time_is_found_by_the_recent_slots() -> None:
    traffic = Traffic(3, share=0.2)
    assert traffic.slots_until_broken(100) is None
    taken = traffic.slots_until_broken(12, degraded=0.06)
    assert taken is not None
    whole = traffic.counts.total("candidate", "stored")
    assert whole.degraded / whole.requests < LIMITS.degraded  # over the whole window it would not be seen


def test_what_is_worse_within_its_limit_stays() -> None:
    for seed in range(10):
        traffic = Traffic(seed, share=0.3)
        assert traffic.slots_until_broken(60, factor=1.3, degraded=0.008, errors=0.004, shift=0.004) is None


def test_one_stall_is_no_verdict_and_a_second_one_is() -> None:
    traffic = Traffic(5, share=0.2)
    for _ in range(10):
        traffic.pass_slot()
    assert broken(traffic.pass_slot(degraded=1.0, factor=50)) is None
    for _ in range(5):
        assert broken(traffic.pass_slot()) is None
    assert broken(traffic.pass_slot(degraded=1.0)) is not None


def test_before_enough_answers_nothing_is_judged() -> None:
    traffic = Traffic(1, share=0.5, per_slot=190)
    comparisons = [*traffic.pass_slot(degraded=1.0, errors=1.0, factor=100), *traffic.pass_slot(degraded=1.0)]
    judged = [one for one in comparisons if one.is_judged]
    assert judged == []
    assert broken(comparisons) is None


def test_a_fault_of_both_arms_is_nobodys() -> None:
    traffic = Traffic(2, share=0.3)
    for _ in range(30):
        traffic.pass_slot()
        for tally in traffic.counts.slots[traffic.slot].values():
            tally.degraded = tally.requests
    assert broken(compare(traffic.counts, LIMITS)) is None


def test_what_is_fast_is_not_slow_whatever_the_ratio() -> None:
    slots = {
        number: {
            ("served", "stored"): Tally(500, 0, 0, Counter({latency_bin(20e-6): 500})),
            ("candidate", "stored"): Tally(500, 0, 0, Counter({latency_bin(900e-6): 500})),
        }
        for number in range(5)
    }
    assert broken(compare(Counts(slots, gateways=1), LIMITS)) is None  # type: ignore[arg-type]


def test_scores_of_one_arm_alone_are_not_compared() -> None:
    users = Counter({score_bin(0.1): 900, score_bin(0.5): 100})
    counts = Counts(scores={"served": {"old": users, "both": users}, "candidate": {"new": users, "both": users}})
    assert [one.name for one in compare(counts, LIMITS) if one.name.startswith("psi")] == ["psi both"]


def test_psi_of_equal_arms_stays_below_its_noise_floor_as_often_as_it_says() -> None:
    draw = np.random.default_rng(11)
    passed, trials = 0, 1_000
    for _ in range(trials):
        served, candidate = (binned_scores(draw.beta(2, 18, num)) for num in (2_000, 300))
        value, num_bins = psi(served, candidate)
        passed += value > noise_floor(2_000, 300, num_bins, alpha=0.05)
    assert passed / trials == pytest.approx(0.05, abs=0.02)


def test_psi_is_none_of_equal_counts_grows_with_the_shift_and_takes_discrete_scores() -> None:
    draw = np.random.default_rng(1)
    base = draw.beta(2, 18, 5_000)
    values = []
    for shift in (0.0, 0.01, 0.03, 0.1):
        served, candidate = (binned_scores(scores) for scores in (base, base + shift))
        values.append(psi(served, candidate)[0])
    assert values[0] == 0
    assert all(one < other for one, other in pairwise(values))
    steps = Counter({score_bin(0.02): 700, score_bin(0.4): 300})
    assert psi(steps, steps) == (0.0, 2)
    assert psi(Counter({score_bin(0.1): 50}), Counter({score_bin(0.1): 70}))[1] == 1
    assert psi(Counter(), steps) == (0.0, 1)


def test_the_percentile_is_that_of_the_answers() -> None:
    tally = Tally(1000, 0, 0, Counter({latency_bin(0.002): 985, latency_bin(0.5): 15}))
    assert p99(tally) == pytest.approx(0.5, rel=0.1)
    assert p99(Tally(1000, 0, 0, Counter({latency_bin(0.002): 995, latency_bin(0.5): 5}))) == pytest.approx(
        0.002, rel=0.1
    )
    assert p99(Tally()) == 0.0
