"""One process at a time, on a local disk and on an object store: a lock file there, a lease here.

A lease is a small object that is made where there is none (a conditional write) and rewritten every BEAT_S by whoever
holds it, each time over the version it wrote last. Who finds one watches it: if its version does not change for LEASE_S
by the watcher's own clock, its holder is gone and the lease is taken over, again by a conditional write, so that of two
watchers one gets it. No clocks are compared. A holder that died on this machine is known at once.
Limits: other remote file systems than S3 have neither; there, two processes are not kept apart.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from filelock import FileLock, Timeout

from sonder.core.errors import DataError, StorageError

if TYPE_CHECKING:
    from sonder.core.storage import Folder

logger = logging.getLogger("sonder")
LEASE_S = 30.0
BEAT_S = 5.0
LOOK_S = 1.0


class Held:
    """A lock that is held; set `is_last` where nobody will ask for it again, and nothing is left of it."""

    is_last = False

    def check(self) -> None:
        """DataError where it was lost: another process may be at work now."""


class Lease(Held):
    """A lease on an object store; `acquire` and `release` it, or use `exclusive`."""

    def __init__(self, file: Folder, *, lease_s: float = LEASE_S, beat_s: float = BEAT_S) -> None:
        self._fs, self._path, self._file = file.fs, file.path, file
        self._lease_s, self._beat_s = lease_s, beat_s
        self._holder = {"id": uuid.uuid4().hex, "host": socket.gethostname(), **_process(os.getpid())}
        self._beats, self._version = 0, ""
        self._is_lost, self._ended = threading.Event(), threading.Event()
        self._beating: threading.Thread | None = None

    def acquire(self, timeout_s: float) -> None:
        """TimeoutError where another process holds it and gives signs of life after `timeout_s`."""
        deadline, seen, since = time.monotonic() + timeout_s, "", time.monotonic()
        while not self._begin():
            try:
                content, version = self._fs.read_if_changed(self._path, None)
            except FileNotFoundError:
                continue
            holder = orjson.loads(content)
            is_here = _is_here(holder)
            is_silent = version == seen and time.monotonic() - since >= self._lease_s
            if holder.get("free") or is_silent or (is_here and not _lives(holder)):
                if self._take(version):
                    break
                continue
            gives_signs = is_here or (seen and version != seen)
            if gives_signs and time.monotonic() >= deadline:
                raise TimeoutError(f"{self._file} is held by process {holder.get('pid')} of {holder.get('host')}")
            if version != seen:
                seen, since = version, time.monotonic()
            time.sleep(min(LOOK_S, self._beat_s))
        self._beating = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._beating.start()

    def release(self) -> None:
        """Let others have it at once."""
        self._ended.set()
        if self._beating is not None:
            self._beating.join()
        if self._is_lost.is_set():
            return
        with suppress(FileExistsError, StorageError):  # removed already, or else it runs out by itself
            self._version = self._fs.replace(self._path, orjson.dumps({"free": True, **self._holder}), self._version)
            if self.is_last:
                self._fs.rm_file(self._path)

    def check(self) -> None:
        if self._is_lost.is_set():
            raise DataError(
                f"{self._file} was taken over: this process gave no sign of life for {self._lease_s:.0f} s",
                expected="a machine that reaches its store",
                do="Run the same command again; it goes on where the other one stopped.",
            )

    def _begin(self) -> bool:
        try:
            self._version = self._fs.create(self._path, self._content())
        except FileExistsError:
            return False
        return True

    def _take(self, version: str) -> bool:
        try:
            self._version = self._fs.replace(self._path, self._content(), version)
        except FileExistsError:
            return False
        return True

    def _content(self) -> bytes:
        return orjson.dumps({**self._holder, "beat": self._beats})

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_s):
            self._beats += 1
            try:
                self._version = self._fs.replace(self._path, self._content(), self._version)
            except FileExistsError:
                logger.error("%s was taken over by another process", self._file)
                self._is_lost.set()
                return
            except StorageError as error:  # whoever takes it over meanwhile is found at the next beat
                logger.warning("no sign of life to %s: %s", self._file, error.found)


@contextmanager
def exclusive(file: Folder, *, timeout_s: float = 0.0) -> Iterator[Held]:
    """Hold the lock of this name; TimeoutError where another process does."""
    if file.is_conditional:
        lease = Lease(file)
        lease.acquire(timeout_s)
        try:
            yield lease
        finally:
            lease.release()
    elif file.is_local:
        Path(file.path).parent.mkdir(parents=True, exist_ok=True)
        lock, held = FileLock(file.path), Held()
        try:
            lock.acquire(timeout=timeout_s)
        except Timeout as error:
            raise TimeoutError(f"{file} is held") from error
        try:
            yield held
        finally:
            if held.is_last:
                Path(file.path).unlink(missing_ok=True)
            lock.release()
    else:
        yield Held()


def _process(pid: int) -> dict[str, Any]:
    """What tells a process from every other, on every machine and in every container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return {"pid": pid, "place": "", "started": ""}
    return {"pid": pid, "place": f"{boot}/{space}", "started": started}


def _is_here(holder: dict[str, Any]) -> bool:
    return bool(holder.get("place")) and holder["place"] == _process(os.getpid())["place"]


def _lives(holder: dict[str, Any]) -> bool:
    return bool(_process(int(holder["pid"]))["started"] == holder["started"])
