"""What the consumers of a release rely on: a YAML file that teams keep beside `sonder.yaml`, reviewed like code.

```yaml
consumers:
  - name: ads
    owner: ads ranking, ads-oncall@example.org
    needs: [scores.buy_30d, segments.cluster_id]
    requires:
      - {metric: scores.buy_30d.auc, may_fall: 1%}
      - {metric: scores.buy_30d.ece, at_most: 0.05}
```
A requirement has any of these bounds, and all of them hold:
may_fall, may_rise   share of the value that the served release has by which it may go down, or up
may_worsen           the same, in the direction that is worse for the metric (`better` says which, if its name does not)
at_least, at_most    the value itself, whatever is served
Whether a metric exists is asked when a release is checked (releases.gate): only releases know their metrics.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, FiniteFloat, ValidationError, field_validator, model_validator

from sonder.core.errors import ConfigurationError, NotFound
from sonder.core.section import Section
from sonder.core.storage import Folder
from sonder.releases.metric_meaning import Direction, better


def _share(given: Any) -> Any:
    """`1%`, `0.5 %`: the sign is asked for, since 1 may be read as all and as a hundredth."""
    text = str(given).strip()
    try:
        value = float(text[:-1]) if text.endswith("%") else float("nan")
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise ValueError(f"found {given!r}, expected a share of the served value such as 1%")
    return value / 100


Share = Annotated[float, BeforeValidator(_share)]


class Requirement(Section):
    """What a consumer relies on of one metric."""

    metric: str = Field(min_length=1)
    may_fall: Share | None = None
    may_rise: Share | None = None
    may_worsen: Share | None = None
    at_least: FiniteFloat | None = None
    at_most: FiniteFloat | None = None
    better: Direction | None = Field(None, description="for may_worsen, where the name does not say it")

    @model_validator(mode="after")
    def _says_something_that_can_be_meant(self) -> Requirement:
        if all(bound is None for bound in (self.may_fall, self.may_rise, self.may_worsen, self.at_least, self.at_most)):
            raise ValueError(
                f"{self.metric} has no bound, expected may_fall, may_rise, may_worsen, at_least or at_most"
            )
        if self.better is not None and self.may_worsen is None:
            raise ValueError(f"{self.metric} has `better` without may_worsen, which alone asks for it")
        if self.may_worsen is not None and self.direction is None:
            raise ValueError(f"nothing says which way {self.metric} is better, expected `better: higher` or `lower`")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"{self.metric} is to be at least {self.at_least:g} and at most {self.at_most:g}")
        alone = {(True, False): "higher", (False, True): "lower"}  # a bound on one side holds the value up, or down
        held = alone.get((self.may_fall is not None, self.may_rise is not None))
        if held is not None and better(self.metric) not in (None, held):
            raise ValueError(f"{self.metric} is better when {better(self.metric)}: this would forbid it to improve")
        return self

    @property
    def direction(self) -> Direction | None:
        """The better way."""
        return self.better or better(self.metric)

    @property
    def fall(self) -> float | None:
        """Share of the served value by which this one may be lower; None: by any."""
        shares = (self.may_fall, self.may_worsen if self.direction == "higher" else None)
        return min((share for share in shares if share is not None), default=None)

    @property
    def rise(self) -> float | None:
        """Share of the served value by which this one may be higher; None: by any."""
        shares = (self.may_rise, self.may_worsen if self.direction == "lower" else None)
        return min((share for share in shares if share is not None), default=None)


class Consumer(Section):
    """One team, service or job that reads what Sonder serves."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")
    owner: str = Field("", description="whom to ask before a promise is broken")
    needs: tuple[str, ...] = Field(
        (), description="fields of a profile that it reads: scores.NAME, segments.cluster_id"
    )
    requires: tuple[Requirement, ...] = ()

    @model_validator(mode="after")
    def _relies_on_something_once(self) -> Consumer:
        if not self.needs and not self.requires:
            raise ValueError(f"consumer {self.name!r} relies on nothing, expected `needs` or `requires`")
        named = [*self.needs, *(requirement.metric for requirement in self.requires)]
        if repeated := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(f"consumer {self.name!r} names {repeated[0]} twice")
        return self


class Consumers(Section):
    """Everybody who relies on a release."""

    consumers: tuple[Consumer, ...]

    @field_validator("consumers")
    @classmethod
    def _unique_names(cls, consumers: tuple[Consumer, ...]) -> tuple[Consumer, ...]:
        names = [consumer.name for consumer in consumers]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"names must be unique, repeated: {', '.join(repeated)}")
        return consumers


class _NoRepeatedKeys(yaml.SafeLoader):
    """YAML keeps the last of two equal keys in silence; a promise that is given twice is a mistake."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if repeated := [key for place, key in enumerate(keys) if key in keys[:place]]:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {repeated[0]!r} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def load_consumers(file: Folder) -> Consumers:
    """Read and check the file; ConfigurationError names every mistake with its place."""
    try:
        raw = yaml.load(file.read_bytes(), Loader=_NoRepeatedKeys)
    except NotFound as error:
        raise ConfigurationError(
            f"No consumers file at {file}",
            expected="a YAML file with `consumers:`",
            do="Correct the key `consumers` of the configuration; docs/releases.md shows a file.",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} is not YAML: {error}", expected="a mapping with `consumers:`") from error
    try:
        return Consumers.model_validate(raw)
    except ValidationError as error:
        raise ConfigurationError(
            f"{file} does not fit: " + "; ".join(_mistake(raw, one) for one in error.errors()),
            do="Correct the named places; docs/releases.md lists the keys.",
        ) from error


def _mistake(raw: Any, error: Any) -> str:
    """Place and message of one mistake, the consumer by its name where it has one."""
    place = [str(part) for part in error["loc"]]
    with suppress(KeyError, IndexError, TypeError):
        place[1] = str(raw["consumers"][error["loc"][1]]["name"])
    message = "unknown key" if error["type"] == "extra_forbidden" else error["msg"].removeprefix("Value error, ")
    return f"{'.'.join(place) or '(top)'}: {message}"
