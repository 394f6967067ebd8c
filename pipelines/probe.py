"""`sonder probe`: what a release's vectors tell fixed small models of what users do next, alone or beside another's.

Of some whole buckets of a snapshot (random draws of users), at most `max_users`:
vectors   of the release's encoder at the cutoff, from the events before it; what its vocabulary does not know has the
          vector of its content, as `sonder embed` gives it, else none
labels    from the N days after the cutoff, within the log
The cutoff is the start of the snapshot's test window, or the latest moment up to which one of the encoders was trained
if that is later: no vector is of an encoder that has seen a label. So two releases are asked the same users, questions
and days, on the candidate's snapshot; where less than a day is left to ask about, or only the order of events is
known, that is refused. Vectors in the making lie in the workspace's staging folder and are removed at the end.
Limits: memory holds the histories of the buckets that are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.bucket_tasks import over_buckets, part_file
from pipelines.embed import VECTORS, EmbedBucket
from sonder.core import telemetry
from sonder.core.config import SonderConfig
from sonder.core.errors import InvalidRequest, NotFound
from sonder.core.ids import digest_json, unit_interval
from sonder.core.storage import read_manifest
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import training_of
from sonder.evaluation.probe_comparison import compare_probes
from sonder.evaluation.probe_questions import Questions, cut_questions
from sonder.evaluation.probes import Probes, run_probes
from sonder.history.bucket_sample import buckets_reaching
from sonder.history.cutoffs import test_cutoff_us
from sonder.history.snapshot import read_timelines
from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.record import iso_time
from sonder.releases.artefacts import Release

MAX_USERS = 50_000
SAMPLE_KEY = "sonder/probes/users/1/"


@dataclass(frozen=True)
class Moment:
    """What is asked about: a snapshot, and a window of whole days after a cutoff."""

    snapshot: str
    cutoff_us: int
    within_days: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "protocol": f"temporal: vectors from the events before the cutoff, labels from the {self.within_days} days"
            " after it, measured on users that no reader learnt from",
            "snapshot": self.snapshot,
            "cutoff": iso_time(self.cutoff_us),
            "cutoff_us": self.cutoff_us,
            "within_days": self.within_days,
        }


def probe_release(
    config: SonderConfig, release_id: str, *, num_workers: int | None = None, max_users: int = MAX_USERS
) -> dict[str, Any]:
    """Probe one release on its own snapshot -> JSON-able, `evaluation.probes.Probes.to_dict` and what was asked."""
    workspace = Workspace.at(config.workspace)
    release = Release.open(workspace, release_id)
    with telemetry.stage("probe", release=release.id) as counts:
        moment = settle_moment(release, [release])
        questions, sampling = _ask(workspace, moment, max_users)
        probes = _probe(release, moment, questions, config.seed, num_workers, max_users)
        counts.update(users=len(questions.user_ids), questions=len(questions.asked))
    return {"release": release.id, "trained_until": iso_time(trained_until_us(release)), **moment.to_dict(),
            "sampling": sampling, "seed": config.seed, **probes.to_dict()}  # fmt: skip


def compare_releases_by_probes(
    config: SonderConfig,
    candidate: str,
    current: str,
    *,
    num_workers: int | None = None,
    max_users: int = MAX_USERS,
) -> dict[str, Any]:
    """Probe two releases on the candidate's snapshot, the same users, questions and days -> JSON-able.

    `releases` has what `Probes.to_dict` tells of each, `differences` the candidate less the current one, paired
    (`compare_probes`: a is the candidate, b the current one).
    """
    workspace = Workspace.at(config.workspace)
    releases = [Release.open(workspace, name) for name in (candidate, current)]
    with telemetry.stage("probe", release=candidate, against=current) as counts:
        moment = settle_moment(releases[0], releases)
        questions, sampling = _ask(workspace, moment, max_users)
        probes = [_probe(release, moment, questions, config.seed, num_workers, max_users) for release in releases]
        counts.update(users=len(questions.user_ids), questions=len(questions.asked))
    return {
        "candidate": candidate,
        "current": current,
        **moment.to_dict(),
        "trained_until": {release.id: iso_time(trained_until_us(release)) for release in releases},
        "sampling": sampling,
        "seed": config.seed,
        "releases": {release.id: found.to_dict() for release, found in zip(releases, probes, strict=True)},
        "differences": compare_probes(*probes),
    }


def trained_until_us(release: Release) -> int:
    """The end of all that the encoder's weights have seen, exclusive: of its training and of those it went on from."""
    made, manifest = release.increment, release.manifest
    fitted_us = manifest.as_of_us if made is None else int(made["fitted_as_of_us"])
    evaluation = manifest.config["evaluation"]
    if evaluation["protocol"] == "temporal":
        fitted_us = test_cutoff_us(fitted_us, int(evaluation["test_days"]))
    parent = training_of(release.encoder).get("parent")
    if parent is None:
        return fitted_us
    try:
        return max(fitted_us, trained_until_us(Release.open(release.workspace, parent)))
    except NotFound as error:
        raise InvalidRequest(
            f"The encoder of {release.id} went on from {parent}, which is gone",
            expected="every release that its weights descend from, to know which events they have seen",
            do="Restore it, or probe a release that was trained from nothing.",
        ) from error


