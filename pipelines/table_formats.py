"""Logs in Iceberg and Delta tables, through Ray Data's own readers.

`events.path` is the identifier of an Iceberg table (`namespace.table`, or `catalogue:namespace.table`; catalogues are
configured in `~/.pyiceberg.yaml` or PYICEBERG_CATALOG__*), or the path or URI of a Delta table. The version that is
current when `prepare` starts is read, and enters the snapshot id.
Needs `pyiceberg` or `deltalake` in the environment of the driver and of the workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import pyarrow as pa
import ray.data

from pipelines.prepare_tasks import read_block
from pipelines.ray_runtime import ensure_ray
from sonder.core.errors import ConfigurationError
from sonder.core.input_config import EventsConfig
from sonder.events import resolving
from sonder.events.mapping import latest_event_us

SAMPLE_ROWS = 10_000


def is_table_format(events: EventsConfig) -> bool:
    return events.format in resolving.TABLE_FORMATS


def resolve_table(events: EventsConfig) -> EventsConfig:
    """Settle the configuration by a look at the first rows."""
    rows = _dataset(events, describe_table(events)["version"]).limit(SAMPLE_ROWS)
    blocks = list(rows.iter_batches(batch_size=None, batch_format="pyarrow"))
    sample = pa.concat_tables(blocks, promote_options="permissive") if blocks else pa.table({})
    return resolving.resolve_table(events, sample)


def describe_table(events: EventsConfig) -> dict[str, Any]:
    """The table, its current version and the rows that this declares."""
    path = _only_path(events)
    if events.format == "delta":
        table = _library("deltalake").DeltaTable(path)
        return {"path": path, "version": int(table.version()), "rows": int(table.count())}
    catalog, _, name = path.partition(":") if ":" in path else ("default", "", path)
    table = _library("pyiceberg.catalog").load_catalog(catalog).load_table(name)
    current = table.current_snapshot()
    rows = int(current.summary.additional_properties.get("total-records", 0)) if current else 0
    return {"path": path, "version": int(current.snapshot_id) if current else None, "rows": rows}


def read_table(events: EventsConfig, version: int | None, intake: Mapping[str, Any]) -> ray.data.Dataset:
    """Events with their bucket (`prepare_tasks.read_block`), from one version of the table."""
    return _dataset(events, version).map_batches(
        read_block,
        fn_kwargs={"source": _only_path(events), "latest_us": latest_event_us(), **intake},
        batch_size=None,
        batch_format="pyarrow",
    )


def _dataset(events: EventsConfig, version: int | None) -> ray.data.Dataset:
    ensure_ray()
    path = _only_path(events)
    if events.format == "delta":
        _library("deltalake")
        return ray.data.read_delta(path, version=version)
    _library("pyiceberg")
    catalog, _, name = path.partition(":") if ":" in path else ("default", "", path)
    return ray.data.read_iceberg(table_identifier=name, snapshot_id=version, catalog_kwargs={"name": catalog})


def _only_path(events: EventsConfig) -> str:
    if len(events.paths) != 1:
        raise ConfigurationError(
            f"{len(events.paths)} paths for a log of format {events.format!r}", expected="one table"
        )
    return events.paths[0]


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ConfigurationError(
            f"The Python package {package!r} is not installed",
            expected=f"{package} for a log in this table format",
            do=f"Install it where the driver and the workers run: pip install {package}.",
        ) from error
