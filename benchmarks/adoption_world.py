"""One simulated experiment after another: a world whose users react, and everything between them and a verdict.

A repetition draws visits, assigns the users by the experiment's own keys, shows each the list of the arm, draws what
they do, writes exposures and events as the gateway does, and looks several times: metrics from the log, analysis,
verdict. Assignment, exposures, metrics and analysis are the library's; only the serving is left out.
Time is in days of the world; the log ends at day 0, the experiment starts after PRE_DAYS in which all see the control.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import datetime, timedelta

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.adoption_policies import mixtures, share_for
from sonder.events.synthetic import WorldConfig
from sonder.events.synthetic.choices import SURFACE, Chances, Shown, choice_chances, choice_events, draw_choices, show
from sonder.events.synthetic.config import DAY_MS, START
from sonder.events.synthetic.true_effect import Policy, TrueEffect, true_effect
from sonder.events.synthetic.visits import CHOICES_STREAM, Visits, World, draw_visits
from sonder.experiments.analysis import analyse
from sonder.experiments.assignment import Allocation, assign_users
from sonder.experiments.exposures import first_exposures
from sonder.experiments.metrics import user_numbers
from sonder.experiments.planning import Plan, plan
from sonder.experiments.results import Analysis
from sonder.experiments.specification import Arm, Experiment, Guardrail, MetricSpec, Ranking

PLACES, DECAY = 10, 0.5  # of a list; how fast examination falls with the place
BASE_SHARE = 0.3  # of the control's places that hold something of the user's interests
WINDOW_DAYS, PRE_DAYS, ENROL_DAYS = 7.0, 14, 4
LOOKS = (8, 9, 12)  # days after the start; at the last no window of an enrolled user is open
METRICS = (
    MetricSpec(name="clicks", kind="count", action="click", surface=SURFACE, within_days=WINDOW_DAYS),
    MetricSpec(name="buyers", kind="conversion", action="buy", surface=SURFACE, within_days=WINDOW_DAYS),
    MetricSpec(
        name="saves-per-click", kind="ratio", action="save", per="click", surface=SURFACE, within_days=WINDOW_DAYS
    ),
    MetricSpec(name="saves", kind="count", action="save", surface=SURFACE, within_days=WINDOW_DAYS),
)


def declared(name: str, share: float, minimum_effect: float) -> Experiment:
    """The experiment of a repetition; its name is what the draws are keyed by."""
    return Experiment(
        name=name,
        hypothesis="Lists from each user's interests are clicked more than those of the control.",
        arms=(Arm(name="control"), Arm(name="treatment", ranking=Ranking(source="interests"))),
        share=share,
        metrics=METRICS,
        primary="clicks",
        guardrails=(Guardrail(metric="saves", margin=0.25),),
        minimum_effect=minimum_effect,
        max_days=ENROL_DAYS,
        pre_days=PRE_DAYS,
    )


@dataclass(frozen=True)
class Stage:
    """The world with the policies that are compared, and what is true of them."""

    world: World
    policies: dict[str, Policy]
    chances: dict[str, Chances]  # [U, K] of each policy

    @property
    def start_ms(self) -> int:
        return (self.world.config.num_days + PRE_DAYS) * DAY_MS

    def visits(self, seed: int, days: int = PRE_DAYS + LOOKS[-1]) -> Visits:
        return draw_visits(self.world, days, seed=seed)

    def truth(self, policy: str, metric: MetricSpec, look_day: int, visits: list[Visits]) -> TrueEffect:
        """Of a policy instead of the control's, for whom a look knows."""
        until_ms = self.start_ms + look_day * DAY_MS
        pair = self.policies["control"], self.policies[policy]
        return true_effect(self.world, *pair, metric, visits, start_ms=self.start_ms, until_ms=until_ms, decay=DECAY)


