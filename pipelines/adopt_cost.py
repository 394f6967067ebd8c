"""What a candidate costs beside the current release: to train, to keep, and for each fresh profile.

training   seconds of the steps that learn, as the manifests have them; releases of before they had them say nothing
size       bytes of a vector, and of a profile as the release's files hold it
latency    one user after another through the encoder and the heads, both releases in turns on the same users and in
           one process, median of the turns: a ratio holds on any machine, milliseconds do not
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from sonder.encoder.artefact import load_encoder
from sonder.encoder.inference import embed_users
from sonder.history.bucket_sample import buckets_reaching
from sonder.history.snapshot import read_timelines
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.releases.artefacts import Release

LEARNING = ("train", "cluster", "score")
NUM_USERS, NUM_TURNS = 64, 7
ENOUGH_USERS = 2_000  # read to choose them from


@dataclass(frozen=True)
class Cost:
    """Of one release; None: not recorded."""

    training_seconds: float | None
    vector_bytes: int
    profile_bytes: float
    embedding_ms: float  # a user, one at a time


@dataclass(frozen=True)
class CostComparison:
    was: Cost
    now: Cost

    def ratio(self, name: str) -> float | None:
        was, now = getattr(self.was, name), getattr(self.now, name)
        return None if was is None or now is None or not was else float(now / was)

    def to_dict(self) -> dict[str, Any]:
        ratios = {name: self.ratio(name) for name in asdict(self.now)}
        return {"was": asdict(self.was), "now": asdict(self.now), "ratio": ratios, "protocol": self.protocol}

    @property
    def protocol(self) -> str:
        return f"embedding: median of {NUM_TURNS} turns of {NUM_USERS} users one by one, both releases in turns"


def compare_costs(candidate: Release, current: Release) -> CostComparison:
    """Both from their manifests, and one user after another through both encoders."""
    sides = [_Side.of(release, candidate) for release in (current, candidate)]
    turns: list[list[float]] = [[], []]
    for _ in range(NUM_TURNS):
        for place, side in enumerate(sides):
            turns[place].append(side.milliseconds())
    was, now = (
        Cost(_training_seconds(release), 4 * side.dim, _profile_bytes(release), median(took))
        for release, side, took in zip((current, candidate), sides, turns, strict=True)
    )
    return CostComparison(was, now)


class _Side:
    """One release's encoder, and the histories of the same users as it reads them."""

    def __init__(self, release: Release, timelines: Timelines, as_of_us: int) -> None:
        self._encoder, self._as_of_us = load_encoder(release.encoder), as_of_us
        self._users = [timelines.take(np.array([row])) for row in range(timelines.num_users)]
        self.dim = self._encoder.spec.dim
        self.milliseconds()  # what is made when first asked for

    @classmethod
    def of(cls, release: Release, candidate: Release) -> _Side:
        history = candidate.workspace.history(candidate.manifest.snapshot)
        timelines = read_timelines(history, Vocabulary.load(release.items), buckets_reaching(history, ENOUGH_USERS))
        spread = np.unique(np.linspace(0, timelines.num_users - 1, NUM_USERS).astype(np.int64))
        return cls(release, timelines.take(spread), candidate.manifest.as_of_us)

    def milliseconds(self) -> float:
        """Of one user, over one turn."""
        started = time.perf_counter()
        for user in self._users:
            embed_users(self._encoder, user, as_of_us=self._as_of_us)
        return 1000 * (time.perf_counter() - started) / max(1, len(self._users))


def _training_seconds(release: Release) -> float | None:
    seconds = release.manifest.row_counts.get("seconds")
    return sum(float(seconds.get(step, 0)) for step in LEARNING) if isinstance(seconds, dict) else None


def _profile_bytes(release: Release) -> float:
    users = max(1, int(release.manifest.row_counts["profiles"]))
    files = release.manifest.files.items()
    return sum(entry.size_bytes for name, entry in files if name.startswith("profiles/")) / users
