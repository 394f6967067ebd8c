"""What `sonder experiment` and `sonder adopt` show, with `rich`: the word first. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.markup import escape
from rich.table import Table

from pipelines.adopt import Adoption
from pipelines.adopt_page import WORDS as ADOPTION_WORDS
from pipelines.experiment_page import (
    preference_sentence,
    preference_word,
    split_sentence,
    told_change,
    told_p,
    told_relative,
    word_of,
)
from pipelines.terminal import console
from sonder.experiments.interleaving_analysis import Preference
from sonder.experiments.planning import Plan
from sonder.experiments.results import Analysis
from sonder.experiments.specification import Experiment
from sonder.experiments.versions import Version

COLOURS = {"ship": "green", "no": "red", "blocked": "red", "continue": "yellow", "no_effect": "yellow",
           "experiment": "yellow", "better": "green", "worse": "red", "even": "default", "unknown": "bright_black",
           "holds": "green", "broken": "red", "undecided": "yellow"}  # fmt: skip


def show_plan(experiment: Experiment, plan: Plan) -> None:
    """How many users each metric asks for, and how long that takes."""
    table = Table(
        title=f"{experiment.name}: power {plan.power:.0%}, level {experiment.alpha:.0%}", title_justify="left"
    )
    for name in ("metric", "as", "mean", "CUPED takes", "to find", "users per arm", "of all until max_days"):
        table.add_column(name, justify="left" if name in ("metric", "as") else "right")
    for one in plan.metrics:
        needed = one.needed
        table.add_row(
            one.metric,
            one.role,
            f"{one.mean:.4g}",
            f"{one.variance_reduction:.0%}",
            "·" if one.effect is None else f"{one.effect:.1%}",
            "·" if needed is None else f"{max(needed.by_arm.values()):,}",
            "·" if one.detectable is None else f"finds {one.detectable:.1%}",
        )
    console.print(table)
    told = ", ".join(f"{arm} {users:,}" for arm, users in plan.users_by_arm.items())
    price = f"Looking at any time costs {plan.price_of_looking:.0%} more."
    console.print(f"Users: {told}, decided by {plan.decided_by}. {price}", soft_wrap=True)
    if plan.users_per_day is not None:
        days = "never reach it" if plan.days is None else f"reach it in {plan.days:,.0f} days, the last window included"
        console.print(f"{plan.users_per_day:,.0f} new users a day {days}.", soft_wrap=True)
    if plan.is_feasible is False:
        console.print(
            f"[yellow]More than max_days ({experiment.max_days:g}): ask for a larger effect, a larger share, or "
            "longer.[/yellow]",
            soft_wrap=True,
        )


def show_versions(versions: Sequence[Version], *, now: datetime) -> None:
    """The newest version of each experiment."""
    if not versions:
        console.print("No experiment. `sonder experiment plan FILE` makes one.")
        return
    table = Table(title="Experiments", title_justify="left")
    for name in ("experiment", "state", "arms", "share now", "since", "layer", "changed"):
        table.add_column(name, overflow="fold")
    for one in versions:
        share = f"{one.share_at(now):.1%}" if one.state == "running" else "·"
        since = "·" if one.started_at is None else f"{one.started_at:%Y-%m-%d %H:%M}"
        arms = ", ".join(arm.name for arm in one.experiment.arms)
        changed = f"{one.changed_at:%Y-%m-%d %H:%M} {escape(one.changed_by)}: {escape(one.reason)}"
        table.add_row(one.name, one.state, arms, share, since, one.experiment.layer or "its own", changed)
    console.print(table)


def show_history(versions: Sequence[Version]) -> None:
    """Everything that was changed, by whom and why."""
    for one in versions:
        changed = f"v{one.version:03d}  {one.changed_at:%Y-%m-%d %H:%M}  {one.state:8}"
        console.print(f"{changed} {escape(one.changed_by)}: {escape(one.reason)}", soft_wrap=True)


def show_exposures(counts: Mapping[str, Any]) -> None:
    """How many users each arm has by now, and whether they divide as they should."""
    table = Table(title="Exposed users", title_justify="left")
    for name in ("arm", "users", "share"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    total = max(1, sum(counts.values()))
    for arm, users in counts.items():
        table.add_row(arm, f"{users:,}", f"{users / total:.1%}")
    console.print(table)


def show_analysis(experiment: Experiment, analysis: Analysis) -> None:
    """The verdict with its reasons, then each metric in each arm."""
    colour = COLOURS[analysis.verdict.decision]
    console.print(f"[bold {colour}]{escape(word_of(analysis))}[/]")
    for reason in analysis.verdict.reasons:
        console.print(f"  {escape(reason)}", soft_wrap=True)
    console.print(escape(split_sentence(analysis)), soft_wrap=True)
    table = Table(
        title=f"Change against {experiment.control.name}, until {analysis.until:%Y-%m-%d %H:%M}", title_justify="left"
    )
    for name in ("metric", "as", "arm", "change", "interval", "always valid", "p, adjusted"):
        table.add_column(name, justify="left" if name in ("metric", "as", "arm") else "right", overflow="fold")
    for one in analysis.effects:
        interval = one.estimate.interval if one.estimate else None
        table.add_row(one.metric, one.role, one.arm, told_change(one), told_relative(interval),
                      told_relative(one.always_valid), told_p(one.p_adjusted))  # fmt: skip
    console.print(table)
    for found in analysis.guardrails:
        console.print(
            f"Guardrail {found.metric}, {found.arm}: [{COLOURS[found.state]}]{found.state}[/] within {found.margin:.1%}"
        )


def show_preference(experiment: Experiment, one: Preference) -> None:
    """Whom users prefer."""
    console.print(f"[bold]{escape(preference_word(experiment, one))}[/bold]")
    console.print(escape(preference_sentence(experiment, one)), soft_wrap=True)


def show_adoption(found: Adoption) -> None:
    """The word, its reasons, and all findings by area."""
    word = found.decision.word
    console.print(f"[bold {COLOURS[word]}]{ADOPTION_WORDS[word]}[/]: {found.candidate} beside {found.current}")
    for reason in found.decision.reasons:
        console.print(f"  {escape(reason)}", soft_wrap=True)
    table = Table(title="Findings", title_justify="left")
    for name in ("area", "judged", "finding"):
        table.add_column(name, overflow="fold")
    for finding in found.findings:
        judged = "blocks" if finding.blocks else finding.judgement
        colour = "red" if finding.blocks else COLOURS[finding.judgement]
        table.add_row(finding.area, f"[{colour}]{judged}[/]", escape(finding.sentence))
    console.print(table)
    for part, why in found.missing.items():
        console.print(f"Not measured, {part}: {escape(why)}", soft_wrap=True)
