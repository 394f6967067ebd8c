"""What an experiment is: one frozen object, read from YAML, unknown keys rejected. Nothing of it changes while it runs.

The first arm is the control. A metric is a function of a user's events in a window after that user's first exposure;
users whose window is not over are left out, so that looking later never changes what a day looked like.
Limits: the unit is the user. Two arms or more; an interleaved experiment has exactly two.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from sonder.core.errors import ConfigurationError, InvalidRule
from sonder.core.section import Section
from sonder.segments.rules.rule import Rule

Method = Literal["split", "interleave"]
Kind = Literal["conversion", "count", "value", "ratio", "retention", "time_to_event"]
TAKEN = frozenset({"user_id", "arm", "exposed_at", "lifecycle", "segment"})  # columns beside those of metrics
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class Ranking(Section):
    """How recommendations are made for an arm; a caller's own wishes (category, k) hold in every arm."""

    source: Literal["vector", "interests"] = "vector"
    diversity: float = Field(0.0, ge=0, le=1)


class Arm(Section):
    """One of the ways in which users are answered."""

    name: str
    release: str | None = Field(None, description="what answers; the served release if not given")
    ranking: Ranking | None = Field(None, description="of recommendations; as the caller asks if not given")
    weight: float = Field(1.0, gt=0, description="share of the experiment's users, relative to the other arms")

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        return _checked_name(name)


class MetricSpec(Section):
    """One number a user, from events after the first exposure.

    conversion     1 if `action` happened within the window
    count          how often it did
    value          sum of its values
    ratio          how often it did over how often `per` did, of all users together (delta method)
    retention      1 if anything (or `action`) happened on day `day` after exposure: in [day, day + 1) days
    time_to_event  days until `action`; users without it are censored at the end of the window
    """

    name: str
    kind: Kind
    action: str | None = None
    per: str | None = Field(None, description="of a ratio: the action in its denominator")
    surface: str | None = Field(None, description="only events there")
    within_days: float | None = Field(None, gt=0, le=365, description="length of the window after exposure")
    day: int | None = Field(None, ge=1, le=365, description="of a retention")
    cap: float | None = Field(
        None, gt=0.5, lt=1, description="values above this quantile of all arms' users together are set to it"
    )
    wanted: Literal["increase", "decrease"] = "increase"

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        return _checked_name(name)

    @model_validator(mode="after")
    def _fits_its_kind(self) -> MetricSpec:
        needed = {"retention": ("day",), "ratio": ("action", "per", "within_days")}.get(
            self.kind, ("action", "within_days")
        )
        allowed = {*needed, "action", "surface"} | ({"cap"} if self.kind in ("count", "value", "ratio") else set())
        for key in ("action", "per", "within_days", "day", "cap", "surface"):
            is_given = getattr(self, key) is not None
            if key in needed and not is_given:
                raise ValueError(f"the {self.kind} metric {self.name!r} needs `{key}`")
            if key not in allowed and is_given:
                raise ValueError(f"the {self.kind} metric {self.name!r} has no `{key}`")
        return self

    @property
    def window_days(self) -> float:
        """Days after exposure until the number of a user is known."""
        if self.day is not None:
            return self.day + 1.0
        assert self.within_days is not None, "checked above"
        return self.within_days


class Guardrail(Section):
    """A metric that may not get worse by more than `margin` of the control's mean."""

    metric: str
    margin: float = Field(gt=0, lt=1)


class RampStep(Section):
    """A share of the users, for some hours; the last share of a ramp stays."""

    share: float = Field(gt=0, le=1)
    hours: float = Field(gt=0, le=10_000)


