"""`sonder features`: are the features that served a score those that the history gives? Parses and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sonder.core.config import load

app = typer.Typer(help="Check the features behind the scores.", no_args_is_help=True)
NUM_SHOWN = 10


@app.callback()
def features() -> None:
    """Without it, a group of one command would be that command."""


@app.command()
def verify(
    config: Annotated[Path, typer.Option("--config", "-c", help="the configuration file")] = Path("sonder.yaml"),
    overrides: Annotated[list[str] | None, typer.Option("--set", help="override; repeatable")] = None,
    release: Annotated[str | None, typer.Option(help="the served one if not named")] = None,
) -> None:
    """Compute logged online features again from the history; exit 1 unless all that can be compared are the same."""
    from pipelines.feature_parity import verify_features

    told = verify_features(load(config, overrides or ()), release_id=release)
    if not told["logged"]:
        typer.secho(
            f"Release {told['release']} has logged no features. `serving.log_features` is the share of users to log:"
            f" sonder serve -c {config} --set serving.log_features=0.01",
            fg=typer.colors.RED,
            err=True,
        )
        raise typer.Exit(1)
    rate = "nothing to compare" if told["mismatch_rate"] is None else f"mismatch rate {told['mismatch_rate']:.4%}"
    typer.echo(
        f"Release {told['release']}: {rate}. {told['logged']:,} rows logged, {told['compared']:,} compared,"
        f" {told['mismatched']:,} different, {told['not_comparable']:,} not comparable (read from another history),"
        f" {told['on_the_edge']:,} with an embedding on the edge of its rounding"
    )
    for column, num in list(told["columns"].items())[:NUM_SHOWN]:
        typer.echo(f"  {num:,} rows differ in: {column}")
    if told["mismatch_rate"] != 0:
        raise typer.Exit(1)
