"""What `sonder release` shows, with `rich`. Reads results, computes nothing."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from pipelines.terminal import console, number
from sonder.releases.current import Promotion
from sonder.releases.gate import Finding, Verdict, change_of, told
from sonder.releases.registry import Registry


def show_releases(registry: Registry) -> None:
    current = registry.current()
    table = Table(title="Releases", title_justify="left")
    for name in ("", "release", "made", "users", "NDCG@10", "parent"):
        table.add_column(name)
    for manifest in registry.list():
        ndcg = manifest.metrics.get("retrieval.encoder.ndcg_at_10")
        served = _served(current.promotion) if current and current.release == manifest.id else ""
        users = f"{manifest.metrics.get('data.users', 0):,.0f}"
        table.add_row(served, manifest.id, manifest.created_at, users, number(ndcg), manifest.parent or "·")
    console.print(table if table.row_count else "No release yet. `sonder build` makes one.")


def _served(promotion: Promotion) -> str:
    gate = promotion.gate
    return f"served, forced by {escape(str(gate.by))}" if gate is not None and gate.overridden else "served"


def show_release(registry: Registry, release_id: str | None) -> None:
    import orjson

    current = registry.current()
    chosen = release_id or (current.release if current else "")
    console.print_json(orjson.dumps(registry.show(chosen).to_dict()).decode())


def show_verdict(verdict: Verdict, source: str | None) -> None:
    """The findings of the gate, a row each, and what would become of a promotion."""
    against = "nothing: none is served yet" if verdict.against is None else verdict.against
    head = f"[bold]{escape(verdict.release)}[/bold] against {escape(against)}"
    console.print(f"{head} · consumers of {escape(source or 'no file')}", soft_wrap=True)
    for note in verdict.notes:
        console.print(f"[yellow]{escape(note)}[/yellow]", soft_wrap=True)
    table = Table()
    for name in ("consumer", "relies on"):
        table.add_column(name, overflow="fold")
    for name in ("was", "is", "change"):
        table.add_column(name, justify="right", overflow="fold")
    for name in ("allowed", "finding"):
        table.add_column(name, overflow="fold")
    for finding in verdict.findings:
        colour = "green" if finding.status == "kept" else "red"
        texts = [finding.consumer, finding.subject, *_values(finding), finding.allowed]
        why = f" · {escape(finding.why)}" if finding.why else ""
        table.add_row(*(escape(text) for text in texts), f"[{colour}]{finding.status}[/{colour}]{why}")
    if table.row_count:
        console.print(table)
    console.print(escape(_outcome(verdict)), soft_wrap=True)


def _values(finding: Finding) -> tuple[str, str, str]:
    """Numbers of a metric; the type of a field only where it says something."""
    if isinstance(finding.was, float) or isinstance(finding.now, float):
        return told(finding.was), told(finding.now), change_of(finding.was, finding.now)
    if finding.status == "kept":
        return "", "", ""
    return told(finding.was), told(finding.now), ""


def _outcome(verdict: Verdict) -> str:
    kept = len(verdict.findings) - len(verdict.refusals)
    if not verdict.findings:
        return "Nobody relies on anything: a promotion would not be refused."
    if verdict.against is None:
        return (
            f"{kept} of {len(verdict.findings)} promises are kept; the first promotion of a workspace is not refused."
        )
    ending = "would be refused" if verdict.would_refuse else "would go through"
    return f"{kept} of {len(verdict.findings)} promises are kept: a promotion {ending}."