def build_stage(num_users: int, seed: int, minimum_effect: float) -> Stage:
    """A control, and policies whose true relative effects on clicks are the minimum effect up and down."""
    world = World.of(WorldConfig(num_users, 30, seed))
    lists = mixtures(world, PLACES, seed=seed)
    draws = [draw_visits(world, PRE_DAYS + LOOKS[-1], seed=1_000_000 + number) for number in range(3)]
    stage = Stage(world, {"control": lists(BASE_SHARE)}, {})

    def effect(share: float) -> float:
        trial = Stage(world, {**stage.policies, "trial": lists(share)}, {})
        return trial.truth("trial", METRICS[0], LOOKS[-1], draws).relative

    policies = dict(stage.policies)
    for name, wanted in (("better", minimum_effect), ("worse", -minimum_effect)):
        policies[name] = lists(share_for(effect, wanted))
    everyone = np.arange(world.people.num_users)
    day = np.full(len(everyone), world.config.num_days)
    chances = {name: choice_chances(world, everyone, day, policy, decay=DECAY) for name, policy in policies.items()}
    return Stage(world, policies, chances)


def plan_size(stage: Stage, minimum_effect: float, seed: int) -> Plan:
    """From a past period in which everybody saw the control: the same windows, one look."""
    experiment = declared("baseline", 1.0, minimum_effect)
    visits = stage.visits(seed)
    events = _events(stage, visits, np.zeros(stage.world.people.num_users, dtype=np.bool_), "control", seed)
    exposed, _ = first_exposures(_exposures(stage, visits, np.full(len(stage.world.user_ids), "control"), experiment))
    baseline = user_numbers(experiment, exposed, events, until=_at(stage, LOOKS[-1]))
    return plan(experiment, baseline, users_per_day=exposed.height / ENROL_DAYS)


def looks(stage: Stage, experiment: Experiment, policy: str, seed: int, planned: Plan) -> Iterator[Analysis]:
    """Run one experiment whose treatment shows a policy; yields the analysis of each look."""
    arms = assign_users(Allocation.of(experiment), stage.world.user_ids.to_pylist(), experiment.share)
    takes_part = arms.is_not_null().to_numpy()
    visits = stage.visits(seed)
    visits = visits.of(takes_part[visits.user])
    events = _events(stage, visits, (arms == "treatment").fill_null(False).to_numpy(), policy, seed)
    rows = _exposures(stage, visits, arms.to_numpy(), experiment)
    for day in LOOKS:
        until = _at(stage, day)
        exposed, num_in_several = first_exposures(rows.filter(pl.col("exposed_at") < until))
        yield analyse(
            experiment,
            user_numbers(experiment, exposed, events, until=until),
            exposures_by_arm=dict(exposed["arm"].value_counts().iter_rows()),
            num_in_several=num_in_several,
            until=until,
            planned=planned,
        )


def _events(stage: Stage, visits: Visits, is_treated_U: NDArray[np.bool_], policy: str, seed: int) -> pl.DataFrame:
    """What everybody did who came: lists of the control before the start, of the arm from then on."""
    treated = is_treated_U[visits.user] & (visits.time_ms >= stage.start_ms)
    pair = stage.chances["control"], stage.chances[policy]
    mixed = {
        one.name: np.where(treated[:, None], *(getattr(c, one.name)[visits.user] for c in reversed(pair)))
        for one in fields(Chances)
    }
    lists = (stage.policies[name][visits.user] for name in (policy, "control"))
    shown: Shown = show(visits, np.where(treated[:, None], *lists))
    rng = stage.world.config.generator(CHOICES_STREAM, seed)
    choices = draw_choices(rng, Chances(**mixed))
    table = choice_events(rng, stage.world, shown, choices, has_impressions=False)
    frame = pl.DataFrame(pl.from_arrow(table.select(["user_id", "action", "timestamp", "surface", "value"])))
    return frame.with_columns(pl.col("user_id", "action", "surface").cast(pl.String))


def _exposures(stage: Stage, visits: Visits, arm_U: NDArray[np.object_], experiment: Experiment) -> pl.DataFrame:
    """A row of each visit from the start on, in the columns that `first_exposures` reads."""
    after = visits.of(visits.time_ms >= stage.start_ms)
    user_ids = pl.Series(stage.world.user_ids).gather(after.user)
    at = pl.Series(after.time_ms * 1_000 + int(START.timestamp()) * 1_000_000).cast(pl.Datetime("us", "UTC"))
    return pl.DataFrame({"user_id": user_ids, "arm": arm_U[after.user], "exposed_at": at})


def _at(stage: Stage, day: float) -> datetime:
    return START + timedelta(milliseconds=stage.start_ms) + timedelta(days=day)
