"""Files that a command writes where it was told to: whole, or not at all."""

from __future__ import annotations

from pathlib import Path


def write_text(file: Path, content: str) -> None:
    """Relative paths are taken from the working directory."""
    from sonder.core.storage import Folder

    Folder.at(str(file.resolve())).write_bytes(content.encode())
