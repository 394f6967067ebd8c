"""S3 and what speaks like it, as a file system of fsspec with one thing more: writes that only one of two writers wins.

Source: `obstore`, the Python face of the Rust crate object_store (docs/decisions/0012). Everything about the endpoint
comes from the environment that AWS' own tools read: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, or what the platform gives the machine. A file system that travels to a worker
carries none of it, and no message repeats what a server said but its error code.
Requests: a read of up to WHOLE_BYTES is one; a listing is one per 1,000 names; nothing is cached.
Failures are tried again and explained by `object_store_client`.
Limits: folders exist while something is in them; an object above COPY_BYTES is copied through this machine.
"""

from __future__ import annotations

import time
from io import BytesIO
from pathlib import Path
from typing import Any

import obstore
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from obstore.exceptions import AlreadyExistsError, NotModifiedError, PreconditionError
from obstore.store import S3Store

from sonder.core.errors import StorageUnavailable
from sonder.core.object_store_client import FIRST_PAUSE_S, LONGEST_PAUSE_S, RETRY_S, explained, located

WHOLE_BYTES = 8 << 20  # up to here a file that is opened is read at once
BLOCK_BYTES = 8 << 20
COPY_BYTES = 5 << 30  # what S3 copies on its side in one request


class ObjectStore(AbstractFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """Paths are `bucket/key`."""

    protocol = ("s3", "s3a")
    root_marker = ""

    # -- looking ------------------------------------------------------------------------------------------------------

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        store, key = located(path)
        if key and (found := self._head(path)) is not None:
            return found
        with explained(path):
            is_there = _has_any(store, key)
        if not is_there and key:
            raise FileNotFoundError(path)
        return {"name": path, "size": 0, "type": "directory"}

    def exists(self, path: str, **_: Any) -> bool:
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def isfile(self, path: str) -> bool:
        return self._head(self._strip_protocol(path)) is not None

    def isdir(self, path: str) -> bool:
        """One listing; a name that is a file is no folder."""
        path = self._strip_protocol(path)
        store, key = located(path)
        with explained(path):
            return _has_any(store, key) or not key

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        store, key = located(path)
        with explained(path):
            found = obstore.list_with_delimiter(store, f"{key}/" if key else None)
        bucket = path.split("/", 1)[0]
        entries = [_entry(bucket, one) for one in found["objects"] if one["path"] != key]
        entries += [
            {"name": f"{bucket}/{name.rstrip('/')}", "size": 0, "type": "directory"}
            for name in found["common_prefixes"]
        ]
        if not entries:
            entry = self.info(path)
            entries = [entry] if entry["type"] == "file" else []
        return entries if detail else sorted(entry["name"] for entry in entries)

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        """Every file below, by one flat listing however deep the folders are."""
        if maxdepth is not None or withdirs:
            return super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=detail)
        path = self._strip_protocol(path)
        store, key = located(path)
        bucket = path.split("/", 1)[0]
        with explained(path):
            pages = list(obstore.list(store, f"{key}/" if key else None))
        found = {entry["name"]: entry for page in pages for entry in (_entry(bucket, one) for one in page)}
        if not found and key and (file := self._head(path)) is not None:
            found = {path: file}
        return dict(sorted(found.items())) if detail else sorted(found)

    def modified(self, path: str) -> Any:
        return self.info(path)["LastModified"]

    def _head(self, path: str) -> dict[str, Any] | None:
        store, key = located(path)
        if not key:
            return None
        try:
            with explained(path):
                return _entry(path.split("/", 1)[0], obstore.head(store, key))
        except FileNotFoundError:
            return None

    # -- reading ------------------------------------------------------------------------------------------------------

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        path = self._strip_protocol(path)
        store, key = located(path)
        if start is not None or end is not None:
            size = self.size(path) if end is None or end < 0 or (start or 0) < 0 else None
            first = 0 if start is None else start + size if start < 0 and size is not None else start
            last = size if end is None else end + size if end < 0 and size is not None else end
            assert last is not None
            if last <= first:
                return b""
            with explained(path):
                return bytes(obstore.get_range(store, key, start=first, end=last))
        with explained(path):
            return bytes(obstore.get(store, key).bytes())

    def read_if_changed(self, path: str, version: str | None) -> tuple[bytes, str] | None:
        """Content and version of a file, None if it still has this version; one request."""
        store, key = located(path)
        try:
            with explained(path):
                found = obstore.get(store, key, options={"if_none_match": version} if version else {})
                return found.bytes().to_bytes(), _version(found.meta)
        except NotModifiedError:
            return None

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        path = self._strip_protocol(rpath)
        store, key = located(path)
        Path(lpath).parent.mkdir(parents=True, exist_ok=True)
        with explained(path), Path(lpath).open("wb") as file:
            for chunk in obstore.get(store, key):
                file.write(chunk)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        store, key = located(path)
        if mode == "wb":
            return _Writing(self, path, mode="wb", block_size=BLOCK_BYTES)
        if mode != "rb":
            raise ValueError(f"Files of an object store are opened to read or to write, not {mode!r}")
        with explained(path):
            found = obstore.get(store, key)
            if found.meta["size"] <= WHOLE_BYTES:
                return BytesIO(found.bytes().to_bytes())
        return _Reading(self, path, mode="rb", size=found.meta["size"], block_size=BLOCK_BYTES, cache_type="readahead")

    # -- writing ------------------------------------------------------------------------------------------------------

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Write an object whole; with `mode="create"` only where there is none (FileExistsError)."""
        path = self._strip_protocol(path)
        if mode == "create":
            self.create(path, value)
            return
        store, key = located(path)
        with explained(path):
            obstore.put(store, key, memoryview(value).cast("B"))

    def create(self, path: str, value: bytes) -> str:
        """Write a new object -> its version; FileExistsError where another writer was first."""
        return self._conditional(path, value, "create")

    def replace(self, path: str, value: bytes, version: str) -> str:
        """Write over this version -> the new one; FileExistsError where another writer has changed it since."""
        return self._conditional(path, value, {"e_tag": version})

    def _conditional(self, path: str, value: bytes, mode: Any) -> str:
        """One try at a time: a try whose answer was lost may have been heard, and the next one then meets its own."""
        store, key = located(path, tries=0)
        deadline, pause_s, was_heard = time.monotonic() + RETRY_S, FIRST_PAUSE_S, False
        while True:
            try:
                with explained(path):
                    return _version(obstore.put(store, key, value, mode=mode, use_multipart=False))
            except StorageUnavailable:
                if time.monotonic() + pause_s > deadline:
                    raise
                was_heard = True
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
                mine = self._if_content_is(path, value) if was_heard else None
                if mine is None:
                    raise FileExistsError(path) from error
                return mine

    def _if_content_is(self, path: str, value: bytes) -> str | None:
        """The version of the object, if it holds this."""
        try:
            found = self.read_if_changed(path, None)
        except FileNotFoundError:
            return None
        return found[1] if found is not None and found[0] == value else None

    def put_file(self, lpath: str, rpath: str, mode: str = "overwrite", **_: Any) -> None:
        path = self._strip_protocol(rpath)
        store, key = located(path)
        if Path(lpath).is_dir():
            return
        with explained(path):
            obstore.put(store, key, Path(lpath))

    def cp_file(self, path1: str, path2: str, size: int | None = None, **_: Any) -> None:
        """A copy on the server's side; through this machine where it is too large or another bucket.

        `size`: of the file, where it is known; else it is asked for.
        """
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        (source, key1), (target, key2) = located(path1), located(path2)
        is_near = path1.split("/", 1)[0] == path2.split("/", 1)[0]
        with explained(path1):
            size = obstore.head(source, key1)["size"] if size is None else size
            if is_near and size <= COPY_BYTES:
                obstore.copy(source, key1, key2)
            else:
                writer = obstore.open_writer(target, key2, buffer_size=BLOCK_BYTES)
                for chunk in obstore.get(source, key1):
                    writer.write(chunk)
                writer.close()

    def rm_file(self, path: str) -> None:
        path = self._strip_protocol(path)
        store, key = located(path)
        with explained(path):
            obstore.delete(store, key)

    _rm = rm_file

    def rm(self, path: str | list[str], recursive: bool = False, maxdepth: int | None = None) -> None:
        """Delete objects, 1,000 a request."""
        for one in [path] if isinstance(path, str) else path:
            stripped = self._strip_protocol(one)
            store, key = located(stripped)
            names = self.find(stripped) if recursive else [stripped]
            with explained(stripped):
                obstore.delete(store, [located(name)[1] for name in names] or [key])

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Folders need not be made."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Folders need not be made."""

    def rmdir(self, path: str) -> None:
        """Folders go with what is in them."""


