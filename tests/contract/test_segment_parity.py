"""Online and batch agree: for thousands of stored histories, cut into any micro-batches, the segmentation deployment
answers what the batch job wrote, bit by bit. Without Ray: both are shells around the same functions, and this test is
what keeps them that."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from pipelines.segment import segment_users
from services.segmentation.deployment import Segmentation
from services.travelling import unpacked
from sonder.core.config import EncoderConfig, EvaluationConfig, SonderConfig
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import Encoder, save_encoder
from sonder.encoder.content import NOTHING_KNOWN
from sonder.encoder.model import UserEncoder
from sonder.encoder.specification import derive, summarise
from sonder.history.snapshot import read_timelines
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.packing import pack_timelines
from sonder.releases.registry import seal
from sonder.scoring.heads import save_heads
from tests.tiny_log import random_log, timelines_of, vocabulary_of, write_snapshot

NUM_USERS, NUM_ITEMS, AS_OF_US = 2_500, 60, 90 * DAY
PARTS = ("interests", "segments", "affinities")  # in the order of the deployment's answer


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A release `r-1` whose parts were written by the batch job; the encoder is random, which is as good here."""
    folder = tmp_path_factory.mktemp("parity")
    config = SonderConfig.model_validate({"workspace": str(folder), "events": {"path": "unused"}})
    workspace = Workspace.at(str(folder))
    vocabulary = vocabulary_of([f"c{item % 4}/d{item % 12}" for item in range(NUM_ITEMS)])
    # Some events lie at as_of and later: neither side may see them.
    timelines = timelines_of(random_log(3, num_users=NUM_USERS, num_items=NUM_ITEMS, num_days=95))
    write_snapshot(workspace, "tiny", timelines, vocabulary, num_buckets=3)
    target = workspace.staging("build")
    vocabulary.save(target / "items")
    save_encoder(_random_encoder(timelines, vocabulary), target / "encoder")
    segment_users(config, "tiny", target / "encoder", target, as_of_us=AS_OF_US, num_workers=0)
    save_heads([], [], target / "scores")
    seal(
        target,
        workspace,
        release_id="r-1",
        parent=None,
        snapshot="tiny",
        config=config,
        metrics={},
        row_counts={},
        as_of_us=AS_OF_US,
    )
    return workspace


def _random_encoder(timelines: Timelines, vocabulary: Vocabulary) -> Encoder:
    summary = summarise(timelines, vocabulary)
    spec = derive(
        EncoderConfig(dim=16), EvaluationConfig(), vocabulary, summary, reads_time=True, seed=5, content=NOTHING_KNOWN
    )
    torch.manual_seed(5)
    return Encoder.of(spec, UserEncoder(spec).state_dict(), np.ones(vocabulary.num_items, dtype=bool))


def _written(workspace: Workspace, part: str) -> pl.DataFrame:
    files = Path(workspace.release("r-1").path, part).glob("bucket=*/part-0.parquet")
    return pl.concat([pl.read_parquet(file, hive_partitioning=False) for file in files])


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_the_deployment_answers_for_stored_histories_what_the_batch_job_wrote(
    workspace: Workspace, batch_size: int
) -> None:
    vocabulary = Vocabulary.load(workspace.items("tiny"))
    timelines = read_timelines(workspace.history("tiny"), vocabulary).before(AS_OF_US)
    order = np.random.default_rng(batch_size).permutation(NUM_USERS)[: 300 if batch_size == 1 else NUM_USERS]
    timelines = timelines.take(order)
    user_ids, packed = timelines.user_ids.to_pylist(), pack_timelines(timelines)
    deployment = Segmentation(workspace.root.uri, "r-1")
    answers = [
        asyncio.run(deployment.segment(user_ids[at : at + batch_size], packed[at : at + batch_size], AS_OF_US))[0]
        for at in range(0, len(order), batch_size)
    ]
    for place, part in enumerate(PARTS):
        online = pl.DataFrame(pa.concat_tables([unpacked(answer[place]) for answer in answers]))
        written = (
            _written(workspace, part).filter(pl.col("user_id").is_in(user_ids)).sort("user_id", maintain_order=True)
        )
        assert online.height > len(order) // 2
        assert online.sort("user_id", maintain_order=True).equals(written), part
