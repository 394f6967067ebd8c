"""How much is a recommendation worth when the user's vector is some days old?

    python -m benchmarks.vector_age CONFIG [--days 30]

CONFIG's workspace has a release whose encoder was trained before the last `--days` days of a log with real time. On
each of these days T, for every user who wants an item within [T, T + 1 day): ten items from the vector of the user's
events before T - age, for several ages, against the items wanted on that day (full ranking, nothing filtered out,
temporal). The encoder, the item vectors and their popularity (of the release's own moment, so levels are optimistic)
are the same for all ages: only the user's vector is old. Users who had no vector at the oldest age are left out of
all, so that every age is asked about the same users and days. HR@10 is the share of user-days with a hit; the
difference to age 0 has a 95 % interval by resampling users.
Prints a Markdown table and ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonder.core.config import load
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import Encoder, load_encoder, load_popularity
from sonder.encoder.inference import embed_users
from sonder.history.snapshot import read_timelines
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.releases.artefacts import Release, served_release
from sonder.retrieval.exact import top_items

AGES, K, NUM_DRAWS = (0, 1, 2, 3, 7, 14, 28), 10, 500


def day_hits(encoder: Encoder, timelines: Timelines, vocabulary: Vocabulary, start_us: int) -> tuple[Any, Any]:
    """Rows of the users asked on the day, and for each age whether they had a hit [ages, users]."""
    day = timelines.between(start_us, start_us + DAY)
    wanted = day.keep((vocabulary.weight_of(day.actions) > 0) & (day.items >= 0))
    rows = np.flatnonzero(wanted.lengths)
    asked, targets = timelines.take(rows), wanted.take(rows)
    hits, is_known = [], np.ones(len(rows), dtype=np.bool_)
    for age in AGES:
        cut_us = start_us - age * DAY
        vectors = embed_users(encoder, asked.before(cut_us), as_of_us=cut_us)
        found, _ = top_items(vectors, encoder.item_vectors, K, bias_I=encoder.item_bias, allowed_I=encoder.candidates)
        is_known &= np.any(vectors != 0, axis=1)
        pairs = targets.user_rows * vocabulary.num_items + targets.items
        found_pairs = np.arange(len(rows))[:, None] * vocabulary.num_items + found
        hits.append(np.isin(found_pairs, pairs).any(axis=1))
    return rows[is_known], np.array(hits)[:, is_known]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--days", type=int, default=30)
    options = parser.parse_args()
    workspace = Workspace.at(load(options.config).workspace)
    release = Release.open(workspace, served_release(workspace))
    vocabulary = Vocabulary.load(release.items)
    encoder = load_encoder(release.encoder).with_popularity(load_popularity(release.items))
    timelines = read_timelines(workspace.history(release.manifest.snapshot), vocabulary)
    end_us = release.manifest.as_of_us
    found = [day_hits(encoder, timelines, vocabulary, end_us - back * DAY) for back in range(options.days, 0, -1)]
    users: NDArray[np.int64] = np.concatenate([rows for rows, _ in found])
    hits_AN = np.concatenate([hits for _, hits in found], axis=1).astype(np.float64)
    draw = np.random.default_rng(7)
    distinct, place = np.unique(users, return_inverse=True)
    drawn = draw.multinomial(len(distinct), np.full(len(distinct), 1 / len(distinct)), NUM_DRAWS)[:, place]
    print(f"{len(users):,} user-days of {len(distinct):,} users on {options.days} days, k = {K}\n")
    print("| age of the vector, days | HR@10 | minus age 0 (95 %) |\n|---|---|---|")
    table = {}
    for age, hits in zip(AGES, hits_AN, strict=True):
        difference = hits - hits_AN[0]
        low, high = np.quantile((drawn * difference).sum(axis=1) / drawn.sum(axis=1), [0.025, 0.975])
        table[str(age)] = round(float(hits.mean()), 4)
        print(f"| {age} | {hits.mean():.4f} | {difference.mean():+.4f} [{low:+.4f}, {high:+.4f}] |")
    print(json.dumps({"user_days": len(users), "hr_at_10_by_age_days": table}))


if __name__ == "__main__":
    main()
