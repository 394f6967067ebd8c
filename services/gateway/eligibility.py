"""Who may be in an experiment: a rule on what is stored of a user, remembered for some seconds.

The served release's profile decides in every arm, so that who takes part does not depend on the arm. What is unknown,
a user whom the release does not know and a store that does not answer are not eligible.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger("sonder")
KEPT_S = 10.0
MOST_KEPT = 50_000  # users; then all are asked for anew


class Eligibility:
    """A rule's answers. May be asked by several threads."""

    def __init__(
        self, holds: Callable[[str], bool], *, kept_s: float = KEPT_S, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._holds, self._kept_s, self._clock_s = holds, kept_s, clock_s
        self._known: dict[str, tuple[float, bool]] = {}  # user -> until when, what

    def __call__(self, user_id: str) -> bool:
        now = self._clock_s()
        known = self._known.get(user_id)
        if known is not None and known[0] > now:
            return known[1]
        try:
            found = self._holds(user_id)
        except Exception as error:  # the answer itself fails or not, as without an experiment
            logger.debug("eligibility: %s: %s", type(error).__name__, error)
            return False
        if len(self._known) >= MOST_KEPT:
            self._known = {}
        self._known[user_id] = now + self._kept_s, found
        return found


def nobody(user_id: str) -> bool:
    """Of a rule that a release cannot evaluate."""
    return False
