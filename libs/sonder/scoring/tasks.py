"""What a score promises: its population, its label, and when it is refused. Points in time: scoring.cutoffs.

kind            population                                    label, from [cutoff, cutoff + N days) alone
action          users with an event before the cutoff         1 if an event of that action, else 0
churn           users with an event in the N days before it   1 if no event at all: who is gone already cannot leave
next_category   users with an event before the cutoff         1 for each category with an event, else 0
value           users with an event before the cutoff         sum of the events' values, not below 0
count           users with an event before the cutoff         number of events
`eligible` narrows the population further. Labels are float64: [U], or [U, K] for the K categories of next_category.
Limits: every event is activity, whatever its action (as in segments.lifecycle).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sonder.core.score_config import ScoreTask
from sonder.events.contract import Col
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.scoring.cutoffs import TaskRefusal

# Users with a label above 0, and users with a label of 0, that a part must hold.
MIN_OF_A_KIND = {"train": 50, "stop": 25, "calibration": 25, "test": 10}


def check_task(task: ScoreTask, vocabulary: Vocabulary, *, is_ordinal: bool) -> TaskRefusal | None:
    """Refuse what no amount of data would make learnable."""
    if is_ordinal:
        return TaskRefusal(task.name, "the log has order but no time: days mean nothing", {})
    for action in [*([task.action] if task.action else []), *task.eligible.did]:
        if action not in vocabulary.actions:
            known = ", ".join(vocabulary.actions)
            return TaskRefusal(task.name, f"no action {action!r} in the log; it has: {known}", {})
    if task.next_category and vocabulary.items.column(Col.CATEGORY).null_count == vocabulary.num_items:
        return TaskRefusal(task.name, "no item of the catalogue has a category", {"items": vocabulary.num_items})
    return None


def outputs_of(
    task: ScoreTask,
    timelines: Timelines,
    vocabulary: Vocabulary,
    *,
    cutoff_us: int,
    excluded_categories: Sequence[str] = (),
) -> tuple[str, ...]:
    """Names of a task's scores: the task's own, or NAME/CATEGORY for the categories with most events before the cutoff.

    `timelines` may be a sample of the users. Categories below an excluded path are left out.
    """
    if not task.next_category:
        return (task.name,)
    history = timelines.before(cutoff_us)
    wanted = history.items[_is_wanted(task, history, vocabulary)]
    events = np.bincount(wanted[wanted >= 0], minlength=vocabulary.num_items)
    categories = vocabulary.items.column(Col.CATEGORY).combine_chunks().cast(pa.string())
    counted = pa.table({"category": categories, "events": events}).group_by("category").aggregate([("events", "sum")])
    counted = counted.filter(pc.and_(pc.is_valid(counted["category"]), pc.greater(counted["events_sum"], 0)))
    ordered = counted.sort_by([("events_sum", "descending"), ("category", "ascending")])
    allowed = [name for name in ordered["category"].to_pylist() if not is_below(name, excluded_categories)]
    return tuple(f"{task.name}/{category}" for category in allowed[: task.next_category])


def is_below(category: str, paths: Sequence[str]) -> bool:
    """Whether a category is one of these paths or lies below one."""
    return any(category == path or category.startswith(f"{path}/") for path in paths)


def check_outputs(task: ScoreTask, outputs: Sequence[str]) -> TaskRefusal | None:
    if len(outputs) < (2 if task.next_category else 1):
        return TaskRefusal(
            task.name, "fewer than two categories have such an event before the test", {"categories": len(outputs)}
        )
    return None


def check_counts(
    task: ScoreTask, outputs: Sequence[str], counts: Mapping[str, tuple[int, NDArray[np.int64]]]
) -> tuple[tuple[str, ...], TaskRefusal | None]:
    """Which outputs have enough of both kinds in every part, and the refusal where too few have.

    `counts` maps a part to (users asked, users with a label above 0 for each output [K]).
    """
    kept = np.ones(len(outputs), dtype=np.bool_)
    refusal = None
    for part, least in MIN_OF_A_KIND.items():
        users, positives = counts[part]
        is_enough = np.minimum(positives, users - positives) >= least
        if refusal is None and not is_enough.any():
            refusal = _too_few(task, part, least, users, int(positives.max(initial=0)))
        kept &= is_enough
    names = tuple(name for name, is_kept in zip(outputs, kept, strict=True) if is_kept)
    if refusal is None and len(names) < (2 if task.next_category else 1):
        reason = "fewer than two categories have enough users with and without an event in every part"
        refusal = TaskRefusal(task.name, reason, {"categories": len(outputs), "enough": len(names)})
    return names, refusal


def _too_few(task: ScoreTask, part: str, least: int, users: int, positives: int) -> TaskRefusal:
    numbers: dict[str, float] = {"users": users, "positives": positives, "negatives": users - positives}
    if users >= 2 * least and positives in (0, users):
        told = "the same for everybody" if positives else "0 for everybody"
        return TaskRefusal(task.name, f"the label is constant: {told} in the {part} rows", numbers)
    return TaskRefusal(
        task.name, f"too few of a kind in the {part} rows: {least} positives and {least} negatives are needed", numbers
    )


def label_task(
    task: ScoreTask, outputs: Sequence[str], timelines: Timelines, vocabulary: Vocabulary, *, cutoff_us: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Who is asked and what came true -> (is_eligible [U], label [U] or [U, K] by `outputs`)."""
    window = timelines.between(cutoff_us, cutoff_us + task.within_days * MICROSECONDS_PER_DAY)
    eligible = eligible_users(task, timelines, vocabulary, cutoff_us=cutoff_us)
    if task.churn:
        return eligible, (window.lengths == 0).astype(np.float64)
    wanted = _is_wanted(task, window, vocabulary)
    users = window.user_rows[wanted]
    if task.next_category:
        return eligible, _category_labels(task, outputs, users, window.items[wanted], timelines.num_users, vocabulary)
    if task.value:
        values = np.nan_to_num(window.values[wanted], nan=0.0, posinf=0.0, neginf=0.0)
        return eligible, np.maximum(np.bincount(users, values, minlength=timelines.num_users), 0.0)
    counts = np.bincount(users, minlength=timelines.num_users).astype(np.float64)
    return eligible, counts if task.count else np.minimum(counts, 1.0)


