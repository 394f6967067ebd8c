"""A gateway whose workspace has three releases and experiments, for the tests of experiments."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import polars as pl

from sonder.client import AsyncClient
from sonder.core.workspace import Workspace
from sonder.experiments.assignment import assign_users
from sonder.experiments.exposure_files import read_exposures
from sonder.experiments.registry import Experiments
from sonder.experiments.specification import Experiment
from sonder.experiments.versions import Version
from tests.services.canary_gateway import Gateway

if TYPE_CHECKING:
    from conftest import Served, TinyRelease

ARROW = {"accept": "application/vnd.apache.arrow.stream"}
ARMS = "x-sonder-experiment"
BY_RELEASE = [{"name": "control"}, {"name": "treatment", "release": "release-2"}]
BY_RANKING = [{"name": "control"}, {"name": "treatment", "ranking": {"source": "interests", "diversity": 0.7}}]
SAID = {"by": "a test", "reason": ""}
USER_ROUTES = {
    "": "profile",
    "?fields=scores": "profile",
    "?fresh=true": "profile",
    "/scores": "profile",
    "/segments?fresh=true": "profile",
    "/embedding": "profile",
    "/interests": "profile",
    "/affinities": "profile",
    "/recommendations": "recommendations",
    "/recommendations?from=vector&diversity=0": "recommendations",
    "/similar": "similar",
    "/explanation": "explanation",
}


def spec(name: str = "first", arms: Any = None, **changes: Any) -> Experiment:
    metric = {"name": "buyers", "kind": "conversion", "action": "buy", "within_days": 7}
    content = {"name": name, "hypothesis": "more is bought", "arms": arms or BY_RELEASE, "metrics": [metric]}
    return Experiment.model_validate({**content, "primary": "buyers", "minimum_effect": 0.05, **changes})


class Lab(Gateway):
    """A gateway whose workspace has experiments."""

    def __init__(self, served: Served) -> None:
        super().__init__(served)
        self.experiments = Experiments(self.workspace)
        self.users = served.release.user_ids

    async def run(self, *specs: Experiment) -> list[Version]:
        await self.settle()
        started = [self.experiments.start(one, **SAID) for one in specs]
        await self.settle()
        return started

    def exposures(self, name: str = "first") -> pl.DataFrame:
        assert self.serving.exposures.flush() == 0
        return read_exposures(self.workspace.experiments, name)

    @asynccontextmanager
    async def sonder(self) -> AsyncIterator[AsyncClient]:
        async with AsyncClient("http://sonder", transport=httpx.ASGITransport(self.app)) as client:
            yield client


def of_three_releases(
    new_release: Callable[[], TinyRelease], another_release: Callable[[TinyRelease, str], str]
) -> TinyRelease:
    release = new_release()
    for name in ("release-2", "release-3"):
        another_release(release, name)
    return release


@contextmanager
def lab_over_copy(three_releases: TinyRelease, folder: Path, serving: Any) -> Iterator[Lab]:
    """Over a copy of its own."""
    shutil.copytree(three_releases.workspace.root.path, folder / "workspace")
    release = dataclasses.replace(three_releases, workspace=Workspace.at(str(folder / "workspace")))
    with serving(release, writable=True) as served:
        made = Lab(served)
        yield made
        made.close()


def arms_of(version: Version, users: list[str], share: float = 1.0) -> dict[str, str | None]:
    return dict(zip(users, assign_users(version.allocation(), users, share), strict=True))


def timeless(content: bytes) -> bytes:
    return re.sub(rb'"age_ms":\d+', b"", content)
