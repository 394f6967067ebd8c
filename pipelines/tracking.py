"""Tell an MLflow server of a release: one run each, with what it was made of, how good it is, and its report.

The switch is `tracking.mlflow`, the URI of the server; nothing is told without it, and the package `mlflow` is needed
only then (`pip install 'sonder[mlflow]'`). A run has the resolved configuration as parameters, metrics and row counts
of the release, report and manifest as artefacts, and tags to find it by: release, snapshot, parent, code version.
Telling again changes nothing: a release's run is found by its tag, and one that was cut short is gone on with.
A server that is away never fails a build, which is sealed before: `sonder track RELEASE` tells it later.
Limits: MLflow keeps 6,000 characters of a parameter, longer ones are cut; name and password are read from the
environment by MLflow itself (MLFLOW_TRACKING_USERNAME, _PASSWORD, _TOKEN).
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sonder.core import telemetry
from sonder.core.config import SonderConfig
from sonder.core.errors import ConfigurationError, SonderError, StageUnavailable
from sonder.core.storage import MANIFEST, Folder
from sonder.core.workspace import Workspace
from sonder.profiles.record import iso_time
from sonder.releases.artefacts import Release

logger = logging.getLogger("sonder")
MOST_CHARACTERS = 6_000  # of a parameter
PARAMETERS_AT_ONCE, METRICS_AT_ONCE = 100, 1_000
RELEASE_TAG = "sonder.release"
# Else a server that is away is asked for minutes, and MLflow tells its makers that it is used.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class Tracked(NamedTuple):
    """The run of a release."""

    run_id: str
    was_there: bool


def require_client(config: SonderConfig) -> None:
    """Fail before any work is done where the switch is on and MLflow is not installed."""
    if config.tracking.mlflow is not None and importlib.util.find_spec("mlflow") is None:
        raise ConfigurationError(
            "tracking.mlflow is set, and the package mlflow is not installed",
            expected="MLflow's client beside Sonder",
            do="Install it with `pip install 'sonder[mlflow]'`, or leave tracking.mlflow out.",
        )


def track_build(config: SonderConfig, release_id: str) -> None:
    """Tell of a release that was just built, if asked to; whatever goes wrong is a warning."""
    if config.tracking.mlflow is None:
        return
    try:
        tracked = track(config, release_id)
    except SonderError as error:
        logger.warning("tracking: %s Later: sonder track %s", error, release_id)
    else:
        logger.info("tracking: %s is run %s at %s", release_id, tracked.run_id, config.tracking.mlflow)


def track(config: SonderConfig, release_id: str) -> Tracked:
    """Tell of a release; ConfigurationError without the switch or the package, StageUnavailable without the server."""
    uri = config.tracking.mlflow
    if uri is None:
        raise ConfigurationError(
            "No server to tell", expected="tracking.mlflow", do="Pass --set tracking.mlflow=http://HOST:PORT"
        )
    require_client(config)
    release = Release.open(Workspace.at(config.workspace), release_id)
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        with telemetry.stage("track", release=release_id) as counts:
            tracked = _told(MlflowClient(tracking_uri=uri), release, config.tracking.experiment)
            counts |= {"run": tracked.run_id, "was_there": int(tracked.was_there)}
            return tracked
    except (MlflowException, OSError) as error:
        raise StageUnavailable(
            f"MLflow at {uri} did not take release {release_id}: {str(error).splitlines()[0][:300]}",
            expected="a tracking server that answers and lets us write",
            do="Look at the server, and at MLFLOW_TRACKING_USERNAME and _PASSWORD if it asks who writes.",
        ) from error


def _told(client: Any, release: Release, experiment: str) -> Tracked:
    experiment_id = _experiment(client, experiment)
    found = client.search_runs([experiment_id], filter_string=f"tags.`{RELEASE_TAG}` = '{release.id}'", max_results=1)
    if found and found[0].info.status == "FINISHED":
        return Tracked(found[0].info.run_id, was_there=True)
    created_ms = release.manifest.created_at_us // 1_000
    if found:
        run_id = str(found[0].info.run_id)
    else:
        run = client.create_run(experiment_id, start_time=created_ms, tags=tags_of(release), run_name=release.id)
        run_id = str(run.info.run_id)
    _log(client, run_id, release, created_ms)
    _log_files(client, run_id, release)
    client.set_terminated(run_id, status="FINISHED", end_time=created_ms)
    return Tracked(run_id, was_there=False)


def _experiment(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id) if found is not None else str(client.create_experiment(name))


def _log(client: Any, run_id: str, release: Release, created_ms: int) -> None:
    from mlflow.entities import Metric, Param

    parameters = [Param(name, value) for name, value in parameters_of(release.manifest.config).items()]
    for part in _parts(parameters, PARAMETERS_AT_ONCE):
        client.log_batch(run_id, params=part)
    metrics = [Metric(name, value, created_ms, 0) for name, value in metrics_of(release).items()]
    for part in _parts(metrics, METRICS_AT_ONCE):
        client.log_batch(run_id, metrics=part)


def _parts(entries: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (entries[start : start + size] for start in range(0, len(entries), size))


def _log_files(client: Any, run_id: str, release: Release) -> None:
    """The report and the manifest, copied here first: a release may lie on any file system."""
    with tempfile.TemporaryDirectory(prefix="sonder-track-") as scratch:
        for name in (MANIFEST, *(f"report/{file}" for file in (release.folder / "report").files())):
            _copy(release.folder / name, Path(scratch) / name)
        client.log_artifacts(run_id, scratch)


def _copy(file: Folder, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(file.read_bytes())


def tags_of(release: Release) -> dict[str, str]:
    """What a run is found by."""
    manifest = release.manifest
    return {
        RELEASE_TAG: manifest.id,
        "sonder.snapshot": manifest.snapshot,
        "sonder.parent": manifest.parent or "",
        "sonder.code_version": manifest.code_version,
        "sonder.config_digest": manifest.config_digest,
        "sonder.as_of": iso_time(manifest.as_of_us),
        "sonder.workspace": release.workspace.root.uri,
    }


def parameters_of(config: Mapping[str, Any]) -> dict[str, str]:
    """A configuration by its dotted names, as text; what is derived from the data (null) is left out."""
    return {name: value[:MOST_CHARACTERS] for name, value in _flat(config)}


def _flat(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in content.items():
        name = _name(f"{above}{key}")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        elif isinstance(value, list):
            yield name, json.dumps(value, sort_keys=True)
        elif value is not None:
            yield name, str(value)


def metrics_of(release: Release) -> dict[str, float]:
    """The release's metrics, `rows.<name>` of what it holds and `seconds.<step>`; only what is a finite number."""
    counts = dict(release.manifest.row_counts)
    seconds = counts.pop("seconds", None)
    rows = {f"rows.{name}": value for name, value in counts.items()}
    rows |= {f"seconds.{step}": took for step, took in seconds.items()} if isinstance(seconds, dict) else {}
    return {
        _name(name): float(value)
        for name, value in {**release.manifest.metrics, **rows}.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _name(name: str) -> str:
    """What MLflow takes for a name."""
    return re.sub(r"[^\w\-./: ]", "_", name)
