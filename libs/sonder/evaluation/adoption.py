"""From everything that was measured of a candidate to one of three words: no, experiment, ship. Pure.

no          a finding blocks: a promise to a consumer is broken, a number that matters got worse beyond chance. Or
            nothing got better: then traffic would be spent on what is not wanted for its own sake
experiment  something got better offline and nothing blocks. Offline gains are often not what users feel, so they are
            a reason to ask the users, not an answer
ship        an experiment could tell nothing: the answers are the same ones for practical purposes; or the logged
            randomisation of the live system has answered already, with enough support, and nothing got worse
Findings are sentences with their numbers; the word follows from their judgements by the rules of `decide` alone, so a
reader can argue with any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Judgement = Literal["better", "even", "worse", "unknown"]
Word = Literal["no", "experiment", "ship"]
AREAS = ("promises", "probes", "ranking", "calibration", "coverage", "stability", "off-policy", "cost", "segments")
SAME_LISTS = 0.98  # mean overlap@10 from which lists count as the same
SAME_PSI = 0.1  # the usual reading: below it a distribution has not moved
GAINS = ("probes", "ranking", "calibration", "off-policy", "cost")  # areas where better is a reason to go on


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    area: str
    subject: str
    judgement: Judgement
    sentence: str
    blocks: bool = False

    def __post_init__(self) -> None:
        assert self.area in AREAS, self.area
        assert not self.blocks or self.judgement in ("worse", "unknown"), self.sentence


@dataclass(frozen=True)
class Sameness:
    """How alike the answers of the two releases are; None where it could not be measured."""

    overlap_at_10: float | None
    largest_psi: float | None
    is_same_space: bool

    @property
    def is_same(self) -> bool:
        return (
            self.is_same_space
            and self.overlap_at_10 is not None
            and self.overlap_at_10 >= SAME_LISTS
            and (self.largest_psi is None or self.largest_psi < SAME_PSI)
        )


@dataclass(frozen=True)
class Decision:
    """The word, and why."""

    word: Word
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def decide(findings: Sequence[Finding], sameness: Sameness, *, num_needed: int | None = None) -> Decision:
    """The verdict. `num_needed`: users of each arm that the experiment would ask for, where it is known."""
    if blocking := [finding.sentence for finding in findings if finding.blocks]:
        return Decision("no", tuple(blocking))
    worse = [finding for finding in findings if finding.judgement == "worse"]
    better = [finding for finding in findings if finding.judgement == "better" and finding.area in GAINS]
    if sameness.is_same:
        told = f"Lists of ten share {sameness.overlap_at_10:.1%} of their items and no score's distribution moved"
        if worse:
            return Decision("no", (f"{told}, so nobody gains, and: {worse[0].sentence}",))
        return Decision("ship", (f"{told}: an experiment could see no difference.", *_sentences(better)))
    if any(finding.area == "off-policy" for finding in better) and not worse:
        return Decision("ship", (*_sentences(better), "Nothing that was measured got worse."))
    if not better:
        return Decision("no", ("Nothing that was measured got better beyond chance.", *_sentences(worse)))
    asked = () if num_needed is None else (f"The experiment asks for {num_needed:,} users in each arm.",)
    return Decision("experiment", (*_sentences(better), *(f"To watch: {told}" for told in _sentences(worse)), *asked))


def _sentences(findings: Sequence[Finding]) -> tuple[str, ...]:
    return tuple(finding.sentence for finding in findings)
