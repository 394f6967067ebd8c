"""`sonder keys`: API keys of the gateway, for serving beyond loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sonder.core.config import load
from sonder.core.workspace import Workspace

app = typer.Typer(help="API keys of the gateway.", no_args_is_help=True)
ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="the configuration file")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="override, such as encoder.dim=64; repeatable")]
DEFAULT_CONFIG = Path("sonder.yaml")


@app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument()],
    scope: Annotated[list[str], typer.Option(help="read, write or admin; repeatable")],
    fields: Annotated[str | None, typer.Option(help="the only parts of a profile it may read: segments,scores")] = None,
    rate: Annotated[float | None, typer.Option(help="requests a second")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """Make a key and print it, once."""
    from sonder.core.keys import create_key

    workspace = Workspace.at(load(config, overrides or ()).workspace)
    named = None if fields is None else [field.strip() for field in fields.split(",") if field.strip()]
    secret = create_key(workspace.keys, name, scopes=scope, fields=named, rate=rate)
    typer.echo(secret)
    typer.echo("It is kept nowhere: put it where its user finds it. Send it as Authorization: Bearer KEY.", err=True)


@app.command("list")
def keys_list(config: ConfigOption = DEFAULT_CONFIG, overrides: SetOption = None) -> None:
    """Names, scopes and limits of the keys."""
    from sonder.core.keys import read_keys

    keys = read_keys(Workspace.at(load(config, overrides or ()).workspace).keys)
    for key in keys.values():
        limits = [f"fields {','.join(key.fields)}"] if key.fields is not None else []
        limits += [f"{key.rate:g} requests a second"] if key.rate is not None else []
        typer.echo(" · ".join([key.name, ",".join(key.scopes), *limits, key.created_at]))
    if not keys:
        typer.echo("No key. `sonder keys create NAME --scope read` makes one.")


@app.command("revoke")
def keys_revoke(
    name: Annotated[str, typer.Argument()], config: ConfigOption = DEFAULT_CONFIG, overrides: SetOption = None
) -> None:
    """Remove a key; gateways refuse it within seconds."""
    from sonder.core.keys import revoke_key

    revoke_key(Workspace.at(load(config, overrides or ()).workspace).keys, name)
    typer.echo(f"{name} is revoked.")
