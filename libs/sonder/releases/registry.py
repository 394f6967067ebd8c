"""Seal a release, list them, and switch the one that is served.

`releases/CURRENT` is one JSON file, replaced whole: the served release, when and why it was promoted, and the ones
served before it (newest first), so that rolling back twice goes back two.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import sonder
from sonder.core import telemetry
from sonder.core.config import SonderConfig
from sonder.core.errors import ArtefactMismatch, InvalidRequest, NotFound
from sonder.core.storage import Folder, drop_unfinished, publish, read_manifest
from sonder.core.workspace import Workspace
from sonder.releases.manifest import Manifest, describe_files, read_release, verify_files

CURRENT = "CURRENT"
_MAX_HISTORY = 50
RELEASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Promotion:
    """One switch: what was served from then on, and why."""

    release: str
    promoted_at: str  # ISO 8601, UTC
    reason: str


@dataclass(frozen=True)
class Current:
    """What is served, and what was before."""

    release: str
    promoted_at: str
    reason: str
    predecessor: str | None
    history: tuple[Promotion, ...] = ()  # newest first; the first is the predecessor

    @classmethod
    def after(cls, promotion: Promotion, history: tuple[Promotion, ...]) -> Current:
        kept = history[:_MAX_HISTORY]
        predecessor = kept[0].release if kept else None
        return cls(promotion.release, promotion.promoted_at, promotion.reason, predecessor, kept)

    @classmethod
    def read(cls, file: Folder) -> Current:
        """What the file says; NotFound if there is none."""
        try:
            return cls.of(file.read_json())
        except ValueError as error:
            raise _unreadable(error) from error

    @classmethod
    def of(cls, content: dict[str, Any]) -> Current:
        try:
            return cls(**{**content, "history": tuple(Promotion(**entry) for entry in content["history"])})
        except (TypeError, KeyError, ValueError) as error:
            raise _unreadable(error) from error

    @property
    def promotion(self) -> Promotion:
        return Promotion(self.release, self.promoted_at, self.reason)


def seal(
    staged: Folder,
    workspace: Workspace,
    *,
    release_id: str,
    parent: str | None,
    snapshot: str,
    config: SonderConfig,
    metrics: dict[str, Any],
    row_counts: dict[str, Any],
    as_of_us: int,
) -> Manifest:
    """Digest the staged files and publish them as an immutable release."""
    if not RELEASE_ID.fullmatch(release_id):
        raise InvalidRequest(
            f"A release id {release_id!r}", expected="1 to 64 letters, digits, dots, dashes and underscores"
        )
    with telemetry.stage("seal", release=release_id) as counts:
        drop_unfinished(staged)
        manifest = Manifest(
            id=release_id,
            created_at=_now(),
            parent=parent,
            code_version=sonder.__version__,
            snapshot=snapshot,
            inputs=read_manifest(workspace.history(snapshot)),
            as_of_us=as_of_us,
            config=config.model_dump(mode="json"),
            config_digest=config.digest(),
            metrics=metrics,
            row_counts=row_counts,
            files=describe_files(staged),
        )
        publish(staged, workspace.release(release_id), manifest.to_dict())
        counts.update(files=len(manifest.files), size_bytes=sum(f.size_bytes for f in manifest.files.values()))
    return manifest


class Registry:
    """The releases of a workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def list(self) -> list[Manifest]:
        """Every release, oldest first."""
        folders = [folder for folder in self._workspace.releases.children() if folder.is_published()]
        return sorted((read_release(folder) for folder in folders), key=lambda m: (m.created_at, m.id))

    def show(self, release_id: str) -> Manifest:
        """One release; NotFound names those that exist."""
        if RELEASE_ID.fullmatch(release_id):
            with suppress(NotFound):
                return read_release(self._workspace.release(release_id))
        existing = [folder.name for folder in self._workspace.releases.children() if folder.is_published()]
        raise NotFound(
            f"No release {release_id!r} in {self._workspace.root}",
            expected="one of " + ", ".join(existing) if existing else "a release that was built",
            do="" if existing else "`sonder build` makes one.",
        )

    def current(self) -> Current | None:
        """What is served, None before the first promotion."""
        try:
            return Current.read(self._workspace.releases / CURRENT)
        except NotFound:
            return None

    def promote(self, release_id: str, *, reason: str) -> Current:
        """Verify a release against its digests, then serve it; nothing changes if it is served already."""
        manifest = self.show(release_id)
        verify_files(self._workspace.release(release_id), manifest)
        current = self.current()
        if current is not None and current.release == release_id:
            return current
        promotion = Promotion(release_id, _now(), reason)

        def switched(current: Current | None) -> Current:
            if current is None or current.release == release_id:
                return current or Current.after(promotion, ())
            return Current.after(promotion, (current.promotion, *current.history))

        return self._switch(switched)

    def rollback(self, *, reason: str) -> Current:
        """Serve the predecessor again, verified like any other."""
        current = self.current()
        if current is None or current.predecessor is None:
            raise NotFound(
                "No release was served before the current one",
                expected="a predecessor in releases/CURRENT",
                do="Promote a release by its id.",
            )
        manifest = self.show(current.predecessor)
        verify_files(self._workspace.release(manifest.id), manifest)
        rolled_back = current
        told = f"rolled back from {current.release}: {reason}"

        def switched(current: Current | None) -> Current:
            if current != rolled_back:
                raise InvalidRequest(
                    f"{rolled_back.release} is not current any more: another process has switched",
                    do="Look at `sonder release list` and try again.",
                )
            return Current.after(Promotion(manifest.id, _now(), told), rolled_back.history[1:])

        return self._switch(switched)

    def _switch(self, switched: Callable[[Current | None], Current]) -> Current:
        """Replace CURRENT by what follows from it, so that of two switches at once neither is lost."""

        def change(found: dict[str, Any] | None) -> dict[str, Any]:
            return asdict(switched(None if found is None else Current.of(found)))

        try:
            return Current.of((self._workspace.releases / CURRENT).update_json(change))
        except ValueError as error:
            raise _unreadable(error) from error


def _unreadable(error: Exception) -> ArtefactMismatch:
    return ArtefactMismatch(
        f"releases/{CURRENT} cannot be read: {error}",
        expected="what `sonder release promote` writes",
        do="Promote a release again.",
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
