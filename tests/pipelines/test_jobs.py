"""Following, stopping and naming jobs, on a client that behaves as the real one may (it is in test_submit.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus
from typer.testing import CliRunner

import pipelines.jobs
import pipelines.submit
from pipelines.cli import app
from pipelines.job_work import Work, read_work
from pipelines.jobs import find_job, follow, stop
from pipelines.submit import submit
from sonder.core.errors import NotFound, StageUnavailable


class FakeClient:
    """A cluster's jobs; the log of each is told in pieces, and an exception among them is raised there."""

    def __init__(self, **statuses: str) -> None:
        self.infos = {name: self.info(name, status) for name, status in statuses.items()}
        self.pieces: list[list[str | BaseException]] = [["hello\n"]]
        self.submitted: list[dict[str, Any]] = []
        self.log = ""

    def info(self, name: str, status: str, exit_code: int | None = None) -> Any:
        return SimpleNamespace(submission_id=name, job_id=None, status=JobStatus(status), message="", metadata={},
                               start_time=1, end_time=2, driver_exit_code=exit_code)  # fmt: skip

    def list_jobs(self) -> list[Any]:
        return list(self.infos.values())

    def get_job_status(self, job: str) -> JobStatus:
        status: JobStatus = self.infos[job].status
        return status

    def get_job_logs(self, job: str) -> str:
        return self.log

    def stop_job(self, job: str) -> None:
        self.infos[job].status = JobStatus.STOPPED

    def submit_job(self, **description: Any) -> None:
        self.submitted.append(description)
        self.infos[description["submission_id"]] = self.info(description["submission_id"], "SUCCEEDED")

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for piece in self.pieces.pop(0) if len(self.pieces) > 1 else self.pieces[0]:
            if isinstance(piece, BaseException):
                raise piece
            yield piece


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.jobs, "LOOK_EVERY_S", 0.0)


