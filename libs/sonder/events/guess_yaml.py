"""A guess as a commented `sonder.yaml`: every key with its reason, tasks and test window from the log's own span.

Horizon N: the largest of `HORIZONS` of which six fit into the log, because a task needs room to learn, to calibrate and
to be tested. Churn looks twice as far ahead if the log has the room.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import yaml

from sonder.core.input_config import EventsConfig
from sonder.events.actions import action_weight
from sonder.events.column_names import TELLING_ACTIONS, plain
from sonder.events.contract import Col
from sonder.events.public_logs import PACKAGED

HORIZONS = (1, 3, 7, 14, 30, 60, 90)
WINDOWS_PER_LOG = 6
_SIMPLE = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_KEYWORDS = {"true", "false", "yes", "no", "on", "off", "null", "none", "y", "n"}


@dataclass(frozen=True)
class Guess:
    """A configuration of `events:` for a log, with the reasons."""

    config: EventsConfig  # what is written down
    resolved: EventsConfig  # what it comes to
    why: Mapping[str, str]  # by key of `events` and field of `columns`
    actions: Mapping[str, int]  # in the sample
    first_us: int | None  # of the sample; None for an ordinal or an empty log
    last_us: int | None
    hint: str | None
    events: pa.Table  # EVENT_SCHEMA: the mapped sample
    num_aside: int  # rows of the sample that are no events

    @property
    def is_ordinal(self) -> bool:
        return self.resolved.timestamp == "ordinal"

    @property
    def span_days(self) -> float:
        return 0.0 if self.first_us is None or self.last_us is None else (self.last_us - self.first_us) / 86_400e6


def render_config(guess: Guess, workspace: str) -> str:
    """The text of a sonder.yaml that `sonder.core.config.load` accepts."""
    lines = [
        "# Written by `sonder init` from a look at the log. Every guess says why; correct what is wrong.",
        f"workspace: {_scalar(workspace)}",
        "",
        "events:",
        *_events(guess),
        "",
        *_evaluation(guess),
        "",
        *_scores(guess),
        "",
    ]
    return "\n".join(lines)


def horizon_days(span_days: float) -> int | None:
    """The largest horizon of which six fit into the log; None if not even six days are there."""
    return max((days for days in HORIZONS if WINDOWS_PER_LOG * days <= span_days), default=None)


def _events(guess: Guess) -> Iterator[str]:
    config, resolved = guess.config, guess.resolved
    paths = ", ".join(_scalar(path) for path in config.paths)
    yield f"  path: {paths if isinstance(config.path, str) else f'[{paths}]'}"
    yield _with_reason(f"  format: {config.format}", guess.why.get("format"))
    if guess.hint:
        yield f"  # {guess.hint}"
    given = {field: name for field, name in config.columns.model_dump().items() if name}
    if given:
        yield "  columns:"
        for field, name in given.items():
            yield _with_reason(f"    {field}: {_scalar(name)}", guess.why.get(field))
    elif config.format in (*PACKAGED, "online_retail"):
        mapped = {field: name for field, name in resolved.columns.model_dump().items() if name}
        yield f"  # the format maps: {', '.join(f'{field} <- {name}' for field, name in mapped.items())}"
    if config.action:
        yield _with_reason(f"  action: {_scalar(config.action)}", guess.why.get("action"))
    elif config.columns.action is None and resolved.action:
        yield f"  # the action is {resolved.action!r} where no rule of the format says otherwise"
    if config.format in ("csv", "jsonl", "parquet", "arrow"):
        yield _with_reason(f"  timestamp: {_scalar(resolved.timestamp)}", guess.why.get("form"))
    if config.delimiter and config.delimiter != ",":
        yield _with_reason(f"  delimiter: {json.dumps(config.delimiter)}", guess.why.get("delimiter"))
    yield from _weights(guess)


def _weights(guess: Guess) -> Iterator[str]:
    """How the actions of the sample are understood, to be read and corrected."""
    if not guess.actions:
        return
    weights = _weight_of(guess)
    yield "  # 1 wanted, 0 only shown, -1 unwanted; by name where nothing is said, so check these"
    inner = ", ".join(f"{_scalar(action)}: {weights[action]:g}" for action in guess.actions)
    yield f"  action_weights: {{{inner}}}"


def _weight_of(guess: Guess) -> dict[str, float]:
    return {action: action_weight(action, guess.resolved.action_weights) for action in guess.actions}


def telling_action(guess: Guess, weights: Mapping[str, float]) -> str | None:
    """The wanted action that says most: by name, else the rarest that is not too rare to learn."""
    wanted = {action: num for action, num in guess.actions.items() if weights[action] > 0}
    named = [action for known in TELLING_ACTIONS for action in wanted if plain(action) == known]
    if named:
        return named[0]
    frequent = [action for action, num in wanted.items() if num >= 20]
    return min(frequent or wanted, key=lambda action: (wanted[action], action), default=None)


def _evaluation(guess: Guess) -> Iterator[str]:
    if guess.is_ordinal:
        yield "# The log has an order and no clock, so the last item of each user is the test."
        yield "evaluation: {protocol: leave_one_out}"
        return
    days = horizon_days(guess.span_days)
    yield f"# The sample spans {guess.span_days:,.1f} days."
    if days is None:
        yield "# That is too short to train before and test after a moment: the last item of each user is the test."
        yield "evaluation: {protocol: leave_one_out}"
    else:
        yield "# Trained before the last days, tested on them: what production sees."
        yield f"evaluation: {{protocol: temporal, test_days: {days}}}"


def _scores(guess: Guess) -> Iterator[str]:
    days = None if guess.is_ordinal else horizon_days(guess.span_days)
    if days is None:
        yield "# No score tasks: they look days ahead, and the log is too short or has no clock."
        yield "scores: []"
        return
    churn_days = 2 * days if WINDOWS_PER_LOG * 2 * days <= guess.span_days else days
    yield f"# What users will do within the days given; {WINDOWS_PER_LOG} windows of {days} days fit into the log."
    yield "scores:"
    action = telling_action(guess, _weight_of(guess))
    if action is not None:
        yield f"  - {{name: {_task_name(action)}_{days}d, action: {_scalar(action)}, within_days: {days}}}"
    yield f"  - {{name: churn_{churn_days}d, churn: true, within_days: {churn_days}}}"


def _task_name(action: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "_", action.lower()).strip("_")[:48]
    is_free = name[:1].isalpha() and name != "churn"  # the name of the other task
    return name if is_free else f"do_{name or plain(Col.ACTION)}"


def _with_reason(line: str, reason: str | None) -> str:
    return f"{line}  # {''.join(char if char.isprintable() else ' ' for char in reason)}" if reason else line


def _scalar(text: str) -> str:
    """A YAML scalar that reads back as this string."""
    if _SIMPLE.fullmatch(text) and text.lower() not in _KEYWORDS:
        return text
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=sys.maxsize).rstrip("\n")
