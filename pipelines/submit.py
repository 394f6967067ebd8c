"""Run a `sonder` command as a Ray job: deterministic id, log followed, exit status returned.

The job reads and writes the same workspace as the command line would, so both must reach it by the same path or URI.
Submitting the same work twice attaches to the job that runs; a failed or stopped one is started anew and resumes.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import typer
import yaml

from sonder.core.config import SonderConfig
from sonder.core.errors import ConfigurationError, StageUnavailable
from sonder.core.ids import digest_json
from sonder.core.telemetry import carrier

SECONDS_FOR_AGENT = 60.0  # the dashboard of a cluster that has just been started answers before its agents do
COMMANDS = ("build", "prepare", "train", "segment", "cluster", "score", "evaluate")


def submit(command: str, config: SonderConfig, *, address: str, follow: bool) -> int:
    """Submit and, if asked, follow -> 0 if the job succeeded (or was handed over), 1 if it failed."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobStatus, JobSubmissionClient

    if command not in COMMANDS:
        raise ConfigurationError(f"Cannot submit {command!r}", expected="one of " + ", ".join(COMMANDS))
    try:
        client = JobSubmissionClient(address)
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
    content = absolute_paths(config)
    job = f"sonder-{command}-{digest_json(content)}"
    statuses = {info.submission_id: info.status for info in client.list_jobs() if info.submission_id}
    attempts = [name for name in statuses if name == job or name.startswith(f"{job}-")]
    running = [name for name in attempts if not statuses[name].is_terminal()]
    if running:
        job = running[0]
        typer.echo(f"{job} is running already: attached to it.")
    else:
        job = f"{job}-{len(attempts) + 1}" if attempts else job
        _start(client, job, command, content, address)
        typer.echo(f"Submitted {job}.")
    if not follow:
        typer.echo(f"Follow it with: ray job logs --address {address} --follow {job}")
        return 0
    asyncio.run(_print_logs(client, job))
    while not (status := client.get_job_status(job)).is_terminal():
        time.sleep(0.5)
    typer.echo(f"{job} {status.value.lower()}.")
    return 0 if status == JobStatus.SUCCEEDED else 1


def absolute_paths(config: SonderConfig) -> dict[str, Any]:
    """The configuration as plain data, with local paths made absolute: a job has another working directory."""
    content = config.model_dump(mode="json")
    content["workspace"] = _absolute(config.workspace)
    content["events"]["path"] = [_absolute(path) for path in config.events.paths]
    if config.items:
        content["items"]["path"] = _absolute(config.items.path)
    if config.consumers:
        content["consumers"] = _absolute(config.consumers)
    return content


def _absolute(path: str) -> str:
    return path if "://" in path or path.startswith("package:") or path == "auto" else str(Path(path).resolve())


def _start(client: Any, job: str, command: str, content: dict[str, Any], address: str) -> None:
    with tempfile.TemporaryDirectory(prefix="sonder-job-") as folder:
        (Path(folder) / "sonder.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        description = {
            "entrypoint": f"{_python(address)} -m pipelines.cli {command} --config sonder.yaml",
            "submission_id": job,
            "runtime_env": {
                "working_dir": folder,
                "env_vars": {"RAY_TRAIN_METRICS_ENABLED": "0", **_trace_variables()},
            },
            "metadata": {"sonder_command": command},
        }
        deadline = time.monotonic() + SECONDS_FOR_AGENT
        while True:
            try:
                client.submit_job(**description)
                return
            except RuntimeError as error:
                if "No available agent" not in str(error):
                    raise
                if time.monotonic() > deadline:
                    raise StageUnavailable(
                        f"The Ray cluster at {address} has no agent that takes jobs after {SECONDS_FOR_AGENT:.0f} s",
                        do="Look at the logs of its dashboard and of its agents.",
                    ) from error
            time.sleep(1.0)


def _python(address: str) -> str:
    """The interpreter of the job: this one when the cluster is this machine, the image's own elsewhere."""
    import sys

    return sys.executable if urlsplit(address).hostname in ("127.0.0.1", "localhost", "::1") else "python"


def _trace_variables() -> dict[str, str]:
    return {name.upper(): value for name, value in carrier().items()}


async def _print_logs(client: Any, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        typer.echo(lines, nl=False)