def settle_moment(asked: Release, releases: Sequence[Release]) -> Moment:
    """The window at the end of one release's snapshot that no encoder has been trained on."""
    history = asked.workspace.history(asked.manifest.snapshot)
    manifest = read_manifest(history)
    if manifest["is_ordinal"]:
        raise InvalidRequest("The log has order but no time", expected="a log with times: a probe asks about days")
    end_us, test_days = int(manifest["last_event_us"]) + 1, int(asked.manifest.config["evaluation"]["test_days"])
    until = {release.id: trained_until_us(release) for release in releases}
    cutoff_us = max(test_cutoff_us(end_us, test_days), *until.values())
    within_days = (end_us - cutoff_us) // MICROSECONDS_PER_DAY
    if within_days < 1:
        latest = max(until, key=lambda name: until[name])
        raise InvalidRequest(
            f"The encoder of {latest} was trained on events up to {iso_time(until[latest])}, and the log of"
            f" {asked.id} ends at {iso_time(end_us)}",
            expected="a day or more of events that no encoder has seen",
            do="Probe a release of the temporal protocol, or name the newer release first.",
        )
    return Moment(asked.manifest.snapshot, cutoff_us, int(within_days))


def _ask(workspace: Workspace, moment: Moment, max_users: int) -> tuple[Questions, str | None]:
    """The questions, of a sample of users, and a sentence about it if they are not all."""
    history = workspace.history(moment.snapshot)
    vocabulary = Vocabulary.load(workspace.items(moment.snapshot))
    timelines = read_timelines(history, vocabulary, buckets_reaching(history, max_users))
    drawn = np.argsort(unit_interval(pl.Series(timelines.user_ids), SAMPLE_KEY), kind="stable")
    rows = np.sort(drawn[:max_users])
    questions = cut_questions(
        timelines.take(rows), vocabulary, cutoff_us=moment.cutoff_us, within_days=moment.within_days
    )
    num_all = sum(int(entry["users"]) for entry in read_manifest(history)["buckets"])
    told = None if len(rows) == num_all else f"{len(rows):,} of {num_all:,} users, drawn by a digest of their id"
    return questions, told


def _probe(
    release: Release, moment: Moment, questions: Questions, seed: int, num_workers: int | None, max_users: int
) -> Probes:
    vectors_UD = _vectors(release, moment, questions.user_ids, num_workers, max_users)
    return run_probes(vectors_UD, questions, seed=seed)


def _vectors(
    release: Release, moment: Moment, user_ids: pl.Series, num_workers: int | None, max_users: int
) -> NDArray[np.float32]:
    """Vectors of these users at the cutoff, by the release's encoder, in their order [U, D]."""
    workspace = release.workspace
    history = workspace.history(moment.snapshot)
    buckets = buckets_reaching(history, max_users)
    name = digest_json([release.id, moment.snapshot, moment.cutoff_us, buckets])
    staging = workspace.staging(f"probe-{name}")
    arguments = {
        "history": history.uri,
        "items": release.items.uri,
        "encoder": release.encoder.uri,
        "target": staging.uri,
        "as_of_us": moment.cutoff_us,
        "newer_items": None if moment.snapshot == release.manifest.snapshot else workspace.items(moment.snapshot).uri,
    }
    over_buckets(EmbedBucket, arguments, buckets, num_workers=num_workers)
    table = pa.concat_tables([part_file(staging / VECTORS, bucket).read_table() for bucket in buckets])
    staging.remove()
    rows = pl.DataFrame({"user_id": user_ids}).join(
        pl.DataFrame({"user_id": pl.Series(table.column("user_id"))}).with_row_index("row"),
        on="user_id",
        how="left",
        maintain_order="left",
    )["row"]
    flat: NDArray[np.float32] = table.column("vector").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    vectors_UD: NDArray[np.float32] = flat.reshape(table.num_rows, -1)[rows.to_numpy()]
    return vectors_UD
