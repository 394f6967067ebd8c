"""Audiences grown from seeds beside random and rules, on members that only the future tells. One JSON line a log.

    python -m benchmarks.lookalikes retail ../shared/data/online_retail.parquet --encoders FOLDER
    python -m benchmarks.lookalikes retail ../shared/data/online_retail.parquet --encoders FOLDER --part validation
    python -m benchmarks.lookalikes world path/to/world --workspace path/to/workspace

retail  the true audiences are what customers did in the 30 days after the cutoff: bought anything, bought on two days
        or more, the top fifth by spending, bought from one of eight groups of items (the last word of their titles, the
        eight with most buyers before the cutoff). Who has no purchase before the cutoff takes no part. The test window
        ends with the log, the validation window where the test begins; the encoder of each is trained before its window
        and kept in --encoders.
world   the true audiences are the people of a synthetic world who hold an interest in a category at the cutoff, for
        the eight most common categories; the encoder is that of a release trained before the cutoff.
Seeds are drawn from the members; everything that is known of anybody lies before the cutoff. All others are ranked;
the members who are no seeds are to be found: average precision, and precision and lift of the best 5 %.
Rules: `attributes` ranks by how many of the seeds' most common values (lifecycle, quartile of events, of recency, of
tenure) a user shares; `items` by how many of the 20 items that seeds hold most often beyond expectation a user has.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from benchmarks.encoder import read
from pipelines.embed import vector_table
from sonder.core.config import EncoderConfig, EvaluationConfig, InterestsConfig, SegmentsConfig
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import Encoder, load_encoder, save_encoder
from sonder.encoder.content import item_content
from sonder.encoder.holdout import count_eligible, hold_out
from sonder.encoder.inference import embed_users
from sonder.encoder.specification import derive, summarise
from sonder.encoder.training import Limits, TrainingRun
from sonder.evaluation.lookalikes import rank_quality
from sonder.history.cutoffs import end_of_log_us
from sonder.history.snapshot import read_timelines
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.interests.ward import cluster_interests
from sonder.profiles.assembling import StageOutputs, assemble_profiles
from sonder.profiles.traits import compute_traits, derive_traits
from sonder.releases.artefacts import Release, served_release
from sonder.segments.lifecycle import derive_thresholds, lifecycle_table
from sonder.segments.lookalike import People, fit_lookalike

TEST_DAYS, NUM_GROUPS, SHARE = 30, 8, 0.05
SIZES = (50, 200, 1_000)
LEAST_TO_FIND = 50
METHODS = ("combined", "density", "classifier", "rule: items", "rule: attributes", "random")


@dataclass(frozen=True)
class Scene:
    """Everybody at the cutoff, and which of them belong to each true audience."""

    people: People
    attributes: pl.DataFrame  # discrete, one column each
    items_UI: csr_array  # 1 where the user has the item
    audiences: dict[str, NDArray[np.bool_]]
    protocol: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", choices=["retail", "world"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--encoders", type=Path, help="folder of the encoders that were trained, and will be")
    parser.add_argument("--workspace", help="of the world's release")
    parser.add_argument("--part", choices=["validation", "test"], default="test")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    scene = retail_scene(arguments) if arguments.log == "retail" else world_scene(arguments)
    rows = measure(scene, arguments.sizes, arguments.draws)
    print(
        json.dumps(
            {
                "benchmark": f"lookalikes/{arguments.log}/{arguments.part}",
                "protocol": scene.protocol,
                "users": scene.people.num,
                "audiences": {name: int(is_member.sum()) for name, is_member in scene.audiences.items()},
                "draws": arguments.draws,
                "by_size": {size: summary([r for r in rows if r["seeds"] == size]) for size in arguments.sizes},
                "rows": rows,
            }
        )
    )


def measure(scene: Scene, sizes: list[int], num_draws: int) -> list[dict[str, Any]]:
    """One row per audience, size of the seed list, draw and method."""
    rows = []
    for name, is_member in scene.audiences.items():
        for size in sizes:
            if is_member.sum() < size + LEAST_TO_FIND:
                continue
            for number in range(num_draws):
                draw = np.random.default_rng([number, size])
                is_seed = np.zeros(len(is_member), dtype=np.bool_)
                is_seed[draw.choice(np.flatnonzero(is_member), size, replace=False)] = True
                scores = score_everybody(scene, is_seed, draw)
                for method in METHODS:
                    quality = rank_quality(
                        scores[method][~is_seed], is_member[~is_seed], [round(SHARE * int((~is_seed).sum()))]
                    )
                    row = {"audience": name, "seeds": size, "draw": number, "method": method}
                    row |= {"ap": quality.average_precision, "auc": quality.auc}
                    rows.append(row | {"precision": float(quality.precision[0]), "lift": float(quality.lift[0])})
        logging.info("%s: %d members", name, is_member.sum())
    return rows


def score_everybody(
    scene: Scene, is_seed: NDArray[np.bool_], draw: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    seeds, others = np.flatnonzero(is_seed), np.flatnonzero(~is_seed)
    fitted = fit_lookalike(scene.people.take(seeds), scene.people.take(others))
    logging.debug("%s %s %s", fitted.combination, fitted.density.concentration, fitted.classifier.strength)
    return {
        "combined": fitted.log_ratio(scene.people),
        "density": fitted.density.score(scene.people.vectors_ND, scene.people.features_NF),
        "classifier": fitted.classifier.score(scene.people.columns),
        "rule: items": by_items(scene.items_UI, is_seed),
        "rule: attributes": by_attributes(scene.attributes, is_seed),
        "random": draw.random(len(is_seed)),
    }


def by_attributes(attributes: pl.DataFrame, is_seed: NDArray[np.bool_]) -> NDArray[np.float64]:
    shared = np.zeros(len(attributes))
    for column in attributes.get_columns():
        usual = column.filter(pl.Series(is_seed)).value_counts(sort=True)[column.name][0]
        shared += (column == usual).to_numpy()
    return shared


def by_items(items_UI: csr_array, is_seed: NDArray[np.bool_]) -> NDArray[np.float64]:
    everybody, seeds = items_UI.sum(axis=0), items_UI[np.flatnonzero(is_seed)].sum(axis=0)
    expected = everybody * is_seed.sum() / len(is_seed)
    excess = (seeds - expected) / np.sqrt(expected + 1)
    return np.asarray(items_UI[:, np.argsort(-excess, kind="stable")[:20]].sum(axis=1), dtype=np.float64)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over audiences and draws, the standard deviation between draws, and how often the combination wins."""
    result: dict[str, Any] = {"audiences": len({row["audience"] for row in rows})}
    for method in METHODS if rows else ():
        own = [row for row in rows if row["method"] == method]
        by_draw = [[row["ap"] for row in own if row["draw"] == number] for number in {row["draw"] for row in own}]
        result[method] = {name: round(statistics.mean(row[name] for row in own), 4) for name in ("ap", "precision")}
        result[method]["lift"] = round(statistics.mean(row["lift"] for row in own), 2)
        result[method]["ap_sd_of_draws"] = round(statistics.pstdev([statistics.mean(aps) for aps in by_draw]), 4)
        combined = [row["ap"] for row in rows if row["method"] == "combined"]
        wins = [mine > row["ap"] for mine, row in zip(combined, own, strict=True)]
        result[method]["combined_is_better"] = f"{sum(wins)}/{len(wins)}"
    return result


