"""What a workspace is built from: the `events`, `items` and `users` sections of the configuration."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from sonder.core.section import Section


class EventColumns(Section):
    """Which column of the log holds which field of the event contract. A dotted name reaches into JSON objects."""

    user_id: str | None = None
    item_id: str | None = None
    action: str | None = None
    timestamp: str | None = None
    event_id: str | None = None
    surface: str | None = None
    value: str | None = None
    request_id: str | None = None


class ActionRule(Section):
    """Rows whose `column` matches the regular expression `matches` get this action: cancelled invoices, say."""

    action: str
    column: str
    matches: str


class EventsConfig(Section):
    """The log, its shape, and what makes a row of it bad."""

    path: str | tuple[str, ...]
    format: Literal[
        "auto",
        "csv",
        "jsonl",
        "parquet",
        "arrow",
        "iceberg",
        "delta",
        "sequences",
        "movielens",
        "cdnow",
        "online_retail",
    ] = "auto"
    columns: EventColumns = EventColumns()
    action: str | None = Field(None, description="constant action of a log that has no action column")
    action_rules: tuple[ActionRule, ...] = ()
    action_weights: dict[str, FiniteFloat] = Field(
        default_factory=dict,
        description="above 0 wanted, by how much it counts; 0 only shown; below 0 unwanted; by the name if not given",
    )
    timestamp: str = Field(
        "auto", description="auto, iso, epoch_s, epoch_ms, epoch_us, epoch_ns, ordinal, or a strptime pattern"
    )
    online: bool = Field(False, description="also what `POST /v1/events` accepted; an event of both is told by its id")
    delimiter: str | None = Field(None, description="of a CSV file; looked at when not given")
    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    max_events_per_day: int = Field(5_000, gt=0, description="a user above it is set aside as a bot")
    max_id_bytes: int = Field(256, gt=0)

    @field_validator("path")
    @classmethod
    def _one_spelling(cls, path: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """A list of one is that one: snapshots and releases are named by their configuration."""
        return path[0] if isinstance(path, tuple) and len(path) == 1 else path

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path


class ItemColumns(Section):
    item_id: str = "item_id"
    category: str | None = None
    title: str | None = None
    vector: str | None = None


class ItemsConfig(Section):
    """The catalogue: optional, in any of the tabular formats."""

    path: str
    format: Literal["auto", "csv", "jsonl", "parquet", "arrow"] = "auto"
    columns: ItemColumns = ItemColumns()


class UserColumns(Section):
    """Which column of the user table holds what; an attribute is named like its column."""

    user_id: str = "user_id"
    signup_at: str | None = None
    attributes: tuple[str, ...] = ()
    consent: dict[str, str] = Field(default_factory=dict, description="column of each purpose: ads, email, ...")

    @field_validator("attributes")
    @classmethod
    def _each_once(cls, attributes: tuple[str, ...]) -> tuple[str, ...]:
        if repeated := {name for name in attributes if attributes.count(name) > 1}:
            raise ValueError(f"attributes are named once, repeated: {', '.join(sorted(repeated))}")
        return attributes

    @field_validator("consent")
    @classmethod
    def _plain_purposes(cls, consent: dict[str, str]) -> dict[str, str]:
        if odd := [name for name in consent if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name)]:
            raise ValueError(f"found the purpose {odd[0]!r}, expected lower-case letters, digits and underscores")
        return consent


class UsersConfig(Section):
    """The user table: optional, in any of the tabular formats."""

    path: str
    format: Literal["auto", "csv", "jsonl", "parquet", "arrow"] = "auto"
    columns: UserColumns = UserColumns()
    timestamp: str = Field("auto", description="form of signup_at, as in events; no ordinals")
    sensitive: tuple[str, ...] = Field((), description="attributes that no reason names and no model reads")

    @model_validator(mode="after")
    def _sensitive_are_attributes(self) -> UsersConfig:
        if strangers := [name for name in self.sensitive if name not in self.columns.attributes]:
            raise ValueError(f"sensitive names {strangers[0]!r}, expected one of columns.attributes")
        return self
