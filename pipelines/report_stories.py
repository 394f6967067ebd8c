"""The example users of the report: `pipelines.story` tells them, here they become what the page shows."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.story import pick_users, tell_story
from sonder.core.config import ScoreTask, SonderConfig
from sonder.core.storage import Folder
from sonder.evaluation.report_content import Story, StoryEvent, StoryInterest, StoryLeaning, StoryScore

NUM_STORIES = 2


def tell_stories(config: SonderConfig, target: Folder, history: Folder, profiles: Sequence[Folder]) -> list[Story]:
    """Stories of a few users worth showing, from a release that may still be staged."""
    return [_story(config, target, history, user_id) for user_id in pick_users(profiles, NUM_STORIES)]


def promise_of(task: ScoreTask) -> str:
    """Completes the sentence `the chance that a user …`."""
    if task.churn:
        return f"shows no activity for {task.within_days} days"
    return f"does `{task.action}` within {task.within_days} days"


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
    promises = {task.name: promise_of(task) for task in config.scores}
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
        scores=[
            StoryScore(s["name"], promises[s["name"]], s["value"], [d["reason"] for d in s["drivers"] or []])
            for s in profile["scores"]
        ],
        cluster=profile["segments"]["cluster"],
        likes=[StoryLeaning(like.category, like.share, like.lift, like.is_refused) for like in told.likes],
        dislikes=[StoryLeaning(less.category, less.share, less.lift, less.is_refused) for less in told.dislikes],
        attributes=told.attributes,
        consent=told.consent,
        recommendations=[item.title or item.item_id for item in told.recommendations],
    )
