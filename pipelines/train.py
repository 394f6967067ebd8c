"""Train the user encoder on a history snapshot with Ray Train: read, call the epoch loop of `sonder.encoder`, write.

Each worker reads its share of the history buckets (of a log past `encoder.max_training_events`, those of users who
are drawn anew for each snapshot) and averages gradients with the others (DDP: gloo on CPUs, nccl on
GPUs, which are used where the cluster has one for each worker). The state is a Ray Train checkpoint, saved within
epochs too; the run's name is a digest of what it depends on, so the same call after a kill goes on where it was, and
a worker that dies is replaced up to three times. `encoder.num_workers: [least, most]` starts with what the cluster has
and starts again from the newest checkpoint when workers come or go.
`encoder.parent` names a release: training goes on from its weights, for a tenth of the epochs that it took from
nothing (`sonder.encoder.growth`).
What was trained is then turned onto the space of the release that it follows (`pipelines.align`).
Limits: with `num_workers=0` the same loop runs inside the calling process, without Ray and without resuming.
"""

from __future__ import annotations

import functools
import logging
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pipelines.align import align_onto
from pipelines.ray_runtime import cores_of_worker, ensure_ray, train_storage, worker_errors
from pipelines.train_backend import OwnAddress
from sonder.core import telemetry
from sonder.core.config import SonderConfig
from sonder.core.ids import digest_json
from sonder.core.storage import Folder, read_manifest
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import load_encoder, save_encoder, training_of
from sonder.encoder.checkpoint import FOR_ENCODER, TrainingState, load_state, save_state
from sonder.encoder.content import ItemContent, item_content
from sonder.encoder.growth import carry_over, warm_epochs
from sonder.encoder.holdout import count_eligible, draw_users, hold_out
from sonder.encoder.peers import Peers
from sonder.encoder.specification import DataSummary, EncoderSpec, derive, summarise
from sonder.encoder.training import Limits, TrainingRun
from sonder.history.snapshot import read_timelines
from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.history.vocabulary import Vocabulary
from sonder.releases.artefacts import Release

SECONDS_BETWEEN_CHECKPOINTS = 10.0  # at the end of an epoch
SECONDS_BETWEEN_PAUSES = 60.0  # within one
SECONDS_BETWEEN_LOOKS = 2.0
MOST_FAILURES = 3
PROGRESS_FILE = "progress.json"
logger = logging.getLogger("sonder")
Part = TypeVar("Part")


def train_encoder(
    config: SonderConfig,
    snapshot: str,
    target: Folder,
    *,
    cutoff_us: int | None,
    num_workers: int | tuple[int, int] | None = None,
    follows: str | None = None,
) -> dict[str, Any]:
    """Train on the events before the cutoff (None: leave-one-out), write the encoder to `target` -> how it went.

    `num_workers` overrides the configuration; 0 trains in this process. `follows` is the release whose space the
    vectors shall lie in; None: whose weights the training goes on from, if any.
    """
    num_workers = config.encoder.num_workers if num_workers is None else num_workers
    most_workers = num_workers if isinstance(num_workers, int) else num_workers[1]
    sections = ("events", "evaluation", "encoder")
    name = f"train-{digest_json([snapshot, config.digest(*sections), config.seed, cutoff_us, num_workers])}"
    if num_workers:
        ensure_ray()
    workspace = Workspace.at(config.workspace).root.uri  # workers have a working directory of their own
    storage = Workspace.at(workspace).staging("training")
    share = _training_share(config, read_manifest(Workspace.at(workspace).history(snapshot)))
    if share < 1:
        logger.info(
            "train: more than %d events (encoder.max_training_events): %.1f %% of the users are drawn, others for "
            "another snapshot",
            config.encoder.max_training_events,
            100 * share,
        )
    uses_gpu = bool(most_workers) and ray.cluster_resources().get("GPU", 0) >= most_workers
    with (
        telemetry.stage("train", snapshot=snapshot, workers=most_workers) as counts,
        tempfile.TemporaryDirectory(prefix="sonder-training-") as scratch,
    ):
        trainer = TorchTrainer(
            train_loop_per_worker,
            train_loop_config={
                "trace": telemetry.carrier(),
                "config": config.model_dump(mode="json") | {"workspace": workspace},
                "snapshot": snapshot,
                "cutoff_us": cutoff_us,
                "progress": (storage / name / PROGRESS_FILE).uri,
                "local_storage": scratch if most_workers == 0 else None,
            },
            torch_config=OwnAddress(),
            scaling_config=ScalingConfig(
                num_workers=num_workers,
                use_gpu=uses_gpu,
                resources_per_worker={"CPU": 1} | ({"GPU": 1} if uses_gpu else {}) | config.encoder.worker_resources,
            ),
            run_config=RunConfig(
                name=name,
                **train_storage(storage),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                failure_config=FailureConfig(max_failures=MOST_FAILURES),
            ),
        )
        with worker_errors(), _shown(storage / name / PROGRESS_FILE):
            result = trainer.fit()
        with result.checkpoint.as_directory() as directory:
            state = load_state(Folder.at(directory), only=FOR_ENCODER)
        vocabulary = Vocabulary.load(Workspace.at(config.workspace).items(snapshot))
        encoder, alignment = align_onto(
            state.encoder(item_content(vocabulary)),
            vocabulary,
            Workspace.at(config.workspace),
            follows or config.encoder.parent,
        )
        metrics = _metrics(state, config) | {"alignment": alignment, "share_of_users": share}
        save_encoder(encoder, target, metrics=metrics)
        (storage / name).remove()
        counts |= {"epochs": metrics["epochs"], "best_epoch": metrics["best_epoch"]}
    return metrics


