"""Where everything of one installation lives: a local folder or any URI. The only place that spells these paths.

history/<snapshot>/  items/<snapshot>/  quarantine/<snapshot>/   what `prepare` made
releases/<id>/  releases/CURRENT                                 what `build` made, and which of it is served
releases/CANARY  canary/<trial>/<gateway>.json                   what is served beside it, and how both compare
backfills/<release>/as_of=YYYY-MM-DD/                            profiles of past days by a release's models
audiences/<name>/v<NNN>.json  audiences/<name>/members/          saved rules, and who has been in them
audiences/index.json                                             which of these count now
uplift/<name>/                                                   what a treatment changed, learnt from an experiment
keys.json                                                        API keys of the gateway, as digests
erasures/<digest>.json                                           users who asked to be forgotten, and when
log/online/                                                      events that arrived online, always local (NODE_FOLDER)
log/features/<release>/                                          what the scoring deployment read, of some users
store/<release>/  store/audiences/<digest>/                      the embedded online stores, always local (NODE_FOLDER)
.staging/                                                        work that is not published
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sonder.core.errors import ConfigurationError
from sonder.core.ids import digest_json
from sonder.core.storage import Folder

NODE_FOLDER = "SONDER_NODE_FOLDER"  # where a node of a cluster keeps what it does not share


@dataclass(frozen=True)
class Workspace:
    root: Folder

    @classmethod
    def at(cls, uri: str) -> Workspace:
        """Open a workspace; a relative local path is taken from the working directory."""
        return cls(Folder.at(str(Path(uri).resolve()) if "://" not in uri else uri))

    def history(self, snapshot: str) -> Folder:
        return self.root / "history" / snapshot

    def items(self, snapshot: str) -> Folder:
        return self.root / "items" / snapshot

    def quarantine(self, snapshot: str) -> Folder:
        return self.root / "quarantine" / snapshot

    @property
    def releases(self) -> Folder:
        return self.root / "releases"

    def release(self, release_id: str) -> Folder:
        return self.releases / release_id

    def staging(self, name: str) -> Folder:
        return self.root / ".staging" / name

    def canary_counts(self, trial: str) -> Folder:
        """What each gateway counted of one canary lately."""
        return self.root / "canary" / trial

    def backfills(self, release_id: str) -> Folder:
        """Of a release; a day is `as_of=YYYY-MM-DD` below it."""
        return self.root / "backfills" / release_id

    @property
    def audiences(self) -> Folder:
        return self.root / "audiences"

    @property
    def uplift(self) -> Folder:
        return self.root / "uplift"

    @property
    def keys(self) -> Folder:
        """The file of API keys."""
        return self.root / "keys.json"

    @property
    def erasures(self) -> Folder:
        return self.root / "erasures"

    def feature_log(self, release_id: str) -> Folder:
        return self.root / "log" / "features" / release_id

    @property
    def store(self) -> Path:
        """Folder of the embedded store: memory-mapped, so on a local disk."""
        return self._local("store")

    def refresh_lock(self, release_id: str) -> Path:
        """Held by whoever follows the online log into the stores of a release, on this machine."""
        return self.store / f"{release_id}.refresh.lock"

    @property
    def online_log(self) -> Path:
        """Folder of the events that arrived online: memory-mapped too."""
        return self._local("log") / "online"

    def _local(self, name: str) -> Path:
        """Below the workspace, or where the node keeps such things: a workspace that nodes share has no local disk."""
        if node_folder := os.environ.get(NODE_FOLDER):
            return Path(node_folder) / digest_json(self.root.uri) / name
        if not self.root.is_local:
            raise ConfigurationError(
                f"The embedded {name} cannot live at {self.root}",
                expected=f"a local folder in {NODE_FOLDER}, or a local workspace",
                do=f"Set {NODE_FOLDER} to a folder on a disk of its own on every node, before Ray is started.",
            )
        return Path(self.root.path) / name

    @property
    def membership_stores(self) -> Path:
        """Folder of the embedded stores of who is in which audience, beside those of the releases."""
        return self.store / "audiences"
