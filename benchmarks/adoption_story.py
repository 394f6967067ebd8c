"""One whole story: two releases, a plan, an experiment at the real gateway, users who react, a verdict, and the truth.

    python -m benchmarks.adoption_story [--folder .bench/adoption-story] [--users 3500] [--day-seconds 30]

A small synthetic world is written, its log moved so that it ends now, and built twice, into `rough` and `trained`
(benchmarks.adoption_releases). Then
1. the gateway serves `rough` to everybody, for BEFORE_DAYS days of the world: what the experiment is planned from
2. `plan` names the users needed; the experiment is started in the registry, control `rough`, treatment `trained`
3. users come for DAYS days, are answered by their arm, react by the world's choice model, and post their events
   (benchmarks.adoption_traffic); the gateway assigns and logs exposures
4. exposures and events are read back from where the product keeps them: `measure`, `analyse`, verdict
Time is compressed: a day of the world takes `--day-seconds` seconds. Exposures and events carry the wall clock, so the
metric's window, the period before exposure and `max_days` are declared in fractions of a real day.
The truth: at each visit the other arm's list is asked for too, by the name of its release, and the choice model gives
the clicks that each of the two lists would get. Summed over every mature user's window, that is the true effect given
the visits and what each user had done by then; how the other arm's history would have changed later lists is not in it.
Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.adoption_releases import Releases, build_releases
from benchmarks.adoption_traffic import Told, pass_days
from sonder.core.config import load
from sonder.events.synthetic import WorldConfig
from sonder.events.synthetic.choices import SURFACE
from sonder.events.synthetic.visits import World, draw_visits
from sonder.experiments.analysis import analyse
from sonder.experiments.metrics import user_numbers
from sonder.experiments.planning import Plan, plan
from sonder.experiments.registry import Experiments
from sonder.experiments.specification import Arm, Experiment, MetricSpec

NAME = "rough-or-trained"
BEFORE_DAYS, WINDOW_DAYS, DAYS = 4, 3, 8  # of the world
MINIMUM_EFFECT = 0.25
BY = "adoption story"


def declared(releases: Releases, day_s: float) -> Experiment:
    """The experiment, its days in seconds."""
    day = day_s / 86_400
    return Experiment(
        name=NAME,
        hypothesis="What the trained encoder recommends is clicked more than what the rough one recommends.",
        arms=(Arm(name="rough", release=releases.rough), Arm(name="trained", release=releases.trained)),
        metrics=(
            MetricSpec(name="clicks", kind="count", action="click", surface=SURFACE, within_days=WINDOW_DAYS * day),
            MetricSpec(name="buyers", kind="conversion", action="buy", surface=SURFACE, within_days=WINDOW_DAYS * day),
            MetricSpec(name="hides", kind="count", action="hide", surface=SURFACE, within_days=WINDOW_DAYS * day,
                       wanted="decrease"),
        ),
        primary="clicks",
        minimum_effect=MINIMUM_EFFECT,
        max_days=300 * day,  # a gateway ends what is over, and with it the windows; visits may come late under load
        pre_days=BEFORE_DAYS * day,
    )  # fmt: skip


def plan_from(told: Told, releases: Releases, world: World, experiment: Experiment) -> Plan:
    """From the users of the first phase: everybody exposed by the first visit, as in the experiment."""
    from pipelines.experiment_log import ExperimentLog

    ids = world.user_ids.to_pylist()
    moments = (pl.col("at_s") * 1e6).cast(pl.Datetime("us", "UTC")).alias("exposed_at")
    visits = pl.DataFrame({"user_id": [ids[user] for user in told.user], "at_s": told.at_s})
    first = visits.group_by("user_id").agg(pl.col("at_s").min())
    exposed = first.select("user_id", pl.lit("rough").alias("arm"), moments)
    events = ExperimentLog.open(load(releases.file)).online
    baseline = user_numbers(experiment, exposed, events, until=datetime.now(UTC))
    per_day = exposed.height / (max(told.at_s) - min(told.at_s)) * 86_400
    return plan(experiment, baseline, users_per_day=per_day)


def true_relative(told: Told, world: World, users: pl.DataFrame, window_s: float) -> dict[str, float]:
    """Expected clicks of both lists at the visits in the windows of mature users."""
    ids = world.user_ids.to_pylist()
    start = dict(users.select("user_id", pl.col("exposed_at").dt.epoch("us") / 1e6).iter_rows())
    first = np.array([start.get(ids[user], np.inf) for user in told.user])
    at = np.asarray(told.at_s)
    inside = (at >= first - 1) & (at < first + window_s)  # the client knows of an answer just after the gateway
    own, other = np.asarray(told.expected).T
    inside &= ~np.isnan(other)
    is_trained = np.asarray(told.arm) == "trained"
    rough, trained = (
        float(np.where(is_trained == of_trained, own, other)[inside].sum()) for of_trained in (False, True)
    )
    return {
        "rough": rough / users.height,
        "trained": trained / users.height,
        "relative": trained / rough - 1,
        "visits": int(inside.sum()),
    }


def run(releases: Releases, day_s: float, seed: int) -> dict[str, Any]:
    """Serve, plan, start, live, measure, analyse, stop."""
    from pipelines.experiment_metrics import measure
    from services.gateway.proxy import free_ports
    from services.gateway.start import started

    world, experiment = World.of(releases.config), declared(releases, day_s)
    visits = draw_visits(world, BEFORE_DAYS + DAYS, seed=seed)
    is_before = visits.day < releases.config.num_days + BEFORE_DAYS
    registry = Experiments(releases.workspace)
    (port,) = free_ports(1)
    with started(releases.workspace.root.uri, port=port) as url:
        before = asyncio.run(pass_days(url, world, visits.of(is_before), day_s=day_s, seed=seed, experiment=NAME))
        planned = plan_from(before, releases, world, experiment)
        print(f"planned: {planned.users_by_arm}, {planned.users_per_day:,.0f} new users a real day", flush=True)
        registry.plan(experiment, by=BY)
        registry.start(NAME, by=BY, reason="planned")
        until_served(url, NAME)
        of_arms = {"rough": releases.rough, "trained": releases.trained}
        told = asyncio.run(
            pass_days(url, world, visits.of(~is_before), day_s=day_s, seed=seed + 1, experiment=NAME, releases=of_arms)
        )
        until = datetime.now(UTC)
        time.sleep(7)  # exposures are written every 5 s
        registry.stop(NAME, by=BY, reason="the story is over")
    measured = measure(load(releases.file), experiment, until=until)
    counts = measured.manifest["counts"]
    analysis = analyse(
        experiment,
        measured.users,
        exposures_by_arm=measured.manifest["users"],
        num_in_several=counts["in_several_arms"],
        until=until,
        planned=planned,
    )
    mature = measured.users.filter(pl.col("clicks").is_not_null())
    effect = analysis.effect("clicks", "trained")
    return {
        "bench": "adoption_story",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "users_of_the_world": world.people.num_users,
        "day_s": day_s,
        "traffic": {name: _told(one) for name, one in (("before", before), ("during", told))},
        "planned": planned.users_by_arm,
        "exposures": counts | {"by_arm": measured.manifest["users"], "mature": mature.height},
        "agreement": agreement(told, world, measured.users),
        "srm_p": analysis.srm.p_value,
        "effects": {one.metric: json.loads(one.model_dump_json()) for one in analysis.effects},
        "estimate": None if effect.estimate is None else effect.estimate.interval.relative,
        "truth": true_relative(told, world, mature, WINDOW_DAYS * day_s),
        "verdict": json.loads(analysis.verdict.model_dump_json()),
    }


def until_served(url: str, name: str, timeout_s: float = 120.0) -> None:
    """Wait until the gateway assigns users of the experiment; TimeoutError after a while."""
    import httpx

    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends:
        answer = httpx.get(f"{url}/v1/experiments/{name}/assignment?user_id=u0000001", trust_env=False)
        if answer.status_code == 200 and answer.json()["arm"] is not None:
            return
        time.sleep(0.5)
    raise TimeoutError(f"{name} is not served after {timeout_s:g} s: {answer.text}")


def agreement(told: Told, world: World, users: pl.DataFrame) -> dict[str, int]:
    """Visits whose header names the arm that the exposure log has of the user, of all."""
    ids, arms = world.user_ids.to_pylist(), dict(users.select("user_id", "arm").iter_rows())
    is_same = [arms.get(ids[user]) == arm for user, arm in zip(told.user, told.arm, strict=True)]
    return {"same_arm": sum(is_same), "visits": len(told.user)}


def _told(told: Told) -> dict[str, Any]:
    milliseconds = np.percentile(told.latencies_s, [50, 99]) * 1_000
    return {
        "visits": len(told.user),
        "events": told.events,
        "statuses": dict(told.statuses),
        "statuses_of_the_other_list": dict(told.other_statuses),
        "fallbacks": told.fallbacks,
        "p50_ms": round(milliseconds[0], 1),
        "p99_ms": round(milliseconds[1], 1),
        "latest_s": round(told.late_s, 2),
        "seconds": round(max(told.at_s) - min(told.at_s)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(".bench/adoption-story"))
    parser.add_argument("--users", type=int, default=3_500)
    parser.add_argument("--days", type=int, default=60)
    parser.add_argument("--day-seconds", type=float, default=30.0)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=11)
    given = parser.parse_args()
    releases = build_releases(WorldConfig(given.users, given.days, given.seed), given.folder, epochs=given.epochs)
    print(f"{releases.rough} and {releases.trained} of {given.days} days", flush=True)
    print(json.dumps(run(releases, given.day_seconds, given.seed)))


if __name__ == "__main__":
    main()