class Experiment(Section):
    """One question, asked of users drawn by a keyed hash."""

    name: str
    hypothesis: str = Field(min_length=1)
    owner: str = ""
    method: Method = "split"
    arms: tuple[Arm, ...] = Field(min_length=2, max_length=8)
    share: float = Field(1.0, gt=0, le=1, description="of all users, at most: so much of its layer is kept free")
    ramp: tuple[RampStep, ...] = ()
    eligibility: str | None = Field(None, description="an audience rule; others are not in the experiment")
    layer: str | None = Field(None, description="experiments of one layer never share a user; its own if not given")
    metrics: tuple[MetricSpec, ...] = Field(min_length=1)
    primary: str
    guardrails: tuple[Guardrail, ...] = ()
    minimum_effect: float = Field(gt=0, description="relative change of the primary metric that would matter")
    alpha: float = Field(0.05, gt=0, lt=0.5)
    power: float = Field(0.8, gt=0.5, lt=1)
    max_days: float = Field(28.0, gt=0, le=365, description="it is stopped after so many days at the latest")
    pre_days: float = Field(
        28.0, ge=0, le=365, description="before exposure: behaviour that CUPED adjusts for; 0: none"
    )

    @field_validator("name", "layer")
    @classmethod
    def _plain(cls, name: str | None) -> str | None:
        return None if name is None else _checked_name(name)

    @field_validator("eligibility")
    @classmethod
    def _readable(cls, rule: str | None) -> str | None:
        if rule is not None:
            try:
                Rule.parse(rule)
            except InvalidRule as error:
                raise ValueError(str(error)) from error
        return rule

    @model_validator(mode="after")
    def _fits_together(self) -> Experiment:
        for what, names in (("arm", [arm.name for arm in self.arms]), ("metric", [one.name for one in self.metrics])):
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"two {what}s are named {repeated[0]!r}")
        if taken := sorted({metric.name for metric in self.metrics} & TAKEN):
            raise ValueError(f"a metric is named {taken[0]!r}, expected none of {', '.join(sorted(TAKEN))}")
        for name in (self.primary, *(guardrail.metric for guardrail in self.guardrails)):
            if name not in {metric.name for metric in self.metrics}:
                raise ValueError(f"no metric is named {name!r}, there are {', '.join(m.name for m in self.metrics)}")
        if self.method == "interleave" and len(self.arms) != 2:
            raise ValueError(f"found {len(self.arms)} arms, an interleaved experiment compares exactly two")
        if self.method == "interleave" and self.metric(self.primary).kind == "retention":
            raise ValueError(
                f"the primary {self.primary!r} is a retention, expected one of an action on the items shown"
            )
        shares = [step.share for step in self.ramp]
        if shares != sorted(shares) or (shares and shares[-1] > self.share):
            raise ValueError(f"found a ramp of {shares}, expected shares that rise to at most {self.share}")
        if len({(arm.release, arm.ranking) for arm in self.arms}) < len(self.arms):
            raise ValueError("two arms are the same, expected another release or ranking in each")
        return self

    @property
    def control(self) -> Arm:
        return self.arms[0]

    @property
    def salt(self) -> str:
        """What the draw of an arm is keyed by; another name is another draw."""
        return self.name

    @property
    def layer_salt(self) -> str:
        """What the draw of who takes part is keyed by: shared within a layer, else its own."""
        return f"layer/{self.layer}" if self.layer else f"own/{self.name}"

    def metric(self, name: str) -> MetricSpec:
        return next(metric for metric in self.metrics if metric.name == name)

    @property
    def window_days(self) -> float:
        """Of the slowest metric."""
        return max(metric.window_days for metric in self.metrics)


def read_experiment(file: Path) -> Experiment:
    """The experiment that a YAML file declares; ConfigurationError names the first place that is wrong."""
    try:
        content = yaml.safe_load(file.read_text())
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"No file {file}", expected="an experiment in YAML", do="docs/experimentation.md shows one."
        ) from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{file} holds {type(content).__name__}", expected="the keys of one experiment")
    try:
        return Experiment.model_validate(content)
    except ValidationError as error:
        place = error.errors()[0]
        where = ".".join(map(str, place["loc"])) or "the experiment"
        raise ConfigurationError(
            f"{file}: {where}: {place['msg'].removeprefix('Value error, ')}",
            do="docs/experimentation.md lists the keys.",
        ) from error


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"found the name {name[:80]!r}, expected 1 to 64 lower-case letters, digits, dashes, underscores"
        )
    return name
