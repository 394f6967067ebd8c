"""Where everything of one installation lives: a local folder or any URI. The only place that spells these paths.

history/<snapshot>/  items/<snapshot>/  quarantine/<snapshot>/   what `prepare` made
releases/<id>/  releases/CURRENT                                 what `build` made, and which of it is served
releases/CANARY  canary/<trial>/<gateway>.json                   what is served beside it, and how both compare
backfills/<release>/as_of=YYYY-MM-DD/                            profiles of past days by a release's models
audiences/<name>/v<NNN>.json  audiences/<name>/members/          saved rules, and who has been in them
audiences/index.json                                             which of these count now
uplift/<name>/                                                   what a treatment changed, learnt from an experiment
experiments/<name>/v<NNN>.json  experiments/RUNNING              versions of each experiment, and which assign users now
experiments/<name>/exposures/<gateway>/                          who saw which arm first, and when
experiments/<name>/plan.json  experiments/<name>/analyses/       its planned size, and what was made of it
keys.json                                                        API keys of the gateway, as digests
erasures/<digest>.json                                           users who asked to be forgotten, and when
log/online/<node>/                                               events that arrived online, as a node shipped them
log/archive/<source>/                                            the same as builds read them, in files that stay
log/features/<release>/                                          what the scoring deployment read, of some users
.staging/                                                        work that is not published

On the disk of each node that serves (`local`): the folder that `serving.local_dir` names, else one of this workspace
below SONDER_NODE_FOLDER of the environment, else the workspace itself where it is a local folder, else one of this
workspace below the user's state folder.

store/<release>/  store/audiences/<digest>/                      the embedded online stores
log/online/                                                      events that arrived online, before they are shipped
node.json                                                        the name of this node, and whose folder this is
"""

from __future__ import annotations

import hashlib
import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

from sonder.core.errors import ConfigurationError
from sonder.core.storage import Folder

NODE_FOLDER = "SONDER_NODE_FOLDER"  # where a node of a cluster keeps what it does not share


@dataclass(frozen=True)
class Workspace:
    root: Folder
    local_dir: Path | None = None  # as it was given; `local` is what it comes to

    @classmethod
    def at(cls, uri: str, local_dir: str | None = None) -> Workspace:
        """Open a workspace; relative local paths are taken from the working directory."""
        root = Folder.at(str(Path(uri).resolve()) if "://" not in uri else uri)
        return cls(root, None if local_dir is None else Path(local_dir).expanduser().resolve())

    @property
    def local(self) -> Path:
        """Folder of what this node needs on its own disk."""
        if self.local_dir is not None:
            return self.local_dir
        own = hashlib.blake2b(self.root.uri.encode(), digest_size=8).hexdigest()
        if node_folder := os.environ.get(NODE_FOLDER):
            return Path(node_folder) / own
        if self.root.is_local:
            return Path(self.root.path)
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        return state / "sonder" / own

    @property
    def is_shared(self) -> bool:
        """Whether what a node keeps is apart from the workspace, so that other nodes do not see it."""
        return not (self.root.is_local and self.local == Path(self.root.path))

    def node(self) -> str:
        """Name of this node in the workspace, given once and kept; ConfigurationError in another workspace's folder."""
        file = Folder.at(str(self.local)) / "node.json"
        named = {"node": f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}", "workspace": self.root.uri}
        kept: dict[str, str] = file.update_json(lambda found: found or named)
        if kept["workspace"] != self.root.uri:
            raise ConfigurationError(
                f"{self.local} holds the stores and events of {kept['workspace']}",
                expected=f"a folder of {self.root.uri}'s own",
                do="Name another folder in serving.local_dir, or leave it out.",
            )
        return kept["node"]

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
    def experiments(self) -> Folder:
        return self.root / "experiments"

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
    def shipped_log(self) -> Folder:
        """What nodes have shipped of the events that arrived at them, a folder each."""
        return self.root / "log" / "online"

    @property
    def archived_log(self) -> Folder:
        """What builds read of the events that arrived online."""
        return self.root / "log" / "archive"

    @property
    def log_copies(self) -> list[Folder]:
        """Where events that arrived online are in files."""
        return [self.archived_log, *([self.shipped_log] if self.is_shared else [])]

    @property
    def store(self) -> Path:
        """Folder of the embedded store: memory-mapped, so on a local disk."""
        return self.local / "store"

    def refresh_lock(self, release_id: str) -> Path:
        """Held by whoever follows the online log into the stores of a release, on this machine."""
        return self.store / f"{release_id}.refresh.lock"

    @property
    def online_log(self) -> Path:
        """Folder of the events that arrived online: memory-mapped too."""
        return self.local / "log" / "online"

    @property
    def membership_stores(self) -> Path:
        """Folder of the embedded stores of who is in which audience, beside those of the releases."""
        return self.store / "audiences"
