"""Text -> tree. The grammar is LALR(1), parsed by lark; what cannot be read is told with its line, column and a caret.

Keywords are read in any case, names as they are. `not` binds tighter than `and`, `and` tighter than `or`.
Limits: 10,000 characters and 50 levels of nesting, so that no rule outgrows a stack.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, NoReturn

from lark import Lark, Token, Transformer, Tree, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedToken, VisitError

from sonder.core.errors import InvalidRule
from sonder.segments.rules.syntax import (
    HOUR_US,
    KEYWORDS,
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

MAX_CHARACTERS = 10_000
MAX_DEPTH = 50
_MAX_DIGITS = 30

GRAMMAR = r"""
start: disjunction
?disjunction: conjunction (_OR conjunction)*
?conjunction: negation (_AND negation)*
?negation: _NOT negation                                          -> negation
    | test
?test: operand COMPARATOR operand                                 -> comparison
    | operand _IN "(" constant ("," constant)* ")"                -> membership
    | operand _NOT _IN "(" constant ("," constant)* ")"           -> non_membership
    | operand _BETWEEN constant _AND constant                     -> between
    | operand _NOT _BETWEEN constant _AND constant                -> non_between
    | operand _IS _NULL                                           -> is_null
    | operand _IS (_NOT _NULL | _KNOWN)                           -> is_known
    | operand
    | "(" disjunction ")"
?operand: field | call | constant
field: NAME ["." (NAME | STRING)]
call: NAME "(" [argument ("," argument)*] ")"
?argument: constant | NAME
constant: NUMBER | STRING | TRUE | FALSE | DATE | DURATION

_AND.2: /and\b/i
_OR.2: /or\b/i
_NOT.2: /not\b/i
_IN.2: /in\b/i
_BETWEEN.2: /between\b/i
_IS.2: /is\b/i
_NULL.2: /null\b/i
_KNOWN.2: /known\b/i
TRUE.2: /true\b/i
FALSE.2: /false\b/i
DATE.4: /[0-9]{4}-[0-9]{2}-[0-9]{2}\b/
DURATION.3: /[0-9]+[hdw]\b/
NUMBER.2: /-?[0-9]+(\.[0-9]+)?/
STRING: /'([^'\n]|'')*'|"[^"\n]*"/
NAME: /(?!(and|or|not|in|between|is|null|known|true|false)\b)[^\W\d]\w*/i
COMPARATOR: /<=|>=|!=|=|<|>/
%ignore /\s+/
"""

_WORDS = {  # what a parser may wait for, in the words and the order of a message
    "NAME": "a field",
    "NUMBER": "a value",
    "COMPARATOR": "a comparison (= != < <= > >=)",
    "_IN": "`in`",
    "_BETWEEN": "`between`",
    "_IS": "`is null`",
    "_AND": "`and`",
    "_OR": "`or`",
    "_NOT": "`not`",
    "_NULL": "`null`",
    "_KNOWN": "`known`",
    "DOT": "`.`",
    "COMMA": "`,`",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "$END": "the end of the rule",
}
_UNITS_US = {"h": HOUR_US, "d": 24 * HOUR_US, "w": 7 * 24 * HOUR_US}


def parse_rule(text: str) -> Node:
    """The tree of a rule, names and types not yet checked; InvalidRule where it cannot be read."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidRule(f"A rule of {len(text):,} characters", expected=f"at most {MAX_CHARACTERS:,}")
    try:
        tree = _parser().parse(text)
        _check_depth(tree, text)
        root: Node = _Builder(text).transform(tree)
    except UnexpectedToken as error:
        _tell_token(error, text)
    except UnexpectedCharacters as error:
        _tell_characters(error, text)
    except VisitError as error:
        raise error.orig_exc from None
    return root


def rule_error(text: str, span: Span, found: str, *, expected: str = "", do: str = "") -> InvalidRule:
    """The error at a place of a rule; `found` is continued with the line and the column (both from 1)."""
    start = min(span.start, len(text))
    line_start = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", start)
    line = text[line_start : len(text) if line_end < 0 else line_end]
    column = start - line_start
    carets = "^" * max(1, min(span.end, line_start + len(line)) - start)
    margin = re.sub(r"[^\t]", " ", line[:column])
    where = f"line {text.count(chr(10), 0, start) + 1}, column {column + 1}"
    return InvalidRule(f"{found} at {where}", expected=expected, do=do, excerpt=f"  {line}\n  {margin}{carets}")


