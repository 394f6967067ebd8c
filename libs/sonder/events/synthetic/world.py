"""Run the synthetic world: part by part, so that its size does not matter to memory, and write it as a log to build on.

`DIR/events/part-NNNNN.parquet` (one part of the people each, by time), `DIR/items.parquet`, `DIR/users.parquet` (the
accounts), `DIR/sonder.yaml` and the truth in `DIR/truth/{interests,lifecycle,scores,attainable}.parquet`. The log has
no event ids: they are derived like those of any log without. People who never come in the log's days are in the truth
and in the user table only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sonder.core.storage import Folder
from sonder.core.telemetry import stage
from sonder.events.contract import TIMESTAMP_TYPE, Col
from sonder.events.synthetic.accounts import AGE_BAND, COUNTRY, PURPOSES, accounts_table
from sonder.events.synthetic.actions import ACTIONS, Actions, draw_actions
from sonder.events.synthetic.catalogue import Catalogue, build_catalogue
from sonder.events.synthetic.config import DAY_MS, START, WorldConfig
from sonder.events.synthetic.identifiers import padded_ids
from sonder.events.synthetic.observer import attainable_table
from sonder.events.synthetic.people import build_people
from sonder.events.synthetic.sessions import SURFACES, draw_sessions
from sonder.events.synthetic.truth import interests_table, lifecycle_table, scores_table


@dataclass(frozen=True)
class WorldPart:
    """The events of one part of the people (string columns dictionary-encoded), and the truth about these people."""

    events: pa.Table  # user_id, item_id, action, timestamp, surface, value, request_id; by time
    interests: pa.Table
    lifecycle: pa.Table
    scores: pa.Table
    users: pa.Table  # the accounts of these people
    attainable: pa.Table | None = None  # what the log can tell of the scores; asked for of the first part alone


def simulate(config: WorldConfig) -> Iterator[WorldPart]:
    """The world, one part of the people after the other; `build_catalogue(config)` has its items."""
    return _parts(config, build_catalogue(config))


def write_world(config: WorldConfig, folder: Folder) -> dict[str, int]:
    """Write log, catalogue, configuration and truth -> number of users, items and events."""
    catalogue, num_events = build_catalogue(config), 0
    truth: dict[str, list[pa.Table]] = {"interests": [], "lifecycle": [], "scores": []}
    users: list[pa.Table] = []
    (folder / "events").remove()
    with stage("synth", users=config.num_users, days=config.num_days, seed=config.seed) as counts:
        for index, part in enumerate(_parts(config, catalogue, observes_first=True)):
            if part.attainable is not None:
                (folder / "truth" / "attainable.parquet").write_table(part.attainable)
            write_events(part.events, folder / "events" / f"part-{index:05d}.parquet")
            num_events += part.events.num_rows
            users.append(part.users)
            for name, tables in truth.items():
                tables.append(getattr(part, name))
        for name, tables in truth.items():
            (folder / "truth" / f"{name}.parquet").write_table(pa.concat_tables(tables))
        (folder / "items.parquet").write_table(catalogue.table())
        (folder / "users.parquet").write_table(pa.concat_tables(users))
        (folder / "sonder.yaml").write_bytes(configuration(config, folder).encode())
        counts.update(events=num_events, items=config.num_items)
    return {"users": config.num_users, "items": config.num_items, "events": num_events}


def write_events(events: pa.Table, file: Folder) -> None:
    """Parquet whose strings are plain strings to every reader, written from their dictionaries."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        events,
        sink,
        compression="lz4",
        store_schema=False,  # otherwise readers would be handed dictionaries
        use_dictionary=[name for name in events.column_names if name not in (Col.TIMESTAMP, Col.VALUE)],
        column_encoding={Col.TIMESTAMP: "DELTA_BINARY_PACKED"},
        dictionary_pagesize_limit=1 << 25,  # all request ids of a part
        write_statistics=[Col.TIMESTAMP],
    )
    file.write_bytes(sink.getvalue())


