"""Several machines on this one: network namespaces with an address each, joined by a bridge that no other network sees.

`Network` is a hub (a namespace with the bridge, address .1, where clients and servers of the whole network run) and
machines (.11, .12, …). Nothing of it is in the machine's own namespace: no address, no route, no way out. A machine is
killed by SIGKILL of every process in its namespace at once, or cut off by taking its cable down.
Names begin with `sndr-PID-` of the process that made them; what a dead process left behind is removed by the next one.
Linux, root and iproute2 are needed: `why_not()` says what is missing.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

PREFIX = "sndr-"
SUBNET = "10.213.77"
HUB = "hub"
_ENDS_WITHIN_S = 10.0


def why_not() -> str | None:
    """Why there can be no namespaces here, None where there can."""
    if shutil.which("ip") is None:
        return "no `ip` command: apt-get install iproute2"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = f"{PREFIX}{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces are not permitted: {made.stderr.strip()}"
    _ip("netns", "del", probe)
    return None


class Network:
    """Use as a context: every process in it is ended and every namespace removed at the end."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        self._prefix = f"{PREFIX}{os.getpid()}-"
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Network:
        remove_stale()
        try:
            self._add_namespace(HUB, 1)
            _ip("-n", self._space(HUB), "link", "add", "bridge", "type", "bridge")
            _ip("-n", self._space(HUB), "addr", "add", f"{self.addresses[HUB]}/24", "dev", "bridge")
            _ip("-n", self._space(HUB), "link", "set", "bridge", "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, name: str) -> str:
        """A machine with a cable to the bridge -> its address."""
        hub, space, number = self._space(HUB), self._space(name), 10 + len(self.addresses)
        self._add_namespace(name, number)
        _ip("-n", hub, "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("-n", hub, "link", "set", f"to-{name}", "master", "bridge", "up")
        _ip("-n", space, "addr", "add", f"{self.addresses[name]}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        return self.addresses[name]

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str], **popen: Any) -> subprocess.Popen[str]:
        """A process on a machine, with this environment and nothing else of ours."""
        inside = ["ip", "netns", "exec", self._space(name), *command]
        process = subprocess.Popen(inside, env=dict(env), text=True, start_new_session=True, **popen)
        self._processes.append(process)
        return process

    def processes(self, name: str) -> list[int]:
        """Everything that runs on a machine."""
        return [int(pid) for pid in _ip("netns", "pids", self._space(name)).split()]

    def kill(self, name: str) -> int:
        """The power fails: SIGKILL to every process, again until none is left -> how many there were."""
        return _kill_all(self._space(name))

    def cut(self, name: str) -> None:
        """The cable is out of the bridge: packets vanish without a word, and the machine goes on by itself."""
        _ip("-n", self._space(HUB), "link", "set", f"to-{name}", "nomaster")

    def mend(self, name: str) -> None:
        _ip("-n", self._space(HUB), "link", "set", f"to-{name}", "master", "bridge")

    def close(self) -> None:
        for name in reversed(list(self.addresses)):
            _remove(self._space(name))
        self.addresses.clear()
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with suppress(OSError):  # what it did not read any more
                        stream.close()

    def _add_namespace(self, name: str, number: int) -> None:
        self.addresses[name] = f"{SUBNET}.{number}"
        _ip("netns", "add", self._space(name))
        _ip("-n", self._space(name), "link", "set", "lo", "up")

    def _space(self, name: str) -> str:
        return f"{self._prefix}{name}"


def remove_stale() -> list[str]:
    """Remove the namespaces of processes that have ended -> their names."""
    stale = []
    for line in _ip("netns", "list").splitlines():
        name = line.split()[0]
        owner = re.match(rf"{PREFIX}(\d+)-", name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            _remove(name)
            stale.append(name)
    return stale


def tail(file: IO[str] | Path, lines: int = 20) -> str:
    """The last lines of a log, for a message."""
    content = file.read() if not isinstance(file, Path) else file.read_text(errors="replace") if file.exists() else ""
    return "\n".join(content.splitlines()[-lines:])


def _remove(space: str) -> None:
    _kill_all(space)
    with suppress(subprocess.CalledProcessError):
        _ip("netns", "del", space)


def _kill_all(space: str) -> int:
    killed: set[int] = set()
    deadline = time.monotonic() + _ENDS_WITHIN_S
    while time.monotonic() < deadline:
        found = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False)
        pids = [int(pid) for pid in found.stdout.split() if not _is_zombie(pid)]
        if not pids:
            break
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(pids)
        time.sleep(0.02)
    return len(killed)


def _is_zombie(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout
