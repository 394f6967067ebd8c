"""The audiences of one user: as the last refresh counted them, or by their rules on a profile computed now.

Both give the same shape. `as_of` of a stored membership is that of its refresh, of a fresh one that of the profile.
A fresh one keeps the `entered_at` of the stored one, and without one the user has entered at the profile's `as_of`;
never later than that, where the refresh was of a later release than the one that is served.
Limits: an online profile holds the newest 2,000 events of a user, so a rule may count fewer than a refresh would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from sonder.core.errors import InvalidRule
from sonder.history.timelines import Timelines
from sonder.profiles.audience_values import field_values
from sonder.segments.audience_index import AudienceIndex
from sonder.segments.rules.rule import Rule, fields_of_rules
from sonder.segments.rules.schema import RuleSchema


class Membership(NamedTuple):
    """That a user is in an audience. Times are ISO 8601 in UTC."""

    name: str
    definition_version: int
    entered_at: str
    as_of: str
    source: Literal["refresh", "fresh"]  # the stored membership, or the rule on the profile of this answer


@dataclass(frozen=True)
class SavedRules:
    """The newest rules of all audiences, as one release can evaluate them."""

    rules: Mapping[str, tuple[int, Rule]]  # name -> version, rule
    problems: Mapping[str, str]  # name -> why this release cannot evaluate it
    actions: tuple[str, ...]  # of the release's vocabulary

    @classmethod
    def of(cls, index: AudienceIndex, schema: RuleSchema, actions: Sequence[str]) -> SavedRules:
        rules, problems = {}, {}
        for audience in index.audiences:
            try:
                rules[audience.name] = audience.version, Rule.parse(audience.rule, schema)
            except InvalidRule as error:
                problems[audience.name] = error.found
        return cls(rules, problems, tuple(actions))

    def memberships(
        self, profile: Mapping[str, Any], timeline: Timelines, stored: Sequence[Membership]
    ) -> list[Membership]:
        """Of one user, by name. `profile` is a parsed record, `timeline` the same user's, `stored` what a refresh said.

        An audience with a problem is answered as it is stored.
        """
        before = {membership.name: membership for membership in stored}
        fields = fields_of_rules(rule for _, rule in self.rules.values())
        values = field_values(fields, profile, timeline, self.actions)
        as_of = profile["as_of"]
        found = [before[name] for name in self.problems if name in before]
        for name, (version, rule) in self.rules.items():
            if rule.holds(values):
                known = before.get(name)
                entered_at = as_of if known is None else _earlier(known.entered_at, as_of)
                found.append(Membership(name, version, entered_at, as_of, "fresh"))
        return sorted(found)


def _earlier(moment: str, other: str) -> str:
    return min(moment, other, key=datetime.fromisoformat)
