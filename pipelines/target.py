"""`sonder target`: the users of a release on whom to act under a budget, by expected gain, and what that will bring.

One pass over the buckets of the release's profiles. `TargetBucket` leaves out who has no score, who is outside the
audience, who has not granted the purpose and who is on the list; it keeps the best of the bucket, which are merged.
The same payoff is then applied to the release's own held-out test window, at the same share of its users.
Writes OUT (.parquet or .csv): user_id, score, expected_gain, rank, release, as_of; and OUT.json: everything told.
Memory: a bucket, and the users of the budget (of everybody, where neither budget nor size is given).
Limits: the held-out window holds all users of the task: audience, consent and list are not applied to it, because they
are known as of the release alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines.audience import Asked as AskedRelease
from pipelines.bucket_tasks import over_buckets, part_file
from pipelines.target_score import AskedScore, find_score
from sonder.core import telemetry
from sonder.core.errors import InvalidRequest
from sonder.core.ids import digest_json
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.profiles.audience_counts import evaluate
from sonder.profiles.audience_reading import ReleaseUsers
from sonder.profiles.record import iso_time
from sonder.scoring.decisions import UPPER_BOUND, Payoff, affordable, choose, in_order
from sonder.scoring.forecast import gain_interval, realised, sum_interval
from sonder.segments.audiences import AudienceCatalogue
from sonder.segments.rules.rule import Rule, fields_of_rules

NEXT_SHARE = 0.1  # how many more users are told of
_LISTS = ("no_score", "outside_audience", "without_consent", "excluded")


@dataclass(frozen=True)
class AskedTarget:
    """What was asked for."""

    payoff: Payoff
    task: str | None = None  # a score of the release, or
    uplift: str | None = None  # what `sonder uplift` learnt
    cost: float = 0.0  # of a contact
    budget: float | None = None
    size: int | None = None
    effect: float | None = None  # share of the value that acting recovers, where the payoff is of that form
    audience: str | None = None
    rule: str | None = None
    purpose: str | None = None
    exclude: tuple[str, ...] = ()
    seed: int = 7

    @property
    def limit(self) -> int | None:
        """Most users that may be chosen."""
        paid = None if self.budget is None else affordable(self.budget, self.cost)
        limits = [limit for limit in (paid, self.size) if limit is not None]
        return min(limits) if limits else None


@dataclass(frozen=True)
class Targets:
    """The answer: `users` in order of rank, and everything that OUT.json says."""

    users: pl.DataFrame  # user_id, score, expected_gain, rank, release, as_of
    facts: dict[str, Any]


def choose_targets(
    workspace: Workspace, asked: AskedTarget, *, release_id: str | None = None, num_workers: int | None = None
) -> Targets:
    """Whom to act on in a release (the served one if not named), and what it will bring."""
    if asked.audience is not None and asked.rule is not None:
        raise InvalidRequest("An audience and a rule", expected="one of --audience and --rule")
    users = AskedRelease.of(workspace, release_id)
    release = users.release
    score = find_score(workspace, release, task=asked.task, uplift=asked.uplift)
    rules, restricted_to = _rules(workspace, users, asked)
    limit = asked.limit
    keep = None if limit is None else limit + math.ceil(NEXT_SHARE * limit)
    staged = workspace.staging(f"target-{digest_json([release.id, score.identity, asdict(asked)])}")
    (staged / "exclude.json").write_json(sorted(asked.exclude))
    arguments = users.users | {"score": score.to_dict(), "rules": rules, "staged": staged.uri, "keep": keep}
    arguments["payoff"] = [asked.payoff.per_unit, asked.payoff.fixed]
    workers = users.num_workers if num_workers is None else num_workers
    with telemetry.stage("target", release=release.id, score=score.name) as counts:
        summaries = over_buckets(TargetBucket, arguments, users.buckets, num_workers=workers)
        tables = [pl.read_parquet((part_file(staged, bucket)).read_bytes()) for bucket in users.buckets]
        ordered = in_order(pl.concat(tables), asked.payoff)
        chosen = choose(ordered, limit)
        counts.update(chosen=len(chosen))
    total: Counter[str] = Counter()
    for summary in summaries:
        total.update(summary)
    facts = {
        "release": release.id,
        "as_of": iso_time(release.manifest.as_of_us),
        **score.facts,
        "audience": restricted_to,
        "purpose": asked.purpose,
        **_told(asked, score, ordered, len(chosen), total),
    }
    staged.remove()
    written = chosen.with_columns(
        release=pl.lit(release.id), as_of=pl.lit(release.manifest.as_of_us).cast(pl.Datetime("us", "UTC"))
    )
    return Targets(written, facts)


def write_targets(targets: Targets, out: Path, *, min_size: int) -> Path:
    """Write OUT and OUT.json -> the path of the latter; InvalidRequest for fewer than `min_size` users."""
    if out.suffix not in (".csv", ".parquet"):
        raise InvalidRequest(f"--out {out}", expected="a name that ends in .parquet or .csv")
    if len(targets.users) < min_size:
        raise InvalidRequest(
            f"{len(targets.users):,} users are chosen",
            expected=f"at least {min_size:,} (audiences.min_export_size)",
            do="Widen the audience, or raise the budget if the next users would still gain.",
        )
    target = Folder.at(str(out.resolve()))
    if out.suffix == ".csv":
        times = pl.col("as_of").dt.to_string("%Y-%m-%dT%H:%M:%S%.6f+00:00")
        target.write_bytes(targets.users.with_columns(times).write_csv().encode())
    else:
        target.write_table(targets.users.to_arrow())
    beside = out.with_name(out.name + ".json")
    Folder.at(str(beside.resolve())).write_json(targets.facts)
    return beside


class TargetBucket:
    """The bucket task: who may be chosen, and of them the best by expected gain."""

    def __init__(
        self,
        profiles: str,
        history: str,
        actions: list[str],
        score: dict[str, Any],
        rules: dict[str, str],
        staged: str,
        keep: int | None,
        payoff: list[float],
    ) -> None:
        self.profiles, self.staged, self.keep = Folder.at(profiles), Folder.at(staged), keep
        self.users = ReleaseUsers(self.profiles, Folder.at(history), tuple(actions))
        self.score, self.payoff = AskedScore.from_dict(score), Payoff(*payoff)
        self.rules = {name: Rule.parse(text) for name, text in rules.items()}
        self.excluded = pl.Series((self.staged / "exclude.json").read_json(), dtype=pl.String)

    def __call__(self, bucket: int) -> dict[str, Any]:
        done = self.staged / f"bucket={bucket:03d}.json"
        if not done.exists():
            frame, left_out = self._candidates(bucket)
            ordered = in_order(frame, self.payoff)
            best = ordered if self.keep is None else ordered.head(self.keep)
            part_file(self.staged, bucket).write_table(best.select("user_id", "score").to_arrow())
            sums = {"candidates": len(frame), "score": float(frame["score"].sum())}
            done.write_json({**sums, "gain": float(ordered["expected_gain"].sum()), **left_out})
        summary: dict[str, Any] = done.read_json()
        return summary

    def _candidates(self, bucket: int) -> tuple[pl.DataFrame, dict[str, int]]:
        """user_id and score of those who may be chosen, and how many were left out, each for the first reason."""
        rules = list(self.rules.values())
        profiles, timelines = self.users.read(bucket, fields_of_rules(rules))
        ids = pl.Series("user_id", profiles.column("user_id").to_pylist(), dtype=pl.String)
        scores = self.score.read(self.profiles, bucket, ids)
        held = evaluate(rules, profiles, timelines, self.users.actions) if rules else pl.DataFrame()
        is_in = {name: held.to_series(place).fill_null(False) for place, name in enumerate(self.rules)}
        everybody = pl.Series(np.ones(len(ids), dtype=np.bool_))
        tests = {
            "no_score": scores.is_not_null(),
            "outside_audience": is_in.get("audience", everybody),
            "without_consent": is_in.get("purpose", everybody),
            "excluded": ~ids.is_in(self.excluded.implode()),
        }
        remaining, left_out = everybody, {}
        for reason in _LISTS:
            left_out[reason] = int((remaining & ~tests[reason]).sum())
            remaining = remaining & tests[reason]
        frame = pl.DataFrame({"user_id": ids, "score": scores.cast(pl.Float64)}).filter(remaining)
        return frame, left_out


def _rules(workspace: Workspace, users: AskedRelease, asked: AskedTarget) -> tuple[dict[str, str], str | None]:
    """Checked rules by what they stand for, and the one of the audience."""
    rules, restricted_to = {}, asked.rule
    if asked.audience is not None:
        restricted_to = AudienceCatalogue(workspace.audiences).newest(asked.audience).rule
    if restricted_to is not None:
        rules["audience"] = Rule.parse(restricted_to, users.schema).text
    if asked.purpose is not None:
        rules["purpose"] = Rule.parse(f"consent.{asked.purpose} = true", users.schema).text
    return rules, rules.get("audience")


def _told(
    asked: AskedTarget, score: AskedScore, ordered: pl.DataFrame, num_chosen: int, total: Mapping[str, float]
) -> dict[str, Any]:
    """The decision and its forecast, as JSON."""
    payoff, candidates = asked.payoff, int(total["candidates"])
    share = num_chosen / candidates if candidates else 0.0
    scores = ordered["score"].head(num_chosen).to_numpy().astype(np.float64)
    sums = sum_interval(scores, score.window, share=share, kind=score.kind, seed=asked.seed)
    following = ordered.slice(num_chosen, math.ceil(NEXT_SHARE * num_chosen))
    next_gain = float(following["expected_gain"].sum())
    held_out = None
    if score.window is not None and num_chosen:
        held_out = asdict(realised(score.window, payoff, share=share, kind=score.kind, seed=asked.seed))
    lowest, highest = {"probability": (0.0, 1.0), "amount": (0.0, math.inf), "uplift": (-math.inf, math.inf)}[
        score.kind
    ]
    return {
        "payoff": payoff.to_dict() | {"acts": payoff.acts(lowest=lowest, highest=highest)},
        "cost": asked.cost,
        "budget": asked.budget,
        "size": asked.size,
        "limit": asked.limit,
        "candidates": candidates,
        "left_out": {reason: int(total[reason]) for reason in _LISTS},
        "chosen": num_chosen,
        "share": share,
        "spent": asked.cost * num_chosen,
        "stopped_by": _stopped_by(asked, num_chosen, candidates),
        "expected": {
            "sum": float(scores.sum()),
            "sum_interval": sums,
            "gain": payoff.per_unit * float(scores.sum()) + payoff.fixed * num_chosen,
            "gain_interval": gain_interval(payoff, num_chosen, sums),
            "interval_of": "luck and the score's own error on the held-out window"
            if score.window is not None
            else "luck alone: there is no held-out window",
        },
        "random_gain": total["gain"] / candidates * num_chosen if candidates else 0.0,
        "next": {"users": len(following), "gain": next_gain},
        "held_out": held_out,
        "notes": [*_notes(asked, score), *_off(held_out)],
    }


def _stopped_by(asked: AskedTarget, num_chosen: int, candidates: int) -> str:
    if asked.limit is not None and num_chosen == asked.limit:
        return "size" if asked.size == asked.limit else "budget"
    return "everybody who may be chosen is" if num_chosen == candidates else "nobody else is expected to gain"


def _off(held_out: dict[str, Any] | None) -> list[str]:
    """A sentence where the held-out window did not keep the score's promise, either way."""
    if held_out is None or held_out["gain_interval"][0] <= held_out["promised"] <= held_out["gain_interval"][1]:
        return []
    return [
        f"The score was off on the held-out window from {held_out['cutoff']}: it promised {held_out['promised']:,.2f}, "
        f"{held_out['gain']:,.2f} came true. Go by the interval, not by the expected gain."
    ]


def _notes(asked: AskedTarget, score: AskedScore) -> list[str]:
    notes = list(score.notes)
    if score.kind != "uplift":
        effect = 1.0 if asked.effect is None else asked.effect
        notes.insert(0, UPPER_BOUND.format(effect=effect))
    if asked.audience is not None or asked.rule is not None or asked.purpose is not None:
        notes.append("The held-out window holds all users of the task: audience and consent are not applied to it.")
    return notes
