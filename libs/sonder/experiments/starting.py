"""Whether an experiment may start beside what is served and what runs, and which users are free for it.

At most one thing chooses a user's release and at most one its ranking. Within a layer no two experiments have a user in
common, so what they change does not matter; of two layers anybody may be in both, so there it does. A canary chooses
releases too and knows of no layer: it and an experiment that names releases refuse one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sonder.core.errors import InvalidRequest
from sonder.experiments.specification import Experiment
from sonder.experiments.versions import AS_ASKED, Version

Aspect = Literal["release", "ranking"]
_ROUNDING = 1e-12  # of sums of shares; nobody's draw lies in so little


def aspects(experiment: Experiment) -> frozenset[Aspect]:
    """What an experiment decides of its users' answers."""
    names_release = any(arm.release is not None for arm in experiment.arms)
    ranks = experiment.method == "interleave" or any(arm.ranking is not None for arm in experiment.arms)
    return frozenset([*(["release"] if names_release else []), *(["ranking"] if ranks else [])])  # type: ignore[list-item]


def check_arms_differ(experiment: Experiment, releases: dict[str, str]) -> None:
    """InvalidRequest where two arms would answer alike once it is known what is served."""
    seen: dict[object, str] = {}
    for arm in experiment.arms:
        other = seen.setdefault((releases.get(arm.name), arm.ranking or AS_ASKED), arm.name)
        if other != arm.name:
            raise InvalidRequest(
                f"The arms {other} and {arm.name} of {experiment.name} answer alike: "
                f"release {releases.get(arm.name, 'served')}, {arm.ranking or AS_ASKED}",
                expected="arms with another release or ranking each",
            )


def check_overlap(experiment: Experiment, running: Sequence[Version]) -> None:
    """InvalidRequest where another experiment may decide the same of the same user."""
    for other in running:
        both = sorted(aspects(experiment) & aspects(other.experiment))
        if both and other.experiment.layer_salt != experiment.layer_salt:
            raise InvalidRequest(
                f"{other.name} is running and decides the {both[0]} of its users, and so would {experiment.name} of "
                "some of the same ones",
                expected="one layer for both, where they never share a user",
                do=f"Set `layer` of {experiment.name} to {other.experiment.layer or 'one of its own and'}"
                f"{'' if other.experiment.layer else ' that of both at their next start'}, or stop {other.name} first.",
            )


def free_interval(experiment: Experiment, running: Sequence[Version]) -> tuple[float, float]:
    """The first free interval of the layer that is long enough; InvalidRequest says what is free."""
    taken = sorted(
        (one.lower, one.upper)
        for one in running
        if one.experiment.layer_salt == experiment.layer_salt and one.lower is not None and one.upper is not None
    )
    gaps, start = [], 0.0
    for lower, upper in (*taken, (1.0, 1.0)):
        if start + experiment.share <= lower + _ROUNDING:
            return start, start + experiment.share
        gaps.append(max(0.0, round(lower - start, 9)))
        start = upper
    raise InvalidRequest(
        f"{experiment.name} wants a share of {experiment.share:g} of the layer {experiment.layer!r}, of which "
        f"{max(gaps):.6g} is free in one piece and {sum(gaps):.6g} in all",
        expected="a share that fits",
        do="Ask for a smaller share, another layer, or stop an experiment: "
        + ", ".join(one.name for one in running if one.experiment.layer_salt == experiment.layer_salt),
    )


def check_change(before: Experiment, after: Experiment) -> None:
    """InvalidRequest where a running experiment would become another one.

    What may change: `owner` and `max_days`, and metrics and guardrails may be added. Nothing of it moves a user, and
    nothing that was to be decided is decided otherwise once data are there.
    """
    kept = before.model_dump(exclude={"owner", "max_days", "metrics", "guardrails"})
    now = after.model_dump(exclude={"owner", "max_days", "metrics", "guardrails"})
    changed = [name for name, value in kept.items() if now[name] != value]
    changed += ["metrics"] if after.metrics[: len(before.metrics)] != before.metrics else []
    changed += ["guardrails"] if after.guardrails[: len(before.guardrails)] != before.guardrails else []
    if changed:
        raise InvalidRequest(
            f"{before.name} is running and its {', '.join(changed)} would change",
            expected="another owner or max_days, or metrics and guardrails added at the end",
            do="Stop it and start another experiment under another name; `share` raises its share.",
        )
