"""Many simulated experiments, told one line each in a file, so that a run that was cut short goes on where it was.

A line holds the decision and every interval of each look, beside the true effects; `summary` counts over the lines.
Scenarios: `same` (the treatment shows the control's lists), `better` and `worse` (true relative effects on the primary
metric of plus and minus the planned minimum, for users whose window is over at the last look).
Who stops at the first verdict that is not `continue`, stops there; intervals are counted at all looks regardless.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from benchmarks.adoption_world import LOOKS, METRICS, Stage, declared, looks
from sonder.events.synthetic.true_effect import TrueEffect
from sonder.experiments.planning import Plan
from sonder.experiments.results import Analysis, Interval

SCENARIOS = ("same", "better", "worse")
POLICY = {"same": "control", "better": "better", "worse": "worse"}
NUM_TRUTH_DRAWS = 12  # of visits: the relative effects of the scenarios then move by less than .001
Truth = dict[str, dict[str, list[TrueEffect]]]  # by scenario, metric and look


def true_effects(stage: Stage) -> Truth:
    """Of each scenario, metric and look."""
    draws = [stage.visits(2_000_000 + number) for number in range(NUM_TRUTH_DRAWS)]
    return {
        scenario: {metric.name: [stage.truth(policy, metric, day, draws) for day in LOOKS] for metric in METRICS}
        for scenario, policy in POLICY.items()
    }


def simulate(
    stage: Stage, truth: Truth, planned: Plan, share: float, minimum_effect: float, counts: dict[str, int], file: Path
) -> Iterator[dict[str, Any]]:
    """The lines of `counts` repetitions of each scenario; those that the file has are not run again."""
    known = {(line["scenario"], line["repetition"]): line for line in read_lines(file)}
    for scenario, repetition in _in_turn(counts):
        if (line := known.get((scenario, repetition))) is None:
            experiment = declared(f"{scenario}-{repetition}", share, minimum_effect)
            seed = SCENARIOS.index(scenario) * 100_000 + repetition
            found = list(looks(stage, experiment, POLICY[scenario], seed, planned))
            line = told(scenario, repetition, found, truth[scenario])
            with file.open("a") as lines:
                lines.write(json.dumps(line) + "\n")
        yield line


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Of a file that may not be there."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def told(scenario: str, repetition: int, found: list[Analysis], truth: dict[str, list[TrueEffect]]) -> dict[str, Any]:
    """One repetition: decisions, and for each metric and look whether the intervals held the truth."""
    decisions = [analysis.verdict.decision for analysis in found]
    decided = [place for place, decision in enumerate(decisions) if decision != "continue"]
    intervals = {}
    for name, effects in truth.items():
        rows = []
        for analysis, effect in zip(found, effects, strict=True):
            made = analysis.effect(name, "treatment")
            fixed = None if made.estimate is None else made.estimate.interval
            rows.append({"fixed": holds(fixed, effect), "always_valid": holds(made.always_valid, effect)})
        intervals[name] = rows
    primary = found[-1].effects[0]
    return {
        "scenario": scenario,
        "repetition": repetition,
        "decisions": decisions,
        "stopped": decided[0] if decided else len(found) - 1,
        "users": primary.num_control + primary.num_treatment,
        "variance_reduction": primary.variance_reduction,
        "intervals": intervals,
    }


def holds(interval: Interval | None, effect: TrueEffect) -> dict[str, bool] | None:
    """Whether the bounds hold the true difference and the true relative one; None without an interval."""
    if interval is None or interval.lower is None or interval.upper is None:
        return None
    told = {"absolute": interval.lower <= effect.difference <= interval.upper}
    if interval.relative_lower is not None and interval.relative_upper is not None:
        told["relative"] = interval.relative_lower <= effect.relative <= interval.relative_upper
    return told


def summary(lines: list[dict[str, Any]], alpha: float, power: float) -> dict[str, Any]:
    """The rates, each with its 95 % interval (Clopper-Pearson) and n."""
    ends = {scenario: [_end(line) for line in lines if line["scenario"] == scenario] for scenario in SCENARIOS}
    wrong = [end in ("ship", "no") for end in ends["same"]]
    wrong += [end == "no" for end in ends["better"]] + [end == "ship" for end in ends["worse"]]
    return {
        "aa_rate": rate(end in ("ship", "no") for end in ends["same"]) | {"promised_at_most": alpha},
        "power": rate(end == "ship" for end in ends["better"]) | {"promised": power},
        "power_to_refuse": rate(end == "no" for end in ends["worse"]),
        "verdict_error_rate": rate(wrong),
        "verdict_errors_with_an_effect": rate(wrong[len(ends["same"]) :]),
        "blocked": rate(end == "blocked" for each in ends.values() for end in each),
        "stopped_early": rate(line["stopped"] < len(line["decisions"]) - 1 for line in lines),
        "interval_coverage": coverage(lines, "fixed") | {"nominal": 1 - alpha},
        "always_valid_coverage": covered_at_every_look(lines) | {"nominal_at_least": 1 - alpha},
        "coverage_by_metric": {
            metric.name: {kind: coverage(lines, "fixed", [metric.name], kind) for kind in ("absolute", "relative")}
            for metric in METRICS
        },
        "coverage_by_scenario": {
            scenario: coverage([line for line in lines if line["scenario"] == scenario], "fixed")
            for scenario in SCENARIOS
        },
    }


def coverage(
    lines: list[dict[str, Any]], which: str, metrics: Iterable[str] = ("clicks",), kind: str = "relative"
) -> dict[str, Any]:
    """Share of the intervals of the last look that hold the truth; of the primary metric unless others are named."""
    rows = (line["intervals"][name][-1][which] for line in lines for name in metrics)
    return rate(row[kind] for row in rows if row is not None and kind in row)


def covered_at_every_look(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of the experiments whose always-valid intervals of the primary metric hold the truth at all looks."""
    each = [[row["always_valid"] for row in line["intervals"]["clicks"]] for line in lines]
    return rate(all(row is None or row["absolute"] for row in rows) for rows in each)


def rate(happened: Iterable[bool]) -> dict[str, Any]:
    """Share with its 95 % Clopper-Pearson interval; no share of nothing."""
    found = list(happened)
    if not found:
        return {"rate": None, "n": 0}
    bounds = binomtest(sum(found), len(found)).proportion_ci()
    return {
        "rate": round(sum(found) / len(found), 4),
        "interval": [round(bounds.low, 4), round(bounds.high, 4)],
        "n": len(found),
    }


def _end(line: dict[str, Any]) -> str:
    decision: str = line["decisions"][line["stopped"]]
    return decision


def _in_turn(counts: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Scenarios in turn, so that a run that is cut short knows something of each."""
    most = max(counts.values())
    for step in range(most):
        for scenario, count in counts.items():
            if step * count // most < (step + 1) * count // most:
                yield scenario, step * count // most
