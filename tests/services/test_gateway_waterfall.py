from __future__ import annotations

import io
import re
from pathlib import Path

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from rich.console import Console

from services.gateway.waterfall import Requests, printed, waterfall
from sonder.core import telemetry
from sonder.core.span_files import ENTRY, SpanFile, SpanLine, SpanReader


def line(trace: str, span: str, parent: str | None, start: int, end: int, **more: object) -> SpanLine:
    content = {"is_entry": False, "service": "sonder-gateway", "is_error": False, "links": (), "attributes": {}}
    return SpanLine(trace, span, parent, name=f"work {span}", start_ns=start, end_ns=end, **{**content, **more})  # type: ignore[arg-type]


def shown(spans: list[SpanLine]) -> str:
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(waterfall(spans))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_bars_stand_where_the_time_went() -> None:
    spans = [line("t", "a", None, 0, 44_000_000), line("t", "b", "a", 22_000_000, 44_000_000, attributes={"users": 9})]
    above, below = [text for text in shown(spans).splitlines() if "█" in text]
    assert above.count("█") == 44
    assert below.count("█") == 22
    assert above.index("work") < below.index("work")
    assert below.rindex("█") == above.rindex("█")
    assert "22.00" in below
    assert "users=9" in below


def test_a_request_is_whole_when_its_entry_is_there_and_is_shown_once(tmp_path: Path) -> None:
    reader, requests = SpanReader(tmp_path), Requests()
    with telemetry.listening(SimpleSpanProcessor(SpanFile(str(tmp_path), "s"))):
        with telemetry.span("request", {ENTRY: True}), telemetry.span("below"):
            requests.add(reader.read())
            assert requests.whole() == []
        requests.add(reader.read())
    assert [[span.name for span in spans] for spans in requests.whole()] == [["request", "below"]]
    assert requests.whole() == []


def test_both_requests_of_a_batch_show_its_work(tmp_path: Path) -> None:
    reader, requests = SpanReader(tmp_path), Requests()
    listening = telemetry.listening(SimpleSpanProcessor(SpanFile(str(tmp_path), "s")))
    with listening, telemetry.span("first", {ENTRY: True}):
        first = telemetry.current()
        with telemetry.joined({}), telemetry.span("second", {ENTRY: True}):
            second = telemetry.current()
            with telemetry.batch_span("batch", [first, second]), telemetry.span("stage"):
                pass
    requests.add(reader.read())
    second_shown, first_shown = requests.whole()
    assert [span.name for span in second_shown] == ["second", "batch", "stage"]
    assert {"batch", "stage"} < {span.name for span in first_shown}


def test_requests_are_printed_as_they_end_without_those_of_probes(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=160)
    with printed(tmp_path, console), telemetry.listening(SimpleSpanProcessor(SpanFile(str(tmp_path), "s"))):
        for name in ("GET /healthz", "GET /v1/users/{user_id}"):
            with telemetry.span(name, {ENTRY: True}):
                pass
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "GET /v1/users/{user_id}" in text
    assert "healthz" not in text


def test_a_narrow_terminal_shows_whole_durations(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    listening = telemetry.listening(SimpleSpanProcessor(SpanFile(str(tmp_path), "sonder-segmentation")))
    request, below = ("GET /v1/users/{user_id}", {ENTRY: True}), ("stage segmentation", {"users": 64})
    with printed(tmp_path, console), listening, telemetry.span(*request), telemetry.span(*below):
        pass
    bars = [line for line in console.file.getvalue().splitlines() if "█" in line]  # type: ignore[attr-defined]
    assert len(bars) == 2
    assert all(re.search(r"\d+\.\d\d( |$)", bar) for bar in bars), bars
