"""Run a `sonder` command as a Ray job: named by its work, log followed, exit status returned.

The job reads and writes the same workspace as the command line would, so both must reach it by the same path or URI.
The same work submitted again attaches to the job that runs; of one that has succeeded it says so and does nothing,
unless asked to run it `again`; one that failed or was stopped is started anew, and goes on where it stopped.
An attempt is named after the work: `sonder-build-<digest>`, then `…-2`, `…-3`.
"""

from __future__ import annotations

import shlex
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
import yaml

import sonder
from pipelines.job_environment import Install, interpreter, runtime_environment
from pipelines.job_work import CONFIG_FILE, Work
from pipelines.jobs import connect, follow
from sonder.core.errors import StageUnavailable

SECONDS_FOR_AGENT = 60.0  # the dashboard of a cluster that has just been started answers before its agents do


def submit(
    work: Work, *, address: str, is_followed: bool = True, again: bool = False, install: Install = "nothing"
) -> int:
    """Submit and, if asked, follow -> the exit status of the job; 0 where it was handed over or had succeeded."""
    client = connect(address)
    attempts = _attempts(client, work)
    running = [name for name, info in attempts.items() if not info.status.is_terminal()]
    last = max(attempts, key=_number, default=None)
    if running:
        job = running[-1]
        typer.echo(f"{job} is running already: attached to it.")
    elif last is not None and attempts[last].status.value == "SUCCEEDED" and not again:
        typer.echo(
            f"{last} succeeded{_when(attempts[last].end_time)}: the same command, configuration, input and code."
        )
        typer.echo("Pass --again to run it once more.")
        return 0
    else:
        job = work.name if last is None else f"{work.name}-{_number(last) + 1}"
        job = _start(client, job, work, address, install)
        before = "" if last is None else f" {last} {attempts[last].status.value.lower()}; this one goes on from there."
        typer.echo(f"Submitted {job}.{before}")
    if not is_followed:
        typer.echo(f"Follow it with: sonder jobs logs {job} --follow --address {address}")
        return 0
    return follow(client, job, address=address)


def _attempts(client: Any, work: Work) -> dict[str, Any]:
    """This work's jobs that the cluster remembers, by name."""
    named = {info.submission_id: info for info in client.list_jobs() if info.submission_id}
    found = [name for name in named if name == work.name or name.startswith(f"{work.name}-")]
    return {name: named[name] for name in sorted(found, key=_number)}


def _number(job: str) -> int:
    """Which attempt a job is; the digest of the work is longer than any number of attempts."""
    end = job.rsplit("-", 1)[-1]
    return int(end) if end.isdigit() and len(end) < 16 else 1


def _when(ended_ms: int | None) -> str:
    return "" if not ended_ms else f" at {datetime.fromtimestamp(ended_ms / 1e3, tz=UTC).isoformat(timespec='seconds')}"


def _start(client: Any, job: str, work: Work, address: str, install: Install) -> str:
    """Start the job -> its name; one of this name that somebody else has just started is as good."""
    with tempfile.TemporaryDirectory(prefix="sonder-job-") as folder:
        (Path(folder) / CONFIG_FILE).write_text(yaml.safe_dump(work.content), encoding="utf-8")
        work.write_files(Path(folder))
        description = {
            "entrypoint": shlex.join([interpreter(address), "-m", "pipelines.cli", *work.words]),
            "submission_id": job,
            "runtime_env": runtime_environment(
                Path(folder), install, tells_mlflow=work.config.tracking.mlflow is not None
            ),
            "metadata": {"sonder_command": work.command, "sonder_version": sonder.__version__},
        }
        deadline = time.monotonic() + SECONDS_FOR_AGENT
        while True:
            try:
                client.submit_job(**description)
                return job
            except RuntimeError as error:
                if "already exists" in str(error):
                    return job
                if "No available agent" not in str(error):
                    raise
                if time.monotonic() > deadline:
                    raise StageUnavailable(
                        f"The Ray cluster at {address} has no agent that takes jobs after {SECONDS_FOR_AGENT:.0f} s",
                        do="Look at the logs of its dashboard and of its agents.",
                    ) from error
            time.sleep(1.0)
