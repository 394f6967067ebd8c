"""Tree -> one Polars expression over a frame whose columns are named by `Field.column`.

Columns: numbers Float64 without NaN, texts String, truths Boolean, dates Int64 (microseconds); null is unknown.
Polars' logic over nulls is the three-valued one that the language promises, so nothing is filled in.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import polars as pl

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
    Or,
    Type,
)

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
POLARS_TYPES: dict[Type, Any] = {
    Type.NUMBER: pl.Float64,
    Type.TEXT: pl.String,
    Type.TRUTH: pl.Boolean,
    Type.DATE: pl.Int64,
}


def compile_rule(node: Node) -> pl.Expr:
    """Boolean expression: true, false, or null where unknown."""
    match node:
        case Field():
            return pl.col(node.column)
        case Constant(value, type_):
            return pl.lit(value, dtype=POLARS_TYPES[type_])
        case And(parts):
            return pl.all_horizontal(compile_rule(part) for part in parts)
        case Or(parts):
            return pl.any_horizontal(compile_rule(part) for part in parts)
        case Not(part):
            return ~compile_rule(part)
        case Comparison(left, sign, right):
            compared: pl.Expr = OPERATORS[sign](compile_rule(left), compile_rule(right))
            return compared
        case Membership(operand, choices):
            values = pl.Series([choice.value for choice in choices], dtype=POLARS_TYPES[choices[0].type])
            return compile_rule(operand).is_in(values.implode())
        case Between(operand, least, most):
            return compile_rule(operand).is_between(compile_rule(least), compile_rule(most))
        case IsNull(operand):
            return compile_rule(operand).is_null()
