"""Which audiences there are and which evaluation of each counts: one small file, so that serving may look often.

audiences/index.json    [{name, version, rule, counted}]; counted: {evaluation, version, release, as_of}, null before
                        the first refresh. `evaluation` is a folder below audiences/<name>/members/.
It is written whole after each save and each refresh, so it shows all audiences as of one moment. A refresh that was
killed has not touched it, and what it names is still there: the newest two evaluations of an audience are kept.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sonder.core.errors import NotFound
from sonder.core.ids import digest_json
from sonder.core.storage import Folder, read_manifest
from sonder.segments.audiences import AudienceCatalogue, Definition, evaluations_of

INDEX_FILE = "index.json"


@dataclass(frozen=True)
class Counted:
    """The newest evaluation of an audience; its version may be behind the definition's."""

    evaluation: str  # folder below audiences/<name>/members/
    version: int
    release: str
    as_of: str  # ISO 8601, UTC


@dataclass(frozen=True)
class IndexedAudience:
    name: str
    version: int  # of the definition that a fresh answer evaluates
    rule: str
    counted: Counted | None


@dataclass(frozen=True)
class AudienceIndex:
    """All audiences, by name."""

    audiences: tuple[IndexedAudience, ...] = ()

    @classmethod
    def derive(cls, catalogue: AudienceCatalogue) -> AudienceIndex:
        """From the definitions and the published evaluations."""
        return cls(tuple(_indexed(definition, catalogue) for definition in catalogue.all()))

    @classmethod
    def read(cls, audiences: Folder) -> AudienceIndex:
        """As it was last written; empty before the first audience."""
        try:
            entries = (audiences / INDEX_FILE).read_json()
        except NotFound:
            return cls()
        return cls(
            tuple(
                IndexedAudience(**entry | {"counted": entry["counted"] and Counted(**entry["counted"])})
                for entry in entries
            )
        )

    def write(self, audiences: Folder) -> None:
        (audiences / INDEX_FILE).write_json([asdict(audience) for audience in self.audiences])

    @property
    def counted(self) -> dict[str, Counted]:
        """The audiences that were refreshed, by name."""
        return {audience.name: audience.counted for audience in self.audiences if audience.counted is not None}

    @property
    def members_digest(self) -> str:
        """Names the membership that all evaluations hold together; a rule that is only saved does not change it."""
        return digest_json({name: asdict(counted) for name, counted in self.counted.items()})


def _indexed(definition: Definition, catalogue: AudienceCatalogue) -> IndexedAudience:
    evaluations = evaluations_of(catalogue.audience(definition.name))
    counted = None
    if evaluations:
        told = read_manifest(evaluations[-1])
        counted = Counted(evaluations[-1].name, told["version"], told["release"], told["as_of"])
    return IndexedAudience(definition.name, definition.version, definition.rule, counted)
