"""Some users of a snapshot: whole buckets, from the first. A bucket is a random draw of users, by a digest of the id.

The same users in every build of a log, whoever asks. There are two questions: how few buckets are a sample that is
large enough (`buckets_reaching`), and how many may be read (`buckets_within`). Buckets without users are in no answer,
and where anybody is in the snapshot no answer is empty.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from sonder.core.storage import Folder, read_manifest


def buckets_reaching(snapshot: Folder, num_users: int) -> list[int]:
    """The fewest that hold at least `num_users`; all of them where that is more than there are."""
    buckets = _buckets(snapshot)
    held = [0, *accumulate(one["users"] for one in buckets)]
    return [int(one["bucket"]) for one, before in zip(buckets, held, strict=False) if before < num_users]


def buckets_within(snapshot: Folder, *, max_users: int, max_events: int | None = None) -> list[int]:
    """The most that hold at most `max_users`, and `max_events`; the first one whatever it holds."""
    buckets = _buckets(snapshot)
    num = sum(held <= max_users for held in accumulate(one["users"] for one in buckets))
    if max_events is not None:
        num = min(num, sum(held <= max_events for held in accumulate(one["events"] for one in buckets)))
    return [int(one["bucket"]) for one in buckets[: max(1, num)]]


def _buckets(snapshot: Folder) -> list[dict[str, Any]]:
    """What the manifest says of the buckets with users, ascending."""
    listed = (one for one in read_manifest(snapshot)["buckets"] if one["users"])
    return sorted(listed, key=lambda one: int(one["bucket"]))
