"""What changes is seen, what does not is not read again, and a store that fails leaves the last value."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import pytest

from sonder.core import watching
from sonder.core.storage import Folder
from sonder.core.watching import Watched


@pytest.fixture(params=["local", "memory"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder.at(str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}") / "a"


def until(condition: object) -> None:
    deadline = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_value_follows_its_file_and_is_read_only_when_that_changed(file: Folder) -> None:
    reads = []

    def read() -> bytes:
        reads.append(1)
        return file.read_bytes() if file.exists() else b""

    watched = Watched(file, read, every_s=0.02)
    assert watched.value == b""
    file.write_bytes(b"one")
    until(lambda: watched.value == b"one")
    time.sleep(0.1)
    assert (watched.value, len(reads)) == (b"one", 2)
    file.remove()
    until(lambda: watched.value == b"")
    watched.close()


def test_what_cannot_be_read_leaves_the_last_value_and_is_tried_again(file: Folder) -> None:
    file.write_bytes(b"one")
    fails = [False]

    def read() -> bytes:
        if fails[0]:
            raise OSError("away")
        return file.read_bytes()

    watched = Watched(file, read, every_s=60.0)
    assert watched.value == b"one"
    fails[0] = True
    file.write_bytes(b"two")
    with pytest.raises(OSError, match="away"):
        watched.look()
    assert watched.value == b"one"
    fails[0] = False
    watched.look()
    assert watched.value == b"two"
    watched.close()


def test_now_and_then_it_is_read_without_a_change(file: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "AT_LEAST_EVERY_S", 0.0)
    reads = []
    watched = Watched(file, lambda: reads.append(1), every_s=60.0)
    assert watched.value is None
    watched.look()
    watched.look()
    assert len(reads) == 3
    watched.close()
