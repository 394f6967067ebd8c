"""Can a score head train on 20 M rows x 200 features within 8 GiB? Memory and time of xgboost's matrices over Parquet.

    python -m benchmarks.score_scale write --rows 20000000 --out FOLDER     (800 bytes a row on disk)
    python -m benchmarks.score_scale train --rows FOLDER --matrix extmem --cache FOLDER --rounds 3

Rows are what the training loop reads: one fixed-size list of float32 a row, and a label; every fifth column is
missing for 30 % of the rows, as recencies are. Labels follow ten of the columns, so that trees have splits to find.
quantile      QuantileDMatrix: binned rows in memory
extmem        ExtMemQuantileDMatrix: binned rows in files, read again at every level of every tree
--cuts-from   the bins are found on so many rows, spread over the files, and given to the matrix as `ref`: sketching the
              quantiles of every value is what building a matrix costs
--fill        missing values become one number below all others: xgboost keeps rows without a missing value in a byte
              a value, and rows with one in several
The most resident memory is the process' own VmHWM, which counts every byte that it held at once, labels included;
pages of files that the kernel keeps for itself are no part of it, mapped pages are: RssAnon is told apart.
Limits: Linux only. A stop set is left out; it costs its share of the rows again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xgboost
from numpy.typing import NDArray

NUM_FEATURES = 200
ROWS_PER_FILE = 200_000
MISSING_SHARE = 0.3
MISSING_EVERY = 5  # columns
FILLED = np.float32(-1e6)
PARAMETERS: dict[str, Any] = {"objective": "binary:logistic", "tree_method": "hist", "eta": 0.05, "max_depth": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write")
    write.add_argument("--rows", type=int, required=True)
    write.add_argument("--out", type=Path, required=True)
    train = commands.add_parser("train")
    train.add_argument("--rows", type=Path, required=True)
    train.add_argument("--matrix", choices=("quantile", "extmem"), required=True)
    train.add_argument("--cache", type=Path, help="folder of extmem's files, on a disk with a byte for each value")
    train.add_argument("--rounds", type=int, default=3)
    train.add_argument("--threads", type=int, default=2)
    train.add_argument("--max-bin", type=int, default=256)
    train.add_argument("--fill", action="store_true", help="hand missing values over as FILLED")
    train.add_argument("--most-files", type=int, default=None, help="train on the first files alone")
    train.add_argument("--cuts-from", type=int, default=None, help="rows to find the bins of; all of them if not given")
    arguments = parser.parse_args()
    if arguments.command == "write":
        write_rows(arguments.out, arguments.rows)
    else:
        print(json.dumps(measure(arguments)))


def write_rows(folder: Path, num_rows: int) -> None:
    """Files of ROWS_PER_FILE rows each; a file that exists is kept, so a killed run goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(-(-num_rows // ROWS_PER_FILE)):
        file = folder / f"part-{number:05d}.parquet"
        if file.exists():
            continue
        rng = np.random.Generator(np.random.SFC64(number))
        num = min(ROWS_PER_FILE, num_rows - number * ROWS_PER_FILE)
        features = rng.standard_normal((num, NUM_FEATURES), dtype=np.float32)
        margins = features[:, :10].sum(axis=1) / 2 - 2
        labels = rng.random(num) < 1 / (1 + np.exp(-margins))
        missing = features[:, ::MISSING_EVERY]
        missing[rng.random(missing.shape, dtype=np.float32) < MISSING_SHARE] = np.nan
        column = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), NUM_FEATURES)
        part = file.with_suffix(".tmp")
        pq.write_table(pa.table({"label": labels, "features": column}), part, compression="none", use_dictionary=False)
        part.rename(file)


class ParquetRows(xgboost.DataIter):
    """Hands xgboost one file after the other, float32 and in bounded memory; `every` takes each n-th row alone."""

    def __init__(self, files: list[Path], *, fills: bool, cache: Path | None = None, every: int = 1) -> None:
        self.files, self.place, self.fills, self.every = files, 0, fills, every
        super().__init__(cache_prefix=None if cache is None else str(cache / "rows"))

    def next(self, input_data: Callable[..., Any]) -> bool:
        if self.place == len(self.files):
            return False
        table = pq.read_table(self.files[self.place], memory_map=False).combine_chunks()
        flat = table.column("features").combine_chunks().flatten().to_numpy()
        labels: NDArray[np.float32] = table.column("label").to_numpy().astype(np.float32)
        features = np.ascontiguousarray(flat.reshape(-1, NUM_FEATURES)[:: self.every])
        if self.fills:
            features = np.where(np.isnan(features), FILLED, features)
        input_data(data=features, label=labels[:: self.every])
        self.place += 1
        return True

    def reset(self) -> None:
        self.place = 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    files = sorted(arguments.rows.glob("part-*.parquet"))[: arguments.most_files]
    fills = arguments.fill
    settings = {"max_bin": arguments.max_bin, "nthread": arguments.threads}
    result: dict[str, Any] = {"matrix": arguments.matrix, "fill": fills, **settings}
    result["before_gib"] = memory_gib()
    started = time.perf_counter()
    result["cuts_from"] = arguments.cuts_from
    cuts = None
    if arguments.cuts_from is not None:
        every = max(len(files) * ROWS_PER_FILE // arguments.cuts_from, 1)
        cuts = xgboost.QuantileDMatrix(ParquetRows(files, fills=fills, every=every), **settings)
        result["cuts_s"] = round(time.perf_counter() - started, 1)
    if arguments.matrix == "extmem":
        arguments.cache.mkdir(parents=True, exist_ok=True)
        rows = ParquetRows(files, fills=fills, cache=arguments.cache)
        matrix: xgboost.DMatrix = xgboost.ExtMemQuantileDMatrix(rows, ref=cuts, **settings)
    else:
        matrix = xgboost.QuantileDMatrix(ParquetRows(files, fills=fills), ref=cuts, **settings)
    result |= {"rows": matrix.num_row(), "build_s": round(time.perf_counter() - started, 1), "built_gib": memory_gib()}
    if arguments.cache is not None and arguments.cache.exists():
        result["cache_gib"] = round(sum(file.stat().st_size for file in arguments.cache.iterdir()) / 2**30, 2)
    print(json.dumps(result), file=sys.stderr, flush=True)
    marks = Marks()
    xgboost.train(PARAMETERS | settings | {"seed": 7}, matrix, arguments.rounds, callbacks=[marks])
    result |= {"round_s": [round(second, 1) for second in marks.seconds], "trained_gib": memory_gib()}
    return result


class Marks(xgboost.callback.TrainingCallback):  # type: ignore[misc]  # xgboost has no types
    """Seconds of each round; the first makes the index that the others reuse."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self.before = time.perf_counter()

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        now = time.perf_counter()
        self.seconds.append(now - self.before)
        print(f"round {epoch}: {self.seconds[-1]:.1f} s, {memory_gib()}", file=sys.stderr, flush=True)
        self.before = now
        return False


def memory_gib() -> dict[str, float]:
    """The most that was resident so far, and what is now, anonymous memory apart."""
    wanted = {"VmHWM": "most", "VmRSS": "now", "RssAnon": "anonymous"}
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.split(":")[0] in wanted}
    return {name: round(found[key] / 2**20, 2) for key, name in wanted.items()}


if __name__ == "__main__":
    main()
