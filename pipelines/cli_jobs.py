"""`sonder submit` and `sonder jobs`: commands as Ray jobs. Parses and prints."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from sonder.core.errors import InvalidRequest

app = typer.Typer()
jobs_app = typer.Typer(help="Jobs of a Ray cluster: list, logs, stop.", no_args_is_help=True)
app.add_typer(jobs_app, name="jobs")
AddressOption = Annotated[
    str, typer.Option(help="Ray's dashboard address", envvar="RAY_API_SERVER_ADDRESS", show_default=True)
]
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
INSTALLS = ("nothing", "code", "all")


@app.command(context_settings={"ignore_unknown_options": True})
def submit(
    words: Annotated[
        list[str], typer.Argument(metavar="COMMAND [-- ARGS]", help="as after `sonder`, such as: build -- --promote")
    ],
    config: Annotated[Path, typer.Option("--config", "-c", help="the configuration file")] = Path("sonder.yaml"),
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="override, such as encoder.dim=64; repeatable")
    ] = None,
    address: AddressOption = DEFAULT_ADDRESS,
    follow: Annotated[bool, typer.Option(help="print the job's log until it ends")] = True,
    again: Annotated[bool, typer.Option("--again", help="also if the same work has succeeded")] = False,
    install: Annotated[
        str, typer.Option(help="for a cluster without this Sonder: `code` ships it, `all` its packages as well")
    ] = "nothing",
) -> None:
    """Run a command as a Ray job on a running cluster; submitting the same work again attaches to it."""
    from pipelines.job_work import read_work
    from pipelines.submit import submit as submit_job

    if install not in INSTALLS:
        raise InvalidRequest(f"--install {install}", expected="one of " + ", ".join(INSTALLS))
    work = read_work(words, config, overrides or ())
    status = submit_job(work, address=address, is_followed=follow, again=again, install=install)  # type: ignore[arg-type]
    raise SystemExit(status)


@jobs_app.command("list")
def list_jobs(address: AddressOption = DEFAULT_ADDRESS) -> None:
    """Sonder's jobs that the cluster remembers, oldest first."""
    from pipelines.jobs import connect, sonder_jobs

    found = sonder_jobs(connect(address))
    for job in found:  # a line each, whole: ids are there to be copied
        seconds = _seconds(job.started_ms, job.ended_ms)
        typer.echo(f"{_time(job.started_ms):<20}  {job.status.lower():<10} {seconds:>7} s  {job.id}  {job.command}")
    if not found:
        typer.echo("No job yet. `sonder submit COMMAND` makes one.")


@jobs_app.command("logs")
def job_logs(
    job: Annotated[str, typer.Argument(help="as `sonder jobs list` names it")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until it ends, with its exit status")] = False,
    address: AddressOption = DEFAULT_ADDRESS,
) -> None:
    """What a job has printed."""
    from pipelines.jobs import connect, find_job
    from pipelines.jobs import follow as follow_job

    client = connect(address)
    find_job(client, job)
    if follow:
        raise SystemExit(follow_job(client, job, address=address))
    typer.echo(client.get_job_logs(job), nl=False)


@jobs_app.command("stop")
def stop_job(
    job: Annotated[str, typer.Argument(help="as `sonder jobs list` names it")],
    address: AddressOption = DEFAULT_ADDRESS,
) -> None:
    """End a job. Nothing is lost: the same `sonder submit` goes on where it stopped."""
    from pipelines.jobs import connect, stop

    status = stop(connect(address), job)
    typer.echo(f"{job} {status.lower()}.")
    if status == "STOPPED":
        typer.echo("The same `sonder submit` goes on where it stopped.")


def _time(at_ms: int | None) -> str:
    return "" if not at_ms else datetime.fromtimestamp(at_ms / 1e3, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seconds(started_ms: int | None, ended_ms: int | None) -> str:
    if not started_ms:
        return ""
    until_ms = ended_ms or datetime.now(tz=UTC).timestamp() * 1e3
    return f"{(until_ms - started_ms) / 1e3:,.0f}"
