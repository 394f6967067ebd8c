"""The number that targeting multiplies with money: a score of the release, or an uplift that was learnt beside it.

A score is read from the profiles of the release, an uplift from uplift/<name>/users. Each comes with its held-out
window: scores/test/<task>.parquet of the release, or the half of the experiment that the model was not fitted to. The
label of an uplift is (Y - mean) (W - e) / (e (1 - e)): no user's own effect is ever seen, but its mean is the effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from pipelines.bucket_tasks import part_file
from sonder.core.errors import InvalidRequest, NotFound
from sonder.core.storage import Folder, read_manifest
from sonder.core.workspace import Workspace
from sonder.profiles.audience_fields import DECIMALS
from sonder.profiles.record import iso_time
from sonder.releases.artefacts import Release
from sonder.scoring.forecast import Kind, TestWindow
from sonder.scoring.heads import HEADS_FILE


@dataclass(frozen=True)
class AskedScore:
    """Where the number of each user lies, what it means, and how it did on the held-out window."""

    name: str
    kind: Kind
    folder: str | None  # of an uplift's users; None: the profiles
    identity: str
    window: TestWindow | None
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What a bucket task needs."""
        return {"name": self.name, "kind": self.kind, "folder": self.folder, "identity": self.identity}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> AskedScore:
        return cls(**content, window=None, facts={})

    def read(self, profiles: Folder, bucket: int, user_ids: pl.Series) -> pl.Series:
        """The number of each user of a bucket, in their order; null for a user without one."""
        if self.folder is not None:
            file = part_file(Folder.at(self.folder), bucket)
            found = pl.read_parquet(file.read_bytes()).select("user_id", score="uplift") if file.exists() else None
        else:
            found = _profile_scores(part_file(profiles, bucket), self.name)
        if found is None:
            return pl.Series([None] * len(user_ids), dtype=pl.Float64)
        joined = user_ids.to_frame("user_id").join(found, on="user_id", how="left", maintain_order="left")
        return joined["score"].cast(pl.Float64)


def find_score(workspace: Workspace, release: Release, *, task: str | None, uplift: str | None) -> AskedScore:
    """The score or the uplift of that name; an error names those that there are, and why a refused one is not."""
    if (task is None) == (uplift is None):
        raise InvalidRequest("No number to go by" if task is None else "Two numbers to go by",
                             expected="one of --task NAME and --uplift NAME")  # fmt: skip
    if uplift is not None:
        return _find_uplift(workspace, release, uplift)
    assert task is not None
    content = (release.scores / HEADS_FILE).read_json()
    outputs = {output: entry for entry in content["heads"] for output in entry["outputs"]}
    if task not in outputs:
        _refuse(task, outputs, content["refusals"], release.id)
    entry = outputs[task]
    return _score(release, task, entry["task"], entry["outputs"])


def _refuse(task: str, outputs: Mapping[str, Any], refusals: list[dict[str, Any]], release: str) -> None:
    known = ", ".join(outputs) or "none at all"
    for refusal in refusals:
        if refusal["task"] == task:
            numbers = ", ".join(f"{name} {number:g}" for name, number in refusal["numbers"].items())
            found = f"Score {task!r} was refused by release {release}: {refusal['reason']}"
            raise InvalidRequest(f"{found} ({numbers})" if numbers else found, expected=f"one of {known}")
    parts = [output for output in outputs if output.startswith(f"{task}/")]
    raise NotFound(
        f"{task!r} is one score for each of {len(parts)} categories" if parts else f"No score {task!r} in {release}",
        expected=f"one of {', '.join(parts) if parts else known}",
        do="" if parts else "Declare it under `scores` in the configuration and build again.",
    )


def _score(release: Release, name: str, task: Mapping[str, Any], outputs: Sequence[str]) -> AskedScore:
    is_amount = bool(task.get("value") or task.get("count"))
    window, reason = _score_window(release, name, str(task["name"]), outputs)
    facts = {
        "score": name,
        "kind": "amount" if is_amount else "probability",
        "within_days": task["within_days"],
        "protocol": "score of the release as of its end; held out: the release's own test window"
        + (f" from {window.cutoff}" if window is not None else ""),
    }
    notes = () if reason is None else (reason,)
    return AskedScore(name, "amount" if is_amount else "probability", None, name, window, facts, notes)


def _score_window(
    release: Release, name: str, task: str, outputs: Sequence[str]
) -> tuple[TestWindow | None, str | None]:
    """The held-out rows of a score, or why there are none."""
    file = release.scores / "test" / f"{task}.parquet"
    if not file.exists():
        return None, f"Release {release.id} holds no test rows of {task}: nothing is told of a held-out window."
    rows = pl.read_parquet(file.read_bytes())
    if rows.schema["value"].is_nested():  # a list of all outputs of the task
        rows = rows.with_columns(pl.col("label", "value").arr.get(outputs.index(name)))
    cutoffs = rows["cutoff"].unique()
    if len(cutoffs) != 1:
        return None, f"The test rows of {task} have {len(cutoffs)} cutoffs, one is expected: no held-out window."
    rows = rows.sort("user_id")
    scores, labels = (rows[column].cast(pl.Float64).to_numpy() for column in ("value", "label"))
    cutoff_us = int(cutoffs.cast(pl.Int64)[0])
    return TestWindow(scores, labels, iso_time(cutoff_us)), None


def _find_uplift(workspace: Workspace, release: Release, name: str) -> AskedScore:
    folder = workspace.uplift / name
    if not folder.is_published():
        known = [found.name for found in workspace.uplift.children() if found.is_published()]
        raise NotFound(
            f"No uplift {name!r} was learnt",
            expected=f"one of {', '.join(known)}" if known else "an uplift",
            do=f"`sonder uplift --name {name}` learns it.",
        )
    manifest = read_manifest(folder)
    if manifest["release"] != release.id:
        raise InvalidRequest(
            f"Uplift {name!r} was learnt over release {manifest['release']}",
            expected=f"release {release.id}, whose users are asked for",
            do=f"`sonder uplift --name {name}` learns it again.",
        )
    rows = pl.read_parquet((folder / "test.parquet").read_bytes()).sort("user_id")
    treated, outcomes = rows["treated"].to_numpy().astype(np.float64), rows["outcome"].to_numpy()
    share = treated.mean()
    effects = (outcomes - outcomes.mean()) * (treated - share) / (share * (1 - share))
    facts = {
        "score": name,
        "kind": "uplift",
        "within_days": manifest["uplift"]["outcome"]["within_days"],
        "protocol": f"predicted uplift as of the release; held out: {manifest['protocol']}",
        "qini": manifest["quality"]["qini"],
        "qini_interval": manifest["quality"]["qini_interval"],
    }
    window = TestWindow(rows["uplift"].to_numpy(), effects, manifest["at"])
    return AskedScore(
        name, "uplift", (folder / "users").uri, manifest["identity"], window, facts, (manifest["verdict"],)
    )


def _profile_scores(file: Folder, name: str) -> pl.DataFrame | None:
    if not file.exists():
        return None
    columns = ["user_id", "scores.list.element.name", "scores.list.element.value"]
    with file.open() as opened:
        frame = pl.from_arrow(pq.ParquetFile(opened).read(columns))
    assert isinstance(frame, pl.DataFrame)
    flat = frame.explode("scores").unnest("scores").filter(pl.col("name") == name)
    return flat.select("user_id", score=pl.col("value").cast(pl.Float64).round(DECIMALS))