def configuration(config: WorldConfig, folder: Folder) -> str:
    """A sonder.yaml for this world. The scores leave room for six windows in the log."""
    names = {name: name for name in (*_EVENT_COLUMNS,)}
    content = {
        "workspace": str(folder / "workspace"),
        "events": {"path": str(folder / "events"), "format": "parquet", "columns": names},
        "items": {
            "path": str(folder / "items.parquet"),
            "columns": {name: name for name in (Col.ITEM_ID, Col.CATEGORY, Col.TITLE)},
        },
        "users": {
            "path": str(folder / "users.parquet"),
            "columns": {
                Col.USER_ID: Col.USER_ID,
                Col.SIGNUP_AT: Col.SIGNUP_AT,
                "attributes": [COUNTRY, AGE_BAND],
                "consent": {purpose: f"consent_{purpose}" for purpose in PURPOSES},
            },
        },
        "evaluation": {"protocol": "temporal", "test_days": min(30, config.num_days // 3)},
        "scores": [
            {"name": f"buy_{days}d", "action": "buy", "within_days": days}
            for days in (7,)
            if 6 * days <= config.num_days
        ]
        + [
            {"name": f"churn_{days}d", "churn": True, "within_days": days}
            for days in (14,)
            if 6 * days <= config.num_days
        ],
        "seed": config.seed,
    }
    return yaml.safe_dump(content, sort_keys=False)


_EVENT_COLUMNS = (Col.USER_ID, Col.ITEM_ID, Col.ACTION, Col.TIMESTAMP, Col.SURFACE, Col.VALUE, Col.REQUEST_ID)


def _parts(config: WorldConfig, catalogue: Catalogue, *, observes_first: bool = False) -> Iterator[WorldPart]:
    for part in range(config.num_parts):
        yield _simulate_part(config, catalogue, part, is_observed=observes_first and part == 0)


def _simulate_part(config: WorldConfig, catalogue: Catalogue, part: int, *, is_observed: bool) -> WorldPart:
    people = build_people(config, catalogue, part)
    rng = config.generator(2, part)
    sessions = draw_sessions(rng, config, catalogue, people)
    actions = draw_actions(rng, catalogue, people, sessions)
    user_ids = padded_ids("u", people.number + 1, 7)
    pages = np.arange(len(sessions.page_ms)) + (part << 20)
    first_ms = np.full(people.num_users, config.num_days * DAY_MS, dtype=np.int64)
    np.minimum.at(first_ms, actions.user, actions.time_ms)
    return WorldPart(
        events=_events(catalogue, actions, user_ids, padded_ids("r", pages, 10)),
        interests=interests_table(config, people, user_ids),
        lifecycle=lifecycle_table(config, catalogue, people, user_ids),
        scores=scores_table(config, catalogue, people, user_ids),
        users=accounts_table(config, part, people, user_ids, first_ms),
        attainable=attainable_table(config, catalogue, sessions, actions, user_ids) if is_observed else None,
    )


def _events(catalogue: Catalogue, actions: Actions, user_ids: pa.Array, request_ids: pa.Array) -> pa.Table:
    encoded = pa.DictionaryArray.from_arrays
    start_us = int(START.timestamp()) * 1_000_000
    columns = (
        encoded(pa.array(actions.user.astype(np.int32)), user_ids),
        encoded(pa.array(actions.item), catalogue.item_ids),
        encoded(pa.array(actions.action), pa.array(ACTIONS)),
        pa.array(actions.time_ms * 1_000 + start_us).cast(TIMESTAMP_TYPE),
        encoded(pa.array(actions.surface), pa.array(SURFACES)),
        pa.array(actions.value, mask=np.isnan(actions.value)),
        encoded(pa.array(actions.page.astype(np.int32)), request_ids),
    )
    return pa.table(dict(zip(_EVENT_COLUMNS, columns, strict=True)))
