"""`sonder audience`: preview a rule, save it, list, refresh who is in, export. Parses and prints; jobs work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sonder.core.config import load
from sonder.core.workspace import Workspace

app = typer.Typer(help="Name groups of users by a rule, see who is in, export them.", no_args_is_help=True)
ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="the configuration file")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="override, such as workspace=./other; repeatable")]
ReleaseOption = Annotated[str | None, typer.Option(help="the served one if not named")]
RuleArgument = Annotated[str, typer.Argument(help="such as \"lifecycle = 'core' and count(buy, 28d) >= 3\"")]
DEFAULT_CONFIG = Path("sonder.yaml")


@app.command()
def preview(
    rule: RuleArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    release: ReleaseOption = None,
    sample: Annotated[int, typer.Option(min=0, max=1_000, help="members to show")] = 10,
) -> None:
    """How many a rule finds, who among them, and how far it overlaps with saved audiences. Nothing is saved."""
    from pipelines.audience import preview_audience

    _show(preview_audience(_workspace(config, overrides), rule, release_id=release, num_sampled=sample))


@app.command()
def save(
    name: Annotated[str, typer.Argument(help="lower-case, such as lapsing-gardeners")],
    rule: RuleArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    release: ReleaseOption = None,
) -> None:
    """Save a rule under a name; a rule that means something else than the saved one is the next version."""
    from pipelines.audience import save_audience

    saved = save_audience(_workspace(config, overrides), name, rule, release_id=release)
    typer.echo(f"{saved.name} is at version {saved.version}: {saved.rule}")
    typer.echo(f"Next: sonder audience refresh {saved.name} -c {config}")


@app.command("list")
def list_audiences(config: ConfigOption = DEFAULT_CONFIG, overrides: SetOption = None) -> None:
    """Saved audiences: version, members and when they were counted."""
    from pipelines.terminal import show_rows
    from sonder.core.storage import read_manifest
    from sonder.segments.audiences import AudienceCatalogue, evaluations_of

    catalogue = AudienceCatalogue(_workspace(config, overrides).audiences)
    rows: list[dict[str, Any]] = []
    for definition in catalogue.all():
        evaluations = evaluations_of(catalogue.audience(definition.name))
        told = read_manifest(evaluations[-1]) if evaluations else {}
        counted = {"members": told.get("members"), "as_of": told.get("as_of"), "counted version": told.get("version")}
        rows.append({"audience": definition.name, "version": definition.version, **counted, "rule": definition.rule})
    if not rows:
        typer.echo("No audience yet. `sonder audience save NAME RULE` saves one.")
        return
    show_rows("Audiences", rows)


@app.command()
def refresh(
    names: Annotated[list[str] | None, typer.Argument(help="all if none is named")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    release: ReleaseOption = None,
) -> None:
    """Count who is in as of a release: entered_at stays for who stays, left_at is set for who left."""
    from pipelines.audience import refresh_audiences

    results = refresh_audiences(_workspace(config, overrides), names or (), release_id=release)
    for result in results:
        if "problem" in result:
            typer.secho(f"{result['audience']}: not counted. {result['problem']}", fg=typer.colors.RED, err=True)
        else:
            typer.echo(
                f"{result['audience']} v{result['version']}: {result['members']:,} members as of {result['as_of']},"
                f" {result['entered']:,} entered, {result['left']:,} left"
            )
    if any("problem" in result for result in results):
        raise typer.Exit(1)


@app.command()
def export(
    name: Annotated[str, typer.Argument()],
    out: Annotated[str, typer.Option(help="file or URI that ends in .parquet or .csv")],
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """Write who is in as of the last refresh; fewer than audiences.min_export_size members are not exported."""
    from pipelines.audience_export import export_audience
    from sonder.core.storage import Folder

    resolved = load(config, overrides or ())
    target = Folder.at(out if "://" in out else str(Path(out).resolve()))
    workspace = Workspace.at(resolved.workspace)
    told = export_audience(workspace, name, target, min_size=resolved.audiences.min_export_size)
    typer.echo(f"Wrote {target}: {told['members']:,} members of {name} v{told['version']} as of {told['as_of']}")


def _workspace(config: Path, overrides: list[str] | None) -> Workspace:
    return Workspace.at(load(config, overrides or ()).workspace)


def _show(preview: dict[str, Any]) -> None:
    from pipelines.terminal import show_rows

    size, users = preview["size"], preview["num_profiles"]
    typer.echo(f"{preview['rule']}")
    typer.echo(
        f"{size:,} of {users:,} users ({preview['share']:.1%}) as of {preview['as_of']}, release {preview['release']}"
    )
    if preview["num_unknown"]:
        typer.echo(f"{preview['num_unknown']:,} are left out because a value that the rule reads is unknown for them.")
    if preview["overlap"]:
        shown = [
            {
                "saved audience": overlap["audience"],
                "size": f"{overlap['size']:,}",
                "in both": f"{overlap['shared']:,}",
                "of this rule": f"{overlap['share_of_this']:.1%}",
                "of that audience": f"{overlap['share_of_that']:.1%}",
            }
            for overlap in preview["overlap"]
        ]
        show_rows("Overlap with saved audiences, by their rules on the same users", shown)
    for name, problem in preview["not_compared"].items():
        typer.echo(f"Not compared with {name}: {problem}")
    if preview["sample"]:
        typer.echo("Some of them: " + ", ".join(preview["sample"]))