class _Reading(AbstractBufferedFile):  # type: ignore[misc]
    """A large file, read by ranges with some bytes ahead."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        store, key = located(self.path)
        with explained(self.path):
            return bytes(obstore.get_range(store, key, start=start, end=end))


class _Writing(AbstractBufferedFile):  # type: ignore[misc]
    """A file that appears when it is closed, uploaded in parts meanwhile."""

    def _initiate_upload(self) -> None:
        store, key = located(self.path)
        self._writer = obstore.open_writer(store, key, buffer_size=BLOCK_BYTES)

    def _upload_chunk(self, final: bool = False) -> bool:
        with explained(self.path):
            self._writer.write(self.buffer.getvalue())
            if final:
                self._writer.close()
        return True


def _has_any(store: S3Store, key: str) -> bool:
    """Whether anything lies below; one request."""
    pages = obstore.list(store, f"{key}/" if key else None, chunk_size=1)
    return any(bool(page) for page in pages)


def _entry(bucket: str, found: Any) -> dict[str, Any]:
    modified = found["last_modified"]
    return {
        "name": f"{bucket}/{found['path']}",
        "size": found["size"],
        "type": "file",
        "ETag": found["e_tag"],
        "LastModified": modified,
        "mtime": modified,
    }


def _version(found: Any) -> str:
    return str(found["e_tag"])
