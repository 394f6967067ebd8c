"""`releases/CURRENT`: one JSON file, replaced whole: what is served, since when and why, and what was served before.

History is newest first and a stack, so that rolling back twice goes back two. A promotion that went through the gate
carries its record: against which release, how many promises were looked at, and, where it was forced, who broke which.
Forced promotions are kept in a list of their own too: a rollback takes them from the history, not from the books.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sonder.core.errors import ArtefactMismatch
from sonder.core.storage import Folder

CURRENT = "CURRENT"
MAX_HISTORY = 50


@dataclass(frozen=True)
class GateRecord:
    """What the gate said of a promotion."""

    against: str  # the release that was served then
    promises: int  # how many were looked at
    by: str | None = None  # who forced it; the promotion's reason says why
    overridden: tuple[str, ...] = ()  # one sentence for each promise that was broken nevertheless


@dataclass(frozen=True)
class Promotion:
    """One switch: what was served from then on, and why."""

    release: str
    promoted_at: str  # ISO 8601, UTC
    reason: str
    gate: GateRecord | None = None  # None: nothing was served before, nobody relied on anything, or a rollback

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Promotion:
        gate = content.get("gate")
        if gate is not None:
            gate = GateRecord(**{**gate, "overridden": tuple(gate["overridden"])})
        return cls(**{**content, "gate": gate})

    def to_dict(self) -> dict[str, Any]:
        """Without a gate that was not asked: versions from before there was one read that."""
        content = asdict(self)
        return content if self.gate is not None else {name: content[name] for name in content if name != "gate"}


@dataclass(frozen=True)
class Current:
    """What is served, and what was before."""

    promotion: Promotion
    history: tuple[Promotion, ...] = ()  # newest first; the first is the predecessor
    forced: tuple[Promotion, ...] = ()  # newest first, also those that were rolled back since

    @property
    def release(self) -> str:
        return self.promotion.release

    @property
    def promoted_at(self) -> str:
        return self.promotion.promoted_at

    @property
    def reason(self) -> str:
        return self.promotion.reason

    @property
    def predecessor(self) -> str | None:
        return self.history[0].release if self.history else None

    def after(self, promotion: Promotion) -> Current:
        """Another release is served."""
        is_forced = promotion.gate is not None and bool(promotion.gate.overridden)
        forced = (promotion, *self.forced) if is_forced else self.forced
        return Current(promotion, (self.promotion, *self.history)[:MAX_HISTORY], forced[:MAX_HISTORY])

    def back(self, promotion: Promotion) -> Current:
        """The predecessor is served again."""
        return Current(promotion, self.history[1:], self.forced)

    @classmethod
    def read(cls, file: Folder) -> Current:
        """What the file says; NotFound if there is none."""
        try:
            content = file.read_json()
        except ValueError as error:
            raise unreadable(error) from error
        return cls.of(content)

    @classmethod
    def of(cls, content: dict[str, Any]) -> Current:
        """From what `to_dict` gave, or a version from before there was a gate."""
        try:
            known = dict(content)
            history = tuple(Promotion.from_dict(entry) for entry in known.pop("history"))
            forced = tuple(Promotion.from_dict(entry) for entry in known.pop("forced", ()))
            del known["predecessor"]  # the first of the history, for who reads the file
            return cls(Promotion.from_dict(known), history, forced)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise unreadable(error) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for the file."""
        content = self.promotion.to_dict() | {"predecessor": self.predecessor}
        content["history"] = [entry.to_dict() for entry in self.history]
        if self.forced:
            content["forced"] = [entry.to_dict() for entry in self.forced]
        return content


def unreadable(error: Exception) -> ArtefactMismatch:
    return ArtefactMismatch(
        f"releases/{CURRENT} cannot be read: {error}",
        expected="what `sonder release promote` writes",
        do="Promote a release again.",
    )
