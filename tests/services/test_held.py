"""A deployment answers each call from the release that it names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from services import held as held_module
from services.held import Held
from sonder.core.errors import NotFound

if TYPE_CHECKING:
    from conftest import TinyRelease

    from sonder.releases.artefacts import Release


class Loads:
    """Loads a release's own id and counts."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def __call__(self, release: Release) -> str:
        self.loaded.append(release.id)
        return release.id


def test_without_a_name_the_served_release_is_loaded_at_once(tiny_release: TinyRelease) -> None:
    loads = Loads()
    held = Held(tiny_release.workspace.root.uri, None, loads)
    assert loads.loaded == [tiny_release.release]
    assert asyncio.run(held.of(None)) == tiny_release.release


def test_a_release_is_loaded_once_for_all_who_wait_and_two_are_kept_that_nobody_asks_for(
    new_release: Callable[[], TinyRelease],
    another_release: Callable[[TinyRelease, str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held_module, "IDLE_S", 0.0)
    release, loads = new_release(), Loads()
    others = [another_release(release, name) for name in ("release-2", "release-3")]
    held = Held(release.workspace.root.uri, release.release, loads)

    async def ask() -> list[str]:
        both = await asyncio.gather(held.of("release-2"), held.of("release-2"))
        return [*both, await held.of(None), await held.of("release-3")]

    assert asyncio.run(ask()) == ["release-2", "release-2", "release-1", "release-3"]
    assert loads.loaded == ["release-1", *others]
    assert sorted(held.all()) == ["release-1", "release-3"]  # the one not asked for the longest made room


def test_four_releases_that_are_asked_for_are_held_and_none_is_loaded_twice(
    new_release: Callable[[], TinyRelease], another_release: Callable[[TinyRelease, str], str]
) -> None:
    release, loads = new_release(), Loads()
    names = [f"release-{number}" for number in range(2, 6)]
    for name in names:
        another_release(release, name)
    held = Held(release.workspace.root.uri, release.release, loads)

    async def ask() -> None:
        for _ in range(3):  # a canary beside two others, while the next promotion is under way
            for name in ("release-1", *names[:3]):
                await held.of(name)
        await held.of(names[3])

    asyncio.run(ask())
    assert loads.loaded == ["release-1", *names]
    assert held.all() == names


def test_a_caller_that_gives_up_does_not_stop_the_load_and_a_failed_load_is_tried_again(
    tiny_release: TinyRelease,
) -> None:
    held = Held(tiny_release.workspace.root.uri, None, Loads())

    async def ask() -> None:
        for _ in range(2):
            with pytest.raises(NotFound, match="release-9"):
                await held.of("release-9")

    asyncio.run(ask())
