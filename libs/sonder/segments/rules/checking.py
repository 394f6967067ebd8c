"""Names and types of a tree against a schema; what does not fit is told with its place.

The tree comes back with the type of every field filled in: an attribute is a text, and a number where it is compared
with one. The first mistake in the order of the text is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from sonder.core.errors import InvalidRule
from sonder.segments.rules.grammar import nearest, rule_error
from sonder.segments.rules.schema import CALLS, KEYED, PATHS, PLAIN, WINDOWED, RuleSchema
from sonder.segments.rules.syntax import (
    And,
    Between,
    Comparison,
    Constant,
    Field,
    IsNull,
    Membership,
    Node,
    Not,
    Operand,
    Or,
    Span,
    Type,
)

T = TypeVar("T", bound=Operand)
_NAMES_TOLD = 12
_NAMES_COMPARED = 20_000  # likeness is quadratic; past it a typing mistake is told without a guess
_ORDERED = (Type.NUMBER, Type.DATE)


def check_rule(root: Node, text: str, schema: RuleSchema) -> Node:
    """The tree with its types; InvalidRule for a name that the schema does not know or a type that does not fit."""
    return _Checker(text, schema).truth(root)


class _Checker:
    def __init__(self, text: str, schema: RuleSchema) -> None:
        self.text, self.schema = text, schema

    def truth(self, node: Node) -> Node:
        """A part of a rule that is true or false."""
        match node:
            case And(parts, span):
                return And(tuple(self.truth(part) for part in parts), span)
            case Or(parts, span):
                return Or(tuple(self.truth(part) for part in parts), span)
            case Not(part, span):
                return Not(self.truth(part), span)
            case Comparison():
                return self._comparison(node)
            case Membership(operand, choices, span):
                operand = self._against(self._varying(operand), choices)
                return Membership(operand, tuple(self._fits(choice, operand) for choice in choices), span)
            case Between(operand, least, most, span):
                operand = self._against(self._varying(operand), (least, most))
                self._is_ordered(operand, span)
                return Between(operand, self._fits(least, operand), self._fits(most, operand), span)
            case IsNull(operand, span):
                return IsNull(self._varying(operand), span)
        operand = self._varying(node)
        if operand.type is not Type.TRUTH:
            raise self._error(operand.span, f"{operand.text} alone is {operand.type}", expected="a comparison")
        return operand

    def _comparison(self, node: Comparison) -> Comparison:
        left, right = node.left, node.right
        if isinstance(left, Constant) and isinstance(right, Constant):
            raise self._error(node.span, "A comparison of two values", expected="a field on one side")
        left, right = (self._field(side) if isinstance(side, Field) else side for side in (left, right))
        if isinstance(left, Field):
            left = self._against(left, (right,))
        if isinstance(right, Field):
            right = self._against(right, (left,))
        if isinstance(left, Field):
            right = self._fits(right, left)
        else:
            assert isinstance(right, Field)
            left = self._fits(left, right)
        if node.operator not in ("=", "!="):
            self._is_ordered(left, node.span)
        return Comparison(left, node.operator, right, node.span)

    def _against(self, operand: Field, others: Iterable[Operand]) -> Field:
        """An attribute is a number where a number stands beside it."""
        if operand.kind == "attribute" and any(other.type is Type.NUMBER for other in others):
            return replace(operand, type=Type.NUMBER)
        return operand

    def _fits(self, value: T, operand: Field) -> T:
        if value.type is not operand.type:
            raise self._error(value.span, f"{str(value.type).capitalize()}", expected=f"{operand.type}: {operand.text}")
        choices = self.schema.values_of(operand.kind)
        if isinstance(value, Constant) and choices is not None and value.value not in choices:
            raise self._unknown(value.span, f"No {operand.kind} {value.value!r}", str(value.value), choices)
        return value

    def _is_ordered(self, operand: Operand, span: Span) -> None:
        if operand.type not in _ORDERED:
            raise self._error(
                span, f"{operand.type} has no order".capitalize(), expected="=, != or in (…) for it, or a number"
            )

    def _varying(self, operand: Node) -> Field:
        if isinstance(operand, Field):
            return self._field(operand)
        span = operand.span
        raise self._error(span, f"{self.text[span.start : span.end]!r} alone", expected="a field, or a comparison")

    def _field(self, field: Field) -> Field:
        kind = field.kind
        is_call = self.text[field.span.end - 1] == ")"
        known = CALLS if is_call else {**PLAIN, **KEYED}
        if kind not in known:
            everything = {**PLAIN, **KEYED, **CALLS}
            if kind in everything:
                raise self._error(field.span, f"{kind!r} is not read like this", expected=_form(kind))
            raise self._unknown(field.span, f"No field {kind!r}", kind, everything)
        needs_key = kind in KEYED or kind in PATHS
        if (field.key is None) is needs_key and kind not in WINDOWED:
            raise self._error(field.span, f"{kind!r} {'without' if needs_key else 'with'} a name", expected=_form(kind))
        if (field.window_us is None) is (kind in WINDOWED):
            told = "without" if field.window_us is None else "with"
            raise self._error(field.span, f"{kind!r} {told} a duration", expected=_form(kind))
        key = field.key.rstrip("/") if field.key and kind in PATHS else field.key
        names = self.schema.names_of(kind)
        if key is not None and names is not None and key not in names:
            what = "category or item" if kind in PATHS else "action" if kind in WINDOWED else kind
            raise self._unknown(field.span, f"No {what} {key!r}", key, names)
        return replace(field, key=key, type=known[kind])

    def _unknown(self, span: Span, found: str, name: str, known: Iterable[str]) -> InvalidRule:
        names = sorted(known)
        guess = nearest(name, names) if len(names) <= _NAMES_COMPARED else ""
        told = ", ".join(names[:_NAMES_TOLD]) + (f" and {len(names) - _NAMES_TOLD:,} more" * (len(names) > _NAMES_TOLD))
        return self._error(span, found, expected=f"one of {told}" if names else "nothing: there is none", do=guess)

    def _error(self, span: Span, found: str, *, expected: str, do: str = "") -> InvalidRule:
        return rule_error(self.text, span, found, expected=expected, do=do)


def _form(kind: str) -> str:
    if kind in KEYED:
        return f"{kind}.NAME"
    if kind in PATHS:
        return f"{kind}('category/below')"
    return f"{kind}(ACTION, 28d) or {kind}(28d)" if kind in WINDOWED else kind
