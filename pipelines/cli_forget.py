"""`sonder forget`: erase a user from the workspace, as DELETE /v1/users/{id} does through a running gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sonder.core.config import load

app = typer.Typer()
ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="the configuration file")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="override, such as encoder.dim=64; repeatable")]
DEFAULT_CONFIG = Path("sonder.yaml")


@app.command("forget")
def forget_user(
    user_id: Annotated[str, typer.Argument(metavar="USER")],
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """Erase a user from stores and online log and keep the past out of every later build; says where rows remain."""
    from pipelines.forget import forget

    told = forget(load(config, overrides or ()), user_id)
    exposures = f"{told.exposures_removed:,} rows of experiments, " if told.exposures_removed else ""
    stores = ", ".join(told.stores) or "no store"
    typer.echo(f"Erased: {told.events_removed:,} online events, {exposures}records in {stores}.")
    typer.echo("No later build reads what the user did before this moment.")
    if not told.remaining:
        typer.echo("Searched every table of the workspace: no row of the user is left.")
        return
    typer.echo("Searched every table of the workspace. Rows of the user are left in:")
    for place, rows in told.remaining.items():
        typer.echo(f"  {place}: {rows:,}")
    typer.echo("They were made before. Build and promote a release, then remove these folders.")
