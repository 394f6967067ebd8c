"""The members of an audience as one Parquet or CSV file, whole or absent; too small an audience is not exported.

Columns: user_id, entered_at, as_of, definition_version. Rows: who is in as of the newest evaluation, bucket by bucket.
"""

from __future__ import annotations

import tempfile
from typing import Any

import pyarrow as pa
import pyarrow.csv as pcsv

from pipelines.bucket_tasks import part_file
from sonder.core import telemetry
from sonder.core.errors import InvalidRequest
from sonder.core.storage import Folder, read_manifest
from sonder.core.workspace import Workspace
from sonder.segments.audiences import MEMBERSHIP_SCHEMA, AudienceCatalogue, current_members, newest_evaluation

EXPORT_SCHEMA = pa.schema([field for field in MEMBERSHIP_SCHEMA if field.name != "left_at"])
FORMATS = (".parquet", ".csv")


def export_audience(workspace: Workspace, name: str, out: Folder, *, min_size: int) -> dict[str, Any]:
    """Write the members to a file that ends in .parquet or .csv -> the manifest of the evaluation they come from.

    InvalidRequest for an audience of fewer than `min_size` members: a handful of people are no audience but persons.
    """
    catalogue = AudienceCatalogue(workspace.audiences)
    catalogue.newest(name)
    evaluation = newest_evaluation(catalogue.audience(name))
    manifest = read_manifest(evaluation)
    if not out.name.endswith(FORMATS):
        raise InvalidRequest(f"A file {out.name!r}", expected=f"a name that ends in {' or '.join(FORMATS)}")
    if manifest["members"] < min_size:
        raise InvalidRequest(
            f"Audience {name!r} has {manifest['members']:,} members as of {manifest['as_of']}",
            expected=f"at least {min_size:,} (audiences.min_export_size)",
            do="Widen its rule, save it and refresh.",
        )
    parts = (part_file(evaluation, bucket) for bucket in range(manifest["num_buckets"]))
    tables = (current_members(part.read_table()).select(EXPORT_SCHEMA.names) for part in parts)
    with telemetry.stage("export audience", audience=name) as counts:
        if out.name.endswith(".parquet"):
            with out.table_writer(EXPORT_SCHEMA) as writer:
                for table in tables:
                    writer.write_table(table)
        else:
            with tempfile.NamedTemporaryFile(suffix=".csv") as spool:
                with pcsv.CSVWriter(spool.name, EXPORT_SCHEMA) as csv:
                    for table in tables:
                        csv.write_table(table)
                out.fs.makedirs(out.path.rsplit("/", 1)[0], exist_ok=True)
                scratch = f"{out.path}.tmp" if out.is_local else out.path
                out.fs.put_file(spool.name, scratch)
                if out.is_local:
                    out.fs.mv(scratch, out.path)
        counts.update(members=manifest["members"])
    return manifest
