"""What there is to know of a release before it is served: metrics, intervals, the fields of its profiles.

metrics    the manifest's own, and what the profiles' files say of themselves:
           coverage.<field>  share of users of whom the field is known, [0, 1]: of `coverage.embedding` those with a
                             vector, of a list those with at least one entry; from the files' footers, no row is read
           rows.profiles, rows.cold    users of the release, and those without a vector
           rows.files, size_bytes.<folder>   of the artefacts
intervals  95 % intervals of the metrics that have one (scores, from their quality files)
fields     path of each field that a consumer may read -> its type; `embedding` with its width, `scores.<name>` with
           what the score promises, so that a change of either is a change of type; `attributes.<name>` and
           `consent.<purpose>` are those of the user table
Limits: coverage needs the null counts of Parquet statistics, which our files have; without them it is not measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sonder.core.score_config import ScoreTask
from sonder.core.storage import Folder
from sonder.releases.artefacts import Release
from sonder.releases.manifest import Manifest
from sonder.scoring.heads import HEADS_FILE

Interval = tuple[float, float]
_IN_LIST = ".list.element"  # how Parquet spells what lies in a list


@dataclass(frozen=True)
class ReleaseFacts:
    """One release, as the gate and the comparison of two see it."""

    manifest: Manifest
    metrics: Mapping[str, float]
    intervals: Mapping[str, Interval]
    fields: Mapping[str, str]

    @property
    def id(self) -> str:
        return self.manifest.id


def read_facts(release: Release) -> ReleaseFacts:
    """Read a release's small files and the footers of its profiles."""
    manifest = release.manifest
    files = [release.profiles / name for name in release.profiles.files() if name.endswith(".parquet")]
    coverage, schema = _read_footers(files)
    heads = _heads(release)
    counts = {f"rows.{name}": value for name, value in manifest.row_counts.items() if name != "seconds"}
    measured = {**manifest.metrics, **counts, **coverage, **_sizes(manifest)}
    return ReleaseFacts(
        manifest=manifest,
        metrics={name: float(value) for name, value in measured.items() if _is_number(value)},
        intervals=_intervals(release, heads),
        fields=_fields(schema, manifest, heads),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _sizes(manifest: Manifest) -> dict[str, int]:
    sizes = Counter[str]()
    for name, entry in manifest.files.items():
        sizes[f"size_bytes.{name.split('/')[0]}"] += entry.size_bytes
    return {**sizes, "rows.files": len(manifest.files)}


def _read_footers(files: Sequence[Folder]) -> tuple[dict[str, float], pa.Schema | None]:
    """`coverage.<field>` over all files, and their schema; a list counts as known where it has an entry."""
    rows, nulls, unknown, schema = 0, Counter[str](), set[str](), None
    for file in files:
        with file.open() as opened:
            parquet = pq.ParquetFile(opened)
            schema = schema or parquet.schema_arrow
            for group in range(parquet.metadata.num_row_groups):
                found = parquet.metadata.row_group(group)
                rows += found.num_rows
                for path, missing in _nulls(found).items():
                    nulls[path] += missing or 0
                    unknown |= {path} if missing is None else set()
    if not rows:
        return {}, schema
    always = {field.name for field in schema or () if not field.nullable and not pa.types.is_nested(field.type)}
    unknown |= {*always, "cold_reason"}  # what each user has by its type, and what only users without a vector have
    known = {f"coverage.{path}": (rows - nulls[path]) / rows for path in nulls if path not in unknown}
    return known, schema


def _nulls(group: Any) -> dict[str, int | None]:
    """Rows of a row group without each field. Of a list, the leaf with fewest nulls is null in lists without entry."""
    found: dict[str, int | None] = {}
    for place in range(group.num_columns):
        column = group.column(place)
        told = column.statistics
        missing = told.null_count if told is not None and told.has_null_count else None
        path, is_list, _ = column.path_in_schema.partition(_IN_LIST)
        before = found.get(path)
        found[path] = missing if not is_list or before is None or missing is None else min(before, missing)
    return found


def _heads(release: Release) -> list[dict[str, Any]]:
    """The heads of the release's scores, without their trees."""
    file = release.scores / HEADS_FILE
    heads: list[dict[str, Any]] = file.read_json()["heads"] if file.exists() else []
    return heads


def _intervals(release: Release, heads: list[dict[str, Any]]) -> dict[str, Interval]:
    found: dict[str, Interval] = {}
    for head in heads:
        name = head["task"]["name"]
        file = release.score_quality / f"{name}.json"
        quality = file.read_json().get("quality", {}) if file.exists() else {}
        for key, ends in quality.get("intervals", {}).items():
            told = key.replace("_at_k", f"_at_{quality.get('k')}")
            found[f"scores.{name}.{told}"] = (float(ends[0]), float(ends[1]))
    return found


def _fields(schema: pa.Schema | None, manifest: Manifest, heads: list[dict[str, Any]]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for field in schema or ():
        fields |= _flat(field.name, field.type)
    if "embedding" in fields:
        fields["embedding"] += f" of {manifest.config['encoder']['dim']}"
    for name in [name for name in fields if name.startswith(("scores.", "attributes.", "consent."))]:
        del fields[name]  # `scores.buy_30d` is the score of that name, `attributes.country` what answers call so
    columns = (manifest.config.get("users") or {}).get("columns", {})
    fields |= {f"attributes.{name}": "string" for name in columns.get("attributes", ())}
    fields |= {f"consent.{name}": "bool" for name in columns.get("consent", ())}
    for head in heads:
        promise = promise_of(head["task"])
        fields |= {f"scores.{output}": promise for output in (head["task"]["name"], *head["outputs"])}
    return fields


def _flat(path: str, kind: pa.DataType) -> dict[str, str]:
    """A field and those within it; what lies in a list is named without the list."""
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    within: dict[str, str] = {}
    if pa.types.is_struct(inner):
        for field in inner:
            within |= _flat(f"{path}.{field.name}", field.type)
        return {path: "list" if inner is not kind else "object", **within}
    return {path: f"list of {inner}" if inner is not kind else str(kind)}


def promise_of(task: dict[str, Any]) -> str:
    """What a score says, in words that change when it does."""
    checked = ScoreTask.model_validate(task)
    about = f" of {checked.action}" if checked.action else ""
    told = f"{checked.kind}{about} within {checked.within_days} days"
    told += f", {checked.next_category} categories" if checked.next_category else ""
    asked = checked.eligible.model_dump(mode="json", exclude_defaults=True)
    return told + (f", asked of {asked}" if asked else "")