# -- the two logs --------------------------------------------------------------------------------------------------


def retail_scene(arguments: argparse.Namespace) -> Scene:
    timelines, vocabulary = read("retail", arguments.path)
    days = TEST_DAYS if arguments.part == "test" else 2 * TEST_DAYS
    cutoff_us = end_of_log_us(timelines) - days * MICROSECONDS_PER_DAY
    folder = Folder.at(str(arguments.encoders.resolve() / f"enc-retail-{days}"))
    encoder = load_encoder(folder) if folder.exists() else train_encoder(timelines, vocabulary, cutoff_us, folder)
    timelines = timelines.take(np.flatnonzero(timelines.before(cutoff_us).lengths > 0))
    future = timelines.between(cutoff_us, cutoff_us + TEST_DAYS * MICROSECONDS_PER_DAY)
    future = future.keep(vocabulary.weight_of(future.actions) > 0)
    audiences = behaviours(future) | group_buyers(timelines.before(cutoff_us), future, vocabulary)
    protocol = f"temporal: members by the {TEST_DAYS} days from the cutoff, {days} days before the log's end"
    return scene_of(timelines.before(cutoff_us), vocabulary, encoder, cutoff_us, audiences, protocol)


def train_encoder(timelines: Timelines, vocabulary: Vocabulary, cutoff_us: int, folder: Folder) -> Encoder:
    window_us = TEST_DAYS * MICROSECONDS_PER_DAY
    num_eligible = count_eligible(timelines, vocabulary, cutoff_us=cutoff_us, window_us=window_us)
    holdout = hold_out(timelines, vocabulary, cutoff_us=cutoff_us, window_us=window_us, num_eligible=num_eligible)
    summary_, content = summarise(holdout.visible, vocabulary), item_content(vocabulary)
    evaluation = EvaluationConfig(protocol="temporal", test_days=TEST_DAYS)
    spec = derive(EncoderConfig(), evaluation, vocabulary, summary_, reads_time=True, seed=7, content=content.shape)
    run = TrainingRun(spec, [holdout], summary_.targets, content=content)
    run.fit(Limits(max_epochs=100, patience=4))
    encoder = run.state().encoder(content)
    save_encoder(encoder, folder)
    return encoder


