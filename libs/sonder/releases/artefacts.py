"""Where the artefacts of a release lie, and how serving opens them. The only place that spells these paths.

releases/<id>/
    encoder/  items/  segments/  clusters/  interests/  affinities/  scores/  profiles/  report/  manifest.json
    increment.json    of a release that carries its parent's models: which, since when, what was new
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sonder.core.errors import NotReady
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.events.erasure import read_erasures
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.loading import StoreSource, ensure_networked_store, ensure_store
from sonder.profiles.store import ProfileStore
from sonder.releases.manifest import Manifest
from sonder.releases.registry import Registry
from sonder.scoring.heads import load_heads
from sonder.segments.clusters import Clusters

INCREMENT_FILE = "increment.json"


@dataclass(frozen=True)
class Release:
    """One published release of a workspace, opened by its id."""

    workspace: Workspace
    manifest: Manifest

    @classmethod
    def open(cls, workspace: Workspace, release_id: str) -> Release:
        return cls(workspace, Registry(workspace).show(release_id))

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def folder(self) -> Folder:
        return self.workspace.release(self.id)

    @property
    def encoder(self) -> Folder:
        return self.folder / "encoder"

    @property
    def items(self) -> Folder:
        return self.folder / "items"

    @property
    def interests(self) -> Folder:
        return self.folder / "interests"

    @property
    def interests_config(self) -> Folder:
        """Configuration of the interests with what the data decided filled in, as JSON."""
        return self.interests / "config.json"

    @property
    def affinities(self) -> Folder:
        """The fitted numbers of taxonomy affinity and the learned item groups (interests.affinity_artefact)."""
        return self.folder / "affinities"

    @property
    def segments(self) -> Folder:
        return self.folder / "segments"

    @property
    def clusters(self) -> Folder:
        """Behaviour clusters: centroids, names, portraits, and who is in which."""
        return self.folder / "clusters"

    @property
    def scores(self) -> Folder:
        return self.folder / "scores"

    @property
    def score_quality(self) -> Folder:
        """What was found of each task, `<task>.json` (evaluation.score_judgement)."""
        return self.scores / "quality"

    @property
    def profiles(self) -> Folder:
        return self.folder / "profiles"

    @property
    def thresholds(self) -> Folder:
        """Lifecycle thresholds (segments.lifecycle.LifecycleThresholds) as JSON."""
        return self.segments / "thresholds.json"

    @property
    def increment(self) -> dict[str, Any] | None:
        """How a release came to its parent's models, None if its models were fitted for it."""
        file = self.folder / INCREMENT_FILE
        content: dict[str, Any] | None = file.read_json() if file.exists() else None
        return content

    @property
    def named_as_of_us(self) -> int:
        """The moment whose catalogue names interests: carried models keep their words."""
        made = self.increment
        return self.manifest.as_of_us if made is None else int(made["named_as_of_us"])

    def base_rates(self) -> dict[str, float]:
        """Mean of what came true for each score, by its name, in the order of the configuration."""
        return {name: mean for head in load_heads(self.scores) for name, mean in head.fallbacks.items()}

    def load_clusters(self) -> Clusters | None:
        """What assigns users to behaviour clusters; None for a release that was made without."""
        return Clusters.load(self.clusters) if self.clusters.exists() else None

    def open_store(self, url: str | None = None, *, writable: bool = False) -> ProfileStore:
        """The online store of this release, loaded from its profiles first where there is none yet.

        `url`: of a Redis or Valkey server, which can always be written; None: the embedded store of this machine.
        """
        source = StoreSource(
            release=self.id,
            profiles=self.profiles,
            snapshot=self.workspace.history(self.manifest.snapshot),
            vocabulary=Vocabulary.load(self.items),
            as_of_us=self.manifest.as_of_us,
            computed_at_us=self.manifest.created_at_us,
            dim=int(self.manifest.config["encoder"]["dim"]),
            erased=read_erasures(self.workspace.erasures),
        )
        if url is not None:
            return ensure_networked_store(url, source)
        return ensure_store(self.workspace.store / self.id, source, writable=writable)


def served_release(workspace: Workspace) -> str:
    """Id of the release that CURRENT names; NotReady before the first promotion."""
    current = Registry(workspace).current()
    if current is None:
        raise NotReady(
            f"No release is promoted in {workspace.root}",
            expected="releases/CURRENT",
            do="`sonder build` makes a release, `sonder release promote ID` serves it.",
        )
    return current.release
