"""A rule that was read and checked: what the rest of Sonder holds in its hands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import polars as pl

from sonder.segments.rules.checking import check_rule
from sonder.segments.rules.compiling import compile_rule
from sonder.segments.rules.evaluating import evaluate_rule
from sonder.segments.rules.grammar import parse_rule
from sonder.segments.rules.schema import OPEN_SCHEMA, RuleSchema
from sonder.segments.rules.syntax import Field, Node, Value, canonical, fields_of


@dataclass(frozen=True)
class Rule:
    """Two rules are equal if they mean the same, however they were written."""

    tree: Node

    @classmethod
    def parse(cls, text: str, schema: RuleSchema = OPEN_SCHEMA) -> Rule:
        """Read and check; InvalidRule with line, column and caret for what cannot be read or does not fit."""
        return cls(check_rule(parse_rule(text), text, schema))

    @property
    def text(self) -> str:
        """The rule in its canonical writing."""
        return canonical(self.tree)

    @property
    def fields(self) -> tuple[Field, ...]:
        """What it reads, each once, in the order of the text."""
        return tuple({field.column: field for field in fields_of(self.tree)}.values())

    def expression(self) -> pl.Expr:
        """Over a frame with a column for each of `fields`: true, false, or null where unknown."""
        return compile_rule(self.tree)

    def holds(self, values: Mapping[str, Value | None]) -> bool | None:
        """The same for one user."""
        return evaluate_rule(self.tree, values)


def fields_of_rules(rules: Iterable[Rule]) -> tuple[Field, ...]:
    """What some rules read together, each once."""
    return tuple({field.column: field for rule in rules for field in rule.fields}.values())