@pytest.mark.parametrize(
    ("status", "exit_code", "ends_with"),
    [("SUCCEEDED", None, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("STOPPED", None, 143)],
)
def test_the_exit_status_is_the_jobs_own(status: str, exit_code: int | None, ends_with: int) -> None:
    client = FakeClient()
    client.infos["sonder-a"] = client.info("sonder-a", status, exit_code)
    assert follow(client, "sonder-a", address="a") == ends_with


def test_a_log_goes_on_where_the_connection_was_lost(capsys: pytest.CaptureFixture[str]) -> None:
    client = FakeClient(**{"sonder-a": "SUCCEEDED"})
    client.pieces = [
        ["one\ntwo\n", "thr", RuntimeError("closed")],
        [ConnectionResetError()],
        ["one\ntw", "o\nthree\nfour\n"],
    ]
    assert follow(client, "sonder-a", address="a") == 0
    assert capsys.readouterr().out == "one\ntwo\nthree\nfour\nsonder-a succeeded.\n"


def test_a_cluster_that_stays_away_is_given_up_and_the_job_is_not() -> None:
    client = FakeClient(**{"sonder-a": "RUNNING"})
    client.pieces = [[RuntimeError("closed")]]
    with pytest.raises(StageUnavailable, match="sonder-a may go on"):
        follow(client, "sonder-a", address="a")
    assert client.infos["sonder-a"].status == JobStatus.RUNNING


def test_who_interrupts_the_log_leaves_the_job_alone(capsys: pytest.CaptureFixture[str]) -> None:
    client = FakeClient(**{"sonder-a": "RUNNING"})
    client.pieces = [["one\n", KeyboardInterrupt()]]
    assert follow(client, "sonder-a", address="http://x") == 130
    assert "sonder jobs logs sonder-a --follow --address http://x" in capsys.readouterr().err
    assert client.infos["sonder-a"].status == JobStatus.RUNNING


def test_an_image_without_sonder_is_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    client = FakeClient()
    client.infos["sonder-a"] = client.info("sonder-a", "FAILED", 1)
    client.log = "/usr/bin/python: Error while finding module: No module named 'pipelines'\n"
    assert follow(client, "sonder-a", address="a") == 1
    assert "--install code" in capsys.readouterr().err


def test_a_job_is_found_by_its_id_and_stopped() -> None:
    client = FakeClient(**{"sonder-a": "RUNNING", "other": "RUNNING"})
    assert find_job(client, "sonder-a").submission_id == "sonder-a"
    with pytest.raises(NotFound, match="one of sonder-a"):
        find_job(client, "sonder-b")
    assert stop(client, "sonder-a") == "STOPPED"


@pytest.fixture
def work(tmp_path: Path) -> Work:
    file = tmp_path / "sonder.yaml"
    file.write_text(f"workspace: {tmp_path / 'w'}\nevents: {{path: {tmp_path / 'a.csv'}}}\n", encoding="utf-8")
    return read_work(["build", "--promote"], file)


def submitted(client: FakeClient, work: Work, monkeypatch: pytest.MonkeyPatch, **how: Any) -> list[str]:
    monkeypatch.setattr(pipelines.submit, "connect", lambda address: client)
    assert submit(work, address="http://127.0.0.1:8265", **how) == 0
    return [description["submission_id"] for description in client.submitted]


def test_work_is_started_attached_to_gone_on_with_or_said_to_be_done(
    work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = work.name
    fresh = FakeClient()
    assert submitted(fresh, work, monkeypatch) == [name]
    assert fresh.submitted[0]["entrypoint"].endswith("-m pipelines.cli build --config sonder.yaml --promote")
    assert submitted(fresh, work, monkeypatch) == [name]  # done
    assert "Pass --again" in capsys.readouterr().out
    assert submitted(fresh, work, monkeypatch, again=True) == [name, f"{name}-2"]
    assert submitted(FakeClient(**{name: "RUNNING"}), work, monkeypatch, is_followed=False) == []
    assert "is running already" in capsys.readouterr().out
    attempts = {name: "FAILED", f"{name}-2": "STOPPED", **{f"{name}-{n}": "FAILED" for n in range(3, 11)}}
    assert submitted(FakeClient(**attempts), work, monkeypatch) == [f"{name}-11"]


def test_somebody_who_was_faster_is_attached_to(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient()

    def taken(**description: Any) -> None:
        client.infos[work.name] = client.info(work.name, "SUCCEEDED")
        raise RuntimeError(f"Job with submission_id {work.name} already exists.")

    monkeypatch.setattr(client, "submit_job", taken)
    assert submitted(client, work, monkeypatch) == []


def test_another_machine_is_asked_for_its_own_python(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient()
    monkeypatch.setattr(pipelines.submit, "connect", lambda address: client)
    submit(work, address="http://head:8265", install="code")
    assert client.submitted[0]["entrypoint"].startswith("python -m pipelines.cli build")
    assert len(client.submitted[0]["runtime_env"]["py_modules"]) == 3


def test_the_commands_list_print_and_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient(**{"sonder-build-1": "SUCCEEDED", "sonder-train-2": "RUNNING", "raysubmit_x": "RUNNING"})
    client.log = "one\ntwo\n"
    monkeypatch.setattr(pipelines.jobs, "connect", lambda address: client)

    def said(*words: str) -> str:
        done = CliRunner().invoke(app, ["jobs", *words])
        assert isinstance(done.exception, SystemExit | None), done.exception
        return done.output

    listed = said("list").splitlines()
    assert [line.split()[-1] for line in listed] == ["sonder-build-1", "sonder-train-2"]
    assert said("logs", "sonder-build-1") == "one\ntwo\n"
    assert said("logs", "sonder-build-1", "--follow") == "hello\nsonder-build-1 succeeded.\n"
    assert "goes on where it stopped" in said("stop", "sonder-train-2")
    assert said("stop", "sonder-build-1") == "sonder-build-1 succeeded.\n"
    client.infos.clear()
    assert "No job yet" in said("list")
