"""Missing values of score rows: xgboost's learnt directions beside one number beyond all others, on the same rows.

    make bench-missing-values
    python -m benchmarks.missing_values [--rows 40000] [--turns 3]

Rows of 200 columns as features are: 42 have missing values (2 to 88 % of them: recencies of what never happened), two
of five are whole numbers. Whether something happened at all, how long ago, and other columns move the label. Trees grow
with the first setting of the product's search until later rows (half as many) stop them; a third set is judged.
learnt     NaN, as xgboost takes it: the direction of a missing value is chosen at every split
beyond     scoring.training.MISSING while trees grow; judged with NaN, as `best_trees` leaves it
Prints a Markdown table: median ms of a round over the turns, bytes a value of pages on disk (ExtMemQuantileDMatrix),
and log loss and AUC of the third set; ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score

from sonder.scoring.training import COMMON, TRIALS, best_trees, fill_missing, grow

NUM_COLUMNS, NUM_MISSING, NUM_WHOLE = 200, 42, 80
PAGES = 4


def rows_of(num: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((num, NUM_COLUMNS), dtype=np.float32)
    shares = np.linspace(0.02, 0.88, NUM_MISSING)
    recency = np.abs(x[:, :NUM_MISSING]) * 20
    is_never = draw.random(recency.shape) < shares
    x[:, :NUM_MISSING] = np.where(is_never, np.nan, recency)
    x[:, -NUM_WHOLE:] = np.floor(np.exp(x[:, -NUM_WHOLE:]))
    signs = np.where(np.arange(NUM_MISSING) % 3 == 0, -1.0, 1.0)  # for some columns never is bad news, for others good
    moved = np.where(is_never, -0.6, 0.6 * np.exp(-recency / 15)) * signs
    margin = moved[:, ::3].sum(axis=1) + 0.3 * x[:, NUM_MISSING : NUM_MISSING + 8].sum(axis=1) - 1.5
    return x, draw.random(num) < 1 / (1 + np.exp(-margin))


class Pages(xgboost.DataIter):  # type: ignore[misc]  # xgboost does not tell its type
    def __init__(self, x: NDArray[np.float32], prefix: Path) -> None:
        self.parts, self.place = np.array_split(x, PAGES), 0
        super().__init__(cache_prefix=str(prefix))

    def next(self, input_data: Callable[..., Any]) -> bool:
        if self.place == PAGES:
            return False
        input_data(data=self.parts[self.place])
        self.place += 1
        return True

    def reset(self) -> None:
        self.place = 0


def bytes_of_a_value(x: NDArray[np.float32]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        matrix = xgboost.ExtMemQuantileDMatrix(Pages(x, Path(folder) / "pages"), max_bin=COMMON["max_bin"])
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        del matrix
    return size / x.size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    sets = [rows_of(num, seed) for seed, num in enumerate((asked.rows, asked.rows // 2, asked.rows // 2))]
    parameters = {**COMMON, **TRIALS[0], "objective": "binary:logistic", "eval_metric": "logloss", "seed": 7}
    rows: dict[str, dict[str, Any]] = {}
    for turn in range(asked.turns):
        for name in ("learnt", "beyond"):
            filled = [x.copy() for x, _ in sets]
            if name == "beyond":
                for x in filled:
                    fill_missing(x)
            train = xgboost.QuantileDMatrix(filled[0], sets[0][1], max_bin=COMMON["max_bin"])
            stop = xgboost.QuantileDMatrix(filled[1], sets[1][1], ref=train)
            started = time.perf_counter()
            grown = grow(train, stop, parameters)
            ms = 1e3 * (time.perf_counter() - started) / len(grown.losses)
            if turn:
                rows[name]["ms"].append(ms)
                continue
            assert grown.booster is not None
            kept = best_trees(grown) if name == "beyond" else grown.booster[: grown.best_round + 1]
            told = kept.inplace_predict(sets[2][0])
            rows[name] = {
                "ms": [ms],
                "rounds": len(grown.losses),
                "log_loss": round(float(log_loss(sets[2][1], told)), 5),
                "auc": round(float(roc_auc_score(sets[2][1], told)), 5),
                "bytes": round(bytes_of_a_value(filled[0]), 2),
            }
    print(
        "| missing values | ms a round | rounds | log loss | AUC | bytes a value on disk |\n|---|---|---|---|---|---|"
    )
    for name, row in rows.items():
        ms, quality = statistics.median(row["ms"]), f"{row['log_loss']:.5f} | {row['auc']:.5f}"
        print(f"| {name} | {ms:.0f} | {row['rounds']} | {quality} | {row['bytes']} |")
    print(json.dumps({"rows": asked.rows, "columns": NUM_COLUMNS, **rows}))


if __name__ == "__main__":
    main()
