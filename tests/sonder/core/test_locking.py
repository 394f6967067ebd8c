"""A lease is held by one, lost by who is silent, and free at once when its holder dies on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

import sonder.core.locking as locking
from sonder.core.errors import DataError
from sonder.core.locking import Lease, exclusive
from sonder.core.storage import Folder
from tests.s3_server import S3Server

_HOLDER = """
import sys, time
from sonder.core.locking import exclusive
from sonder.core.storage import Folder
with exclusive(Folder.at(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def file(s3_environment: S3Server) -> Folder:
    return Folder.at(s3_environment.uri(f"locks/{os.urandom(4).hex()}"))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is known to be on this machine, as on a cluster."""
    monkeypatch.setattr(locking, "_is_here", lambda holder: False)


@pytest.mark.usefixtures("elsewhere")
def test_who_gives_signs_of_life_keeps_its_lease(file: Folder) -> None:
    first, second = (Lease(file, lease_s=2.0, beat_s=0.3) for _ in range(2))
    first.acquire(0.0)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="held by process"):
        second.acquire(0.0)
    assert time.monotonic() - started < 2.0
    with pytest.raises(TimeoutError):
        second.acquire(3.0)
    first.check()
    first.release()
    second.acquire(0.0)
    second.is_last = True
    second.release()
    assert not file.exists()


@pytest.mark.usefixtures("elsewhere")
def test_who_is_silent_loses_it_to_one_of_those_who_wait_and_is_told(file: Folder) -> None:
    silent = Lease(file, lease_s=1.0, beat_s=3.0)
    silent.acquire(0.0)
    waiting = [Lease(file, lease_s=1.0, beat_s=0.2) for _ in range(2)]
    waiting[0].acquire(5.0)
    with pytest.raises(TimeoutError):
        waiting[1].acquire(2.0)
    time.sleep(2.5)  # until the silent one speaks again
    with pytest.raises(DataError, match="taken over"):
        silent.check()
    waiting[0].check()
    silent.release()  # takes nothing from the one that holds it
    waiting[0].check()
    waiting[0].release()


def test_a_holder_that_was_killed_on_this_machine_is_not_waited_for(file: Folder) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLDER, str(file)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(TimeoutError, match=str(holder.pid)), exclusive(file):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    started = time.monotonic()
    with exclusive(file):
        assert time.monotonic() - started < 5.0
