"""Which arms gave an answer, beside its bytes."""

from __future__ import annotations

from collections.abc import Iterable

EXPERIMENT_HEADER = "x-sonder-experiment"


class ArmAnswer(bytes):
    """The bytes of an answer of an engine; `arms` says which arms gave it: `name=arm`, several with `, ` between."""

    arms: str

    @classmethod
    def of(cls, content: bytes, told: Iterable[tuple[str, str]]) -> ArmAnswer:
        """The answer, with what it says already where it is one."""
        answer, before = cls(content), arms_of(content)
        arms = [f"{experiment}={arm}" for experiment, arm in told]
        answer.arms = ", ".join(arms if before is None else [before, *arms])
        return answer


def arms_of(content: bytes) -> str | None:
    """What the answer's header says; None where no experiment took part."""
    return content.arms if type(content) is ArmAnswer else None
