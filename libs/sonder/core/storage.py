"""Files of a workspace: a local folder or any fsspec URI, written so that a reader never sees half of anything.

A set of files (a snapshot, a release) is *staged* under `.staging/<name>` and *published* by a move whose last file
is `manifest.json`. Readers take a folder without a manifest for absent.
"""

from __future__ import annotations

import hashlib
import posixpath
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from sonder.core.errors import DataError, NotFound

MANIFEST = "manifest.json"
_SCRATCH = ".tmp"  # ends the name of a local file while it is written


@dataclass(frozen=True)
class Folder:
    """A folder on some file system; `/` goes down."""

    fs: Any
    path: str

    @classmethod
    def at(cls, uri: str) -> Folder:
        fs, path = fsspec.core.url_to_fs(uri)
        return cls(fs, path.rstrip("/"))

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.fs, posixpath.join(self.path, name))

    def __str__(self) -> str:
        return self.path if self.is_local else self.fs.unstrip_protocol(self.path)

    @property
    def uri(self) -> str:
        return str(self)

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def exists(self) -> bool:
        return bool(self.fs.exists(self.path))

    def is_published(self) -> bool:
        return bool(self.fs.exists((self / MANIFEST).path))

    def children(self) -> list[Folder]:
        """Folders and files directly below, by name; none if this folder does not exist."""
        if not self.fs.isdir(self.path):
            return []
        self.fs.invalidate_cache()
        return [Folder(self.fs, entry) for entry in sorted(self.fs.ls(self.path, detail=False))]

    def files(self) -> list[str]:
        """Paths of all files below, relative to this folder, sorted."""
        if not self.fs.isdir(self.path):
            return []
        self.fs.invalidate_cache()
        return sorted(posixpath.relpath(found, self.path) for found in self.fs.find(self.path))

    def remove(self) -> None:
        if self.fs.exists(self.path):
            self.fs.rm(self.path, recursive=True)

    # -- single files: written whole or not at all ------------------------------------------------------------

    def open(self) -> Any:
        """The file, to read parts of it; NotFound if there is none."""
        try:
            return self.fs.open(self.path, "rb")
        except FileNotFoundError as error:
            raise NotFound(f"No file at {self}") from error

    def read_bytes(self) -> bytes:
        try:
            with self.fs.open(self.path, "rb") as file:
                content: bytes = file.read()
                return content
        except FileNotFoundError as error:
            raise NotFound(f"No file at {self}") from error

    def write_bytes(self, content: bytes) -> None:
        self.fs.makedirs(posixpath.dirname(self.path), exist_ok=True)
        if not self.is_local:  # object stores publish an object whole
            self.fs.pipe_file(self.path, content)
            return
        scratch = f"{self.path}.{uuid.uuid4().hex}{_SCRATCH}"
        with self.fs.open(scratch, "wb") as file:
            file.write(content)
        self.fs.mv(scratch, self.path)

    def read_json(self) -> Any:
        return orjson.loads(self.read_bytes())

    def write_json(self, content: Any) -> None:
        options = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
        self.write_bytes(orjson.dumps(content, option=options))

    def read_table(self, columns: list[str] | None = None) -> pa.Table:
        try:
            with self.fs.open(self.path, "rb") as file:
                return pq.read_table(file, columns=columns)
        except FileNotFoundError as error:
            raise NotFound(f"No table at {self}") from error

    def write_table(self, table: pa.Table) -> None:
        """Parquet with fixed settings: the same table gives the same bytes."""
        sink = pa.BufferOutputStream()
        pq.write_table(table.combine_chunks(), sink, compression="zstd", row_group_size=1 << 17, store_schema=True)
        self.write_bytes(sink.getvalue())

    @contextmanager
    def table_writer(self, schema: pa.Schema, *, repeats: bool = True) -> Iterator[pq.ParquetWriter]:
        """Write a table in parts that are never in memory together; the file appears if the block ends well.

        `repeats`: whether values repeat, so that a dictionary of them pays; for vectors it costs time and space.
        """
        if not self.is_local:  # closing a remote file publishes it, also after an error
            with tempfile.NamedTemporaryFile(suffix=_SCRATCH) as spool:
                with pq.ParquetWriter(spool, schema, compression="zstd", use_dictionary=repeats) as writer:
                    yield writer
                spool.flush()
                self.fs.put_file(spool.name, self.path)
            return
        self.fs.makedirs(posixpath.dirname(self.path), exist_ok=True)
        scratch = f"{self.path}.{uuid.uuid4().hex}{_SCRATCH}"
        try:
            with pq.ParquetWriter(scratch, schema, compression="zstd", use_dictionary=repeats) as writer:
                yield writer
            self.fs.mv(scratch, self.path)
        finally:
            if self.fs.exists(scratch):
                self.fs.rm(scratch)

    def digest(self) -> str:
        """32 hex digits over the bytes of this file."""
        state = hashlib.blake2b(digest_size=16)
        with self.fs.open(self.path, "rb") as file:
            while chunk := file.read(1 << 22):
                state.update(chunk)
        return state.hexdigest()


def drop_unfinished(staged: Folder) -> None:
    """Remove the half-written files that a killed writer left; only when nobody writes there any more."""
    for name in staged.files():
        if name.endswith(_SCRATCH):
            (staged / name).remove()


def publish(staged: Folder, final: Folder, manifest: dict[str, Any]) -> None:
    """Make a staged folder visible under its final name, manifest last; an unpublished leftover there is removed."""
    if final.is_published():
        raise DataError(f"{final} is already published", expected="immutable snapshots and releases")
    drop_unfinished(staged)
    (staged / MANIFEST).write_json(manifest)
    final.remove()
    final.fs.makedirs(posixpath.dirname(final.path), exist_ok=True)
    if final.is_local:
        final.fs.mv(staged.path, final.path, recursive=True)
        return
    for name in [n for n in staged.files() if n != MANIFEST] + [MANIFEST]:
        final.fs.copy((staged / name).path, (final / name).path)
    staged.remove()


def read_manifest(folder: Folder) -> dict[str, Any]:
    """The manifest of a published folder; NotFound if it is absent or was never finished."""
    if not folder.is_published():
        raise NotFound(f"Nothing is published at {folder}", expected=f"a folder with {MANIFEST}")
    manifest: dict[str, Any] = (folder / MANIFEST).read_json()
    return manifest
