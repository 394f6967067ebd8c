"""What `sonder audience save` and `refresh` leave for serving, and the locks under which they write.

The index (sonder.segments.audience_index) is written after each of them; a running gateway looks at it and opens the
memberships that it names, which a refresh has loaded by then where the workspace is local.
One refresh runs at a time, as one build does; a save waits the moment that another save or the index takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sonder.core.errors import DataError
from sonder.core.locking import exclusive
from sonder.core.workspace import Workspace
from sonder.profiles.membership_store import ensure_memberships
from sonder.segments.audience_index import AudienceIndex
from sonder.segments.audiences import AudienceCatalogue

_SAVE_TIMEOUT_S = 60.0


@contextmanager
def only_refresh(workspace: Workspace) -> Iterator[None]:
    """Two refreshes would write the same files; the second is told so."""
    with _locked(
        workspace,
        "audience-refresh",
        timeout_s=0.0,
        expected="one refresh at a time",
        do="Wait for it, or end it; the next refresh goes on where it stopped.",
    ):
        yield


@contextmanager
def only_save(workspace: Workspace) -> Iterator[None]:
    """Versions are numbered and the index is written by one process at a time."""
    with _locked(
        workspace,
        "audience-save",
        timeout_s=_SAVE_TIMEOUT_S,
        expected="one save at a time",
        do="Try again.",
    ):
        yield


def publish_index(workspace: Workspace) -> None:
    """Write what there is now; the caller holds `only_save`."""
    AudienceIndex.derive(AudienceCatalogue(workspace.audiences)).write(workspace.audiences)


def publish_members(workspace: Workspace) -> None:
    """Load the memberships that the index will name, then write the index: serving finds them ready.

    The caller holds `only_refresh`, so a save meanwhile changes the rules of the index and not its members.
    """
    index = AudienceIndex.derive(AudienceCatalogue(workspace.audiences))
    if not workspace.is_shared and index.counted:
        ensure_memberships(workspace.membership_stores, workspace.audiences, index)
    with only_save(workspace):
        publish_index(workspace)


@contextmanager
def _locked(workspace: Workspace, name: str, *, timeout_s: float, expected: str, do: str) -> Iterator[None]:
    try:
        with exclusive(workspace.staging(f"{name}.lock"), timeout_s=timeout_s):
            yield
    except TimeoutError as error:
        raise DataError(
            f"Another process works on the audiences of {workspace.root}", expected=expected, do=do
        ) from error
