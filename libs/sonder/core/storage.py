"""Files of a workspace: a local folder or any fsspec URI, written so that a reader never sees half of anything.

A set of files (a snapshot, a release) is *staged* under `.staging/<name>` and *published* by a move whose last file
is `manifest.json`. Readers take a folder without a manifest for absent. On S3 a move is a copy on the server's side,
and the manifest a write that only one of two publishers wins. `s3://` is served by sonder.core.object_store, every
other URI by whatever fsspec finds for it.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import posixpath
import random
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from fsspec.implementations.local import LocalFileSystem

from sonder.core.errors import ConfigurationError, DataError, NotFound
from sonder.core.locking import exclusive

logger = logging.getLogger("sonder")
MANIFEST = "manifest.json"
_SCRATCH = ".tmp"  # ends the name of a local file while it is written
_PUBLISH_WAIT_S = 5.0
_AT_ONCE = 8  # copies and reads of an object store under way together
_MOST_TRIES = 50  # of a change that others make too
_in_process = threading.Lock()  # changes where a file system has no conditional writes


def file_system_of(uri: str) -> tuple[Any, str]:
    """The file system of a path or URI, and the path on it; ConfigurationError where none is installed."""
    if uri.startswith(("s3://", "s3a://")):
        try:
            kind = importlib.import_module("sonder.core.object_store").ObjectStore
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"{uri} needs the package {error.name}",
                expected="Sonder with its extra `s3`",
                do="pip install sonder[s3]",
            ) from error
        return kind(), kind._strip_protocol(uri)
    fs, path = fsspec.core.url_to_fs(uri)
    return fs, path


@dataclass(frozen=True)
class Folder:
    """A folder on some file system; `/` goes down."""

    fs: Any
    path: str

    @classmethod
    def at(cls, uri: str) -> Folder:
        fs, path = file_system_of(uri)
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

    @property
    def is_conditional(self) -> bool:
        """Whether the file system lets one of two writers win, as S3 does."""
        return hasattr(self.fs, "read_if_changed")

    def exists(self) -> bool:
        return bool(self.fs.exists(self.path))

    def is_published(self) -> bool:
        return bool(self.fs.isfile((self / MANIFEST).path))

    def children(self) -> list[Folder]:
        """Folders and files directly below, by name; none if this folder does not exist."""
        self.fs.invalidate_cache()
        try:
            if not self.is_conditional and not self.fs.isdir(self.path):
                return []
            found = self.fs.ls(self.path, detail=False)
        except FileNotFoundError:
            return []
        return [Folder(self.fs, entry) for entry in sorted(found) if entry != self.path]

    def files(self) -> list[str]:
        """Paths of all files below, relative to this folder, sorted."""
        return list(self.sizes())

    def sizes(self) -> dict[str, int]:
        """Bytes of every file below, by its path relative to this folder, sorted; one listing of an object store."""
        self.fs.invalidate_cache()
        if not self.is_conditional and not self.fs.isdir(self.path):
            return {}
        found = self.fs.find(self.path, detail=True)
        below = {posixpath.relpath(name, self.path): int(entry["size"]) for name, entry in found.items()}
        below.pop(".", None)
        return dict(sorted(below.items()))

    def remove(self) -> None:
        if self.is_conditional or self.fs.exists(self.path):
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

    def read_if_changed(self, version: str | None = None) -> tuple[bytes, str] | None:
        """The file and its version, None where it still has the version given; NotFound if there is none.

        One request of an object store, one look at the folder of a local disk: this is what polls.
        """
        try:
            if self.is_conditional:
                found: tuple[bytes, str] | None = self.fs.read_if_changed(self.path, version)
                return found
            if self.is_local:
                known = os.stat(self.path)
                now = f"{known.st_mtime_ns}-{known.st_size}-{known.st_ino}"
                return None if now == version else (self.read_bytes(), now)
        except FileNotFoundError as error:
            raise NotFound(f"No file at {self}") from error
        content = self.read_bytes()
        now = hashlib.blake2b(content, digest_size=16).hexdigest()
        return None if now == version else (content, now)

    def create_bytes(self, content: bytes) -> None:
        """Write the file whole if there is none; FileExistsError where another writer was first."""
        self.fs.makedirs(posixpath.dirname(self.path), exist_ok=True)
        if not self.is_local:
            self.fs.pipe_file(self.path, content, mode="create")
            return
        scratch = f"{self.path}.{uuid.uuid4().hex}{_SCRATCH}"
        try:
            Path(scratch).write_bytes(content)
            os.link(scratch, self.path)
        finally:
            Path(scratch).unlink(missing_ok=True)

    def update_json(self, change: Callable[[Any], Any]) -> Any:
        """Replace the file by what `change` makes of it (None: there was none), so that no other change is lost.

        `change` may be called again where another process was faster -> what was written.
        """
        if self.is_conditional:
            return self._update_conditionally(change)
        self.fs.makedirs(posixpath.dirname(self.path), exist_ok=True)
        hidden = posixpath.join(posixpath.dirname(self.path), f".{self.name}.lock")
        with FileLock(hidden) if self.is_local else _in_process:
            changed = change(self.read_json() if self.exists() else None)
            self.write_json(changed)
            return changed

    def _update_conditionally(self, change: Callable[[Any], Any]) -> Any:
        for turn in range(_MOST_TRIES):
            try:
                found = self.fs.read_if_changed(self.path, None)
            except FileNotFoundError:
                found = None
            changed = change(None if found is None else orjson.loads(found[0]))
            try:
                if found is None:
                    self.fs.create(self.path, json_bytes(changed))
                else:
                    self.fs.replace(self.path, json_bytes(changed), found[1])
            except FileExistsError:
                time.sleep(random.uniform(0, 0.01 * min(turn + 1, 20)))  # else two that meet once meet again
                continue
            return changed
        raise DataError(f"{self} was changed by others {_MOST_TRIES} times in a row", do="Try again.")

    def read_json(self) -> Any:
        return orjson.loads(self.read_bytes())

    def write_json(self, content: Any) -> None:
        self.write_bytes(json_bytes(content))

    def read_table(self, columns: list[str] | None = None) -> pa.Table:
        try:
            with self.fs.open(self.path, "rb") as file:
                return pq.read_table(file, columns=columns)
        except FileNotFoundError as error:
            raise NotFound(f"No table at {self}") from error

    def write_table(self, table: pa.Table, encodings: Mapping[str, str] | None = None) -> None:
        """Parquet with fixed settings: the same table gives the same bytes.

        `encodings` of columns whose values hardly repeat, for which a dictionary costs time and space.
        """
        options: dict[str, Any] = {"compression": "zstd", "row_group_size": 1 << 17, "store_schema": True}
        if encodings:
            leaves = {field.name: _leaf(field) for field in table.schema}
            options["use_dictionary"] = [leaf for name, leaf in leaves.items() if name not in encodings]
            options["column_encoding"] = {leaves[name]: encoding for name, encoding in encodings.items()}
        sink = pa.BufferOutputStream()
        pq.write_table(table.combine_chunks(), sink, **options)
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
        return self.fingerprint()[0]

    def fingerprint(self) -> tuple[str, int]:
        """Digest and size of this file, read once."""
        state, size = hashlib.blake2b(digest_size=16), 0
        with self.fs.open(self.path, "rb") as file:
            while chunk := file.read(1 << 22):
                state.update(chunk)
                size += len(chunk)
        return state.hexdigest(), size

    def fingerprints(self, names: list[str]) -> dict[str, tuple[str, int]]:
        """The same of several files below; a few of an object store at once, for what costs there is waiting."""
        if self.is_local:
            return {name: (self / name).fingerprint() for name in names}
        with ThreadPoolExecutor(_AT_ONCE) as readers:
            return dict(zip(names, readers.map(lambda name: (self / name).fingerprint(), names), strict=True))


def _leaf(field: pa.Field) -> str:
    """Path of a column in Parquet, which names the values of a list apart."""
    is_list = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
    return f"{field.name}.list.element" if is_list else str(field.name)


def json_bytes(content: Any) -> bytes:
    """JSON as every file of a workspace has it: sorted and indented."""
    options = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps(content, option=options)


def drop_unfinished(staged: Folder) -> None:
    """Remove the half-written files that a killed writer left; only when nobody writes there any more."""
    for name in staged.files():
        if name.endswith(_SCRATCH):
            (staged / name).remove()


def publish(staged: Folder, final: Folder, manifest: dict[str, Any]) -> None:
    """Make a staged folder visible under its final name, manifest last; an unpublished leftover there is removed.

    Of two publishers of one name the second is refused, whatever it was about to publish.
    """
    if final.is_published():
        raise _is_there(final)
    lock = Folder(final.fs, posixpath.join(posixpath.dirname(final.path), f".{final.name}.publishing"))
    try:
        with exclusive(lock, timeout_s=_PUBLISH_WAIT_S) as held:
            if final.is_published():
                raise _is_there(final)
            if final.is_local:
                drop_unfinished(staged)
            (staged / MANIFEST).write_json(manifest)
            final.remove()
            if final.is_local:
                os.rename(staged.path, final.path)
                held.is_last = True
                return
            copied = _copy_all(staged, final)
            held.check()
            try:
                (final / MANIFEST).create_bytes(json_bytes(manifest))
            except FileExistsError as error:
                raise _is_there(final) from error
            held.is_last = True
            logger.debug("%s: %d files copied", final, copied)
    except TimeoutError as error:
        raise DataError(
            f"Another process is publishing {final}", expected="one at a time", do="Wait for it, then look again."
        ) from error
    staged.remove()


def _copy_all(staged: Folder, final: Folder) -> int:
    """Copy every file but the manifest, several at once, and see that all of them arrived -> how many."""
    sizes = {name: size for name, size in staged.sizes().items() if name != MANIFEST}

    def copy(name: str) -> None:
        final.fs.cp_file((staged / name).path, (final / name).path, size=sizes[name])

    with ThreadPoolExecutor(_AT_ONCE) as copiers:
        list(copiers.map(copy, sizes))
    if (arrived := final.sizes()) != sizes:
        odd = sorted(set(arrived.items()) ^ set(sizes.items()))[0][0]
        raise DataError(f"{final / odd} is not what was staged", expected="a whole copy", do="Run the command again.")
    return len(sizes)


def _is_there(final: Folder) -> DataError:
    return DataError(f"{final} is already published", expected="immutable snapshots and releases")


def read_manifest(folder: Folder) -> dict[str, Any]:
    """The manifest of a published folder; NotFound if it is absent or was never finished."""
    try:
        manifest: dict[str, Any] = (folder / MANIFEST).read_json()
    except NotFound as error:
        raise NotFound(f"Nothing is published at {folder}", expected=f"a folder with {MANIFEST}") from error
    return manifest
