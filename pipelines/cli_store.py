"""`sonder store`: load the online store of a release before it is served, and remove those of old ones.

`serving.store` of the configuration says where it is: on a server, or, when not given, in the workspace.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sonder.core.config import load

app = typer.Typer(help="Load the online store of a release, and remove old ones.", no_args_is_help=True)
ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="the configuration file")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="override, such as encoder.dim=64; repeatable")]
DEFAULT_CONFIG = Path("sonder.yaml")


@app.command("load")
def store_load(
    release_id: Annotated[str | None, typer.Argument(metavar="RELEASE", help="the current one if not named")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """Load a release's profiles into its online store, if they are not there: `sonder serve` then starts at once."""
    from sonder.core.workspace import Workspace
    from sonder.releases.artefacts import Release, served_release

    resolved = load(config, overrides or ())
    workspace = Workspace.at(resolved.workspace, resolved.serving.local_dir)
    release = Release.open(workspace, release_id or served_release(workspace))
    store = release.open_store(resolved.serving.store)
    size_mib = store.size_bytes() / 2**20
    typer.echo(f"The online store of {release.id} holds {store.num_profiles():,} profiles in {size_mib:,.1f} MiB.")
    store.close()


@app.command("drop")
def store_drop(
    release_id: Annotated[str, typer.Argument(metavar="RELEASE", help="not the current one")],
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """Remove the online store of a release; the release stays and can be loaded again."""
    from sonder.core.workspace import Workspace
    from sonder.releases.stores import drop_store

    resolved = load(config, overrides or ())
    drop_store(Workspace.at(resolved.workspace, resolved.serving.local_dir), release_id, resolved.serving.store)
    typer.echo(f"The online store of {release_id} is removed. `sonder store load {release_id}` makes it again.")
