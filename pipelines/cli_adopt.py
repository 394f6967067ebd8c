"""`sonder adopt`: should a candidate take the place of the current release?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli_files import write_text
from sonder.core.config import load

app = typer.Typer()


@app.command("adopt")
def adopt_release(
    candidate: Annotated[str, typer.Argument(metavar="CANDIDATE", help="the release that might be served")],
    against: Annotated[
        str | None, typer.Option(help="the release to compare with; the served one if not given")
    ] = None,
    slot_log: Annotated[
        Path | None,
        typer.Option(help="log of a slot with propensities: user_id, item_id, propensity, reward, position"),
    ] = None,
    minimum_effect: Annotated[
        float, typer.Option(min=1e-4, help="relative change that the experiment should find")
    ] = 0.02,
    html: Annotated[Path, typer.Option(help="the page with all of the evidence")] = Path("adopt.html"),
    json_file: Annotated[Path | None, typer.Option("--json", help="all of it as JSON")] = None,
    experiment: Annotated[Path | None, typer.Option(help="write the proposed experiment here, as YAML")] = None,
    workers: Annotated[int | None, typer.Option(help="Ray workers; as many as there are if not given")] = None,
    config: Annotated[Path, typer.Option("--config", "-c", help="the configuration file")] = Path("sonder.yaml"),
    overrides: Annotated[list[str] | None, typer.Option("--set", help="override, repeatable")] = None,
) -> None:
    """Everything there is to know of a candidate, ending in one word: no, experiment, ship."""
    from pipelines.adopt import adopt
    from pipelines.adopt_page import experiment_yaml, render_adoption
    from pipelines.terminal_experiment import show_adoption

    settings = load(config, overrides or ())
    found = adopt(settings, candidate, against, slot_log=slot_log, minimum_effect=minimum_effect, num_workers=workers)
    show_adoption(found)
    write_text(html, render_adoption(found))
    typer.echo(f"Wrote {html}.")
    if json_file is not None:
        content = json.dumps(found.to_dict(), indent=1, default=_plain)
        write_text(json_file, content)
        typer.echo(f"Wrote {json_file}.")
    if experiment is not None and found.experiment is not None:
        write_text(experiment, experiment_yaml(found.experiment))
        typer.echo(f"Wrote {experiment}. Next: sonder experiment plan {experiment} -c {config}")


def _plain(value: object) -> object:
    """What is not JSON by itself: numpy's numbers and arrays."""
    tolist = getattr(value, "tolist", None)
    if tolist is None:
        raise TypeError(f"{type(value).__name__} is no JSON")
    return tolist()
