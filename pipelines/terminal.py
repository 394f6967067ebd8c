"""What the command line shows: tables and stories, with `rich`. Reads results, computes nothing.

Every number names its protocol, its k and its cutoff; recall stands beside coverage.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from pipelines.story import Story
from sonder.core.config import SonderConfig
from sonder.core.workspace import Workspace
from sonder.releases.registry import Registry

MODELS = {"encoder": "Sonder encoder", "item_knn": "item-kNN (cosine)", "popularity": "popularity"}
METRICS = {
    "hr_at_10": "HR@10",
    "ndcg_at_10": "NDCG@10",
    "hr_at_10_unseen": "HR@10 new items",
    "ndcg_at_10_unseen": "NDCG@10 new items",
    "p90_coverage_at_10": "P90 coverage@10",
}
console = Console(highlight=False)


def show_rows(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title, title_justify="left")
    for name in rows[0] if rows else ["no rows"]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(value)) if value is not None else "·" for value in row.values()))
    console.print(table)


def show_audience(facts: dict[str, Any]) -> None:
    """The reach curve of a lookalike, what became of the seeds, and how it was measured."""
    seeds, held_out = facts["seeds"], facts["held_out"]
    console.print(
        f"{seeds['used']:,} of {seeds['given']:,} seeds used; {seeds['unknown']:,} unknown to the release, "
        f"{seeds['cold']:,} without a vector. {facts['ranked_users']:,} others ranked as of {facts['as_of']}."
    )
    for warning in facts["warnings"]:
        console.print(f"[yellow]{escape(warning)}[/yellow]")
    table = Table(title="Reach", title_justify="left")
    names = (
        "users",
        "of all",
        "similarity of the last",
        "held-out seeds found",
        "lift",
        "precision at least",
        "at most",
    )
    for name in names:
        table.add_column(name, justify="right")
    for row in facts["reach"]:
        table.add_row(
            f"{row['size']:,}",
            f"{row['share']:.1%}",
            f"{row['similarity']:.3f}",
            f"{row['recall']:.1%} ± {row['recall_error']:.1%}",
            f"{row['lift']:.1f}",
            f"{row['precision']:.1%} ± {row['precision_error']:.1%}",
            f"{row['precision_at_most']:.1%}",
        )
    console.print(table)
    console.print(
        f"Held out, {held_out['protocol']}: AUC {held_out['auc']:.3f} ± {held_out['auc_error']:.3f}, average precision "
        f"{held_out['average_precision']:.3f} (at random {held_out['average_precision_at_random']:.3f}).",
        soft_wrap=True,
    )


def show_datasets() -> None:
    from sonder.events.datasets import DATASETS, locate

    console.print("Public logs that Sonder reads. None of them is part of Sonder.")
    for dataset in DATASETS:
        size = f"{dataset.num_events:,} events, {dataset.num_users:,} users, {dataset.num_items:,} items"
        found = "[green]found here[/green]" if locate(dataset) else "not found here"
        lines = (
            f"\n[bold]{dataset.name}[/bold] · {escape(dataset.title)} · {found}",
            f"  size     {size}",
            f"  licence  {escape(dataset.licence)}",
            f"  get      {escape(dataset.get)}",
            f"  read     {escape(dataset.events_yaml)}",
            f"  note     {escape(dataset.note)}",
        )
        for line in lines:
            console.print(line, soft_wrap=True)


def protocol_of(config: SonderConfig) -> str:
    """The protocol in words, for the captions of all quality tables."""
    if config.evaluation.protocol == "leave_one_out":
        return "leave-one-out: each user's last item is the test, full ranking over all items"
    return (
        f"temporal: trained before the last {config.evaluation.test_days} days of the log, tested on them, full ranking"
    )


def show_quality(metrics: dict[str, float], config: SonderConfig) -> None:
    table = Table(title=f"Retrieval · {protocol_of(config)}", title_justify="left")
    table.add_column("model")
    for label in METRICS.values():
        table.add_column(label, justify="right")
    for model, label in MODELS.items():
        values = [metrics.get(f"retrieval.{model}.{metric}") for metric in METRICS]
        if any(value is not None for value in values):
            table.add_row(label, *("·" if value is None else f"{value:.4f}" for value in values))
    console.print(table if table.row_count else "Retrieval was not measured; the report says why.")
    _show_scores(metrics)


def _show_scores(metrics: dict[str, float]) -> None:
    names = sorted({key.split(".")[1] for key in metrics if key.startswith("scores.")})
    if not names:
        console.print("No score was learnt; the report says why.")
        return
    columns = ("auc", "pr_auc", "ece", "base_rate", "users")
    table = Table(
        title="Scores · tested on the label window that ends with the log; ECE over 15 equal-mass bins",
        title_justify="left",
    )
    table.add_column("score")
    for label in ("AUC", "PR-AUC", "ECE", "base rate", "users"):
        table.add_column(label, justify="right")
    for name in names:
        values = [metrics.get(f"scores.{name}.{column}") for column in columns]
        table.add_row(name, *(number(value) for value in values))
    console.print(table)


def number(value: float | None) -> str:
    if value is None:
        return "·"
    return f"{value:,.0f}" if value == int(value) and abs(value) > 1 else f"{value:.4f}"


def show_build(config: SonderConfig, release_id: str, config_file: Path) -> None:
    workspace = Workspace.at(config.workspace)
    manifest = Registry(workspace).show(release_id)
    folder = workspace.release(release_id)
    show_quality(manifest.metrics, config)
    current = Registry(workspace).current()
    rows = [
        ("release", f"{folder}"),
        ("report", f"{folder / 'report' / 'index.html'}"),
        ("profiles", f"{folder / 'profiles'}/bucket=*/part-0.parquet"),
        ("quarantine", f"{workspace.quarantine(manifest.snapshot)}"),
    ]
    grid = Table.grid(padding=(0, 2))
    for name, path in rows:
        grid.add_row(name, escape(path))
    console.print(Panel(grid, title=f"Release {release_id}", title_align="left", expand=False))
    if current is not None and current.release != release_id:
        console.print(
            f"Served is still {current.release}. Switch: sonder release promote {release_id} -c {config_file}"
        )
    console.print(f"Next: sonder serve -c {config_file} · sonder profile USER -c {config_file}", soft_wrap=True)


def show_story(story: Story) -> None:
    """One user on one screen."""
    profile = story.profile
    segments = profile["segments"]
    head = (
        f"[bold]{escape(segments['lifecycle'])}[/bold] · {_cluster(segments)}{profile['num_events']:,} events"
        f" from {_day(profile['first_seen'])} to {_day(profile['last_seen'])} · release {story.release}"
        f" · as of {_day(profile['as_of'])}"
    )
    parts: list[Any] = [head, *_facts(story), _timeline(story), _interests(profile["interests"]), *_leanings(story)]
    parts += [_scores(profile["scores"]), _recommendations(story)]
    console.print(Panel(Group(*parts), title=f"User {escape(story.user_id)}", title_align="left"))


def _cluster(segments: dict[str, Any]) -> str:
    """The behaviour cluster of who has one; a release of an older version has none."""
    name = segments.get("cluster")
    return "" if name is None else f"cluster {segments['cluster_id']} ({escape(name)}) · "


def _facts(story: Story) -> list[str]:
    """What the user table says, if it says anything."""
    lines = []
    if story.attributes:
        lines.append("attributes: " + ", ".join(f"{escape(name)} {escape(value)}" for name, value in story.attributes))
    if story.consent:
        told = (f"{escape(name)} {'yes' if is_granted else 'no'}" for name, is_granted in story.consent)
        lines.append("consent: " + ", ".join(told))
    return [" · ".join(lines)] if lines else []


def _leanings(story: Story) -> list[Table]:
    """Categories that the user wants more, and less, than others do; nothing for who has no affinity."""
    if not (story.likes or story.dislikes):
        return []
    title = "Affinities · share of the next wanted actions, and lift over the population's share"
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("", no_wrap=True, min_width=7)
    table.add_column("category", overflow="ellipsis", no_wrap=True)
    for name in ("share", "lift"):
        table.add_column(name, no_wrap=True, min_width=6, justify="right")
    for like in story.likes:
        table.add_row("more", escape(like.category), f"{like.share:.1%}", f"{like.lift:.2f}")
    for less in story.dislikes:
        word = "refused" if less.is_refused else "less"
        table.add_row(word, escape(less.category), f"{less.share:.1%}", f"{less.lift:.2f}")
    return [table]


def _timeline(story: Story) -> Table:
    table = Table(title=f"Newest {len(story.timeline)} events", title_justify="left", box=None)
    for name, width in (("time", 16), ("action", 6), ("item", None), ("category", None), ("value", 6)):
        justify: Any = "right" if name == "value" else "left"
        table.add_column(name, overflow="ellipsis", no_wrap=True, min_width=width, justify=justify)
    for moment in story.timeline:
        value = "" if moment.value is None else f"{moment.value:,.2f}"
        name = escape(moment.title or moment.item_id)
        table.add_row(f"{moment.time:%Y-%m-%d %H:%M}", moment.action, name, escape(moment.category or ""), value)
    return table


def _interests(interests: list[dict[str, Any]]) -> Table | str:
    if not interests:
        return "No interests: no event of this user says what it wants."
    recent = f"share before > in the last {interests[0]['recent_days']:.0f} days"
    title = f"Interests · Ward clusters of recent items, medoid item · {recent}"
    table = Table(title=title, title_justify="left", box=None)
    for name, least, most in (("weight", 6, 10), ("interest", 12, 28), ("medoid item", 12, 26), ("state", 7, 7)):
        table.add_column(name, overflow="ellipsis", no_wrap=True, min_width=least, max_width=most)
    for name, width in (("share", 9), ("events", 6), ("a week", 6), ("last", 8)):
        table.add_column(name, no_wrap=True, min_width=width, justify="right")
    for interest in interests:
        bar = "█" * max(1, round(5 * interest["weight"]))
        table.add_row(
            f"{interest['weight']:.2f} {bar}",
            escape(interest["name"]),
            escape(interest["title"] or interest["medoid_item_id"]),
            interest["state"],
            f"{interest['earlier_share']:.0%} > {interest['recent_share']:.0%}",
            str(interest["num_events"]),
            f"{interest['events_per_week']:.1f}",
            f"{interest['recency_days']:.0f} d ago",
        )
    return table


def _scores(scores: list[dict[str, Any]]) -> Table | str:
    if not scores:
        return "No scores: none was declared, or none could be learnt."
    table = Table(title="Scores · calibrated probabilities; drivers in log-odds", title_justify="left", box=None)
    for name in ("score", "value", "base rate", "drivers"):
        table.add_column(name, overflow="fold")
    for score in scores:
        drivers = "\n".join(
            f"{driver['contribution']:+.2f} {driver['reason'].split(': ', 1)[1]}" for driver in score["drivers"] or []
        )
        base_rate = "·" if score["base_rate"] is None else f"{score['base_rate']:.3f}"
        table.add_row(score["name"], f"{score['value']:.3f}", base_rate, escape(drivers))
    return table


def _recommendations(story: Story) -> Table | str:
    if not story.recommendations:
        return "No recommendations: the user is cold."
    table = Table(
        title="Recommendations · new items by cosine with the user's vector, less what they lack in popularity",
        title_justify="left",
        box=None,
    )
    table.add_column("score", no_wrap=True, min_width=6)
    for name in ("item", "category"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for item in story.recommendations:
        table.add_row(f"{item.score:.3f}", escape(item.title or item.item_id), escape(item.category or "·"))
    return table


def _day(time: datetime | None) -> str:
    return "never" if time is None else f"{time.astimezone(UTC):%Y-%m-%d}"
