"""Previews of audience rules over HTTP: counted on a fixed random sample of the release's users, with a stated error.

The sample is SAMPLE_USERS users at most, everybody where there are no more; it is loaded at the first preview and kept.
A preview takes one pass over it, in one thread beside the event loop, so however many are asked for at once, reads go
on. The exact count over everybody is `sonder audience preview`.
Limits: the sample is of the release as it was built; events that arrived since change nothing here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import pyarrow as pa

from sonder.core.errors import InvalidRule
from sonder.events.erasure import is_erased, read_erasures
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.audience_counts import Counts, evaluate, preview_of
from sonder.profiles.audience_fields import schema_of
from sonder.profiles.audience_reading import ReleaseUsers
from sonder.profiles.record import iso_time
from sonder.releases.artefacts import Release
from sonder.segments.audiences import AudienceCatalogue
from sonder.segments.rules.rule import Rule
from sonder.segments.rules.schema import RuleSchema

SAMPLE_USERS = 20_000


class AudiencePreviews:
    """Previews on one release."""

    def __init__(self, release: Release, *, num_profiles: int, sample_users: int = SAMPLE_USERS) -> None:
        self._release, self._num_profiles, self._sample_users = release, num_profiles, sample_users
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audience-preview")

    async def preview(self, text: str, *, num_sampled: int) -> Mapping[str, Any]:
        """Counts of a rule; InvalidRule where it cannot be read or names what the release does not know."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._count, text, num_sampled)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _count(self, text: str, num_sampled: int) -> Mapping[str, Any]:
        users, schema, (profiles, timelines) = self._opened
        rule, saved = Rule.parse(text, schema), self._saved_rules(schema)
        held = evaluate([rule, *saved.values()], profiles, timelines, users.actions)
        user_ids = profiles.column("user_id").combine_chunks()
        kept = ~is_erased(user_ids, read_erasures(self._release.workspace.erasures))
        counts = Counts.of(held.filter(kept), user_ids.filter(pa.array(kept)), num_sampled=num_sampled)
        return {
            "release": self._release.id,
            "as_of": iso_time(self._release.manifest.as_of_us),
            "rule": rule.text,
            **preview_of(counts, num_profiles=self._num_profiles, saved=list(saved)),
        }

    @cached_property
    def _opened(self) -> tuple[ReleaseUsers, RuleSchema, Any]:
        """Only the one thread reads this, so it is loaded once."""
        release = self._release
        vocabulary = Vocabulary.load(release.items)
        history = release.workspace.history(release.manifest.snapshot)
        users = ReleaseUsers(release.profiles, history, vocabulary.actions)
        return users, schema_of(vocabulary, release.base_rates()), users.sample(self._sample_users)

    def _saved_rules(self, schema: RuleSchema) -> dict[str, Rule]:
        """Saved audiences that this release can evaluate; the command line says why not of the others."""
        rules = {}
        for definition in AudienceCatalogue(self._release.workspace.audiences).all():
            try:
                rules[definition.name] = Rule.parse(definition.rule, schema)
            except InvalidRule:
                continue
        return rules
