"""The error tree. Every message has three parts: what was found, what was expected, what to do.

SonderError                    HTTP status when it reaches the gateway
├── ConfigurationError         500   the configuration file or an override is wrong
├── DataError                  500   a log, a catalogue or an artefact is not what it says it is
│   ├── TooManyBadRows         500   the quarantine passed `events.max_bad_fraction`
│   └── ArtefactMismatch       500   a digest, a fingerprint or a schema does not match
├── NotFound                   404   a user, an item, a release or a snapshot does not exist
├── InvalidRequest             422   the caller's request breaks the contract
│   └── InvalidRule            422   the rule of an audience cannot be read, or does not fit the data
├── PromotionRefused           409   a release breaks what its consumers rely on
├── NotReady                   503   a release is not loaded yet
├── StorageError               500   the store of the workspace refuses: no bucket, no access, another clock
│   └── StorageUnavailable     503   it does not answer
└── StageUnavailable           503   a stage of the request path failed or ran out of time
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "ArtefactMismatch",
    "ConfigurationError",
    "DataError",
    "InvalidRequest",
    "InvalidRule",
    "NotFound",
    "NotReady",
    "PromotionRefused",
    "SonderError",
    "StageUnavailable",
    "StorageError",
    "StorageUnavailable",
    "TooManyBadRows",
]


class SonderError(Exception):
    """Any error that Sonder raises on purpose. `status` is the HTTP status of its problem document."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Sonder failed"

    def __init__(self, found: str, *, expected: str = "", do: str = "") -> None:
        self.found, self.expected, self.do = found, expected, do
        parts = [found, f"Expected: {expected}" if expected else "", do]
        super().__init__(" ".join(part if part.endswith((".", "!", "?")) else f"{part}." for part in parts if part))

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip from a Ray worker with all three parts."""
        return _rebuild, (type(self), self.found, self.expected, self.do)


def _rebuild(kind: type[SonderError], found: str, expected: str, do: str) -> SonderError:
    return kind(found, expected=expected, do=do)


class ConfigurationError(SonderError):
    title = "Configuration is wrong"


class DataError(SonderError):
    title = "Data is not what it says it is"


class TooManyBadRows(DataError):
    title = "Too many bad rows"


class ArtefactMismatch(DataError):
    title = "Artefact does not match"


class NotFound(SonderError):
    status = 404
    title = "Not found"


class InvalidRequest(SonderError):
    status = 422
    title = "Request is invalid"


class InvalidRule(InvalidRequest):
    """`excerpt` is the line of the rule with a caret under each offending character; it ends the message."""

    title = "The rule of an audience is invalid"

    def __init__(self, found: str, *, expected: str = "", do: str = "", excerpt: str = "") -> None:
        super().__init__(found, expected=expected, do=do)
        self.excerpt = excerpt

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.excerpt}" if self.excerpt else super().__str__()

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_rule_error, (self.found, self.expected, self.do, self.excerpt)


def _rebuild_rule_error(found: str, expected: str, do: str, excerpt: str) -> InvalidRule:
    return InvalidRule(found, expected=expected, do=do, excerpt=excerpt)


class PromotionRefused(SonderError):
    """`reasons` has one sentence for each broken promise; they end the message, a line each."""

    status = 409
    title = "Promotion is refused"

    def __init__(self, found: str, *, expected: str = "", do: str = "", reasons: tuple[str, ...] = ()) -> None:
        super().__init__(found, expected=expected, do=do)
        self.reasons = reasons

    def __str__(self) -> str:
        return "\n  ".join((super().__str__(), *self.reasons))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_refusal, (self.found, self.expected, self.do, self.reasons)


def _rebuild_refusal(found: str, expected: str, do: str, reasons: tuple[str, ...]) -> PromotionRefused:
    return PromotionRefused(found, expected=expected, do=do, reasons=reasons)


class NotReady(SonderError):
    status = 503
    title = "Not ready"


class StorageError(SonderError):
    title = "The store of the workspace refuses"


class StorageUnavailable(StorageError):
    status = 503
    title = "The store of the workspace does not answer"


class StageUnavailable(SonderError):
    status = 503
    title = "A stage is unavailable"
