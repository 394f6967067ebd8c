"""The manifest of a release: what it was made of, what it holds, how good it is. Written last, never changed.

`files` maps each file of the release (but the manifest) to its digest and size, so that a changed byte is found before
the release is served.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

from sonder.core.errors import ArtefactMismatch
from sonder.core.storage import MANIFEST, Folder, read_manifest


@dataclass(frozen=True)
class FileEntry:
    digest: str  # core.storage.Folder.digest
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """One release."""

    id: str
    created_at: str  # ISO 8601, UTC
    parent: str | None  # whose weights the encoder went on from, else the release served when this one was made
    code_version: str
    snapshot: str  # of history/, items/ and quarantine/
    inputs: dict[str, Any]  # the snapshot's manifest: log files, counts, span
    as_of_us: int  # every profile is a function of the events before this
    config: dict[str, Any]  # resolved
    config_digest: str
    metrics: dict[str, Any]
    row_counts: dict[str, Any]
    files: dict[str, FileEntry]  # by path relative to the release

    @property
    def created_at_us(self) -> int:
        return int(datetime.fromisoformat(self.created_at).timestamp() * 1_000_000)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any], *, source: str) -> Manifest:
        expected = {field.name for field in fields(cls)}
        if set(content) != expected:
            raise ArtefactMismatch(
                f"The manifest at {source} has other keys: {', '.join(sorted(set(content) ^ expected))}",
                expected="a manifest of this version of Sonder",
                do="Build the release again.",
            )
        files = {name: FileEntry(**entry) for name, entry in content["files"].items()}
        return cls(**{**content, "files": files})


def describe_files(folder: Folder) -> dict[str, FileEntry]:
    """Digest and size of every file below a folder but its manifest."""
    names = [name for name in folder.files() if name != MANIFEST]
    return {name: FileEntry(*found) for name, found in folder.fingerprints(names).items()}


def read_release(folder: Folder) -> Manifest:
    """The manifest of a published release."""
    return Manifest.from_dict(read_manifest(folder), source=str(folder))


def verify_files(folder: Folder, manifest: Manifest) -> None:
    """Compare every file with the manifest; ArtefactMismatch names the first that was changed, lost or added."""
    found = describe_files(folder)
    changed = sorted(name for name in found.keys() & manifest.files.keys() if found[name] != manifest.files[name])
    lost = sorted(manifest.files.keys() - found.keys())
    added = sorted(found.keys() - manifest.files.keys())
    if changed or lost or added:
        parts = [("changed", changed), ("lost", lost), ("added", added)]
        told = "; ".join(f"{len(names)} {kind}, such as {names[0]}" for kind, names in parts if names)
        raise ArtefactMismatch(
            f"The files of release {manifest.id} are not those it was sealed with: {told}",
            expected="an immutable release",
            do="Restore the files, or build the release again.",
        )