def nearest(name: str, known: Iterable[str]) -> str:
    """`Did you mean 'core'?`, or nothing where no known name is like it."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}?" if close else ""


@lru_cache(maxsize=1)
def _parser() -> Lark:
    return Lark(GRAMMAR, parser="lalr", propagate_positions=True, maybe_placeholders=False)


def _check_depth(tree: Tree[Token], text: str) -> None:
    waiting = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        if depth > MAX_DEPTH:
            span = Span(node.meta.start_pos, node.meta.end_pos)
            raise rule_error(text, span, "Too deep a nesting", expected=f"at most {MAX_DEPTH} levels")
        waiting.extend((child, depth + 1) for child in node.children if isinstance(child, Tree))


def _tell_token(error: UnexpectedToken, text: str) -> NoReturn:
    token = error.token
    if token.type == "$END":
        raise rule_error(text, Span(len(text), len(text)), "The rule ends", expected=_waited_for(error)) from None
    start = token.start_pos or 0
    do = ""
    if token.type == "_NULL":
        do = "Whether a value is unknown is asked with `is null`."
    elif token.type == "NAME":
        allowed = [word for word in KEYWORDS if {f"_{word.upper()}", word.upper()} & error.accepts]
        do = nearest(token.lower(), allowed)
    span = Span(start, start + len(token))
    raise rule_error(text, span, f"Unexpected {str(token)!r}", expected=_waited_for(error), do=do) from None


def _tell_characters(error: UnexpectedCharacters, text: str) -> NoReturn:
    start = error.pos_in_stream or 0
    if text[start] in "'\"":
        span = Span(start, len(text))
        raise rule_error(text, span, "A text that does not end", expected=f"a closing {text[start]}") from None
    raise rule_error(text, Span(start, start + 1), f"Unexpected {text[start]!r}", expected="a rule") from None


def _waited_for(error: UnexpectedToken) -> str:
    words = [word for terminal, word in _WORDS.items() if terminal in error.accepts]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


@v_args(meta=True)
class _Builder(Transformer[Token, Any]):
    """lark's tree -> ours."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def start(self, meta: Any, parts: list[Node]) -> Node:
        return parts[0]

    def disjunction(self, meta: Any, parts: list[Node]) -> Node:
        return Or(_flat(Or, parts), _span(meta))

    def conjunction(self, meta: Any, parts: list[Node]) -> Node:
        return And(_flat(And, parts), _span(meta))

    def negation(self, meta: Any, parts: list[Node]) -> Node:
        return Not(parts[0], _span(meta))

    def comparison(self, meta: Any, parts: list[Any]) -> Node:
        left, operator, right = parts
        return Comparison(left, str(operator), right, _span(meta))

    def membership(self, meta: Any, parts: list[Any]) -> Node:
        return Membership(parts[0], tuple(parts[1:]), _span(meta))

    def non_membership(self, meta: Any, parts: list[Any]) -> Node:
        return Not(self.membership(meta, parts), _span(meta))

    def between(self, meta: Any, parts: list[Any]) -> Node:
        operand, least, most = parts
        return Between(operand, least, most, _span(meta))

    def non_between(self, meta: Any, parts: list[Any]) -> Node:
        return Not(self.between(meta, parts), _span(meta))

    def is_null(self, meta: Any, parts: list[Operand]) -> Node:
        return IsNull(parts[0], _span(meta))

    def is_known(self, meta: Any, parts: list[Operand]) -> Node:
        return Not(self.is_null(meta, parts), _span(meta))

    def field(self, meta: Any, parts: list[Token]) -> Field:
        key = None if len(parts) == 1 else _unquoted(parts[1])
        return Field(str(parts[0]), key, span=_span(meta))

    def call(self, meta: Any, parts: list[Any]) -> Field:
        name, arguments = str(parts[0]), parts[1:]
        texts = [str(a.value) for a in arguments if isinstance(a, Constant) and a.type is Type.TEXT]
        texts += [str(a) for a in arguments if isinstance(a, Token)]
        windows = [a.value for a in arguments if isinstance(a, Constant) and a.type is Type.DURATION]
        in_order = [*texts, *windows] == [str(a) if isinstance(a, Token) else a.value for a in arguments]
        if not arguments or len(texts) > 1 or len(windows) > 1 or not in_order:
            raise rule_error(
                self.text,
                _span(meta),
                f"{name}(…) does not take this",
                expected="a name, a duration, or both, such as count(save, 28d) or interest('garden/tools')",
            )
        return Field(name, texts[0] if texts else None, int(windows[0]) if windows else None, span=_span(meta))

    def constant(self, meta: Any, parts: list[Token]) -> Constant:
        token, span = parts[0], _span(meta)
        match token.type:
            case "NUMBER":
                return Constant(self._number(token, span), Type.NUMBER, span)
            case "STRING":
                return Constant(_unquoted(token), Type.TEXT, span)
            case "DATE":
                return Constant(self._midnight_us(token, span), Type.DATE, span)
            case "DURATION":
                return Constant(self._duration_us(token, span), Type.DURATION, span)
        return Constant(token.type == "TRUE", Type.TRUTH, span)

    def _number(self, token: Token, span: Span) -> float:
        if len(token) > _MAX_DIGITS:
            raise rule_error(self.text, span, "A number too long", expected=f"at most {_MAX_DIGITS} characters")
        return float(token)

    def _midnight_us(self, token: Token, span: Span) -> int:
        try:
            return int(datetime.fromisoformat(token).replace(tzinfo=UTC).timestamp()) * 1_000_000
        except ValueError:
            raise rule_error(self.text, span, f"No day {token!s}", expected="a date, YYYY-MM-DD") from None

    def _duration_us(self, token: Token, span: Span) -> int:
        hours = int(self._number(Token("NUMBER", token[:-1]), span)) * _UNITS_US[token[-1]] // HOUR_US
        if not 1 <= hours <= 24 * 36_500:
            raise rule_error(self.text, span, f"A duration of {token!s}", expected="1h to 36500d")
        return hours * HOUR_US


def _span(meta: Any) -> Span:
    return Span(meta.start_pos, meta.end_pos)


def _flat(kind: type[And] | type[Or], parts: list[Node]) -> tuple[Node, ...]:
    """Parentheses around the same connective change nothing."""
    return tuple(inner for part in parts for inner in (part.parts if isinstance(part, kind) else (part,)))


def _unquoted(token: Token) -> str:
    if token.type != "STRING":
        return str(token)
    return str(token[1:-1]).replace("''", "'") if token[0] == "'" else str(token[1:-1])
