"""Users per second in training: this encoder against RecTools' SASRec, same sequences, in one run: one JSON line.

    make bench-encoder-speed
    python -m benchmarks.encoder_speed ml-1m path/to/ml-1m.inter --length 200 --peer .bench/rectools/bin/python

Equal: training sequences, width 64, two blocks, two heads, length, threads. RecTools draws 256 negatives for each
position (its `sampled_softmax`), we share `--negatives` among the batch, by default those of the derived
specification. An epoch is one pass over all users; the median of the epochs of each side is compared. Ours are
measured before and after the peer's, so that a machine that grows slower is seen (`our_epoch_seconds`).
Full ranking evaluation of all users and the matrix product's own rate are measured beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.encoder import read_log, test_metrics, to_timelines
from sonder.core.config import EncoderConfig, EvaluationConfig
from sonder.encoder.holdout import count_eligible, hold_out
from sonder.encoder.specification import EncoderSpec, derive, summarise
from sonder.encoder.training import TrainingRun
from sonder.history.cutoffs import leave_one_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", choices=["beauty", "ml-1m"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--peer", type=Path, help="python of the environment that has RecTools; none: ours alone")
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--negatives", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--our-epochs", type=int, default=5, help="before the peer's, and again after them")
    parser.add_argument("--peer-epochs", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    timelines, vocabulary = to_timelines(read_log(arguments.log, arguments.path))
    num_eligible = count_eligible(timelines, vocabulary, cutoff_us=None, window_us=0)
    holdout = hold_out(timelines, vocabulary, cutoff_us=None, window_us=0, num_eligible=num_eligible)
    summary = summarise(holdout.visible, vocabulary)
    config = EncoderConfig(max_length=arguments.length, num_negatives=arguments.negatives)
    evaluation = EvaluationConfig(protocol="leave_one_out")
    reads_time = arguments.log != "beauty"
    spec = derive(config, evaluation, vocabulary, summary, reads_time=reads_time, seed=7)
    run = TrainingRun(spec, [holdout], summary.targets)
    run.train_epoch()  # the first one pays for the allocator's growth

    ours = time_epochs(run, arguments.our_epochs)
    started = time.perf_counter()
    test_metrics(run, leave_one_out(timelines, part="test"))
    ranking_seconds = (time.perf_counter() - started) / 2  # it ranks twice: with and without what the user had
    theirs: list[float] = []
    if arguments.peer is not None:
        theirs = time_peer(arguments, holdout.visible.items, holdout.visible.offsets)
        ours += time_epochs(run, arguments.our_epochs)
    num_users = timelines.num_users
    seconds = statistics.median(ours)
    floor = floating_point_operations(spec, run) / matrix_rate(arguments.threads)
    result = {
        "benchmark": f"encoder-speed/{arguments.log}",
        "users": num_users,
        "threads": arguments.threads,
        "length": arguments.length,
        "shared_negatives": spec.num_negatives,
        "our_epoch_seconds": [round(value, 2) for value in ours],
        "users_per_second": round(num_users / seconds),
        "floor_seconds": round(floor, 2),
        "full_ranking_seconds": round(ranking_seconds, 2),
    }
    if theirs:
        result |= {
            "rectools_epoch_seconds": [round(value, 1) for value in theirs],
            "rectools_users_per_second": round(num_users / statistics.median(theirs)),
            "ratio": round(statistics.median(theirs) / seconds, 1),
        }
    print(json.dumps(result))


def time_epochs(run: TrainingRun, num: int) -> list[float]:
    seconds = []
    for _ in range(num):
        started = time.perf_counter()
        run.train_epoch()
        run.progress.epoch += 1  # other random numbers, other segments
        seconds.append(time.perf_counter() - started)
    return seconds


def time_peer(arguments: argparse.Namespace, items: NDArray[np.int32], offsets: NDArray[np.int64]) -> list[float]:
    """Train RecTools' SASRec on the same sequences in its own process -> seconds of each epoch."""
    histories = np.split(items, offsets[1:-1])
    with tempfile.TemporaryDirectory() as folder:
        sequences = Path(folder) / "sequences.txt"
        sequences.write_text("\n".join(" ".join(map(str, history)) for history in histories))
        command = [
            *(str(arguments.peer), str(Path(__file__).with_name("rectools_sasrec.py")), str(sequences)),
            *("--length", str(arguments.length), "--threads", str(arguments.threads)),
            *("--epochs", str(arguments.peer_epochs)),
        ]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    content = json.loads(answer.splitlines()[-1])
    seconds = [float(value) for value in content["epoch_seconds"]]
    if len(seconds) != arguments.peer_epochs:
        raise RuntimeError(f"RecTools reported {len(seconds)} epochs, expected {arguments.peer_epochs}: {answer!r}")
    return seconds


def floating_point_operations(spec: EncoderSpec, run: TrainingRun) -> float:
    """Of one epoch's matrix products, forward and backward, without attention's own (length / width of the rest).

    A token costs 10 D^2 a block and 2 D^2 in recall if there is one, a prediction K x D in the loss; a multiply-add is
    two operations, the backward pass twice the forward one.
    """
    num_tokens = float((run.ends_U - run.tokens.offsets[:-1]).clip(0).sum())
    per_token = spec.dim**2 * (10 * spec.num_blocks + 2 * spec.recalls)
    num_negatives = min(spec.num_negatives, int(run.is_trained_I.sum()))
    return 6 * num_tokens * (per_token + num_negatives * spec.dim)


def matrix_rate(threads: int) -> float:
    """Operations per second of a float32 product of the shapes that the loss has: the best of five."""
    torch.set_num_threads(threads)
    left, right = torch.randn(2048, 64), torch.randn(64, 2048)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(50):
            left @ right
        seconds.append((time.perf_counter() - started) / 50)
    return 2 * 2048 * 64 * 2048 / min(seconds)


if __name__ == "__main__":
    main()
