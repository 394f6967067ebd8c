"""The tree of a rule: what the parser makes, the checker resolves, and both evaluations walk.

A tree compares equal to another if they mean the same, wherever the text of each stood; `canonical` writes a tree back
as text (one space, lower-case keywords, single quotes), so equal trees have equal texts.
Times are microseconds since 1970 in UTC; windows are microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

__all__ = [
    "HOUR_US",
    "KEYWORDS",
    "And",
    "Between",
    "Comparison",
    "Constant",
    "Field",
    "IsNull",
    "Membership",
    "Node",
    "Not",
    "Operand",
    "Or",
    "Span",
    "Type",
    "Value",
    "canonical",
    "fields_of",
]

HOUR_US = 3_600_000_000
KEYWORDS = ("and", "or", "not", "in", "between", "is", "null", "known", "true", "false")
Value = float | str | bool


class Type(StrEnum):
    """Types of values; the names are the words of the messages."""

    NUMBER = "a number"
    TEXT = "a text"
    TRUTH = "true or false"
    DATE = "a date"
    DURATION = "a duration"


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of the rule's text."""

    start: int
    end: int


_span = field(default=Span(0, 0), compare=False)


@dataclass(frozen=True)
class Constant:
    """What stands in the rule itself; a date is its midnight in microseconds, a duration its microseconds."""

    value: Value
    type: Type
    span: Span = _span


@dataclass(frozen=True)
class Field:
    """A value that differs by user. `column` is its name in the tables and mappings that rules are evaluated on."""

    kind: str  # a name of schema.PLAIN, schema.KEYED or schema.CALLS
    key: str | None = None  # name of a score, path of a category, action of a count
    window_us: int | None = None
    type: Type | None = None  # None until checked
    span: Span = _span

    @property
    def column(self) -> str:
        """Unique by what is read: an attribute that is read as a number is another column than its text."""
        return f"number({self.text})" if self.kind == "attribute" and self.type is Type.NUMBER else self.text

    @property
    def text(self) -> str:
        """As an analyst writes it."""
        if self.window_us is not None:
            return f"{self.kind}({'' if self.key is None else _quoted(self.key) + ', '}{_duration(self.window_us)})"
        if self.kind in ("interest", "affinity"):
            return f"{self.kind}({_quoted(self.key or '')})"
        if self.key is None:
            return self.kind
        is_name = self.key.isidentifier() and self.key.lower() not in KEYWORDS
        return f"{self.kind}.{self.key if is_name else _quoted(self.key)}"


Operand = Field | Constant


@dataclass(frozen=True)
class Comparison:
    left: Operand
    operator: str  # = != < <= > >=
    right: Operand
    span: Span = _span


@dataclass(frozen=True)
class Membership:
    operand: Operand
    choices: tuple[Constant, ...]
    span: Span = _span


@dataclass(frozen=True)
class Between:
    """Both ends belong to it."""

    operand: Operand
    least: Constant
    most: Constant
    span: Span = _span


@dataclass(frozen=True)
class IsNull:
    operand: Operand
    span: Span = _span


@dataclass(frozen=True)
class Not:
    part: Node
    span: Span = _span


@dataclass(frozen=True)
class And:
    parts: tuple[Node, ...]
    span: Span = _span


@dataclass(frozen=True)
class Or:
    parts: tuple[Node, ...]
    span: Span = _span


Node = And | Or | Not | Comparison | Membership | Between | IsNull | Field | Constant


def fields_of(node: Node) -> Iterator[Field]:
    """Every field of a tree, as often as it is read, in the order of the text."""
    match node:
        case Field():
            yield node
        case Constant():
            pass
        case And(parts) | Or(parts):
            for part in parts:
                yield from fields_of(part)
        case Not(part):
            yield from fields_of(part)
        case Comparison(left, _, right):
            yield from (*fields_of(left), *fields_of(right))
        case Membership(operand) | Between(operand) | IsNull(operand):
            yield from fields_of(operand)


def canonical(node: Node) -> str:
    """The text that means this tree, however it was written."""
    match node:
        case Field():
            return node.text
        case Constant(value, type_):
            return _constant(value, type_)
        case And(parts):
            return " and ".join(_inside(part, Or) for part in parts)
        case Or(parts):
            return " or ".join(canonical(part) for part in parts)
        case Not(IsNull(operand)):
            return f"{canonical(operand)} is known"
        case Not(part):
            return f"not {_inside(part, (And, Or))}"
        case Comparison(left, operator, right):
            return f"{canonical(left)} {operator} {canonical(right)}"
        case Membership(operand, choices):
            return f"{canonical(operand)} in ({', '.join(canonical(choice) for choice in choices)})"
        case Between(operand, least, most):
            return f"{canonical(operand)} between {canonical(least)} and {canonical(most)}"
        case IsNull(operand):
            return f"{canonical(operand)} is null"


def _inside(node: Node, weaker: type | tuple[type, ...]) -> str:
    """In parentheses where the text would mean something else without them."""
    return f"({canonical(node)})" if isinstance(node, weaker) else canonical(node)


def _constant(value: Value, type_: Type) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if type_ is Type.DATE:
        return f"{datetime.fromtimestamp(value / 1_000_000, tz=UTC):%Y-%m-%d}"
    if type_ is Type.DURATION:
        return _duration(int(value))
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _duration(window_us: int) -> str:
    hours = window_us // HOUR_US
    return f"{hours // 24}d" if hours % 24 == 0 else f"{hours}h"
