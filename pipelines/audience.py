"""Audiences over a release: preview a rule, save it, refresh who is in, export them. One task per history bucket.

audiences/<name>/v<NNN>.json                                  definitions (segments.audiences.Definition)
audiences/<name>/members/<NNNNN>/bucket=NNN/part-0.parquet    stays after each evaluation (MEMBERSHIP_SCHEMA)
audiences/index.json                                          what serving looks at (pipelines.audience_publishing)
An evaluation holds all stays there ever were; the newest two are kept. It is staged and published whole, and a bucket
whose files exist is not done again. Membership follows the user where a later snapshot has other buckets.
Small releases are evaluated in this process, because starting Ray takes longer than counting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pyarrow as pa

from pipelines.audience_publishing import only_refresh, only_save, publish_index, publish_members
from pipelines.bucket_tasks import over_buckets, part_file
from sonder.core import telemetry
from sonder.core.errors import InvalidRule
from sonder.core.ids import bucket_of, digest_json
from sonder.core.storage import Folder, publish, read_manifest
from sonder.core.workspace import Workspace
from sonder.history.snapshot import buckets_of
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.audience_counts import Counts, evaluate, preview_of
from sonder.profiles.audience_fields import schema_of
from sonder.profiles.audience_reading import ReleaseUsers
from sonder.profiles.record import iso_time
from sonder.releases.artefacts import Release, served_release
from sonder.segments.audiences import (
    MEMBERSHIP_SCHEMA,
    AudienceCatalogue,
    Definition,
    evaluations_of,
    movement,
    update_members,
)
from sonder.segments.rules.rule import Rule, fields_of_rules
from sonder.segments.rules.schema import RuleSchema

SMALL_PROFILES = 2_000_000  # up to these a job runs in this process
KEPT_EVALUATIONS = 2


@dataclass(frozen=True)
class Asked:
    """A release with the names that a rule may use in it."""

    release: Release
    schema: RuleSchema
    users: dict[str, Any]  # arguments of a bucket task

    @classmethod
    def of(cls, workspace: Workspace, release_id: str | None = None) -> Asked:
        """Open a release, the served one if none is named."""
        release = Release.open(workspace, release_id or served_release(workspace))
        vocabulary = Vocabulary.load(release.items)
        history = workspace.history(release.manifest.snapshot)
        users = {"profiles": release.profiles.uri, "history": history.uri, "actions": list(vocabulary.actions)}
        return cls(release, schema_of(vocabulary, release.base_rates()), users)

    @property
    def buckets(self) -> list[int]:
        return buckets_of(Folder.at(self.users["history"]))

    @property
    def num_workers(self) -> int | None:
        """As over_buckets takes it."""
        return 0 if int(self.release.manifest.row_counts["profiles"]) <= SMALL_PROFILES else None

    def saved_rules(self, catalogue: AudienceCatalogue) -> tuple[dict[str, Rule], dict[str, str]]:
        """Rules of the saved audiences that this release can evaluate, and why not of the others, by name."""
        rules, problems = {}, {}
        for definition in catalogue.all():
            try:
                rules[definition.name] = Rule.parse(definition.rule, self.schema)
            except InvalidRule as error:
                problems[definition.name] = str(error)
        return rules, problems


def preview_audience(
    workspace: Workspace, text: str, *, release_id: str | None = None, num_sampled: int = 10
) -> dict[str, Any]:
    """Exact counts of a rule over everybody, without saving anything: see audience_counts.preview_of."""
    asked = Asked.of(workspace, release_id)
    rule = Rule.parse(text, asked.schema)
    saved, problems = asked.saved_rules(AudienceCatalogue(workspace.audiences))
    texts = [rule.text, *(other.text for other in saved.values())]
    arguments = asked.users | {"rules": texts, "num_sampled": num_sampled}
    with telemetry.stage("preview audience", release=asked.release.id) as told:
        summaries = over_buckets(PreviewBucket, arguments, asked.buckets, num_workers=asked.num_workers)
        counts = Counts.total(map(Counts.from_dict, summaries), num_sampled=num_sampled)
        told.update(profiles=counts.num_users, size=counts.size)
    preview = preview_of(counts, num_profiles=counts.num_users, saved=list(saved))
    return {
        "release": asked.release.id,
        "as_of": iso_time(asked.release.manifest.as_of_us),
        "rule": rule.text,
        **preview,
        "not_compared": problems,
    }


def save_audience(workspace: Workspace, name: str, text: str, *, release_id: str | None = None) -> Definition:
    """Check a rule against a release and save it; the version stays if the rule means the same."""
    asked = Asked.of(workspace, release_id)
    rule = Rule.parse(text, asked.schema)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with only_save(workspace):
        saved = AudienceCatalogue(workspace.audiences).save(name, text, rule, release=asked.release.id, now=now)
        publish_index(workspace)
    return saved


def refresh_audiences(
    workspace: Workspace,
    names: Sequence[str] = (),
    *,
    release_id: str | None = None,
    num_workers: int | None = None,
) -> list[dict[str, Any]]:
    """Evaluate audiences (all if none is named) over a release, in one pass -> what moved, or the problem, of each.

    DataError while another process refreshes. What serving reads changes at the end, for all audiences at once.
    """
    asked = Asked.of(workspace, release_id)
    with only_refresh(workspace):
        with only_save(workspace):  # what a killed refresh had published stands in the index before any of it goes
            publish_index(workspace)
        workers = asked.num_workers if num_workers is None else num_workers
        results = _refresh(workspace, names, asked, workers)
        publish_members(workspace)
    return sorted(results, key=lambda result: str(result["audience"]))


def _refresh(workspace: Workspace, names: Sequence[str], asked: Asked, num_workers: int | None) -> list[dict[str, Any]]:
    catalogue = AudienceCatalogue(workspace.audiences)
    definitions = [catalogue.newest(name) for name in names] if names else catalogue.all()
    pending, results = [], []
    for definition in definitions:
        try:
            Rule.parse(definition.rule, asked.schema)
        except InvalidRule as error:
            results.append({"audience": definition.name, "problem": str(error)})
            continue
        evaluation = Evaluation.next(catalogue.audience(definition.name), definition, asked.release, workspace)
        if evaluation.is_done:
            results.append(evaluation.told)
        else:
            pending.append(evaluation)
    if pending:
        arguments = asked.users | {"evaluations": [evaluation.arguments for evaluation in pending]}
        with telemetry.stage("refresh audiences", release=asked.release.id, audiences=len(pending)):
            summaries = over_buckets(RefreshBucket, arguments, asked.buckets, num_workers=num_workers)
        results += [evaluation.publish(summaries, num_buckets=len(asked.buckets)) for evaluation in pending]
    return results


@dataclass(frozen=True)
class Evaluation:
    """One audience over one release: where it goes, and what was before."""

    audience: Folder
    definition: Definition
    release: str
    as_of_us: int
    previous: Folder | None
    staged: Folder
    final: Folder

    @classmethod
    def next(cls, audience: Folder, definition: Definition, release: Release, workspace: Workspace) -> Evaluation:
        done = evaluations_of(audience)
        previous = done[-1] if done else None
        number = int(previous.name) + 1 if previous else 1
        identity = digest_json([definition.version, release.id, number])
        staged = workspace.staging(f"audience-{definition.name}-{identity}")
        final = audience / "members" / f"{number:05d}"
        return cls(audience, definition, release.id, release.manifest.as_of_us, previous, staged, final)

    @property
    def is_done(self) -> bool:
        """The newest evaluation is of this version and this release."""
        if self.previous is None:
            return False
        manifest = read_manifest(self.previous)
        return (manifest["version"], manifest["release"]) == (self.definition.version, self.release)

    @property
    def told(self) -> dict[str, Any]:
        assert self.previous is not None
        return read_manifest(self.previous)

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "rule": self.definition.rule,
            "version": self.definition.version,
            "as_of_us": self.as_of_us,
            "previous": None if self.previous is None else self.previous.uri,
            "target": self.staged.uri,
        }

    def publish(self, summaries: Sequence[Mapping[str, Any]], *, num_buckets: int) -> dict[str, Any]:
        """Make the evaluation visible and drop the ones before the last two -> its manifest."""
        moved = [summary[self.staged.uri] for summary in summaries]
        manifest = {
            "audience": self.definition.name,
            "version": self.definition.version,
            "rule": self.definition.rule,
            "release": self.release,
            "as_of": iso_time(self.as_of_us),
            "num_buckets": num_buckets,
            **{name: sum(part[name] for part in moved) for name in ("members", "entered", "left")},
        }
        publish(self.staged, self.final, manifest)
        for folder in evaluations_of(self.audience)[:-KEPT_EVALUATIONS]:
            folder.remove()
        return manifest


class PreviewBucket:
    """The bucket task of a preview: counts, nothing is written."""

    def __init__(self, profiles: str, history: str, actions: list[str], rules: list[str], num_sampled: int) -> None:
        self.users = ReleaseUsers(Folder.at(profiles), Folder.at(history), tuple(actions))
        self.rules = [Rule.parse(text) for text in rules]
        self.num_sampled = num_sampled

    def __call__(self, bucket: int) -> dict[str, Any]:
        profiles, timelines = self.users.read(bucket, fields_of_rules(self.rules))
        held = evaluate(self.rules, profiles, timelines, self.users.actions)
        user_ids = profiles.column("user_id").combine_chunks()
        return Counts.of(held, user_ids, num_sampled=self.num_sampled).to_dict()


class RefreshBucket:
    """The bucket task of a refresh: the stays of every audience, from one reading of the users."""

    def __init__(self, profiles: str, history: str, actions: list[str], evaluations: list[dict[str, Any]]) -> None:
        self.users = ReleaseUsers(Folder.at(profiles), Folder.at(history), tuple(actions))
        self.evaluations = evaluations
        self.rules = [Rule.parse(evaluation["rule"]) for evaluation in evaluations]
        self.num_buckets = len(buckets_of(Folder.at(history)))

    def __call__(self, bucket: int) -> dict[str, Any]:
        files = [part_file(Folder.at(evaluation["target"]), bucket) for evaluation in self.evaluations]
        if not all(file.exists() for file in files):
            profiles, timelines = self.users.read(bucket, fields_of_rules(self.rules))
            held = evaluate(self.rules, profiles, timelines, self.users.actions).select(pl.all().fill_null(False))
            user_ids = profiles.column("user_id").combine_chunks()
            for file, evaluation, is_in in zip(files, self.evaluations, held.iter_columns(), strict=True):
                stays = update_members(
                    self._previous(evaluation["previous"], bucket),
                    user_ids.filter(pa.array(is_in.to_numpy())),
                    as_of_us=evaluation["as_of_us"],
                    definition_version=evaluation["version"],
                )
                file.write_table(stays)
        times = ["entered_at", "left_at"]
        return {
            evaluation["target"]: movement(file.read_table(times), as_of_us=evaluation["as_of_us"])
            for file, evaluation in zip(files, self.evaluations, strict=True)
        }

    def _previous(self, evaluation: str | None, bucket: int) -> pa.Table:
        """The stays of the users of this bucket, wherever they lay."""
        if evaluation is None:
            return MEMBERSHIP_SCHEMA.empty_table()
        folder = Folder.at(evaluation)
        num_buckets = int(read_manifest(folder)["num_buckets"])
        if num_buckets == self.num_buckets:
            return part_file(folder, bucket).read_table()
        found = [MEMBERSHIP_SCHEMA.empty_table()]
        for other in range(num_buckets):
            stays = part_file(folder, other).read_table()
            buckets = bucket_of(pl.Series(stays.column("user_id").to_pylist(), dtype=pl.String), self.num_buckets)
            found.append(stays.filter(pa.array(buckets == bucket)))
        return pa.concat_tables(found)
