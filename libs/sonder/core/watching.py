"""What a file of the workspace says now, for who asks at every request.

A look costs one small request of an object store, which answers "not changed" to a known version, and nothing is read
again until it has. Of a local disk the look is made when the value is asked for and is due; of an object store a thread
makes it, so that no request waits for the network: where the store does not answer, the last value goes on.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from sonder.core.errors import NotFound, SonderError
from sonder.core.storage import Folder

logger = logging.getLogger("sonder")
T = TypeVar("T")
AT_LEAST_EVERY_S = 60.0  # a writer may have died before it said that something changed


class Watched(Generic[T]):
    """The value that `read` makes; `file` changes whenever it may be another one."""

    def __init__(self, file: Folder, read: Callable[[], T], *, every_s: float) -> None:
        self._file, self._read, self._every_s = file, read, every_s
        self._looking, self._closed = threading.Lock(), threading.Event()
        self._version: str | None = None
        self._looked = self._was_read = -math.inf
        self._value: T  # by the first look
        if not file.is_local:
            self.look()
            threading.Thread(target=self._keep_looking, name=f"watch-{file.name}", daemon=True).start()

    @property
    def value(self) -> T:
        if self._file.is_local and time.monotonic() - self._looked > self._every_s:
            self.look()
        return self._value

    def look(self) -> None:
        """Read it again if it has changed."""
        with self._looking:
            self._looked = time.monotonic()
            before = self._version  # looked at before it is read: what changes meanwhile is read again
            if self._has_changed() or time.monotonic() - self._was_read > AT_LEAST_EVERY_S:
                try:
                    self._value = self._read()
                except BaseException:
                    self._version = before  # else the next look would find nothing new
                    raise
                self._was_read = time.monotonic()

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()

    def _has_changed(self) -> bool:
        try:
            found = self._file.read_if_changed(self._version)
        except NotFound:
            was, self._version = self._version, None
            return was is not None
        if found is None:
            return False
        self._version = found[1]
        return True

    def _keep_looking(self) -> None:
        while not self._closed.wait(self._every_s):
            try:
                self.look()
            except Exception as error:  # the last value goes on
                told = error.found if isinstance(error, SonderError) else f"{type(error).__name__}: {error}"
                logger.warning("%s could not be read again: %s", self._file, told)
