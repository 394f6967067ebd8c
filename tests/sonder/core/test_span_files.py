from __future__ import annotations

from pathlib import Path

from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from sonder.core import telemetry
from sonder.core.span_files import ENTRY, SpanFile, SpanReader


def test_what_is_written_is_read_once(tmp_path: Path) -> None:
    reader = SpanReader(tmp_path)
    with telemetry.listening(SimpleSpanProcessor(SpanFile(str(tmp_path), "sonder-gateway"))):
        with telemetry.span("outer", {ENTRY: True}), telemetry.span("inner", {"users": 2}):
            pass
        inner, outer = reader.read()
        assert (inner.name, inner.parent_id, inner.attributes) == ("inner", outer.span_id, {"users": 2})
        assert (outer.is_entry, inner.is_entry, outer.parent_id) == (True, False, None)
        assert outer.start_ns <= inner.start_ns <= inner.end_ns <= outer.end_ns
        assert reader.read() == []


def test_half_a_line_is_left_for_the_next_look(tmp_path: Path) -> None:
    with telemetry.listening(SimpleSpanProcessor(SpanFile(str(tmp_path), "one"))), telemetry.span("work"):
        pass
    (file,) = tmp_path.glob("*.jsonl")
    line, reader = file.read_bytes(), SpanReader(tmp_path)
    file.write_bytes(line[:20])
    assert reader.read() == []
    file.write_bytes(line)
    assert [span.name for span in reader.read()] == ["work"]


def test_a_folder_that_went_away_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        telemetry.listening(SimpleSpanProcessor(SpanFile(str(tmp_path / "file" / "x"), "one"))),
        telemetry.span("work"),
    ):
        pass
