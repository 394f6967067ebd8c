"""PinnerFormer's ablations on a log with real time: objectives, logQ and freshness. One JSON line. Without Ray.

    python -m benchmarks.pinnerformer retail ../shared/data/online_retail.parquet --seeds 7 8 9 --threads 1
    python -m benchmarks.pinnerformer snapshot path/to/workspace --variants next_action dense_all_action

Shapes: U users of the test, P prefixes of their histories, E wanted events, I items, D width.
The last 30 days are the test. All variants see the same training events, the same goal window (28 days) where their
objective has one, the same popularity trend and the same negatives; validation NDCG@10 ends each training.
recall_at_10    share of the distinct (user, wanted item) pairs of the test whose item is among the user's ten best
alone_at_10     the same where each wanted item competes only with items that the user did not want (the paper's index)
hr, ndcg        as in `sonder.encoder.validation`; the whole catalogue is ranked everywhere, what the user had included
freshness       of each wanted event of the first 14 days: is its item among the ten best by a vector as old as that
                refresh makes it; `first` counts only a user's first such event of an item
Source: PinnerFormer (2022), tables of the training objective, of logQ and of the refresh.
Limits: users without a vector at the start of the test are not asked; popularity stays as of that start.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.encoder import TEST_DAYS, content_of, read, train
from sonder.encoder.artefact import Encoder
from sonder.encoder.inference import embed_users
from sonder.encoder.trend import log_shares
from sonder.history.cutoffs import Split, end_of_log_us, test_cutoff_us
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines

logger = logging.getLogger("sonder.benchmarks")
WINDOW_DAYS = 28  # of the goals, as in the paper
FRESHNESS_DAYS = 14  # as the paper's positives
TOP = 10
REFRESHES = ("once", "daily", "event")
VARIANTS = {  # specification, and what is left out
    "next_action": (["objective=next_action"], []),
    "all_action": (["objective=all_action"], []),
    "dense_all_action": (["objective=dense_all_action"], []),
    "no_log_q": (["objective=dense_all_action", "corrects_log_q=false"], []),
    "no_popularity": (["objective=dense_all_action"], ["popularity"]),
    "no_log_q_no_popularity": (["objective=dense_all_action", "corrects_log_q=false"], ["popularity"]),
}
_BLOCK = 512  # rows that are scored at once
_FOREVER = np.iinfo(np.int64).max


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    timelines, vocabulary = read(arguments.log, arguments.path)
    start_us = test_cutoff_us(end_of_log_us(timelines), TEST_DAYS)
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for variant in arguments.variants:
            run, test, took = train(_training(arguments, variant), timelines, vocabulary, seed)
            encoder = run.state().encoder(content_of(arguments, vocabulary))
            if not rows:
                asked = {
                    "popularity": popularity_metrics(encoder, test),
                    **_sizes(encoder, test, start_us),
                }
                logger.info("%s", asked)
            vectors_UD = embed_users(encoder, test.history, as_of_us=_FOREVER)
            row = {"variant": variant, "seed": seed, **test_metrics(encoder, test, vectors_UD), **took}
            if not arguments.without_freshness and variant in ("next_action", "dense_all_action"):
                row |= freshness(encoder, timelines, wanted_events(encoder, test, start_us))
            row["popularity_weight"] = round(float(encoder.model.popularity), 3)
            rows.append(row)
            logger.info("%s", json.dumps(row))
    means = {variant: _mean([row for row in rows if row["variant"] == variant]) for variant in arguments.variants}
    print(json.dumps({"log": arguments.log, "set": arguments.set, **asked, "means": means, "rows": rows}))


def _training(arguments: argparse.Namespace, variant: str) -> argparse.Namespace:
    """What `benchmarks.encoder.train` reads, for one variant."""
    spec, without = VARIANTS[variant]
    return argparse.Namespace(
        log=arguments.log,
        set=[f"num_negatives={arguments.negatives}", *arguments.set],
        spec=[*spec, f"window_us={WINDOW_DAYS * MICROSECONDS_PER_DAY}"],
        without=without,
        strict=False,
    )


def test_metrics(encoder: Encoder, test: Split, vectors_UD: NDArray[np.float32]) -> dict[str, float]:
    """Metrics at 10 of the users that have a vector at the start of the test."""
    is_asked_U = _has_readable(encoder, test.history) & (test.targets.lengths > 0)
    num_items = encoder.spec.num_items
    cells = np.unique(test.targets.user_rows * num_items + test.targets.items)
    cells = cells[is_asked_U[cells // num_items]]
    hits, alone, is_hit_U, ndcg_U = 0, 0, [], []
    discounts_K = 1 / np.log2(np.arange(TOP) + 2)
    for rows_B, scores_BI in _scores(encoder, vectors_UD, np.flatnonzero(is_asked_U)):
        low, high = np.searchsorted(cells, [rows_B[0] * num_items, (rows_B[-1] + 1) * num_items])
        users, items = np.searchsorted(rows_B, cells[low:high] // num_items), cells[low:high] % num_items
        is_wanted_BI = np.zeros(scores_BI.shape, dtype=bool)
        is_wanted_BI[users, items] = True
        is_hit_BK = np.take_along_axis(is_wanted_BI, scores_BI.topk(TOP, dim=1).indices.numpy(), axis=1)
        others_BI = scores_BI.masked_fill(torch.from_numpy(is_wanted_BI), -torch.inf)
        least_B = others_BI.topk(TOP, dim=1).values[:, -1].numpy()
        hits += int(is_hit_BK.sum())
        alone += int((scores_BI.numpy()[users, items] > least_B[users]).sum())
        is_hit_U.append(is_hit_BK.any(axis=1))
        ideal_B = np.cumsum(discounts_K)[np.minimum(is_wanted_BI.sum(axis=1), TOP) - 1]
        ndcg_U.append((is_hit_BK * discounts_K).sum(axis=1) / ideal_B)
    return {
        "recall_at_10": round(hits / len(cells), 4),
        "alone_at_10": round(alone / len(cells), 4),
        "hr_at_10": round(float(np.concatenate(is_hit_U).mean()), 4),
        "ndcg_at_10": round(float(np.concatenate(ndcg_U).mean()), 4),
    }


@dataclass(frozen=True)
class WantedEvents:
    """The wanted events of the freshness part, in the order of (user, time)."""

    start_us: int
    users: NDArray[np.int64]  # [E] row of the timelines
    items: NDArray[np.int32]  # [E]
    times_us: NDArray[np.int64]  # [E]

    @property
    def is_first(self) -> NDArray[np.bool_]:
        """A user's first event of an item in the window [E]."""
        order = np.lexsort((np.arange(len(self.users)), self.items, self.users))
        same = (np.diff(self.users[order]) == 0) & (np.diff(self.items[order]) == 0)
        first = np.ones(len(order), dtype=bool)
        first[order[1:]] = ~same
        return first

    def known_from_us(self, refresh: str) -> NDArray[np.int64]:
        """The vector for each event reads what came before this time [E]."""
        if refresh == "once":
            return np.full_like(self.times_us, self.start_us)
        if refresh == "daily":
            return self.times_us - (self.times_us - self.start_us) % MICROSECONDS_PER_DAY
        return self.times_us


