"""`sonder node-environment`: what a node of a cluster needs in its environment before `ray start` (docs/cluster.md)."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command("node-environment")
def node_environment(
    folder: Annotated[Path, typer.Option(help="a short path, on a disk of the node's own")],
) -> None:
    """Print the variables of this node as shell exports, and write the script that they name into the folder."""
    proxy = importlib.import_module("services.gateway.proxy")  # by name: pipelines and services are strangers
    for name, value in proxy.node_environment(folder.absolute()).items():
        typer.echo(f"export {name}={shlex.quote(value)}")
