"""A downstream model that was learnt on the vectors of one release, read with those of the next. One JSON line a log.

    python -m benchmarks.stability retail ../shared/data/online_retail.parquet --seeds 7 8 9 10 11
    python -m benchmarks.stability synthetic path/to/world --seeds 7 8 9      # what `sonder synth` wrote

Temporal. T2 is 30 days before the end of the log, T1 30 days before T2.
parent      encoder trained on the events before T1, on the catalogue of that time
scratch     trained from nothing on the events before T2, with another seed; warm: from the parent's weights, a tenth of
            its epochs, the same events. Both aligned onto the parent, and raw
downstream  learnt at T1 from what is known before T1 and what users do in [T1, T2); asked at T2 about [T2, end)
  next items  softmax over the parent's items: popularity, how often and how lately the user had it, and the user's
              vector against the parent's vector of the item through a learnt matrix. NDCG@10, binary, over users with
              a target; the ranker is stopped on a fifth of the users of T1, and never sees the last window
  buys again  logistic regression on recency, frequency, tenure and the vector: any wanted event in 30 days. AUC
What the model of T1 reads at T2:
  none        no vectors; a model that was learnt without them
  stale       the parent's vectors of T1, 30 days old
  parent      the parent's encoder, still running on today's events
  raw         a retrain's vectors as they are
  aligned     the same, turned onto the parent's space
  retrained   the retrain's vectors, by a downstream model that was learnt anew on them at T1. The retrain has seen what
              came after T1, so its vectors of T1 are better than those of any later day: that is how such a model is
              retrained in practice too, and why it can be worse than it should
Intervals: 95 %, a bootstrap over users of the difference to `none`, each user's metric averaged over the seeds first.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from benchmarks.encoder import read_log, to_timelines
from benchmarks.warm_start import TEST_DAYS, Trained, train
from sonder.core.config import EncoderConfig
from sonder.core.ids import unit_interval
from sonder.core.storage import Folder
from sonder.encoder.alignment import align, procrustes, shared_items
from sonder.encoder.artefact import ENCODER_FILE, Encoder, load_encoder, save_encoder, training_of
from sonder.encoder.growth import places_of
from sonder.encoder.inference import embed_users
from sonder.evaluation.stability import item_overlap, movement, user_overlap
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import ITEM_SCHEMA, Vocabulary

VARIANTS = ("none", "stale", "parent", "raw", "aligned", "retrained")
RETRAINS = ("scratch", "warm")
DECAYS, MOST_STEPS, PATIENCE = (1e-3, 1e-2), 100, 5
TOP, NUM_DRAWS = 10, 2_000
SAMPLE_KEY = "sonder/benchmark/stability/1/"
Vectors = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", choices=["retail", "synthetic"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9])
    parser.add_argument("--users", type=int, help="of the log, drawn by digest; everybody if not given")
    parser.add_argument("--set", nargs="+", default=[], metavar="DIAL=NUMBER", help="of the encoder: max_epochs=12")
    parser.add_argument("--keep", type=Path, help="folder of trained encoders: what is there is not trained again")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("sonder.encoder").setLevel(logging.INFO)
    torch.set_num_threads(arguments.threads)
    log = Log(arguments.log, arguments.path, arguments.users)
    config = EncoderConfig.model_validate(dict(dial.split("=") for dial in arguments.set))
    runs: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        runs.append(one_seed(log, seed, config, arguments.keep))
        logging.warning("so far: %s", json.dumps(summarised(arguments, log, runs)))
    print(json.dumps(summarised(arguments, log, runs)))


class Log:
    """The events, and the two moments."""

    def __init__(self, kind: str, path: Path, num_users: int | None = None) -> None:
        events = read_log(kind, path) if kind == "retail" else read_world(path)
        users = events["user"].unique().sort()
        drawn = users.gather(np.argsort(unit_interval(users, SAMPLE_KEY), kind="stable")[:num_users])
        self.events = events.filter(pl.col("user").is_in(drawn.implode()))
        self.categories = None if kind == "retail" else categories_of(path)
        self.end_us = int(self.events["time"].max()) + 1  # type: ignore[arg-type]
        self.second_us = self.end_us - TEST_DAYS * MICROSECONDS_PER_DAY
        self.first_us = self.second_us - TEST_DAYS * MICROSECONDS_PER_DAY
        self.weights = {"cancel": -1.0, "hide": -1.0}

    def known_before(self, moment_us: int) -> tuple[Timelines, Vocabulary]:
        """The log and its catalogue as they were."""
        timelines, vocabulary = to_timelines(self.events.filter(pl.col("time") < moment_us))
        weights = tuple(self.weights.get(action, 1.0) for action in vocabulary.actions)
        vocabulary = replace(vocabulary, action_weights=weights)
        if self.categories is not None:
            items = vocabulary.items.column("item_id").to_pylist()
            place = ITEM_SCHEMA.get_field_index("category")
            column = pa.array([self.categories.get(item) for item in items], pa.string())
            vocabulary = replace(vocabulary, items=vocabulary.items.set_column(place, "category", column))
        return timelines, vocabulary

    def users(self) -> list[str]:
        """Everybody with an event before T2: rows of every matrix here."""
        seen = self.events.filter(pl.col("time") < self.second_us)["user"].unique().sort()
        return [str(user) for user in seen]


def read_world(path: Path) -> pl.DataFrame:
    """The columns of `read_log`, without what was only shown."""
    events = pl.read_parquet(path / "events" / "*.parquet").filter(pl.col("action") != "impression")
    columns = events.select(
        user="user_id", item="item_id", action="action", time=pl.col("timestamp").dt.epoch("us"), value="value"
    )
    return columns.sort("user", "time", maintain_order=True)


def categories_of(path: Path) -> dict[str, str]:
    items = pl.read_parquet(path / "items.parquet").select("item_id", "category").drop_nulls()
    return dict(items.iter_rows())


@dataclass(frozen=True)
class Moment:
    """What a downstream model is given at one moment besides vectors, and what came true."""

    counts_UI: NDArray[np.float32]  # log(1 + wanted events of the item before)
    recency_UI: NDArray[np.float32]  # 1 / (1 + months since the last), 0 without any
    facts_UF: NDArray[np.float32]  # log recency, log frequency, log tenure, whether there is any
    targets_UI: NDArray[np.bool_]  # wanted in the 30 days after
    buys_U: NDArray[np.bool_]
    is_known_U: NDArray[np.bool_]  # an event before

    @classmethod
    def of(cls, log: Log, users: list[str], items: list[str], moment_us: int) -> Moment:
        wanted = log.events.filter(~pl.col("action").is_in(list(log.weights)))
        rows, columns = {user: row for row, user in enumerate(users)}, {item: row for row, item in enumerate(items)}
        wanted = wanted.with_columns(
            row=pl.col("user").replace_strict(rows, default=None),
            column=pl.col("item").replace_strict(columns, default=None),
        ).filter(pl.col("row").is_not_null())
        past = wanted.filter(pl.col("time") < moment_us)
        month = TEST_DAYS * MICROSECONDS_PER_DAY
        after = wanted.filter((pl.col("time") >= moment_us) & (pl.col("time") < moment_us + month))
        shape = len(users), len(items)
        counts, recency, targets = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
        pairs = past.drop_nulls("column").group_by("row", "column").agg(pl.len(), pl.col("time").max())
        at = pairs["row"].to_numpy(), pairs["column"].to_numpy()
        counts[at] = np.log1p(pairs["len"].to_numpy())
        recency[at] = 1 / (1 + (moment_us - pairs["time"].to_numpy()) / month)
        hits = after.drop_nulls("column")
        targets[hits["row"].to_numpy(), hits["column"].to_numpy()] = True
        per_user = past.group_by("row").agg(
            pl.len(), pl.col("time").min().alias("first"), pl.col("time").max().alias("last")
        )
        known, facts = per_user["row"].to_numpy(), np.zeros((len(users), 4), np.float32)
        for place, values in enumerate(
            (moment_us - per_user["last"].to_numpy(), moment_us - per_user["first"].to_numpy())
        ):
            facts[known, place] = np.log1p(values / MICROSECONDS_PER_DAY)
        facts[known, 2], facts[known, 3] = np.log1p(per_user["len"].to_numpy()), 1
        buys = np.zeros(len(users), np.bool_)
        buys[after["row"].unique().to_numpy()] = True
        return cls(counts, recency, facts, targets, buys, facts[:, 3] > 0)


class Ranker(torch.nn.Module):
    """Softmax over items from their popularity, the user's own past and, if there are any, the vectors of both.

    The vectors meet in u (g + N) v, N of [D, D]; `items_ID` are the vectors that the consumer holds of the items.
    """

    def __init__(self, items_ID: Vectors) -> None:
        super().__init__()
        self.items_ID = torch.from_numpy(items_ID)
        self.popular = torch.nn.Parameter(torch.ones(()))
        self.past = torch.nn.Parameter(torch.ones(2))
        self.gain = torch.nn.Parameter(torch.ones(()))
        self.mixed = torch.nn.Parameter(torch.zeros(items_ID.shape[1], items_ID.shape[1]))

    def forward(self, moment: Moment, vectors_UD: torch.Tensor, rows: NDArray[np.int64]) -> torch.Tensor:
        counts, recency = (torch.from_numpy(part[rows]) for part in (moment.counts_UI, moment.recency_UI))
        read = vectors_UD[rows]
        met = (self.gain * read + read @ self.mixed) @ self.items_ID.T
        popularity_I = torch.from_numpy(np.log1p(moment.counts_UI.sum(axis=0)))
        return self.popular * popularity_I + self.past[0] * counts + self.past[1] * recency + met


def fit_ranker(moment: Moment, vectors_UD: Vectors, items_ID: Vectors, seed: int) -> Ranker:
    """The best of DECAYS and of the steps by the loss on a fifth of the users."""
    rows = np.flatnonzero(moment.targets_UI.any(axis=1))
    held = np.random.default_rng(seed).random(len(rows)) < 0.2
    learn, check = rows[~held], rows[held]
    vectors = torch.from_numpy(vectors_UD)
    best, best_loss = Ranker(items_ID), np.inf
    for decay in DECAYS if vectors_UD.shape[1] else DECAYS[:1]:
        model = Ranker(items_ID)
        optimiser, last = torch.optim.Adam(model.parameters(), lr=0.05), 0
        found = np.inf
        for step in range(MOST_STEPS):
            optimiser.zero_grad()
            penalty = decay * (model.mixed**2).sum()
            (_ranking_loss(model, moment, vectors, learn) + penalty).backward()
            optimiser.step()
            with torch.no_grad():
                loss = float(_ranking_loss(model, moment, vectors, check))
            if loss < found:
                found, last = loss, step
                if loss < best_loss:
                    best_loss = loss
                    best.load_state_dict(model.state_dict())
            if step - last >= PATIENCE:
                break
    return best


def _ranking_loss(model: Ranker, moment: Moment, vectors: torch.Tensor, rows: NDArray[np.int64]) -> torch.Tensor:
    targets = torch.from_numpy(moment.targets_UI[rows]).float()
    logs = functional.log_softmax(model(moment, vectors, rows), dim=1)
    return -((logs * targets).sum(dim=1) / targets.sum(dim=1)).mean()


def ndcg_of(model: Ranker, moment: Moment, vectors_UD: Vectors) -> NDArray[np.float64]:
    """NDCG@10 of each user [U]; NaN without a target."""
    rows = np.flatnonzero(moment.targets_UI.any(axis=1))
    with torch.no_grad():
        top = model(moment, torch.from_numpy(vectors_UD), rows).topk(TOP, dim=1).indices.numpy()
    hits = np.take_along_axis(moment.targets_UI[rows], top, axis=1)
    discounts = 1 / np.log2(np.arange(TOP) + 2)
    ideal = np.cumsum(discounts)[np.minimum(moment.targets_UI[rows].sum(axis=1), TOP) - 1]
    found = np.full(len(vectors_UD), np.nan)
    found[rows] = (hits * discounts).sum(axis=1) / ideal
    return found


def fit_buyer(moment: Moment, vectors_UD: Vectors) -> LogisticRegression:
    rows = moment.is_known_U
    model = LogisticRegression(C=1.0, max_iter=2_000)
    return model.fit(np.hstack([moment.facts_UF, vectors_UD])[rows], moment.buys_U[rows])


def chances_of(model: LogisticRegression, moment: Moment, vectors_UD: Vectors) -> NDArray[np.float64]:
    """Of each user [U]; NaN for who was not there yet."""
    chances = model.predict_proba(np.hstack([moment.facts_UF, vectors_UD]))[:, 1]
    return np.where(moment.is_known_U, chances, np.nan)


def train_line(
    log: Log, seed: int, config: EncoderConfig, keep: Path | None, until: str = "warm"
) -> dict[str, Trained]:
    """The parent and its retrains, by name, up to one of them."""
    old_log, old_items = log.known_before(log.first_us)
    new_log, new_items = log.known_before(log.second_us)
    line: dict[str, Trained] = {}
    plans: dict[str, Callable[[], Trained]] = {
        "parent": lambda: train(old_log, old_items, log.first_us, seed, config=config),
        "scratch": lambda: train(new_log, new_items, log.second_us, seed + 1_000, config=config),
        "warm": lambda: train(new_log, new_items, log.second_us, seed, line["parent"], config),
    }
    for name in list(plans)[: list(plans).index(until) + 1]:
        folder = None if keep is None else Folder.at(str(keep.resolve() / f"{seed}-{name}"))
        if folder is not None and (folder / ENCODER_FILE).exists():
            items = old_items if name == "parent" else new_items
            line[name] = Trained(load_encoder(folder), items, int(training_of(folder)["epochs"]), 0.0)
            continue
        line[name] = plans[name]()
        if folder is not None:
            save_encoder(line[name].encoder, folder, metrics={"epochs": line[name].epochs})
    return line


def one_seed(log: Log, seed: int, config: EncoderConfig, keep: Path | None = None) -> dict[str, Any]:
    """Train everything once -> per-user results of every variant, and how the spaces relate."""
    started = time.process_time()
    line = train_line(log, seed, config, keep)
    parent, retrains = line["parent"], {name: line[name] for name in RETRAINS}
    old_items, new_items = parent.vocabulary, line["scratch"].vocabulary
    users = log.users()
    moments = [Moment.of(log, users, old_items.item_ids.to_pylist(), at) for at in (log.first_us, log.second_us)]
    first, second = moments

    def vectors(encoder: Encoder, vocabulary: Vocabulary, moment_us: int) -> Vectors:
        timelines = read_with(log.events, vocabulary)
        found = embed_users(encoder, timelines, as_of_us=moment_us)
        rows = {user: row for row, user in enumerate(timelines.user_ids.to_pylist())}
        return found[[rows[user] for user in users]]

    old_first = vectors(parent.encoder, old_items, log.first_us)
    nothing, no_items = (np.zeros((num, 0), np.float32) for num in (len(users), old_items.num_items))
    learnt = fit_ranker(first, old_first, parent.encoder.item_vectors, seed), fit_buyer(first, old_first)
    read: dict[str, tuple[Any, Vectors]] = {
        "none": ((fit_ranker(first, nothing, no_items, seed), fit_buyer(first, nothing)), nothing),
        "stale": (learnt, old_first),
        "parent": (learnt, vectors(parent.encoder, old_items, log.second_us)),
    }
    spaces = {}
    for name, retrain in retrains.items():
        aligned, found = align(retrain.encoder, new_items, parent.encoder, old_items)
        raw = vectors(retrain.encoder, new_items, log.second_us)
        new_first = vectors(retrain.encoder, new_items, log.first_us)
        read[f"{name}.raw"] = learnt, raw
        read[f"{name}.aligned"] = learnt, aligned.turned(raw)
        new_vectors = retrain.encoder.item_vectors[places_of(old_items.item_ids, new_items.item_ids)]
        read[f"{name}.retrained"] = (fit_ranker(first, new_first, new_vectors, seed), fit_buyer(first, new_first)), raw
        spaces[name] = found.to_dict() | compared(parent, retrain, aligned, old_first, new_first, old_items, new_items)
    logging.warning("seed %d: parent %d epochs, scratch %d, warm %d, %.0f CPU seconds", seed, parent.epochs,
                    retrains["scratch"].epochs, retrains["warm"].epochs, time.process_time() - started)  # fmt: skip
    ndcg = {name: ndcg_of(models[0], second, read_UD) for name, (models, read_UD) in read.items()}
    chances = {name: chances_of(models[1], second, read_UD) for name, (models, read_UD) in read.items()}
    return {"seed": seed, "ndcg": ndcg, "chances": chances, "buys": second.buys_U, "spaces": spaces,
            "counts": {"users": len(users), "items": len(old_items.item_ids), "new_items": len(new_items.item_ids)},
            "epochs": {"parent": parent.epochs, **{name: each.epochs for name, each in retrains.items()}},
            "cpu_seconds": round(time.process_time() - started)}  # fmt: skip


def compared(
    parent: Trained,
    retrain: Trained,
    aligned: Encoder,
    old_UD: Vectors,
    raw_UD: Vectors,
    old: Vocabulary,
    new: Vocabulary,
) -> dict[str, float]:
    """How users of the same moment (T1) lie in the two spaces."""
    turned_UD = aligned.turned(raw_UD)
    own, of_parent = shared_items(retrain.encoder, new, parent.encoder, old)
    items_before, items_after = parent.encoder.item_vectors[of_parent], aligned.item_vectors[own]
    # The same rotation with every item weighing what it was wanted, and the best there is for these very users.
    weights_S = np.sqrt(parent.encoder.popularity[of_parent])[:, None]
    by_popularity_DD = procrustes(retrain.encoder.item_vectors[own] * weights_S, items_before * weights_S)
    turned = {
        "": turned_UD,
        "_raw": raw_UD,
        "_by_popularity": raw_UD @ by_popularity_DD.astype(np.float32),
        "_by_users": raw_UD @ procrustes(raw_UD, old_UD).astype(np.float32),
    }
    cosines = {name: movement(old_UD, each_UD) for name, each_UD in turned.items()}
    overlaps = {
        "neighbour": item_overlap(old_UD, turned_UD, items_before, items_after),
        "user_neighbour": user_overlap(old_UD, turned_UD),
        "stale_index": item_overlap(old_UD, turned_UD, items_before, items_before),
        "stale_index_raw": item_overlap(old_UD, raw_UD, items_before, items_before),
    }
    return {
        **{f"user_cosine_p50{name}": moved.median for name, moved in cosines.items() if moved is not None},
        **{f"{name}_overlap_at_50": found.share for name, found in overlaps.items() if found is not None},
    }


def read_with(events: pl.DataFrame, vocabulary: Vocabulary) -> Timelines:
    """All events in the numbers of a catalogue; what it does not know is -1."""
    timelines, _ = to_timelines(events)
    return replace(
        timelines,
        items=vocabulary.item_index(events["item"].to_arrow()),
        actions=vocabulary.action_index(events["action"].to_arrow()),
    )


def summarised(arguments: argparse.Namespace, log: Log, runs: list[dict[str, Any]]) -> dict[str, Any]:
    names = list(runs[0]["ndcg"])
    per_user = {name: np.mean([run["ndcg"][name] for run in runs], axis=0) for name in names}
    chances = {name: [run["chances"][name] for run in runs] for name in names}
    return {
        "benchmark": f"stability/{arguments.log}",
        "protocol": f"temporal, learnt {_day(log.first_us)}, asked {_day(log.second_us)}, {TEST_DAYS} days, k = {TOP}",
        "seeds": [run["seed"] for run in runs],
        "set": arguments.set,
        **runs[0]["counts"],
        "ranked_users": int(np.isfinite(per_user["none"]).sum()),
        "ndcg_at_10": {name: _told([float(np.nanmean(run["ndcg"][name])) for run in runs]) for name in names},
        "ndcg_less_none": {name: _interval(per_user[name] - per_user["none"]) for name in names[1:]},
        "ndcg_less_raw": {
            f"{kind}.aligned": _interval(per_user[f"{kind}.aligned"] - per_user[f"{kind}.raw"]) for kind in RETRAINS
        },
        "auc": {name: _told([_auc(run["buys"], run["chances"][name]) for run in runs]) for name in names},
        "auc_less_none": {name: _auc_interval(runs[0]["buys"], chances[name], chances["none"]) for name in names[1:]},
        "spaces": {kind: _means([run["spaces"][kind] for run in runs]) for kind in RETRAINS},
        "epochs": [run["epochs"] for run in runs],
        "cpu_seconds": [run["cpu_seconds"] for run in runs],
    }


def _told(values: list[float]) -> dict[str, Any]:
    return {"mean": round(float(np.mean(values)), 4), "seeds": [round(value, 4) for value in values]}


def _interval(differences_U: NDArray[np.float64]) -> list[float]:
    known = differences_U[np.isfinite(differences_U)]
    draws = np.random.default_rng(7).integers(len(known), size=(NUM_DRAWS, len(known)))
    low, high = np.quantile(known[draws].mean(axis=1), [0.025, 0.975])
    return [round(float(value), 4) for value in (known.mean(), low, high)]


def _auc(buys_U: NDArray[np.bool_], chances_U: NDArray[np.float64]) -> float:
    known = np.isfinite(chances_U)
    ranks, buys = rankdata(chances_U[known]), buys_U[known]
    return float((ranks[buys].mean() - (buys.sum() + 1) / 2) / (~buys).sum())


def _auc_interval(
    buys_U: NDArray[np.bool_], ours: list[NDArray[np.float64]], others: list[NDArray[np.float64]]
) -> list[float]:
    rows = np.flatnonzero(np.isfinite(ours[0]))
    draw, found = np.random.default_rng(7), []

    def difference(rows: NDArray[np.int64]) -> float:
        pairs = zip(ours, others, strict=True)
        return float(np.mean([_auc(buys_U[rows], a[rows]) - _auc(buys_U[rows], b[rows]) for a, b in pairs]))

    for _ in range(200):
        found.append(difference(draw.choice(rows, len(rows))))
    low, high = np.quantile(found, [0.025, 0.975])
    return [round(value, 4) for value in (difference(rows), float(low), float(high))]


def _means(spaces: list[Mapping[str, Any]]) -> dict[str, float]:
    numbers = [name for name, value in spaces[0].items() if isinstance(value, int | float)]
    return {name: round(float(np.mean([space[name] for space in spaces])), 4) for name in numbers}


def _day(time_us: int) -> str:
    return str(np.datetime64(time_us, "us").astype("datetime64[D]"))


if __name__ == "__main__":
    main()