def train_loop_per_worker(arguments: Mapping[str, Any]) -> None:
    """One worker: its buckets, the shared derivation, the epoch loop, a checkpoint now and then."""
    logging.getLogger("sonder").setLevel(logging.INFO)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(cores_of_worker())
    try:
        run, limits = _prepare_run(arguments)
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as directory:
                run.resume(load_state(Folder.at(directory)))
        reporter = _Reporter(run, limits, arguments)
        with telemetry.worker_span("train worker", arguments["trace"], rank=run.peers.rank):
            run.fit(limits, on_epoch=reporter, on_pause=reporter.pause)
    finally:
        torch.set_num_threads(threads_before)


def _prepare_run(arguments: Mapping[str, Any]) -> tuple[TrainingRun, Limits]:
    config, cutoff_us = SonderConfig.model_validate(arguments["config"]), arguments["cutoff_us"]
    workspace, peers = Workspace.at(config.workspace), Peers.current()
    history = workspace.history(arguments["snapshot"])
    manifest = read_manifest(history)
    vocabulary = Vocabulary.load(workspace.items(arguments["snapshot"]))
    buckets = sorted(int(entry["bucket"]) for entry in manifest["buckets"])[peers.rank :: peers.world]
    share = _training_share(config, manifest)
    parts = [
        draw_users(read_timelines(history, vocabulary, some), share=share, draw=arguments["snapshot"])
        for some in ([[bucket] for bucket in buckets] or [[]])
    ]
    window_us = config.evaluation.test_days * MICROSECONDS_PER_DAY
    eligible = [count_eligible(part, vocabulary, cutoff_us=cutoff_us, window_us=window_us) for part in parts]
    num_eligible = int(peers.sum_counts([sum(eligible)])[0])
    holdouts = [
        hold_out(part, vocabulary, cutoff_us=cutoff_us, window_us=window_us, num_eligible=num_eligible)
        for part in _let_go(parts)
    ]
    counted = (summarise(holdout.visible, vocabulary).to_vector() for holdout in holdouts)
    summary = DataSummary.from_vector(peers.sum_counts(functools.reduce(np.add, counted)))
    content = item_content(vocabulary)
    spec = derive(
        config.encoder,
        config.evaluation,
        vocabulary,
        summary,
        reads_time=not manifest["is_ordinal"],
        seed=config.seed,
        content=content.shape,
    )
    start, max_epochs = _start(config, spec, vocabulary, content)
    limits = Limits(max_epochs, config.encoder.patience, config.encoder.max_minutes)
    run = TrainingRun(spec, _let_go(holdouts), summary.targets, peers, content=content, start=start, device=_device())
    return run, limits


