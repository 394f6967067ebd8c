"""Releases that running experiments answer users from, as `experiments/RUNNING` names them.

The file is sonder.experiments.registry's; what this floor needs of it is read here: a store that is in use is not
dropped, and a canary does not choose the release of users whose release an experiment chooses.
"""

from __future__ import annotations

from sonder.core.errors import ArtefactMismatch, NotFound
from sonder.core.workspace import Workspace

RUNNING = "RUNNING"


def reserved_releases(workspace: Workspace) -> dict[str, tuple[str, ...]]:
    """Releases of the arms of each running experiment that names any, by its name."""
    file = workspace.experiments / RUNNING
    try:
        return {str(name): tuple(map(str, releases)) for name, releases in file.read_json()["releases"].items()}
    except NotFound:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtefactMismatch(
            f"experiments/{RUNNING} cannot be read: {type(error).__name__}",
            expected="what `sonder experiment` writes",
            do="Remove the file; no experiment runs then, and `sonder experiment start` starts one again.",
        ) from error
