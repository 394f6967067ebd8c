"""One backfill: what its days share, where they lie, and how each is published with its manifest when it is whole."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import sonder
from sonder.core.errors import DataError
from sonder.core.ids import digest_json
from sonder.core.storage import MANIFEST, Folder, publish, read_manifest
from sonder.events.erasure import Erased
from sonder.profiles.record import iso_time
from sonder.releases.artefacts import Release
from sonder.releases.manifest import describe_files

logger = logging.getLogger("sonder")
SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Backfill:
    """What the days of one backfill share."""

    release: Release
    snapshot: str
    target: Folder
    erased: Erased

    @property
    def staging(self) -> Folder:
        """On the target's own file system; another release, log, code or erasure never finds it."""
        identity = [self.release.id, self.snapshot, sonder.__version__, sorted(self.erased.items()), self.target.uri]
        name = f"backfill-{digest_json(identity)}"
        inside = self.target.uri.startswith(self.release.workspace.root.uri)
        return self.release.workspace.staging(name) if inside else self.target / ".staging" / name

    def is_of(self, manifest: Mapping[str, Any]) -> bool:
        """Whether a published day came of the same release, log and code."""
        ours = {"release": self.release.id, "snapshot": self.snapshot, "code_version": sonder.__version__}
        return all(manifest.get(name) == value for name, value in ours.items())


def day_folder(target: Folder, as_of_us: int) -> Folder:
    """Folder of the day that begins at a midnight."""
    return target / f"as_of={iso_time(as_of_us)[:10]}"


@dataclass
class Progress:
    """Publishes each day when its last bucket is done, and tells how far it is."""

    job: Backfill
    num_days: int
    trained_until_us: dict[str, int]
    num_buckets: int = 0
    done: int = 0  # days
    profiles: int = 0
    waiting: dict[int, list[Mapping[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    told: float = field(default_factory=time.perf_counter)

    def add(self, summary: Mapping[str, Any]) -> None:
        day = self.waiting[summary["as_of_us"]]
        day.append(summary)
        self.profiles += summary["profiles"]
        if len(day) == self.num_buckets:
            self._publish(summary["as_of_us"], self.waiting.pop(summary["as_of_us"]))
            self.done += 1
            logger.info("backfill: %s written, %s profiles, %d of %d days", iso_time(summary["as_of_us"])[:10],
                        f"{sum(part['profiles'] for part in day):,}", self.done, self.num_days)  # fmt: skip
            self.told = time.perf_counter()
        elif time.perf_counter() - self.told > SECONDS_BETWEEN_LINES:
            waiting = sum(map(len, self.waiting.values()))
            logger.info("backfill: %d of %d days, %d buckets of others", self.done, self.num_days, waiting)
            self.told = time.perf_counter()

    def _publish(self, as_of_us: int, parts: Sequence[Mapping[str, Any]]) -> None:
        staged, final = day_folder(self.job.staging, as_of_us), day_folder(self.job.target, as_of_us)
        counts = {name: sum(part[name] for part in parts) for name in ("profiles", "cold")}
        entries = read_manifest(self.job.release.workspace.history(self.job.snapshot))["buckets"]
        counts["absent"] = sum(int(entry["users"]) for entry in entries) - counts["profiles"]
        if final.is_published():  # asked to be made anew; the old day was there until the new one was
            (final / MANIFEST).remove()
        publish(staged, final, describe_day(self.job, staged, as_of_us, counts, self.trained_until_us))


def describe_day(
    job: Backfill, staged: Folder, as_of_us: int, counts: Mapping[str, int], trained_until: Mapping[str, int]
) -> dict[str, Any]:
    """The manifest of a day. Nothing in it depends on when or where it was made."""
    files = {name: asdict(entry) for name, entry in describe_files(staged).items()}
    return {
        "as_of": iso_time(as_of_us),
        "as_of_us": as_of_us,
        "release": job.release.id,
        "snapshot": job.snapshot,
        "code_version": sonder.__version__,
        "counts": dict(counts),
        "models_trained_until": iso_time(max(trained_until.values())),
        "models_trained_until_by_part": {name: iso_time(until_us) for name, until_us in trained_until.items()},
        "knows_the_future": max(trained_until.values()) > as_of_us,
        "attributes_as_of": "snapshot",
        "files": files,
        "digest": digest_json(files),
    }


@contextmanager
def only_one(job: Backfill) -> Iterator[None]:
    """Two backfills of the same days would write the same files; the second is told so."""
    if not job.staging.is_local:  # object stores have no locks; `sonder submit` gives the same work one job id
        yield
        return
    file = Path(f"{job.staging.path}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(file))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(
            f"Another process backfills by {job.release.id} into {job.target}",
            expected="one backfill of a release into a folder at a time",
            do="Wait for it, or end it; then the same command goes on where it stopped.",
        ) from error
    try:
        yield
    finally:
        lock.release()
