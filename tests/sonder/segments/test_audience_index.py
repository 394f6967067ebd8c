"""The index of audiences: what is saved and what is counted, read back as it was written."""

from __future__ import annotations

from pathlib import Path

from sonder.core.storage import Folder, publish
from sonder.segments.audience_index import AudienceIndex, Counted, IndexedAudience
from sonder.segments.audiences import AudienceCatalogue
from sonder.segments.rules.rule import Rule


def test_an_index_names_the_newest_definition_and_the_newest_published_evaluation(tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path / "audiences"))
    catalogue = AudienceCatalogue(folder)
    assert AudienceIndex.derive(catalogue) == AudienceIndex.read(folder) == AudienceIndex()
    for text in ("num_events > 1", "num_events > 2"):
        catalogue.save("busy", text, Rule.parse(text), release="r-1", now="now")
    saved = AudienceIndex.derive(catalogue)
    assert saved.audiences == (IndexedAudience("busy", 2, "num_events > 2", None),)
    told = {"version": 1, "release": "r-1", "as_of": "1970-01-02T00:00:00+00:00"}
    for number in ("00001", "00002"):
        (folder / "staged" / "x").write_bytes(b"")
        publish(folder / "staged", folder / "busy" / "members" / number, told)
    (folder / "busy" / "members" / "00003" / "x").write_bytes(b"")  # was never finished
    counted = AudienceIndex.derive(catalogue)
    assert counted.counted == {"busy": Counted("00002", 1, "r-1", "1970-01-02T00:00:00+00:00")}
    counted.write(folder)
    assert AudienceIndex.read(folder) == counted
    assert catalogue.names() == ["busy"]


def test_the_digest_of_the_members_changes_with_an_evaluation_and_not_with_a_rule() -> None:
    def digest(rule: str, evaluation: str) -> str:
        return AudienceIndex((IndexedAudience("a", 1, rule, Counted(evaluation, 1, "r", "t")),)).members_digest

    assert digest("is_cold", "00001") == digest("not is_cold", "00001") != digest("is_cold", "00002")
