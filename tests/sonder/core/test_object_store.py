"""The S3 client against a real server: large files, long listings, refusals that say what to do, and no secret told."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest
from obstore.exceptions import GenericError

import sonder.core.object_store as object_store
import sonder.core.object_store_client as object_store_client
from sonder.core.errors import DataError, NotFound, StorageError, StorageUnavailable
from sonder.core.storage import Folder, publish, read_manifest
from tests.redis_server import free_port
from tests.s3_server import S3Server


@pytest.fixture
def root(s3_environment: S3Server, request: pytest.FixtureRequest) -> Folder:
    return Folder.at(s3_environment.uri(f"{request.node.name}-{os.urandom(4).hex()}"))


def test_a_large_file_goes_up_in_parts_and_is_read_by_ranges(root: Folder, tmp_path: Path) -> None:
    content = os.urandom(20 << 20)
    (tmp_path / "large").write_bytes(content)
    root.fs.put_file(str(tmp_path / "large"), (root / "large").path)
    with (root / "large").open() as file:
        assert (file.seek(-5, os.SEEK_END), file.read()) == (len(content) - 5, content[-5:])
        assert (file.seek(9 << 20), file.read(3)) == (9 << 20, content[9 << 20 : (9 << 20) + 3])
    root.fs.get_file((root / "large").path, str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == content == (root / "large").read_bytes()
    assert (root / "large").fingerprint() == (Folder.at(str(tmp_path / "large")).digest(), len(content))


def test_parts_of_a_file_are_read_as_fsspec_says(root: Folder) -> None:
    (root / "a").write_bytes(b"0123456789")
    asked = [(2, 5), (7, None), (None, 3), (-3, None), (2, -2), (4, 4)]
    read = [root.fs.cat_file((root / "a").path, start, end) for start, end in asked]
    assert read == [b"234", b"789", b"012", b"789", b"234567", b""]


def test_a_stream_appears_when_it_is_closed(root: Folder) -> None:
    content = os.urandom(20 << 20)
    with root.fs.open((root / "stream").path, "wb") as file:
        for start in range(0, len(content), 3 << 20):
            file.write(content[start : start + (3 << 20)])
        assert not (root / "stream").exists()
    assert (root / "stream").read_bytes() == content


def test_columns_of_a_large_table_are_read_alone(root: Folder) -> None:
    table = pa.table({"a": pa.array(range(100_000)), "noise": pa.array([os.urandom(200) for _ in range(100_000)])})
    (root / "t.parquet").write_table(table)
    assert (root / "t.parquet").read_table(["a"]).column("a").to_pylist() == list(range(100_000))


def test_a_listing_of_more_than_one_page_is_whole(root: Folder) -> None:
    names = [f"{number:04d}" for number in range(1_203)]
    with ThreadPoolExecutor(16) as writers:
        list(writers.map(lambda name: (root / "many" / name).write_bytes(b""), names))
    assert (root / "many").files() == names
    assert [child.name for child in (root / "many").children()] == names
    (root / "many").remove()
    assert not root.exists()


_PUBLISHER = """
import sys, time
from sonder.core.object_store import ObjectStore
from sonder.core.storage import Folder, publish

copy = ObjectStore.cp_file

def slowly(self, source, target, **_):
    time.sleep(0.1)
    copy(self, source, target)

