"""What `sonder release` shows, with `rich`. Reads results, computes nothing."""

from __future__ import annotations

from rich.table import Table

from pipelines.terminal import console, number
from sonder.releases.registry import Registry


def show_releases(registry: Registry) -> None:
    current = registry.current()
    table = Table(title="Releases", title_justify="left")
    for name in ("", "release", "made", "users", "NDCG@10", "parent"):
        table.add_column(name)
    for manifest in registry.list():
        ndcg = manifest.metrics.get("retrieval.encoder.ndcg_at_10")
        served = "served" if current and current.release == manifest.id else ""
        users = f"{manifest.metrics.get('data.users', 0):,.0f}"
        table.add_row(served, manifest.id, manifest.created_at, users, number(ndcg), manifest.parent or "·")
    console.print(table if table.row_count else "No release yet. `sonder build` makes one.")


def show_release(registry: Registry, release_id: str | None) -> None:
    import orjson

    current = registry.current()
    chosen = release_id or (current.release if current else "")
    console.print_json(orjson.dumps(registry.show(chosen).to_dict()).decode())
