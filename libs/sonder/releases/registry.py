"""Seal a release, list them, and switch the one that is served (releases.current has the file that says which).

A switch is decided on what is served at that moment, and written only over that: on a local disk under a lock, on S3 by
a conditional write. If somebody else switches meanwhile, the gate is asked again, so no switch is lost.
Limits: other object stores have no conditional writes here, and may lose one of two switches at the same moment.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import sonder
from sonder.core import telemetry
from sonder.core.config import SonderConfig
from sonder.core.errors import InvalidRequest, NotFound
from sonder.core.storage import Folder, drop_unfinished, publish, read_manifest
from sonder.core.workspace import Workspace
from sonder.releases.current import CURRENT, Current, GateRecord, Promotion
from sonder.releases.manifest import Manifest, describe_files, read_release, verify_files

RELEASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
Gate = Callable[[str, str], GateRecord]  # (release to be, release that is served) -> record, or PromotionRefused


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

    def newest(self) -> Manifest:
        """The release that was made last; NotFound if there is none."""
        if not (releases := self.list()):
            raise NotFound(f"No release in {self._workspace.root}", do="`sonder build` makes one.")
        return releases[-1]

    def current(self) -> Current | None:
        """What is served, None before the first promotion."""
        try:
            return Current.read(self._workspace.releases / CURRENT)
        except NotFound:
            return None

    def promote(self, release_id: str, *, reason: str, gate: Gate | None = None) -> Current:
        """Verify a release against its digests, ask the gate, then serve it; nothing changes if it is served already.

        `gate` (releases.checking.Gate): raises PromotionRefused where consumers rely on what is not so. The first
        promotion of a workspace is compared with nothing and not asked about.
        """
        verify_files(self._workspace.release(release_id), self.show(release_id))
        while True:
            current = self.current()
            if current is not None and current.release == release_id:
                return current
            record = gate(release_id, current.release) if gate is not None and current is not None else None
            promotion = Promotion(release_id, _now(), reason, record)
            after = Current(promotion) if current is None else current.after(promotion)
            if self._switch(current, after):
                return after

    def rollback(self, *, reason: str) -> Current:
        """Serve the predecessor again, verified like any other and never gated: what was served may be again."""
        while True:
            current = self.current()
            if current is None or current.predecessor is None:
                raise NotFound(
                    "No release was served before the current one",
                    expected="a predecessor in releases/CURRENT",
                    do="Promote a release by its id.",
                )
            manifest = self.show(current.predecessor)
            verify_files(self._workspace.release(manifest.id), manifest)
            after = current.back(Promotion(manifest.id, _now(), f"rolled back from {current.release}: {reason}"))
            if self._switch(current, after):
                return after

    def _switch(self, before: Current | None, after: Current) -> bool:
        """Whether the switch was made: it is not if something else is served than what it was decided on."""

        def change(found: dict[str, Any] | None) -> dict[str, Any]:
            if (None if found is None else Current.of(found)) != before:
                raise _SwitchedMeanwhile
            return after.to_dict()

        try:
            (self._workspace.releases / CURRENT).update_json(change)
        except _SwitchedMeanwhile:
            return False
        return True


class _SwitchedMeanwhile(Exception):
    """Another process has switched what is served."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