def _category_labels(
    task: ScoreTask,
    outputs: Sequence[str],
    users_N: NDArray[np.int64],
    items_N: NDArray[np.int32],
    num_users: int,
    vocabulary: Vocabulary,
) -> NDArray[np.float64]:
    categories = vocabulary.items.column(Col.CATEGORY).combine_chunks().cast(pa.string())
    names = pa.array([output.removeprefix(f"{task.name}/") for output in outputs], pa.string())
    places = pc.index_in(categories, value_set=names).fill_null(-1).to_numpy(zero_copy_only=False)
    place_N = np.append(places, -1)[items_N]
    labels = np.zeros((num_users, len(outputs)))
    is_known = place_N >= 0
    labels[users_N[is_known], place_N[is_known]] = 1.0
    return labels


def _is_wanted(task: ScoreTask, events: Timelines, vocabulary: Vocabulary) -> NDArray[np.bool_]:
    """Events that a task's label counts [N]."""
    if task.action is None:
        return np.ones(events.num_events, dtype=np.bool_)
    if task.action not in vocabulary.actions:
        raise ValueError(f"no action {task.action!r} in the vocabulary: check_task refuses such a task")
    is_wanted: NDArray[np.bool_] = events.actions == vocabulary.actions.index(task.action)
    return is_wanted


def eligible_users(
    task: ScoreTask, timelines: Timelines, vocabulary: Vocabulary, *, cutoff_us: int
) -> NDArray[np.bool_]:
    """The population of a task [U] at a cutoff: a function of the events before it.

    An action of `did` that the vocabulary does not know makes nobody eligible.
    """
    active_days = task.eligible.active_within_days
    if task.churn:
        active_days = min(active_days or task.within_days, task.within_days)
    history = timelines.before(cutoff_us)
    is_eligible: NDArray[np.bool_] = history.lengths >= task.eligible.min_events
    if active_days is not None:
        is_eligible &= _has(history, history.times_us >= cutoff_us - active_days * MICROSECONDS_PER_DAY)
    for action in task.eligible.did:
        place = vocabulary.actions.index(action) if action in vocabulary.actions else None
        is_eligible &= False if place is None else _has(history, history.actions == place)
    return is_eligible


def _has(history: Timelines, chosen_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Users [U] with at least one chosen event."""
    chosen: NDArray[np.bool_] = np.bincount(history.user_rows[chosen_N], minlength=history.num_users) > 0
    return chosen
