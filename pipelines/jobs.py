"""Jobs on a cluster: reach it, follow a job's log to its end, stop it, list them.

A follower that loses the connection, or that is interrupted, leaves the job alone: it goes on, and `sonder jobs logs ID
--follow` attaches again. The log is told from where it was lost. The exit status is the job's own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

import typer

from sonder.core.errors import NotFound, StageUnavailable

EXIT_STOPPED, EXIT_INTERRUPTED = 143, 130  # as a shell says it of SIGTERM and SIGINT
PREFIX = "sonder-"
LOOK_EVERY_S, STOP_WAIT_S = 0.5, 60.0
LOST = 10  # connections in a row, before the cluster counts as gone
NO_SONDER = "No module named 'pipelines'"


@dataclass(frozen=True)
class Told:
    """One job, as a list shows it."""

    id: str
    command: str
    status: str
    started_ms: int | None
    ended_ms: int | None
    message: str


def connect(address: str) -> Any:
    """A client of the cluster's dashboard; StageUnavailable says what is missing."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for chatty in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{chatty}").setLevel(logging.WARNING)  # they tell of packages and sockets
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise StageUnavailable(
            f"The Ray cluster at {address} asks for a token, and none that it knows was sent",
            expected="the token that the cluster was started with",
            do="Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH if it is not where Ray keeps one.",
        ) from error
    except (ConnectionError, RuntimeError) as error:
        raise StageUnavailable(
            f"No Ray cluster answers at {address}: {error}",
            expected="the dashboard address of a running cluster",
            do="Start one with `ray start --head --dashboard-host=127.0.0.1`, or name it with --address.",
        ) from error


def sonder_jobs(client: Any) -> list[Told]:
    """Sonder's jobs that the cluster remembers, oldest first."""
    found = [info for info in client.list_jobs() if (info.submission_id or "").startswith(PREFIX)]
    told = [
        Told(
            info.submission_id,
            (info.metadata or {}).get("sonder_command", ""),
            info.status.value,
            info.start_time,
            info.end_time,
            info.message or "",
        )
        for info in found
    ]
    return sorted(told, key=lambda job: (job.started_ms or 0, job.id))


def find_job(client: Any, job: str) -> Any:
    """The details of a job; NotFound names those that there are."""
    for info in client.list_jobs():
        if job in (info.submission_id, info.job_id):
            return info
    known = [told.id for told in sonder_jobs(client)]
    raise NotFound(
        f"No job {job!r} on this cluster",
        expected="one of " + ", ".join(known[-10:]) if known else "a submitted job",
        do="" if known else "`sonder submit COMMAND` makes one.",
    )


def follow(client: Any, job: str, *, address: str) -> int:
    """Print the job's log until it ends -> its exit status."""
    try:
        asyncio.run(_print_log(client, job, address))
        while not client.get_job_status(job).is_terminal():
            time.sleep(LOOK_EVERY_S)
    except KeyboardInterrupt:
        typer.echo(
            f"\n{job} goes on without you. Again: sonder jobs logs {job} --follow --address {address}; "
            f"to end it: sonder jobs stop {job} --address {address}",
            err=True,
        )
        return EXIT_INTERRUPTED
    return tell_end(client, job)


def tell_end(client: Any, job: str) -> int:
    """Say how a job ended -> its exit status."""
    info = find_job(client, job)
    status = info.status.value
    typer.echo(f"{job} {status.lower()}.")
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        typer.echo("The same `sonder submit` goes on where it stopped.")
        return EXIT_STOPPED
    if info.driver_exit_code is None and info.message:  # it never came to a log of its own
        typer.secho(info.message.strip(), fg=typer.colors.RED, err=True)
    elif NO_SONDER in client.get_job_logs(job)[-2_000:]:
        typer.secho(
            "The cluster's machines have no Sonder. Pass --install code to ship this one, or --install all to install "
            "its packages as well (docs/jobs.md).",
            fg=typer.colors.YELLOW,
            err=True,
        )
    return int(info.driver_exit_code or 1)


async def _print_log(client: Any, job: str, address: str) -> None:
    """Print until the log ends; after a lost connection from where it was lost."""
    printed, failures = 0, 0
    while True:
        skipped = 0
        try:
            async for lines in client.tail_job_logs(job):
                fresh = lines[max(0, printed - skipped) :]
                skipped += len(lines)
                if fresh:
                    typer.echo(fresh, nl=False)
                    printed, failures = printed + len(fresh), 0
            return
        except (RuntimeError, OSError) as error:
            failures += 1
            if failures >= LOST:
                raise StageUnavailable(
                    f"The Ray cluster at {address} was lost: {error}",
                    do=f"{job} may go on: sonder jobs logs {job} --follow --address {address}",
                ) from error
            await asyncio.sleep(LOOK_EVERY_S * failures)


def stop(client: Any, job: str) -> str:
    """End a job and wait until it has -> its status."""
    info = find_job(client, job)
    if not info.status.is_terminal():
        client.stop_job(job)
    deadline = time.monotonic() + STOP_WAIT_S
    while not (status := client.get_job_status(job)).is_terminal():
        if time.monotonic() > deadline:
            raise StageUnavailable(
                f"{job} has not ended within {STOP_WAIT_S:.0f} s", do="Look at it with `sonder jobs list`."
            )
        time.sleep(LOOK_EVERY_S)
    return str(status.value)
