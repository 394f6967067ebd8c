"""What `sonder release diff` shows, with `rich`: what changed first, what did not is counted. Computes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from pipelines.release_diff import ReleaseComparison
from pipelines.terminal import console
from pipelines.terminal_release import show_verdict
from sonder.evaluation.diff_page import psi_word
from sonder.evaluation.user_comparison import UserComparison
from sonder.releases.differences import Differences, MetricChange, ValueChange
from sonder.releases.gate import change_of, told

COLOURS = {"better": "green", "worse": "red", "not comparable": "yellow", "only in one": "yellow"}
NOT_SHOWN = ("size_bytes", "truth")  # groups that only the page and the JSON tell in full
MOST_VALUES = 12


def show_comparison(compared: ReleaseComparison) -> None:
    """Notes, metrics, users, settings, and what the gate would say."""
    differences = compared.differences
    console.print(f"[bold]{escape(differences.now)}[/bold] seen from {escape(differences.was)}", soft_wrap=True)
    for note in differences.notes if compared.verdict is None else ():
        console.print(f"[yellow]{escape(note)}[/yellow]", soft_wrap=True)
    if compared.verdict is not None:
        show_verdict(compared.verdict, "the configuration")
    _show_metrics(differences)
    _show_users(compared.users, compared.share)
    for title, changes in (
        ("Configuration", differences.config),
        ("Fields of a profile", differences.fields),
        ("Inputs", differences.inputs),
    ):
        _show_values(title, changes, differences)


def _show_metrics(differences: Differences) -> None:
    shown = [change for change in differences.metrics if _is_shown(change)]
    counts = ", ".join(f"{differences.count(kind)} {kind}" for kind in ("better", "worse", "same"))
    table = Table(title=f"Metrics: {counts}", title_justify="left")
    table.add_column("metric", overflow="fold")
    for name in (differences.was, differences.now, "change"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for change in shown:
        colour = COLOURS.get(change.judgement, "default")
        note = change.why or ("within chance" if change.is_chance else "")
        table.add_row(
            escape(change.name),
            told(change.was),
            told(change.now),
            change_of(change.was, change.now),
            f"[{colour}]{change.judgement}[/{colour}]" + (f" · {escape(note)}" if note else ""),
        )
    console.print(table if shown else "No metric that both have is different.")


def _is_shown(change: MetricChange) -> bool:
    return change.judgement != "same" and change.name.split(".")[0] not in NOT_SHOWN


def _show_users(users: UserComparison, share: float) -> None:
    sample = "" if share == 1 else f" (a sample of {share:.1%})"
    console.print(
        f"Users: {users.users:,} of both compared{sample}, {users.only_before:,} only in the first,"
        f" {users.only_after:,} only in the second.",
        soft_wrap=True,
    )
    if not users.users:
        return
    table = Table(title="Users, each release as of its own end", title_justify="left")
    for name in ("what", "how much", "reading"):
        table.add_column(name, overflow="fold")
    table.add_row("lifecycle state", f"{users.lifecycle.stayed:.1%}", "of users are in the same")
    agreement = f"of users are in the same; adjusted Rand index {users.clusters.agreement:.3f}"
    table.add_row("behaviour cluster", f"{users.clusters.stayed:.1%}", agreement)
    for shift in users.scores:
        mean = f"mean {shift.mean_before:.4f} to {shift.mean_after:.4f}"
        table.add_row(f"score {escape(shift.name)}", f"PSI {shift.psi:.3f}", f"{psi_word(shift.psi)}; {mean}")
    table.add_row("vectors", *_vector_cells(users))
    means = [sum(place * pair[side] for place, pair in enumerate(users.interests)) / users.users for side in (0, 1)]
    table.add_row("interests", f"{means[1]:.2f}", f"a user on average, {means[0]:.2f} before")
    console.print(table)


def _vector_cells(users: UserComparison) -> tuple[str, str]:
    vectors = users.vectors
    if vectors.movement is not None:
        quantiles = vectors.movement.quantiles
        return f"cosine {vectors.movement.median:.3f}", f"median; the lowest twentieth is below {quantiles['p05']:.3f}"
    if vectors.is_other_space:
        told_of = f"mean cosine {vectors.mean_raw:.3f}, {vectors.mean_turned:.3f} after the best rotation"
        return "different space", f"cosines say nothing: {told_of}"
    return "·", str(vectors.reason)


def _show_values(title: str, changes: Sequence[ValueChange], differences: Differences) -> None:
    if not changes:
        return
    table = Table(title=f"{title}: {len(changes)} different", title_justify="left")
    for name in ("key", differences.was, differences.now):
        table.add_column(name, overflow="fold")
    for change in changes[:MOST_VALUES]:
        table.add_row(
            *(escape("·" if value is None else str(value)) for value in (change.name, change.was, change.now))
        )
    console.print(table)
    if len(changes) > MOST_VALUES:
        console.print(f"{len(changes) - MOST_VALUES} more: --out or --json has them.", soft_wrap=True)
