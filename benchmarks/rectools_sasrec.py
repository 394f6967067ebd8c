"""RecTools' SASRec on sequences, for `benchmarks/encoder_speed.py`: runs in RecTools' own environment, without Sonder.

    .bench/rectools/bin/python benchmarks/rectools_sasrec.py SEQUENCES --length 50 --epochs 2 --threads 2

SEQUENCES has one user a line, item numbers oldest first. Prints one JSON line: the seconds of each epoch.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools import Columns, __version__
from rectools.dataset import Dataset
from rectools.models import SASRecModel

EPOCH_SECONDS: list[float] = []  # of the module: the model trains with a copy of the trainer and its callbacks


class Clock(Callback):  # type: ignore[misc]
    """Notes the seconds of each training epoch."""

    started_s = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        self.started_s = time.perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        EPOCH_SECONDS.append(time.perf_counter() - self.started_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sequences", type=Path)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--negatives", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    sequences = [line.split() for line in arguments.sequences.read_text().splitlines()]
    pairs = [(user, item) for user, items in enumerate(sequences) for item in items]
    events = pd.DataFrame(pairs, columns=[Columns.User, Columns.Item]).astype({Columns.Item: int})
    events[Columns.Weight] = 1
    events[Columns.Datetime] = pd.Timestamp("2020-01-01") + pd.to_timedelta(range(len(events)), unit="s")

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=arguments.epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Clock()],
        )

    model = SASRecModel(
        n_blocks=arguments.blocks,
        n_heads=arguments.heads,
        n_factors=arguments.dim,
        session_max_len=arguments.length,
        loss="sampled_softmax",
        n_negatives=arguments.negatives,
        get_trainer_func=trainer,
    )
    model.fit(Dataset.construct(events))
    print(json.dumps({"rectools": __version__, "users": len(sequences), "epoch_seconds": EPOCH_SECONDS}))


if __name__ == "__main__":
    main()
