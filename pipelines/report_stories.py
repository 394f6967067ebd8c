"""The example users of the report: `pipelines.story` tells them, here they become what the page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.story import pick_users, tell_story
from sonder.core.config import SonderConfig
from sonder.core.score_config import ScoreTask
from sonder.core.storage import Folder
from sonder.evaluation.report_content import Story, StoryEvent, StoryInterest, StoryLeaning, StoryScore

NUM_STORIES = 2


def tell_stories(config: SonderConfig, target: Folder, history: Folder, profiles: Sequence[Folder]) -> list[Story]:
    """Stories of a few users worth showing, from a release that may still be staged."""
    return [_story(config, target, history, user_id) for user_id in pick_users(profiles, NUM_STORIES)]


def promise_of(task: ScoreTask) -> str:
    """Completes the sentence `the chance that a user …`, or says which amount is expected."""
    days, action = f"within {task.within_days} days", f"of ‘{task.action}’ " if task.action else ""
    match task.kind:
        case "churn":
            return f"shows no activity for {task.within_days} days"
        case "next_category":
            return f"has an event {action}in the category {days}"
        case "value":
            return f"expected sum of values {action}{days}"
        case "count":
            return f"expected number of events {action}{days}"
    return f"does ‘{task.action}’ {days}"


def _is_told(score: Mapping[str, Any]) -> bool:
    """Of a score for each category the leading one alone, which has drivers."""
    return "/" not in score["name"] or bool(score["drivers"])


def _score(task: ScoreTask, score: Mapping[str, Any]) -> StoryScore:
    told = f"{100 * score['value']:.1f} %" if task.is_probability else f"{score['value']:,.2f}"
    promise = f"chance that the user {promise_of(task)}" if task.is_probability else promise_of(task)
    return StoryScore(score["name"], promise, told, [driver["reason"] for driver in score["drivers"] or []])


def _story(config: SonderConfig, target: Folder, history: Folder, user_id: str) -> Story:
    told = tell_story(
        target,
        history,
        user_id,
        release_id="",
        protocol=config.evaluation.protocol,
        sensitive=config.users.sensitive if config.users is not None else (),
    )
    profile = told.profile
    tasks = {task.name: task for task in config.scores}
    return Story(
        user_id=user_id,
        lifecycle=profile["segments"]["lifecycle"],
        num_events=profile["num_events"],
        first_event=f"{profile['first_seen']:%Y-%m-%d}",
        last_event=f"{profile['last_seen']:%Y-%m-%d}",
        events=[
            StoryEvent(f"{moment.time:%Y-%m-%d %H:%M}", moment.action, moment.title or moment.item_id, moment.category)
            for moment in reversed(told.timeline)
        ],
        interests=[
            StoryInterest(i["name"], i["category"], i["weight"], i["state"], i["num_events"])
            for i in profile["interests"]
        ],
        scores=[_score(tasks[s["name"].split("/")[0]], s) for s in profile["scores"] if _is_told(s)],
        cluster=profile["segments"]["cluster"],
        likes=[StoryLeaning(like.category, like.share, like.lift, like.is_refused) for like in told.likes],
        dislikes=[StoryLeaning(less.category, less.share, less.lift, less.is_refused) for less in told.dislikes],
        attributes=told.attributes,
        consent=told.consent,
        recommendations=[item.title or item.item_id for item in told.recommendations],
    )
