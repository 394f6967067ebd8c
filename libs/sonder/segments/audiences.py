"""Audiences: versioned definitions, and who has been in one from when to when.

A definition is a name, a rule and a version. Saving a rule that means the same keeps the version, any other rule is
the next one. Membership is a table of stays (MEMBERSHIP_SCHEMA), one row per user and stay:
entered_at          as_of of the first evaluation of this stay that found the user in
left_at             as_of of the evaluation that found the user out again; null while in
as_of               the newest evaluation that touched the row: of an open stay the newest of all
definition_version  the version that this evaluation used
Who stays keeps entered_at, also across versions; who comes back starts a new row; closed rows never change again.
Limits: entered_at is as exact as evaluations are frequent, and nobody entered before the first one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl
import pyarrow as pa

from sonder.core.errors import InvalidRequest, NotFound
from sonder.core.storage import Folder
from sonder.events.contract import TIMESTAMP_TYPE
from sonder.segments.rules.rule import Rule

MEMBERSHIP_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("entered_at", TIMESTAMP_TYPE, nullable=False),
        pa.field("left_at", TIMESTAMP_TYPE),
        pa.field("as_of", TIMESTAMP_TYPE, nullable=False),
        pa.field("definition_version", pa.int32(), nullable=False),
    ]
)
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_VERSION = re.compile(r"v(\d{3,})\.json")


@dataclass(frozen=True)
class Definition:
    """One version of an audience, as `audiences/<name>/v<NNN>.json` keeps it."""

    name: str
    version: int
    rule: str  # as it was written
    created_at: str  # ISO 8601, UTC
    release: str  # whose names the rule was checked against

    @property
    def parsed(self) -> Rule:
        """The rule, its names unchecked: a release may have lost some since."""
        return Rule.parse(self.rule)


class AudienceCatalogue:
    """The saved definitions of a workspace, below `audiences/`."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def audience(self, name: str) -> Folder:
        """Folder of one audience; InvalidRequest for what is no name."""
        if not _NAME.fullmatch(name):
            raise InvalidRequest(
                f"An audience named {name!r}",
                expected="1 to 64 lower-case letters, digits, dashes and underscores, such as lapsing-gardeners",
            )
        return self._folder / name

    def versions(self, name: str) -> list[int]:
        """Versions of an audience, ascending; none if it was never saved."""
        found = (_VERSION.fullmatch(file.name) for file in self.audience(name).children())
        return sorted(int(match.group(1)) for match in found if match)

    def newest(self, name: str) -> Definition:
        """What counts now; NotFound names the audiences that there are."""
        versions = self.versions(name)
        if not versions:
            names = self.names()
            raise NotFound(
                f"No audience {name!r}",
                expected=f"one of {', '.join(names)}" if names else "an audience that was saved",
                do="" if names else "`sonder audience save NAME RULE` saves one.",
            )
        return Definition(**self._file(name, versions[-1]).read_json())

    def names(self) -> list[str]:
        """Every audience that was saved, by name."""
        folders = [folder.name for folder in self._folder.children() if _NAME.fullmatch(folder.name)]
        return [name for name in folders if self.versions(name)]

    def all(self) -> list[Definition]:
        """The newest version of every audience, by name."""
        return [self.newest(name) for name in self.names()]

    def save(self, name: str, text: str, rule: Rule, *, release: str, now: str) -> Definition:
        """The next version, or the one that is there if it means the same."""
        versions = self.versions(name)
        if versions:
            newest = self.newest(name)
            if newest.parsed == rule:
                return newest
        definition = Definition(name, versions[-1] + 1 if versions else 1, text, now, release)
        self._file(name, definition.version).write_json(asdict(definition))
        return definition

    def _file(self, name: str, version: int) -> Folder:
        return self.audience(name) / f"v{version:03d}.json"


def evaluations_of(audience: Folder) -> list[Folder]:
    """The published evaluations of an audience, oldest first."""
    return [folder for folder in (audience / "members").children() if folder.is_published()]


def newest_evaluation(audience: Folder) -> Folder:
    """NotFound if the audience was never refreshed."""
    found = evaluations_of(audience)
    if not found:
        raise NotFound(
            f"Nobody has been counted into {audience.name!r} yet",
            expected="an evaluation",
            do=f"`sonder audience refresh {audience.name}` makes one.",
        )
    return found[-1]


def update_members(previous: pa.Table, members: pa.Array, *, as_of_us: int, definition_version: int) -> pa.Table:
    """The stays after one more evaluation that found `members` [M] in; MEMBERSHIP_SCHEMA, by user_id and entered_at.

    Evaluating the same again changes nothing. InvalidRequest for an as_of before the previous one: time goes forward.
    """
    before = _frame(previous)
    now = pl.lit(as_of_us).cast(pl.Datetime("us", "UTC"))
    newest = before.select(pl.col("as_of").max().dt.epoch("us")).item()
    if newest is not None and as_of_us < newest:
        raise InvalidRequest(
            f"An evaluation at {newest} microseconds since 1970, and now an earlier one at {as_of_us}",
            expected="a release whose as_of is not before the one of the last refresh",
            do="Refresh from a later release, or remove the audience's members/ folder to start again.",
        )
    inside = pl.DataFrame({"user_id": pl.Series(members.to_pylist(), dtype=pl.String)})
    touched = {"as_of": now, "definition_version": pl.lit(definition_version, dtype=pl.Int32)}
    is_open = pl.col("left_at").is_null()
    closed, opened = before.filter(~is_open), before.filter(is_open)
    stays = opened.join(inside, on="user_id", how="semi").with_columns(**touched)
    leaves = opened.join(inside, on="user_id", how="anti").with_columns(left_at=now, **touched)
    enters = inside.join(opened, on="user_id", how="anti").with_columns(
        entered_at=now, left_at=pl.lit(None, dtype=pl.Datetime("us", "UTC")), **touched
    )
    names = MEMBERSHIP_SCHEMA.names
    rows = pl.concat([part.select(names) for part in (closed, leaves, stays, enters)])
    return rows.sort("user_id", "entered_at").to_arrow().cast(MEMBERSHIP_SCHEMA)


def current_members(membership: pa.Table) -> pa.Table:
    """The open stays: who is in now."""
    return _frame(membership).filter(pl.col("left_at").is_null()).to_arrow().cast(MEMBERSHIP_SCHEMA)


def movement(membership: pa.Table, *, as_of_us: int) -> dict[str, int]:
    """Members now, and who entered and who left at this evaluation."""
    frame = _frame(membership)
    now = pl.lit(as_of_us).cast(pl.Datetime("us", "UTC"))
    counted: Mapping[str, Any] = frame.select(
        members=pl.col("left_at").is_null().sum(),
        entered=(pl.col("left_at").is_null() & (pl.col("entered_at") == now)).sum(),
        left=(pl.col("left_at") == now).sum(),
    ).row(0, named=True)
    return {name: int(count or 0) for name, count in counted.items()}


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