def behaviours(future: Timelines) -> dict[str, NDArray[np.bool_]]:
    has_bought = future.lengths > 0
    users, days = future.user_rows, future.times_us // MICROSECONDS_PER_DAY
    num_days = np.bincount(np.unique(users * 100_000 + days) // 100_000, minlength=future.num_users)
    spent = np.bincount(users, np.nan_to_num(future.values), minlength=future.num_users)
    return {
        "bought anything": has_bought,
        "bought on 2 days or more": num_days >= 2,
        "top fifth by spending": has_bought & (spent >= np.quantile(spent[has_bought], 0.8)),
    }


def group_buyers(history: Timelines, future: Timelines, vocabulary: Vocabulary) -> dict[str, NDArray[np.bool_]]:
    titles = pl.Series(vocabulary.items.column("title").to_pylist(), dtype=pl.String).fill_null("")
    words = titles.str.to_uppercase().str.extract_all(r"[A-Z]{3,}").list.last().fill_null("")
    groups, group_I = np.unique(words.to_numpy().astype(str), return_inverse=True)
    pairs = np.unique(history.user_rows * len(groups) + group_I[history.items]) % len(groups)
    num_buyers = np.bincount(pairs, minlength=len(groups)) * (groups != "")
    chosen = np.argsort(-num_buyers, kind="stable")[:NUM_GROUPS]
    buyers = {}
    for group in chosen:
        wanted = future.keep(group_I[future.items] == group)
        buyers[f"bought of {groups[group]}"] = wanted.lengths > 0
    return buyers


def world_scene(arguments: argparse.Namespace) -> Scene:
    workspace = Workspace.at(arguments.workspace)
    release = Release.open(workspace, served_release(workspace))
    vocabulary, encoder = Vocabulary.load(release.items), load_encoder(release.encoder)
    timelines = read_timelines(workspace.history(release.manifest.snapshot), vocabulary)
    days = TEST_DAYS if arguments.part == "test" else 2 * TEST_DAYS
    cutoff_us = end_of_log_us(timelines) - days * MICROSECONDS_PER_DAY
    history = timelines.before(cutoff_us)
    history = history.take(np.flatnonzero(history.lengths > 0))
    at = pl.lit(cutoff_us).cast(pl.Datetime("us", "UTC"))
    truth = pl.read_parquet(str(arguments.path / "truth" / "interests.parquet"))
    held = truth.filter((pl.col("from") <= at) & (pl.col("to") > at))
    common = held.group_by("category").len().sort("len", "category", descending=[True, False]).head(NUM_GROUPS)
    ids = pl.Series(history.user_ids.to_pylist(), dtype=pl.String)
    audiences = {
        name: ids.is_in(held.filter(pl.col("category") == name)["user_id"].to_list()).to_numpy()
        for name in common["category"]
    }
    protocol = f"members by the world's truth at the cutoff, {days} days before the log's end"
    return scene_of(history, vocabulary, encoder, cutoff_us, audiences, protocol)


def scene_of(
    history: Timelines,
    vocabulary: Vocabulary,
    encoder: Encoder,
    cutoff_us: int,
    audiences: dict[str, NDArray[np.bool_]],
    protocol: str,
) -> Scene:
    """Profiles of everybody by the build's own functions, without scores: no heads are trained here."""
    vectors_UD = embed_users(encoder, history, as_of_us=cutoff_us)
    thresholds = derive_thresholds(history, end_us=cutoff_us, config=SegmentsConfig())
    outputs = StageOutputs(
        vectors=vector_table(history.user_ids, vectors_UD),
        interests=cluster_interests(
            history, encoder.item_vectors, vocabulary, as_of_us=cutoff_us, config=InterestsConfig()
        ),
        affinities=None,
        segments=lifecycle_table(history, as_of_us=cutoff_us, thresholds=thresholds),
        scores=None,
    )
    profiles = assemble_profiles(history, outputs, base_rates={}, as_of_us=cutoff_us)
    known = np.flatnonzero(vectors_UD.any(axis=1))
    traits_UF = compute_traits(profiles, derive_traits(profiles))
    wanted = history.keep((history.items >= 0) & (vocabulary.weight_of(history.actions) > 0))
    pairs = np.unique(wanted.user_rows * vocabulary.num_items + wanted.items)
    places = (pairs // vocabulary.num_items, pairs % vocabulary.num_items)
    items_UI = csr_array((np.ones(len(pairs)), places), shape=(history.num_users, vocabulary.num_items))
    return Scene(
        people=People(vectors_UD, traits_UF).take(known),
        attributes=attributes_of(profiles)[known],
        items_UI=items_UI[known],
        audiences={name: is_member[known] for name, is_member in audiences.items()},
        protocol=protocol,
    )


def attributes_of(profiles: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(profiles.select(["num_events", "segments"]))
    assert isinstance(frame, pl.DataFrame)
    frame = frame.unnest("segments").select("lifecycle", "num_events", "tenure_days", "recency_days")
    return frame.select("lifecycle", (pl.exclude("lifecycle").rank() * 4 / pl.len()).floor().clip(0, 3))


if __name__ == "__main__":
    main()