def _training_share(config: SonderConfig, manifest: Mapping[str, Any]) -> float:
    """Share of the users whose histories a training reads, by the events of the snapshot."""
    num_events = sum(int(entry["events"]) for entry in manifest["buckets"])
    return min(1.0, config.encoder.max_training_events / max(num_events, 1))


def _let_go(parts: list[Part]) -> Iterator[Part]:
    """Each part in order, and the list forgets it: what is made of all parts takes their place in memory."""
    parts.reverse()
    while parts:
        yield parts.pop()


def _start(
    config: SonderConfig, spec: EncoderSpec, vocabulary: Vocabulary, content: ItemContent
) -> tuple[dict[str, torch.Tensor] | None, int]:
    """The weights to go on from, None for new ones, and how many epochs to train."""
    if config.encoder.parent is None:
        return None, config.encoder.max_epochs
    parent = Release.open(Workspace.at(config.workspace), config.encoder.parent)
    weights = carry_over(load_encoder(parent.encoder), Vocabulary.load(parent.items), spec, vocabulary, content)
    full_epochs = int(training_of(parent.encoder)["full_epochs"])
    return weights, min(warm_epochs(full_epochs), config.encoder.max_epochs)


def _device() -> torch.device:
    """The one that Ray gave this worker."""
    return torch.device(ray.train.torch.get_device())


class _Reporter:
    """Reports a checkpoint when enough time has gone by since the last one, and when the run is over."""

    def __init__(self, run: TrainingRun, limits: Limits, arguments: Mapping[str, Any]) -> None:
        self.limits, self.local_storage = limits, arguments["local_storage"]
        self.progress = Folder.at(arguments["progress"])
        self.reported_at_s = run.progress.total_seconds

    def __call__(self, run: TrainingRun) -> None:
        """After an epoch."""
        if run.peers.rank == 0:
            self.progress.write_json(run.progress.history)
        if self._is_due(run, SECONDS_BETWEEN_CHECKPOINTS) or run.is_finished(self.limits):
            self._report(run)

    def pause(self, run: TrainingRun) -> None:
        """Within an epoch: an epoch that is soon over is not worth a checkpoint."""
        if self._is_due(run, SECONDS_BETWEEN_PAUSES):
            self._report(run)

    def _is_due(self, run: TrainingRun, seconds: float) -> bool:
        return run.progress.total_seconds - self.reported_at_s >= seconds  # the same on every worker

    def _report(self, run: TrainingRun) -> None:
        self.reported_at_s = run.progress.total_seconds
        metrics: dict[str, Any] = {"epoch": run.progress.epoch, "step": run.progress.step}
        if self.local_storage is not None:  # nobody copies the files away
            save_state(run.state(), Folder.at(self.local_storage))
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(self.local_storage))
        elif run.peers.rank > 0:
            ray.train.report(metrics)
        else:
            with tempfile.TemporaryDirectory() as directory:
                save_state(run.state(), Folder.at(directory))
                ray.train.report(metrics, checkpoint=Checkpoint.from_directory(directory))


@contextmanager
def _shown(progress: Folder) -> Iterator[None]:
    """Log each epoch that the workers, on whatever machine, have put into the progress file."""
    ended = threading.Event()
    shown = 0

    def look() -> None:
        nonlocal shown
        epochs: list[dict[str, float]] = progress.read_json() if progress.exists() else []
        for epoch in epochs[shown:]:
            measured = " ".join(f"{key}={value:.4f}" for key, value in epoch.items() if key not in ("epoch", "seconds"))
            logger.info("train: epoch %d: %s (%.1f s)", epoch["epoch"], measured, epoch["seconds"])
        shown = max(shown, len(epochs))

    def watch() -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
        look()
    finally:
        ended.set()
        watcher.join()


def _metrics(state: TrainingState, config: SonderConfig) -> dict[str, Any]:
    progress = state.progress
    full_epochs = progress.epoch
    if config.encoder.parent is not None:
        parent = Release.open(Workspace.at(config.workspace), config.encoder.parent)
        full_epochs = int(training_of(parent.encoder)["full_epochs"])
    return {
        "parent": config.encoder.parent,
        "full_epochs": full_epochs,  # of the training from nothing at the root of its ancestry
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "seconds": round(progress.seconds, 1),
        "validation": progress.history[progress.best_epoch - 1],
        "history": progress.history,
    }
