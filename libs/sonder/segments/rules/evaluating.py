"""The readable meaning of a rule: the same tree on the values of one user, where the online path has no table.

tests/sonder/segments/rules hold the compiled expression to this, over random rules and random values with unknowns.
"""

from __future__ import annotations

from collections.abc import Mapping

from sonder.segments.rules.compiling import OPERATORS
from sonder.segments.rules.syntax import (
    And,
    Between,
    Comparison,
    Field,
    IsNull,
    Membership,
    Node,
    Not,
    Operand,
    Or,
    Value,
)


def evaluate_rule(node: Node, values: Mapping[str, Value | None]) -> bool | None:
    """True, false, or None where unknown. `values` holds each field of the rule by `Field.column`, None if unknown."""
    match node:
        case And(parts):
            return _all([evaluate_rule(part, values) for part in parts])
        case Or(parts):
            return _not(_all([_not(evaluate_rule(part, values)) for part in parts]))
        case Not(part):
            return _not(evaluate_rule(part, values))
        case IsNull(operand):
            return _value(operand, values) is None
        case Comparison(left, sign, right):
            return _compare(sign, _value(left, values), _value(right, values))
        case Membership(operand, choices):
            value = _value(operand, values)
            return None if value is None else value in [choice.value for choice in choices]
        case Between(operand, least, most):
            value = _value(operand, values)
            return _all([_compare(">=", value, least.value), _compare("<=", value, most.value)])
    truth = _value(node, values)
    assert truth is None or isinstance(truth, bool), "the checker lets only truths stand alone"
    return truth


def _value(operand: Operand, values: Mapping[str, Value | None]) -> Value | None:
    return values[operand.column] if isinstance(operand, Field) else operand.value


def _compare(sign: str, left: Value | None, right: Value | None) -> bool | None:
    return None if left is None or right is None else bool(OPERATORS[sign](left, right))


def _not(truth: bool | None) -> bool | None:
    return None if truth is None else not truth


def _all(truths: list[bool | None]) -> bool | None:
    if False in truths:
        return False
    return None if None in truths else True
