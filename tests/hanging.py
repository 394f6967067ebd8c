"""When a test gives a process up: how long work takes is the matter of a machine that others share; what hangs, ends.

No test is about these numbers. A slow one takes minutes on a machine of its own, and several times that elsewhere.
"""

from __future__ import annotations

PROCESS_HANGS_AFTER_S = 1_800.0  # one command, one wait
SLOW_TEST_HANGS_AFTER_S = 3_600.0  # all of a slow test, unless it says itself
