"""`sonder lookalike`: from a file of seeds to a ranked audience of any size, of the users of one release.

Two passes over the buckets of the release's profiles, each a Ray Data task: `GatherBucket` takes the seeds and a draw
of everybody else by the digest of their ids, on which the lookalike is fitted and measured; `ScoreBucket` scores all
users and keeps the best `size` of the bucket, which are then merged. Memory: a bucket, the draw, `size` rows a bucket.
Work in progress lies in the workspace's staging folder, under a digest of all that was asked; a bucket that is done is
not done again, and the folder is removed at the end.
Writes OUT (.parquet or .csv): user_id, rank, similarity, percentile; and OUT.json: the seeds that were used, how well
held-out seeds are found and by which protocol, the reach curve. Seeds and excluded users are never in the audience.
Limits: users without a vector (cold) cannot be ranked; they are counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.bucket_tasks import over_buckets, part_file
from sonder.core import telemetry
from sonder.core.errors import ConfigurationError, InvalidRequest
from sonder.core.ids import digest_json, unit_interval
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.evaluation.lookalikes import SHARES, HeldOut, evaluate_held_out
from sonder.profiles.record import iso_time
from sonder.profiles.traits import TRAIT_COLUMNS, TraitSpec, compute_traits, derive_traits
from sonder.releases.artefacts import Release, served_release
from sonder.segments.lookalike import LEAST_SEEDS, MIN_SEEDS, Lookalike, People, few_seeds, fit_lookalike
from sonder.segments.lookalike_artefact import load_lookalike, save_lookalike

SAMPLE_USERS = 20_000  # of everybody else: background of the fit, and whom held-out seeds are ranked among
SAMPLE_KEY = "sonder/lookalike/background/1/"
NUM_BINS = 1_000  # of similarity, for the curve
_IDS_FILE, _TRAITS_FILE = "ids.parquet", "traits.json"
_COLUMNS = [*TRAIT_COLUMNS, "embedding"]


@dataclass(frozen=True)
class Asked:
    """What was asked for."""

    seeds: pl.Series  # distinct user ids
    exclude: pl.Series
    size: int  # 0: nobody is named, the reach curve alone
    seed: int = 7  # of everything that draws


@dataclass(frozen=True)
class Ranking:
    """Everybody of some buckets, ranked by how much they are like the seeds."""

    fitted: Lookalike
    held_out: HeldOut
    seeds: dict[str, int]  # what became of those that were given
    num_ranked: int
    num_cold: int
    reach: list[dict[str, Any]]  # of `reach_curve`


@dataclass(frozen=True)
class Audience:
    """The answer: `members` in order of rank, and everything that OUT.json says."""

    members: pl.DataFrame  # user_id, rank, similarity, percentile
    facts: dict[str, Any]


def grow_audience(
    workspace: Workspace, asked: Asked, *, release_id: str | None = None, num_workers: int | None = None
) -> Audience:
    """Rank everybody of the release (the served one if not named) by how much they are like the seeds."""
    if asked.size < 1:
        raise InvalidRequest(f"An audience of {asked.size} users", expected="1 at least")
    release = Release.open(workspace, release_id or served_release(workspace))
    staged = workspace.staging(f"lookalike-{_digest(asked, release.id)}")
    buckets = sorted({int(name.split("/")[0].removeprefix("bucket=")) for name in release.profiles.files()})
    with telemetry.stage("lookalike", release=release.id, seeds=len(asked.seeds)) as counts:
        num_users = int(release.manifest.row_counts["profiles"])
        ranking = rank_users(release.profiles, staged, asked, buckets, num_users=num_users, num_workers=num_workers)
        members = _merge(staged, buckets, asked.size, ranking.num_ranked)
        facts = {
            "release": release.id,
            "as_of": iso_time(release.manifest.as_of_us),
            "size": len(members),
            "size_asked": asked.size,
            "ranked_users": ranking.num_ranked,
            "cold_users": ranking.num_cold,
            "excluded": len(asked.exclude),
            "seeds": ranking.seeds,
            "warnings": few_seeds(ranking.seeds["used"]),
            "fitted": _choices(ranking.fitted),
            "held_out": ranking.held_out.to_dict(),
            "reach": ranking.reach,
        }
        counts.update(ranked=ranking.num_ranked, size=len(members), auc=ranking.held_out.auc)
    staged.remove()
    return Audience(members, facts)


def rank_users(
    profiles: Folder, staged: Folder, asked: Asked, buckets: list[int], *, num_users: int, num_workers: int | None
) -> Ranking:
    """Both passes over some buckets of profiles, which hold `num_users`; the best of each bucket stay in `staged`."""
    _write_ids(asked, staged)
    arguments = {"profiles": profiles.uri, "staged": staged.uri}
    rate = min(1.0, SAMPLE_USERS / max(1, num_users))
    gathered = over_buckets(GatherBucket, arguments | {"rate": rate}, buckets, num_workers=num_workers)
    fitted, held_out, seeds = _fit(staged, buckets, asked, gathered)
    scored = over_buckets(ScoreBucket, arguments | {"size": asked.size}, buckets, num_workers=num_workers)
    num_ranked = int(sum(np.sum(summary["histogram"]) for summary in scored))
    num_cold = sum(summary["cold"] for summary in gathered)
    return Ranking(fitted, held_out, seeds, num_ranked, num_cold, reach_curve(held_out, scored, num_ranked))


def write_audience(audience: Audience, out: Path) -> Path:
    """Write OUT and OUT.json -> the path of the latter."""
    target = Folder.at(str(out.resolve()))
    if out.suffix == ".csv":
        target.write_bytes(audience.members.write_csv().encode())
    else:
        target.write_table(audience.members.to_arrow())
    beside = out.with_name(out.name + ".json")
    Folder.at(str(beside.resolve())).write_json(audience.facts)
    return beside


def check_out(out: Path) -> None:
    """Refuse a name that says no format, before any work."""
    if out.suffix not in (".csv", ".parquet"):
        raise ConfigurationError(f"--out {out}", expected="a name that ends in .parquet or .csv")


class GatherBucket:
    """The bucket task of the first pass: seeds, and a draw of the others, as they stand in the profiles."""

    def __init__(self, profiles: str, staged: str, rate: float) -> None:
        self.profiles, self.staged, self.rate = Folder.at(profiles), Folder.at(staged), rate
        self.seeds, _ = _read_ids(self.staged)

    def __call__(self, bucket: int) -> dict[str, int]:
        done = self.staged / "gathered" / f"bucket={bucket:03d}.json"
        if not done.exists():
            table = part_file(self.profiles, bucket).read_table(_COLUMNS)
            is_seed = pc.is_in(table.column("user_id"), value_set=self.seeds)
            known = pc.is_valid(table.column("embedding"))
            draws = unit_interval(pl.Series(table.column("user_id").to_pylist(), dtype=pl.String), SAMPLE_KEY)
            is_drawn = pc.and_not(pa.array(draws < self.rate), is_seed)
            for name, mask in (("seeds", is_seed), ("others", is_drawn)):
                part_file(self.staged / name, bucket).write_table(table.filter(pc.and_(known, mask)))
            cold = pc.invert(known)
            num_cold_seeds = pc.sum(pc.and_(cold, is_seed)).as_py() or 0
            num_cold, num_known = pc.sum(cold).as_py() or 0, pc.sum(known).as_py() or 0
            done.write_json({"known": num_known, "cold": num_cold, "cold_seeds": num_cold_seeds})
        counts: dict[str, int] = done.read_json()
        return counts


class ScoreBucket:
    """The bucket task of the second pass: the best of a bucket, and how similar everybody of it is."""

    def __init__(self, profiles: str, staged: str, size: int) -> None:
        self.profiles, self.staged, self.size = Folder.at(profiles), Folder.at(staged), size
        self.lookalike = load_lookalike(self.staged)
        self.spec = TraitSpec.from_dict((self.staged / _TRAITS_FILE).read_json())
        self.seeds, self.excluded = _read_ids(self.staged)

    def __call__(self, bucket: int) -> dict[str, Any]:
        done = self.staged / "scored" / f"bucket={bucket:03d}.json"
        if not done.exists():
            table = part_file(self.profiles, bucket).read_table(_COLUMNS)
            ids = table.column("user_id")
            is_out = pc.or_(pc.is_in(ids, value_set=self.seeds), pc.is_in(ids, value_set=self.excluded))
            table = table.filter(pc.and_not(pc.is_valid(table.column("embedding")), is_out)).combine_chunks()
            similarity = self.lookalike.similarity(people_of(table, self.spec))
            scored = pl.DataFrame({"user_id": table.column("user_id").to_pylist(), "similarity": similarity},
                                  schema={"user_id": pl.String, "similarity": pl.Float64})  # fmt: skip
            part_file(self.staged / "best", bucket).write_table(_best(scored, self.size).to_arrow())
            done.write_json({"histogram": np.histogram(similarity, NUM_BINS, (0, 1))[0]})
        summary: dict[str, Any] = done.read_json()
        return summary


def people_of(profiles: pa.Table, spec: TraitSpec) -> People:
    """Profiles with a vector as the lookalike sees them."""
    if not profiles.num_rows:
        return People(np.zeros((0, 1), np.float32), np.zeros((0, spec.num_traits), np.float32))
    vectors = profiles.column("embedding").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return People(vectors.reshape(profiles.num_rows, -1), compute_traits(profiles, spec))


def reach_curve(held_out: HeldOut, scored: list[dict[str, Any]], num_ranked: int) -> list[dict[str, Any]]:
    """One row per size of audience: similarity of its last member, and what held-out seeds say of it."""
    histogram = np.sum([summary["histogram"] for summary in scored], axis=0)
    at_least = np.cumsum(histogram[::-1])  # users in the best 1, 2, … bins
    rows = []
    for point in held_out.points:
        size = max(1, round(point.share * num_ranked))
        bins = int(np.searchsorted(at_least, size)) + 1
        rows.append({"size": size, "similarity": 1 - bins / NUM_BINS, **asdict(point)})
    return rows


def _fit(
    staged: Folder, buckets: list[int], asked: Asked, gathered: list[dict[str, Any]]
) -> tuple[Lookalike, HeldOut, dict[str, Any]]:
    """Fit and measure; leaves the model and the traits in the staging folder."""
    tables = {
        name: pa.concat_tables([part_file(staged / name, bucket).read_table() for bucket in buckets])
        for name in ("seeds", "others")
    }
    num_known, num_cold = tables["seeds"].num_rows, sum(summary["cold_seeds"] for summary in gathered)
    counts = {
        "given": len(asked.seeds),
        "used": num_known,
        "unknown": len(asked.seeds) - num_known - num_cold,
        "cold": num_cold,
    }
    check_seeds(counts)
    if tables["others"].num_rows < LEAST_SEEDS:
        raise InvalidRequest(f"{tables['others'].num_rows} users beside the seeds", expected=f"{LEAST_SEEDS} at least")
    spec = derive_traits(tables["others"])
    people = {name: people_of(table, spec) for name, table in tables.items()}
    fitted = fit_lookalike(people["seeds"], people["others"], seed=asked.seed)
    num_others = max(1, sum(summary["known"] for summary in gathered) - num_known)
    # The curve has a row for the size that was asked for.
    shares = (*SHARES, min(1.0, asked.size / num_others)) if asked.size else SHARES
    held_out = evaluate_held_out(
        people["seeds"], people["others"], num_others=num_others, shares=shares, seed=asked.seed
    )
    save_lookalike(fitted, staged)
    (staged / _TRAITS_FILE).write_json(spec.to_dict())
    return fitted, held_out, counts


def _choices(fitted: Lookalike) -> dict[str, float]:
    """What the seeds decided."""
    return {
        "density_weight": fitted.combination.weight,
        "vector_share": fitted.density.sphere.share,
        "concentration": fitted.density.concentration,
        "classifier_strength": fitted.classifier.strength,
        "seeds": fitted.num_seeds,
    }


def check_seeds(counts: Mapping[str, int]) -> None:
    """Refuse too few seeds, and say what became of those that were given."""
    if counts["used"] >= LEAST_SEEDS:
        return
    raise InvalidRequest(
        f"{counts['used']} of {counts['given']} seeds can be used: {counts['unknown']} are unknown to the release, "
        f"{counts['cold']} have no vector",
        expected=f"{LEAST_SEEDS} at least, better {MIN_SEEDS}",
        do="Look at the spelling of the ids, or add seeds.",
    )


def _merge(staged: Folder, buckets: list[int], size: int, num_ranked: int) -> pl.DataFrame:
    parts = [pl.from_arrow(part_file(staged / "best", bucket).read_table()) for bucket in buckets]
    best = _best(pl.concat([part for part in parts if isinstance(part, pl.DataFrame)]), size)
    rank = pl.int_range(1, pl.len() + 1)
    percentile = 100 * (num_ranked - rank + 1) / max(1, num_ranked)
    return best.select("user_id", rank=rank, similarity="similarity", percentile=percentile)


def _best(scored: pl.DataFrame, size: int) -> pl.DataFrame:
    return scored.sort("similarity", "user_id", descending=[True, False]).head(size)


def _digest(asked: Asked, release_id: str) -> str:
    lists = [sorted(ids.to_list()) for ids in (asked.seeds, asked.exclude)]
    return digest_json([release_id, *lists, asked.size, asked.seed])


def _write_ids(asked: Asked, staged: Folder) -> None:
    columns = [(asked.seeds, True), (asked.exclude, False)]
    tables = [
        pa.table(
            {"user_id": pa.array(ids.to_list(), pa.string()), "is_seed": pa.array([is_seed] * len(ids), pa.bool_())}
        )
        for ids, is_seed in columns
    ]
    (staged / _IDS_FILE).write_table(pa.concat_tables(tables))


def _read_ids(staged: Folder) -> tuple[pa.Array, pa.Array]:
    """Seeds and excluded ids."""
    table = (staged / _IDS_FILE).read_table()
    is_seed = table.column("is_seed")
    both = (table.filter(is_seed), table.filter(pc.invert(is_seed)))
    seeds, excluded = (part.column("user_id").combine_chunks() for part in both)
    return seeds, excluded
