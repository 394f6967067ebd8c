"""`sonder release`: list, show, promote and roll back the releases of a workspace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sonder.core.config import load

app = typer.Typer(help="List, show, promote and roll back releases.", no_args_is_help=True)
ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="the configuration file")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="override, such as encoder.dim=64; repeatable")]
DEFAULT_CONFIG = Path("sonder.yaml")


@app.command("list")
def release_list(config: ConfigOption = DEFAULT_CONFIG, overrides: SetOption = None) -> None:
    """Every release of the workspace, the served one marked."""
    from pipelines.terminal_release import show_releases
    from sonder.core.workspace import Workspace
    from sonder.releases.registry import Registry

    show_releases(Registry(Workspace.at(load(config, overrides or ()).workspace)))


@app.command("show")
def release_show(
    release_id: Annotated[str | None, typer.Argument(help="the served one if not named")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """One release: inputs, metrics, digests."""
    from pipelines.terminal_release import show_release
    from sonder.core.workspace import Workspace
    from sonder.releases.registry import Registry

    show_release(Registry(Workspace.at(load(config, overrides or ()).workspace)), release_id)


@app.command("promote")
def release_promote(
    release_id: str,
    reason: Annotated[str, typer.Option(help="kept with the switch")] = "promoted by hand",
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """Verify a release against its digests and serve it."""
    from sonder.core.workspace import Workspace
    from sonder.releases.registry import Registry

    Registry(Workspace.at(load(config, overrides or ()).workspace)).promote(release_id, reason=reason)
    typer.echo(f"{release_id} is current. A running `sonder serve` answers from it within seconds.")


@app.command("rollback")
def release_rollback(
    reason: Annotated[str, typer.Option(help="kept with the switch")] = "rolled back by hand",
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """Go back to the release that was served before."""
    from sonder.core.workspace import Workspace
    from sonder.releases.registry import Registry

    current = Registry(Workspace.at(load(config, overrides or ()).workspace)).rollback(reason=reason)
    typer.echo(f"{current.release} is current again. A running `sonder serve` answers from it within seconds.")
