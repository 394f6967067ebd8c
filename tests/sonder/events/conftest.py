"""Read a whole log at once, the way the prepare job does split by split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from sonder.core.input_config import EventsConfig
from sonder.events.contract import EVENT_SCHEMA, QUARANTINE_SCHEMA
from sonder.events.mapping import Batch
from sonder.events.reading import plan_splits, read_split, resolve

ReadLog = Callable[..., Batch]


@pytest.fixture
def read_log() -> ReadLog:
    """`read_log(path=…, columns=…)`: keywords of `events:` -> all events and all quarantined rows."""

    def read(**section: Any) -> Batch:
        config = resolve(EventsConfig.model_validate(section))
        batches = [batch for split in plan_splits(config) for batch in read_split(split, config)]
        return Batch(
            events=pa.concat_tables([EVENT_SCHEMA.empty_table(), *(batch.events for batch in batches)]),
            quarantined=pa.concat_tables([QUARANTINE_SCHEMA.empty_table(), *(b.quarantined for b in batches)]),
        )

    return read
