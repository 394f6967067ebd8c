"""`sonder probe`: what a release's vectors are worth to small models of its consumers. Parses and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sonder.core.config import load

app = typer.Typer()


@app.command()
def probe(
    release: Annotated[str, typer.Argument(metavar="RELEASE", help="whose encoder; `current` is the served one")],
    against: Annotated[
        str | None, typer.Option(help="another release, asked the same users and days; or `current`")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all numbers here")] = None,
    max_users: Annotated[int, typer.Option(min=100, help="asked at most, drawn by a digest")] = 50_000,
    config: Annotated[Path, typer.Option("--config", "-c", help="the configuration file")] = Path("sonder.yaml"),
    overrides: Annotated[list[str] | None, typer.Option("--set", help="override; repeatable")] = None,
) -> None:
    """Read frozen vectors by fixed small models on churn, propensities, activity and value, beside RFM."""
    import orjson

    from pipelines.probe import compare_releases_by_probes, probe_release
    from pipelines.terminal_probe import show_comparison, show_probes
    from sonder.core.workspace import Workspace
    from sonder.releases.artefacts import served_release

    resolved = load(config, overrides or ())
    names = [
        served_release(Workspace.at(resolved.workspace)) if name == "current" else name for name in (release, against)
    ]
    if names[1] is None:
        told = probe_release(resolved, str(names[0]), max_users=max_users)
        show_probes(told)
    else:
        told = compare_releases_by_probes(resolved, str(names[0]), names[1], max_users=max_users)
        show_comparison(told)
    if json_file is not None:
        json_file.write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        typer.echo(f"Wrote {json_file}")
