"""`sonder backfill` and `sonder repair`: past days, and stored profiles computed anew. Parses and prints."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sonder.core.config import load
from sonder.core.errors import InvalidRequest

if TYPE_CHECKING:
    from pipelines.repair import RepairedUser

app = typer.Typer()
ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="the configuration file")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="override, such as workspace=./other; repeatable")]
DEFAULT_CONFIG = Path("sonder.yaml")
SHOWN = 20  # users
UNREPAIRED = {
    "busy": "their events wait for a refresh that does not come to them",
    "elsewhere": "their online events are in the log of another machine: repair them there",
}


@app.command("backfill")
def backfill_days(
    first: Annotated[datetime, typer.Option("--from", formats=["%Y-%m-%d"], help="first day; events before it count")],
    last: Annotated[datetime, typer.Option("--to", formats=["%Y-%m-%d"], help="last day, included")],
    every: Annotated[str, typer.Option(help="step in days or weeks, such as 1d or 2w")] = "1d",
    release: Annotated[str | None, typer.Option(help="whose models; the served one if not named")] = None,
    out: Annotated[str | None, typer.Option(help="folder or URI; below the workspace if not named")] = None,
    again: Annotated[bool, typer.Option("--again", help="make days anew that are there of another log")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """Profiles of past days, point in time, by a release's models. Killed, the same command goes on."""
    from pipelines.backfill import AskedDays, backfill
    from sonder.core.storage import Folder
    from sonder.core.workspace import Workspace
    from sonder.profiles.record import iso_time

    folder = None if out is None else Folder.at(out if "://" in out else str(Path(out).resolve()))
    asked = AskedDays(first.date(), last.date(), _days(every))
    workspace = Workspace.at(load(config, overrides or ()).workspace)
    told = backfill(workspace, asked, release_id=release, out=folder, again=again)
    kept = f", {told['kept']} were there" if told["kept"] else ""
    typer.echo(f"Wrote {told['target']}: {told['written']} days{kept}, {told['profiles']:,} profiles, by "
               f"{told['release']}.")  # fmt: skip
    if told["leaking_days"]:
        typer.secho(
            f"The models learnt from events up to {iso_time(told['trained_until_us'])}, later than "
            f"{told['leaking_days']} of these days: do not train on them. "
            "Name an older release with --release for profiles without that.",
            fg=typer.colors.YELLOW,
        )
    typer.echo("Read them as as_of=*/bucket=*/part-0.parquet, the columns of a release's profiles; as_of is one.")


@app.command()
def repair(
    users: Annotated[
        Path | None, typer.Argument(metavar="USERS_FILE", help=".csv or .parquet with a column user_id, or text")
    ] = None,
    user: Annotated[list[str] | None, typer.Option("--user", help="an id; repeatable")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what differs, write nothing")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="write every user's outcome here")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """Compute stored profiles of some users anew, and write those that differ into the online stores."""
    import orjson

    from pipelines.repair_stores import repair_stores
    from pipelines.user_lists import read_user_ids

    asked = [*(user or ()), *(() if users is None else read_user_ids(users).to_list())]
    if not asked:
        raise InvalidRequest("No user to repair", expected="a file of user ids, or --user ID")
    told = repair_stores(load(config, overrides or ()), asked, dry_run=dry_run)
    for store, results in told.items():
        _show_repaired(store, results, dry_run)
    if json_file is not None:
        content = {store: [result._asdict() for result in results] for store, results in told.items()}
        json_file.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
        typer.echo(f"Wrote {json_file}")
    if any(result.outcome in UNREPAIRED for results in told.values() for result in results):
        raise typer.Exit(1)


def _show_repaired(store: str, results: Sequence[RepairedUser], dry_run: bool) -> None:
    outcomes = Counter(result.outcome for result in results)
    names = {"repaired": "would be repaired"} if dry_run else {}
    parts = ", ".join(f"{number:,} {names.get(name, name)}" for name, number in outcomes.most_common())
    typer.echo(f"{store}: {len(results):,} users, {parts}.")
    fields = Counter(name for result in results for name in result.fields)
    if fields:
        typer.echo("  What differed: " + ", ".join(f"{name} of {number:,}" for name, number in fields.most_common()))
    different = [result for result in results if result.fields]
    for result in different[:SHOWN]:
        typer.echo(f"  {result.user_id}: {', '.join(result.fields)}")
    if len(different) > SHOWN:
        typer.echo(f"  and {len(different) - SHOWN:,} more; --json FILE names them all.")
    for name, why in UNREPAIRED.items():
        left = [result.user_id for result in results if result.outcome == name]
        if left:
            typer.secho(f"  Not looked at, {why}: {', '.join(left[:SHOWN])}", fg=typer.colors.YELLOW)


def _days(every: str) -> int:
    found = re.fullmatch(r"([1-9]\d{0,3})([dw])", every)
    if found is None:
        raise InvalidRequest(f"--every {every!r}", expected="a number of days or weeks, such as 1d or 2w")
    return int(found[1]) * (7 if found[2] == "w" else 1)
