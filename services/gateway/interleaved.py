"""Two recommendation answers in one list: the answer that a user of an interleaved experiment gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from sonder.experiments.interleaving import interleave

Slots = list[tuple[str, str]]  # item_id, team: a (of the control), b, none


def merged(control: bytes, other: bytes, k: int, coin: Callable[[int], float]) -> tuple[bytes, Slots]:
    """The list of both arms and who put what there -> answer, slots.

    Everything around the list is the control's, and so is the item where both have it; `score` is the one of the
    ranking that an item came from. Where an arm has no ranking of its own (a cold user, retrieval that does not answer)
    nothing is compared: the answer is that of an arm which has one, and there are no slots.
    """
    first, second = orjson.loads(control), orjson.loads(other)
    if not _is_ranked(first) or not _is_ranked(second):
        return (other if _is_ranked(second) else control), []
    items = {item["item_id"]: item for answer in (second, first) for item in answer["recommendations"]}
    drafted = interleave(_ranking(first), _ranking(second), k, coin)
    shown = [{**items[item_id], "rank": rank} for rank, item_id in enumerate(drafted.items, 1)]
    slots = list(zip(drafted.items, map(str, drafted.teams), strict=True))
    return orjson.dumps({**first, "recommendations": shown}), slots


def _ranking(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["recommendations"]]


def _is_ranked(answer: dict[str, Any]) -> bool:
    return answer["fallback"] is None and not answer.get("degraded") and bool(answer["recommendations"])
