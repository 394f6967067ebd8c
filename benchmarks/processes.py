"""The processes of this machine, for what a benchmark measures of Ray's workers. Linux only."""

from __future__ import annotations

from pathlib import Path


def with_descendants(roots: set[int]) -> set[int]:
    """Those of the processes that still run, their children, the children of those, and so on."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has ended
                continue
    known = {pid for pid in roots if pid in parents}
    while found := {pid for pid, parent in parents.items() if parent in known} - known:
        known |= found
    return known


def title_of(pid: int) -> str:
    """The command line of a process, which Ray's workers replace by what they do; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
