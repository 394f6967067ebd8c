"""What a probe asks of a vector: questions about the days after a cutoff, derived from the log alone.

Shapes: U users, K outputs of a question, F plain features.
churn                users active in the N days before the cutoff; 1 without any event in the N days after it
category_propensity  users with a wanted event before; 1 for each of the TOP categories (by wanted events before the
                     cutoff) with a wanted event after; where the catalogue has categories
item_propensity      the same of the TOP items
activity             users with an event before; number of events after
value                users with a wanted event before; sum of the values after of the rarest wanted action of which at
                     least half the events have one: what is deepest in the funnel, in one unit
The first three are the tasks of the RecSys Challenge 2025 (churn, category and product propensity), whose windows were
14 days. Who is asked, of what, and every plain feature is a function of the events before the cutoff; labels read the
events of [cutoff, cutoff + N days) alone, by sonder.scoring.tasks.
Limits: an output or a question with fewer than LEAST users of either kind in a part is refused, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sonder.core.ids import digest_bytes, digest_json, unit_interval
from sonder.core.score_config import ScoreTask
from sonder.events.contract import Col
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import ITEM_SCHEMA, Vocabulary
from sonder.scoring.tasks import check_task, label_task, outputs_of

Kind = Literal["binary", "count", "amount"]
TOP = 20
LEAST = 20  # users of either kind, in the training part and in the test part
TEST_SHARE = 0.3
SPLIT_KEY = "sonder/probes/split/1/"
VALUED_SHARE, LEAST_VALUED = 0.5, 100  # of an action's events before the cutoff


@dataclass(frozen=True)
class Planned:
    """A question before its labels: all of it was known at the cutoff."""

    task: ScoreTask
    kind: Kind
    outputs: tuple[str, ...]
    told: str
    vocabulary: Vocabulary  # whose categories are the outputs
    reads_wanted: bool  # the wanted events alone; else every event


@dataclass(frozen=True)
class Question:
    """One question with its answers, of users with a row in `Questions`."""

    name: str
    kind: Kind
    told: str  # in one sentence
    outputs: tuple[str, ...]
    rows_A: NDArray[np.int64]  # who is asked
    labels_AK: NDArray[np.float64]


@dataclass(frozen=True)
class Questions:
    """All that can be asked of these users at one cutoff, and what everybody knows without a vector."""

    user_ids: pl.Series  # [U]
    cutoff_us: int
    within_days: int
    is_test_U: NDArray[np.bool_]
    plain_UF: NDArray[np.float64]
    asked: tuple[Question, ...]
    refused: dict[str, str]

    @cached_property
    def digest(self) -> str:
        """The same for the same users, questions and answers: only then are two encoders compared."""
        users = digest_json([self.user_ids.to_list(), self.cutoff_us, self.within_days])
        answers = [digest_bytes(q.rows_A.tobytes() + q.labels_AK.tobytes()) for q in self.asked]
        return digest_json([users, [question.name for question in self.asked], answers])


def cut_questions(timelines: Timelines, vocabulary: Vocabulary, *, cutoff_us: int, within_days: int) -> Questions:
    """Plan from what lies before the cutoff, label from the `within_days` days after it."""
    user_ids = pl.Series(timelines.user_ids.to_pylist(), dtype=pl.String)
    is_test_U = unit_interval(user_ids, SPLIT_KEY) < TEST_SHARE
    planned, refused = plan_questions(timelines, vocabulary, cutoff_us=cutoff_us, within_days=within_days)
    asked: list[Question] = []
    for plan in planned:
        question, reason = _kept(label(plan, timelines, cutoff_us=cutoff_us), is_test_U)
        if question is None:
            refused[plan.task.name] = reason
        else:
            asked.append(question)
    plain_UF = plain_features(timelines, vocabulary, cutoff_us=cutoff_us)
    return Questions(user_ids, cutoff_us, within_days, is_test_U, plain_UF, tuple(asked), refused)


def plan_questions(
    timelines: Timelines, vocabulary: Vocabulary, *, cutoff_us: int, within_days: int
) -> tuple[list[Planned], dict[str, str]]:
    """Questions and refusals by name: a function of the events before the cutoff."""
    history = timelines.before(cutoff_us)
    days = f"the {within_days} days after"
    active = f"no event in {days}, of users with one in the {within_days} days before"
    churn = ScoreTask(name="churn", churn=True, within_days=within_days)
    activity = ScoreTask(name="activity", count=True, within_days=within_days)
    planned = [
        Planned(churn, "binary", ("churn",), active, vocabulary, reads_wanted=False),
        Planned(activity, "count", ("activity",), f"number of events in {days}", vocabulary, reads_wanted=False),
    ]
    refused: dict[str, str] = {}
    for name, words, read in (
        ("category_propensity", "categories", vocabulary),
        ("item_propensity", "items", _with_items_as_categories(vocabulary)),
    ):
        task = ScoreTask(name=name, next_category=TOP, within_days=within_days)
        refusal = check_task(task, read, is_ordinal=False)
        outputs = () if refusal else outputs_of(task, _wanted(history, vocabulary), read, cutoff_us=cutoff_us)
        if len(outputs) < 2:
            refused[name] = refusal.reason if refusal else f"fewer than two {words} were wanted before the cutoff"
            continue
        told = f"which of the {len(outputs)} {words} most wanted before are wanted in {days}"
        planned.append(Planned(task, "binary", outputs, told, read, reads_wanted=True))
    action = valued_action(history, vocabulary)
    if action is None:
        refused["value"] = f"no wanted action has values on half of at least {LEAST_VALUED} events before the cutoff"
    else:
        task = ScoreTask(name="value", value=True, action=action, within_days=within_days)
        told = f"sum of the values of {action!r} in {days}"
        planned.append(Planned(task, "amount", ("value",), told, vocabulary, reads_wanted=True))
    return planned, refused


def label(plan: Planned, timelines: Timelines, *, cutoff_us: int) -> Question:
    """Who is asked, from the events before the cutoff, and the answers, from those after it."""
    read = _wanted(timelines, plan.vocabulary) if plan.reads_wanted else timelines
    is_asked_U, labels = label_task(plan.task, plan.outputs, read, plan.vocabulary, cutoff_us=cutoff_us)
    rows_A = np.flatnonzero(is_asked_U)
    names = tuple(output.removeprefix(f"{plan.task.name}/") for output in plan.outputs)
    return Question(plan.task.name, plan.kind, plan.told, names, rows_A, labels.reshape(len(labels), -1)[rows_A])


def valued_action(history: Timelines, vocabulary: Vocabulary) -> str | None:
    """The rarest wanted action whose events mostly have values; sums over several actions would mix units."""
    num = len(vocabulary.actions)
    is_known = history.actions >= 0
    events = np.bincount(history.actions[is_known], minlength=num)
    valued = np.bincount(history.actions[is_known & np.isfinite(history.values)], minlength=num)
    fits = (np.array(vocabulary.action_weights) > 0) & (events >= LEAST_VALUED) & (valued >= VALUED_SHARE * events)
    return vocabulary.actions[min(np.flatnonzero(fits), key=lambda row: (events[row], row))] if fits.any() else None


def plain_features(timelines: Timelines, vocabulary: Vocabulary, *, cutoff_us: int) -> NDArray[np.float64]:
    """Recency, frequency, value: log1p of days since the last event, of events, of the sum of `valued_action` [U, F].

    Without values there are two. A user without events has the recency of the cutoff's whole history.
    """
    history = timelines.before(cutoff_us)
    has_events = history.lengths > 0
    first_us = history.times_us.min(initial=cutoff_us)
    last_us = np.full(history.num_users, first_us)
    last_us[has_events] = history.times_us[history.offsets[1:][has_events] - 1]
    columns = [(cutoff_us - last_us) / MICROSECONDS_PER_DAY, history.lengths]
    action = valued_action(history, vocabulary)
    if action is not None:
        is_valued = (history.actions == vocabulary.actions.index(action)) & np.isfinite(history.values)
        money = np.bincount(history.user_rows[is_valued], history.values[is_valued], minlength=history.num_users)
        columns.append(np.maximum(money, 0))
    return np.log1p(np.column_stack(columns))


def _wanted(timelines: Timelines, vocabulary: Vocabulary) -> Timelines:
    return timelines.keep(vocabulary.weight_of(timelines.actions) > 0)


def _with_items_as_categories(vocabulary: Vocabulary) -> Vocabulary:
    """Each item is a category of its own, so that its propensity is asked as a category's is."""
    place = ITEM_SCHEMA.get_field_index(Col.CATEGORY)
    items = vocabulary.items.set_column(place, Col.CATEGORY, vocabulary.items.column(Col.ITEM_ID))
    return replace(vocabulary, items=items)


