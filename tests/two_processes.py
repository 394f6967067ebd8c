"""How pytest-xdist spreads the tests: files that may start a Ray in one process, one after the other; the rest by file.

Two Rays on a small machine would take each other's time, and what is built once per session would be built twice.
The groups of xdist 3.8 (`--dist loadgroup`) do nothing under pytest 9.2, which keeps a test's id elsewhere.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from xdist.scheduler.loadscope import LoadScopeScheduling

TESTS = Path(__file__).parent
SIGNS = ("ray_session", "built_world", "mark.ray")


class RayInOneProcess(LoadScopeScheduling):  # type: ignore[misc]  # xdist's is untyped to mypy
    """A scope is a file, or everything that may start a Ray."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "ray" if may_start_ray(TESTS.parent / file) else file


@cache
def may_start_ray(file: Path) -> bool:
    """Of the pipelines, whose commands start one where none runs, or with a sign of it in the text."""
    return file.is_relative_to(TESTS / "pipelines") or any(sign in file.read_text() for sign in SIGNS)