def wanted_events(encoder: Encoder, test: Split, start_us: int) -> WantedEvents:
    """Of users with a vector at the start, in the first days of the test."""
    end_us = start_us + FRESHNESS_DAYS * MICROSECONDS_PER_DAY
    window = test.targets.between(start_us, end_us)
    is_asked_E = _has_readable(encoder, test.history)[window.user_rows]
    return WantedEvents(start_us, window.user_rows[is_asked_E], window.items[is_asked_E], window.times_us[is_asked_E])


def freshness(encoder: Encoder, timelines: Timelines, events: WantedEvents) -> dict[str, float]:
    """Recall at 10 of the same events under each refresh. Equal prefixes of a history are embedded once."""
    counts_RE = np.stack([_num_before(timelines, events.users, events.known_from_us(name)) for name in REFRESHES])
    longest = int(timelines.lengths.max()) + 1
    keys, places = np.unique(events.users * longest + counts_RE, return_inverse=True)
    top_PK = _top_of_prefixes(encoder, timelines, keys // longest, keys % longest)
    is_hit_RE = (top_PK[places.reshape(counts_RE.shape)] == events.items[None, :, None]).any(axis=-1)
    found = {}
    for refresh, is_hit_E in zip(REFRESHES, is_hit_RE, strict=True):
        found[f"{refresh}_recall_at_10"] = round(float(is_hit_E.mean()), 4)
        found[f"{refresh}_first_recall_at_10"] = round(float(is_hit_E[events.is_first].mean()), 4)
    return found


def _num_before(timelines: Timelines, users_E: NDArray[np.int64], times_us_E: NDArray[np.int64]) -> NDArray[np.int64]:
    """Events of each user strictly before a time [E]."""
    least_us = min(int(timelines.times_us.min()), int(times_us_E.min()))
    span = max(int(timelines.times_us.max()), int(times_us_E.max())) - least_us + 1
    milliseconds = span // 1000 + 2  # ties within a millisecond count as not before
    keys = timelines.user_rows * milliseconds + (timelines.times_us - least_us) // 1000
    asked = users_E * milliseconds + (times_us_E - least_us) // 1000
    return np.searchsorted(keys, asked, side="left") - timelines.offsets[users_E]


def _top_of_prefixes(
    encoder: Encoder, timelines: Timelines, users_P: NDArray[np.int64], counts_P: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Ten best items by the vector of the oldest `counts_P` events of a user [P, 10]."""
    top_PK = []
    for start in range(0, len(users_P), _BLOCK):
        users, counts = users_P[start : start + _BLOCK], counts_P[start : start + _BLOCK]
        taken = timelines.take(users)
        ages = np.arange(taken.num_events) - np.repeat(taken.offsets[:-1], taken.lengths)
        vectors_BD = embed_users(encoder, taken.keep(ages < np.repeat(counts, taken.lengths)), as_of_us=_FOREVER)
        for _, scores_BI in _scores(encoder, vectors_BD, np.arange(len(users))):
            top_PK.append(scores_BI.topk(TOP, dim=1).indices.numpy())
    return np.concatenate(top_PK)


def _scores(
    encoder: Encoder, vectors_UD: NDArray[np.float32], rows: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
    """Rows of users and their scores of all items, blockwise; what is no candidate cannot win."""
    items_DI = torch.from_numpy(encoder.item_vectors.T.copy())
    bias_I = torch.from_numpy(np.where(encoder.candidates, encoder.item_bias, -np.inf).astype(np.float32))
    for start in range(0, len(rows), _BLOCK):
        rows_B = rows[start : start + _BLOCK]
        yield rows_B, torch.addmm(bias_I, torch.from_numpy(vectors_UD[rows_B]), items_DI)


def _has_readable(encoder: Encoder, history: Timelines) -> NDArray[np.bool_]:
    """Users [U] with a wanted event of a candidate, which is what gives them a vector."""
    weights = np.asarray([*encoder.spec.action_weights, 0.0])
    is_candidate = np.append(encoder.candidates, False)
    counts = (weights[history.actions] > 0) & is_candidate[history.items]
    return np.bincount(history.user_rows[counts], minlength=history.num_users) > 0


def popularity_metrics(encoder: Encoder, test: Split) -> dict[str, float]:
    """Of the same users and candidates, ranked by the popularity of the moment."""
    by_popularity = replace(encoder, item_bias=log_shares(encoder.popularity))
    return test_metrics(by_popularity, test, np.zeros((test.history.num_users, encoder.spec.dim), dtype=np.float32))


def _sizes(encoder: Encoder, test: Split, start_us: int) -> dict[str, int]:
    events = wanted_events(encoder, test, start_us)
    return {
        "test_users": int((_has_readable(encoder, test.history) & (test.targets.lengths > 0)).sum()),
        "items": encoder.spec.num_items,
        "freshness_users": len(np.unique(events.users)),
        "freshness_events": len(events.users),
        "freshness_first_events": int(events.is_first.sum()),
        "half_life_days": round(encoder.half_life_us / MICROSECONDS_PER_DAY),
    }


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over the seeds, and the least and the most where there are several."""
    names = [name for name in rows[0] if "_at_10" in name]
    found: dict[str, Any] = {}
    for name in names:
        values = [row[name] for row in rows]
        found[name] = round(statistics.mean(values), 4)
        if len(values) > 1:
            found[name + "_range"] = [min(values), max(values)]
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", choices=["retail", "snapshot"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[7])
    parser.add_argument("--negatives", type=int, default=512, help="fewer than items, or logQ corrects nothing")
    parser.add_argument("--set", action="append", default=[], metavar="DIAL=VALUE", help="of the encoder")
    parser.add_argument("--without-freshness", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.without = []  # `content_of` asks; no variant leaves the content out
    return arguments


if __name__ == "__main__":
    main()
