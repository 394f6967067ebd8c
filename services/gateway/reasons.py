"""What a profile rests on, in sentences: drivers of a score, size and evidence of an interest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def explain_score(score: Mapping[str, Any]) -> str:
    """One score of a profile as a sentence: how high, against whom, and why."""
    told = f"{score['name']} is {score['value']:.3f}"
    if score["base_rate"]:
        told += f", {score['value'] / score['base_rate']:.1f} times the base rate of {score['base_rate']:.3f}"
    drivers = ", ".join(f"{driver['reason']} ({driver['contribution']:+.2f})" for driver in score["drivers"] or ())
    return f"{told}; mostly because: {drivers}." if drivers else f"{told}."


def explain_interest(interest: Mapping[str, Any]) -> str:
    """One interest of a profile as a sentence: what, how much, how often, and why it is in its state."""
    medoid = interest["title"] or interest["medoid_item_id"]
    around = "" if medoid == interest["name"] else f" around {medoid}"
    return (
        f"Interest {interest['rank']} ({interest['weight']:.0%}), {interest['name']}: {interest['num_events']} events"
        f"{around}, {interest['events_per_week']:.1f} a week, the last {interest['recency_days']:.0f} days before "
        f"as_of; {interest['state']}: {_evidence(interest)}."
    )


def _evidence(interest: Mapping[str, Any]) -> str:
    """What the state of an interest rests on, as `sonder.interests.states` decides it."""
    recent = f"the last {interest['recent_days']:.0f} days"
    if interest["state"] == "new":
        return f"all of it is of {recent}"
    if interest["num_recent"] == 0:
        return f"none of these events is of {recent}"
    return (
        f"{interest['num_recent']} of these events are of {recent}, about {interest['recent_share']:.0%} of all that "
        f"the user wanted then and {interest['earlier_share']:.0%} of what it wanted before"
    )
