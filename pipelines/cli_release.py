"""`sonder release`: list, show, compare, check, promote and roll back the releases of a workspace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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


@app.command("diff")
def release_diff(
    was: Annotated[str, typer.Argument(metavar="A", help="release that is looked at from")],
    now: Annotated[str, typer.Argument(metavar="B", help="release that is asked about")],
    out: Annotated[Path | None, typer.Option(help="also draw it: .html to write, one self-contained page")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all numbers here")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """What is different in B, in numbers and pictures: metrics, settings, and where the users of both went."""
    from pipelines.release_diff import compare_releases, write_page
    from pipelines.terminal_diff import show_comparison

    compared = compare_releases(load(config, overrides or ()), was, now)
    show_comparison(compared)
    _write_json(json_file, compared.to_dict())
    if out is not None:
        write_page(compared, out)
        typer.echo(f"Wrote {out}")


@app.command("check")
def release_check(
    release_id: Annotated[str | None, typer.Argument(metavar="RELEASE", help="the newest if not named")] = None,
    against: Annotated[str | None, typer.Option(help="release to compare with; the served one if not named")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the findings here")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """What `promote` would say, without promoting. Exit status 1: it would refuse; 2: a wrong consumers file."""
    from pipelines.promotion import check_release
    from pipelines.terminal_release import show_verdict
    from sonder.core.workspace import Workspace
    from sonder.releases.checking import require_known
    from sonder.releases.registry import Registry

    resolved = load(config, overrides or ())
    chosen = release_id or Registry(Workspace.at(resolved.workspace)).newest().id
    verdict = check_release(resolved, chosen, against)
    show_verdict(verdict, resolved.consumers)
    _write_json(json_file, verdict.to_dict())
    require_known(verdict)
    if verdict.would_refuse:
        raise typer.Exit(1)


@app.command("promote")
def release_promote(
    release_id: Annotated[str, typer.Argument(metavar="RELEASE")],
    reason: Annotated[str | None, typer.Option(help="kept with the switch; asked for with --force")] = None,
    force: Annotated[bool, typer.Option("--force", help="also if it breaks what consumers rely on")] = False,
    by: Annotated[str | None, typer.Option(help="who forces it; your account if not given")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """Verify a release against its digests and against what consumers rely on, and serve it."""
    from pipelines.promotion import operator, promote_release
    from sonder.core.errors import InvalidRequest

    if force and not (reason or "").strip():
        raise InvalidRequest("--force without a reason", expected="--force --reason WHY: it is kept with the switch")
    if by is not None and not force:
        raise InvalidRequest("--by without --force", expected="who breaks a promise, with --force --reason WHY")
    forced_by = (by or operator()) if force else None
    current = promote_release(
        load(config, overrides or ()), release_id, reason=reason or "promoted by hand", forced_by=forced_by
    )
    gate = current.promotion.gate
    if gate is not None and gate.overridden:
        typer.echo(f"Forced by {gate.by}, with {len(gate.overridden)} of {gate.promises} promises broken:", err=True)
        for sentence in gate.overridden:
            typer.echo(f"  {sentence}", err=True)
    elif gate is not None:
        typer.echo(f"All {gate.promises} promises to consumers are kept, compared with {gate.against}.")
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


def _write_json(file: Path | None, content: dict[str, Any]) -> None:
    import orjson

    if file is not None:
        file.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        typer.echo(f"Wrote {file}")