def _kept(question: Question, is_test_U: NDArray[np.bool_]) -> tuple[Question | None, str]:
    """Only the outputs with enough users of both kinds in both parts; None and why if none is left."""
    is_test_A = is_test_U[question.rows_A]
    happened_AK = question.labels_AK > 0
    fewest_K = np.full(len(question.outputs), np.iinfo(np.int64).max)
    for part_A in (is_test_A, ~is_test_A):
        yes_K = happened_AK[part_A].sum(axis=0)
        of_a_kind = np.minimum(yes_K, part_A.sum() - yes_K) if question.kind == "binary" else yes_K
        fewest_K = np.minimum(fewest_K, of_a_kind)
    is_kept_K = fewest_K >= LEAST
    if not is_kept_K.any():
        most = int(fewest_K.max(initial=0))
        kinds = "users of each outcome" if question.kind == "binary" else "users with any"
        return None, f"{most} {kinds} in a part of {len(question.rows_A):,} users asked, {LEAST} are needed"
    outputs = tuple(name for name, is_kept in zip(question.outputs, is_kept_K, strict=True) if is_kept)
    return replace(question, outputs=outputs, labels_AK=question.labels_AK[:, is_kept_K]), ""


def describe(question: Question, is_test_U: NDArray[np.bool_]) -> dict[str, Any]:
    """Counts of a question, JSON-able."""
    is_test_A = is_test_U[question.rows_A]
    return {
        "asked": question.told,
        "outputs": list(question.outputs),
        "users_train": int((~is_test_A).sum()),
        "users_test": int(is_test_A.sum()),
        "mean_label_test": float(question.labels_AK[is_test_A].mean()),
    }
