"""What `sonder canary status` prints: both arms side by side, or how the last trial ended."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from sonder.core.workspace import Workspace
from sonder.releases.canary import Canary, Ended, Trial
from sonder.releases.canary_counts import read_counts
from sonder.releases.canary_verdict import Comparison, broken, compare
from sonder.releases.registry import Registry


def show_canary(workspace: Workspace, json_file: Path | None) -> None:
    """Of the running trial what its gateways say now; of an ended one what was said last."""
    canary, current = Canary.read(workspace), Registry(workspace).current()
    trial = None if current is None else canary.trial_beside(current.release)
    told: dict[str, Any] = {"running": None, "also": list(canary.also), "comparisons": []}
    if trial is not None:
        counts = read_counts(workspace.canary_counts(trial.id), now_s=time.time())
        comparisons = compare(counts, trial.limits)
        told |= {"running": trial.model_dump(mode="json"), "gateways": counts.gateways, "dropped": counts.dropped}
        told["comparisons"] = [one.to_dict() for one in comparisons]
        _show_running(trial, comparisons, gateways=counts.gateways, dropped=counts.dropped)
    elif canary.ended:
        told["ended"] = canary.ended[0].model_dump(mode="json")
        _show_ended(canary.ended[0])
    else:
        typer.echo("No canary has run. `sonder canary start RELEASE` starts one.")
    if canary.also:
        typer.echo(f"Served by name beside the current release: {', '.join(canary.also)}.")
    if json_file is not None:
        json_file.write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2))
        typer.echo(f"Wrote {json_file}")


def _show_running(trial: Trial, comparisons: list[Comparison], *, gateways: int, dropped: int) -> None:
    now = datetime.now(UTC)
    for_minutes = (now - trial.started_at) / timedelta(minutes=1)
    typer.echo(
        f"{trial.mode.capitalize()} of {trial.candidate} beside {trial.served}: {trial.share_at(now):.1%} of the users "
        f"for {for_minutes:.0f} minutes, by {trial.started_by} ({trial.reason}). {gateways} gateways answer."
    )
    _table(comparisons)
    if trial.mode == "shadow":
        typer.echo(f"Both arms are the same users; {dropped:,} shadow answers were dropped under load.")
    else:
        typer.echo("The arms are different users: a PSI has their difference in it. --shadow compares the same ones.")
    if not gateways:
        typer.echo("No gateway has said anything in the last minute: is `sonder serve` running, and without --release?")
    elif why := broken(comparisons):
        typer.echo(f"A limit is broken, the gateways roll back: {why}")
    elif not any(one.is_judged for one in comparisons):
        typer.echo(f"Not enough answers for a verdict yet: {trial.limits.min_requests} of each arm.")


def _show_ended(ended: Ended) -> None:
    trial = ended.trial
    typer.echo(
        f"No canary is running. The last one, of {trial.candidate} beside {trial.served}, was "
        f"{ended.state.replace('_', ' ')} at {ended.ended_at:%Y-%m-%d %H:%M:%S} UTC by {ended.ended_by}: {ended.reason}"
    )
    if ended.numbers:
        _table([Comparison(**numbers) for numbers in ended.numbers.values()])


def _table(comparisons: list[Comparison]) -> None:
    table = Table("", "served", "candidate", "compared", "limit", "n served", "n candidate", "")
    for one in comparisons:
        if one.num_served or one.num_candidate:
            verdict = "broken" if one.is_broken else "" if one.is_judged else "too few"
            arms = [_number(value, one.name) for value in (one.served, one.candidate)]
            compared = [
                _number(value, "" if one.name.startswith("p99") else one.name) for value in (one.value, one.limit)
            ]
            table.add_row(one.name, *arms, *compared, f"{one.num_served:,}", f"{one.num_candidate:,}", verdict)
    Console().print(table)


def _number(value: float | None, name: str) -> str:
    if value is None:
        return ""
    if name.startswith("p99"):
        return f"{value * 1e3:.3g} ms"
    return f"{value:.2%}" if name.startswith(("degraded", "errors")) else f"{value:.3g}"