ObjectStore.cp_file = slowly
publish(Folder.at(sys.argv[1]), Folder.at(sys.argv[2]), {"rows": 1})
"""


def test_a_publication_that_is_killed_half_way_is_invisible_and_is_done_again(root: Folder) -> None:
    names = [f"{number:03d}" for number in range(80)]
    staged, final = root / ".staging" / "x", root / "x"
    for name in names:
        (staged / name).write_bytes(name.encode())
    with subprocess.Popen([sys.executable, "-c", _PUBLISHER, str(staged), str(final)]) as publisher:
        deadline = time.monotonic() + 30
        while len(final.files()) < 5:
            assert publisher.poll() is None
            assert time.monotonic() < deadline
        publisher.kill()
    assert 5 <= len(final.files()) < 80
    assert not final.is_published()
    with pytest.raises(NotFound):
        read_manifest(final)
    (final / "leftover").write_bytes(b"of another build")
    publish(staged, final, {"rows": 1})
    assert final.files() == [*names, "manifest.json"]
    assert [name for name in root.files() if not name.startswith("x/")] == []


def test_what_is_too_large_for_the_server_is_copied_through_this_machine(
    root: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(12 << 20)
    (root / ".staging" / "x" / "a").write_bytes(content)
    monkeypatch.setattr(object_store, "COPY_BYTES", 1 << 20)
    publish(root / ".staging" / "x", root / "x", {})
    assert (root / "x" / "a").read_bytes() == content


def test_a_publisher_stops_where_the_copy_is_not_what_was_staged(root: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / ".staging" / "x" / "a").write_bytes(b"whole")
    copy = type(root.fs).cp_file

    def cut(fs: object, source: str, target: str, **_: object) -> None:
        root.fs.pipe_file(target, b"hal")

    monkeypatch.setattr(type(root.fs), "cp_file", cut)
    with pytest.raises(DataError, match="not what was staged"):
        publish(root / ".staging" / "x", root / "x", {})
    with pytest.raises(NotFound):
        read_manifest(root / "x")
    monkeypatch.setattr(type(root.fs), "cp_file", copy)
    publish(root / ".staging" / "x", root / "x", {})
    assert (root / "x" / "a").read_bytes() == b"whole"


def test_a_write_over_a_version_that_is_gone_is_refused(root: Folder) -> None:
    file = root / "a"
    first = root.fs.create(file.path, b"one")
    second = root.fs.replace(file.path, b"two", first)
    with pytest.raises(FileExistsError):
        root.fs.replace(file.path, b"three", first)
    file.remove()
    with pytest.raises(FileExistsError):
        root.fs.replace(file.path, b"three", second)


def test_a_conditional_write_whose_answer_was_lost_is_not_taken_for_anothers(
    root: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, lost = object_store.obstore.put, []

    def unheard(*arguments: object, **options: object) -> object:
        answer = put(*arguments, **options)
        if len(lost) % 2 == 0:
            lost.append(answer)
            raise GenericError("the connection was closed")
        lost.append(answer)
        return answer

    monkeypatch.setattr(object_store.obstore, "put", unheard)
    version = root.fs.create((root / "a").path, b"one")
    assert root.fs.replace((root / "a").path, b"two", version)
    assert (len(lost), (root / "a").read_bytes()) == (2, b"two")


def test_strangers_are_told_what_they_lack_and_no_secret(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = {**s3_server.environment, "AWS_SECRET_ACCESS_KEY": "not-the-secret"}
    unknown = {**s3_server.environment, "AWS_ACCESS_KEY_ID": "nobody"}
    file = Folder.at(s3_server.uri("denied/a"))
    caplog.set_level(logging.DEBUG)
    for environment in (s3_server.strangers, wrong, unknown):
        with monkeypatch.context() as changed:
            for name, value in environment.items():
                changed.setenv(name, value)
            for attempt in (file.read_bytes, lambda: file.write_bytes(b"x"), file.files, file.exists, file.remove):
                with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID") as refused:
                    attempt()
                told = f"{refused.value!s} {refused.value!r} {caplog.text}"
                assert environment["AWS_SECRET_ACCESS_KEY"] not in told
                assert environment["AWS_ACCESS_KEY_ID"] not in told


def test_an_absent_bucket_is_told(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.owners.items():
        monkeypatch.setenv(name, value)
    file = Folder.at("s3://no-such-bucket/a")
    for attempt in (file.read_bytes, file.files, file.children):
        with pytest.raises(StorageError, match="no bucket 'no-such-bucket'"):
            attempt()


def test_an_endpoint_that_nobody_listens_at_is_told(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(object_store_client, "RETRY_S", 1.0)
    with pytest.raises(StorageUnavailable, match="did not answer") as silent:
        Folder.at("s3://sonder-tests/a").read_bytes()
    assert silent.value.status == 503


def test_a_clock_that_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch, s3_environment: S3Server) -> None:
    with _answering([(403, b"<Error><Code>RequestTimeTooSkewed</Code></Error>")]) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(StorageError, match="clock"):
            Folder.at("s3://sonder-tests/a").read_bytes()


def test_a_server_that_fails_for_a_moment_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, s3_environment: S3Server
) -> None:
    failures = [(503, b"<Error><Code>SlowDown</Code></Error>"), (500, b""), (200, b"whole")]
    with _answering(failures) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert Folder.at("s3://sonder-tests/a").read_bytes() == b"whole"


@contextmanager
def _answering(answers: list[tuple[int, bytes]]) -> Iterator[str]:
    """A server that gives these answers in turn, the last one for ever."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.send_header("etag", '"1"')
            self.send_header("last-modified", "Sat, 28 Nov 2026 09:00:00 GMT")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
