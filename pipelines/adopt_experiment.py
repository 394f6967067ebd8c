"""The experiment that would answer what offline evidence cannot, derived from the configuration, with its sample size.

Primary metric: the share of users who do the first score's action within its days (at most two weeks, so that an answer
comes in time). Guardrails: refusals, where the log has an action of a negative weight, and coming back after a week.
It is a proposal: `sonder adopt` writes it as YAML, to be edited before `sonder experiment start`.
"""

from __future__ import annotations

from pipelines.experiment_analysis import plan_experiment
from sonder.core.config import SonderConfig
from sonder.core.errors import ConfigurationError
from sonder.core.workspace import Workspace
from sonder.experiments.planning import Plan
from sonder.experiments.specification import Arm, Experiment, Guardrail, MetricSpec
from sonder.history.vocabulary import Vocabulary
from sonder.releases.artefacts import Release

LONGEST_WINDOW_DAYS = 14
REFUSALS_MARGIN, RETENTION_MARGIN = 0.05, 0.02


def planned_experiment(
    config: SonderConfig, candidate_id: str, *, minimum_effect: float, num_workers: int | None = None
) -> tuple[Experiment, Plan]:
    """The proposal, and how many users it needs by what the log says of the metrics."""
    release = Release.open(Workspace.at(config.workspace), candidate_id)
    experiment = propose(config, candidate_id, Vocabulary.load(release.items), minimum_effect=minimum_effect)
    return experiment, plan_experiment(config, experiment, num_workers=num_workers)


def propose(config: SonderConfig, candidate_id: str, vocabulary: Vocabulary, *, minimum_effect: float) -> Experiment:
    """Control is what is served then; ConfigurationError where no score names an action."""
    wanted = [task for task in config.scores if task.action is not None]
    if not wanted:
        raise ConfigurationError(
            "No score of the configuration names an action",
            expected="one such as {name: buy_7d, action: buy, within_days: 7}",
            do="Declare one, or write the experiment by hand (docs/experimentation.md).",
        )
    action, days = wanted[0].action, min(float(wanted[0].within_days), LONGEST_WINDOW_DAYS)
    weights = dict(zip(vocabulary.actions, vocabulary.action_weights, strict=True))
    unwanted = [name for name, weight in weights.items() if weight < 0]
    metrics = [MetricSpec(name="converted", kind="conversion", action=action, within_days=days),
               MetricSpec(name="returned_d7", kind="retention", day=7)]  # fmt: skip
    guardrails = [Guardrail(metric="returned_d7", margin=RETENTION_MARGIN)]
    for name in unwanted[:1]:  # one, the first of the log's
        metrics.append(
            MetricSpec(name="refused", kind="count", action=name, within_days=days, cap=0.99, wanted="decrease")
        )
        guardrails.append(Guardrail(metric="refused", margin=REFUSALS_MARGIN))
    return Experiment(
        name=f"adopt-{candidate_id}",
        hypothesis=f"Users who are answered by {candidate_id} {action} more often within {days:g} days.",
        arms=(Arm(name="current"), Arm(name="candidate", release=candidate_id)),
        ramp=(),
        metrics=tuple(metrics),
        primary="converted",
        guardrails=tuple(guardrails),
        minimum_effect=minimum_effect,
    )
