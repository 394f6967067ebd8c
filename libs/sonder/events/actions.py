"""What an action says about the item: +1 wanted, 0 only shown, -1 unwanted.

Retrieval targets, training positives and interests come from wanted actions; shown ones carry no wish; unwanted ones
count against. A name not listed here is wanted: a log of `listen` or `review` needs no configuration.
"""

from __future__ import annotations

from collections.abc import Mapping

SHOWN = frozenset({"impression", "impressions", "exposure", "shown", "served", "delivered", "send", "sent"})
UNWANTED = frozenset(
    {"hide", "dislike", "skip", "block", "report", "mute", "unsave", "unlike", "unfollow", "remove", "cancel", "refund",
     "return", "returned", "unsubscribe", "not_interested"}
)  # fmt: skip


def action_weight(action: str, configured: Mapping[str, float]) -> float:
    """Weight of an action: the configured one, else by its name."""
    if action in configured:
        return configured[action]
    name = action.lower()
    return 0.0 if name in SHOWN else -1.0 if name in UNWANTED else 1.0
