"""`sonder track`: tell the MLflow server of a release that a build could not tell it of. Parses and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sonder.core.config import load

app = typer.Typer()
ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="the configuration file")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="override, such as tracking.mlflow=URI; repeatable")]
DEFAULT_CONFIG = Path("sonder.yaml")


@app.command("track")
def track_release(
    release_id: Annotated[str | None, typer.Argument(metavar="RELEASE", help="the served one if not named")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """Tell the MLflow server of a release, if it was not told yet."""
    from pipelines.tracking import track
    from sonder.core.workspace import Workspace
    from sonder.releases.artefacts import served_release

    resolved = load(config, overrides or ())
    chosen = release_id or served_release(Workspace.at(resolved.workspace))
    tracked = track(resolved, chosen)
    told = "was there before" if tracked.was_there else "is written"
    typer.echo(f"{chosen} is run {tracked.run_id} of {resolved.tracking.experiment}, {told}.")
