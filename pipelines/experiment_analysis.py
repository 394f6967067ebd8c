"""`sonder experiment analyse`: measure, analyse, and keep both with their page.

experiments/<name>/analyses/<until>/{manifest.json, users.parquet}   what was measured (pipelines.experiment_metrics)
                                   {analysis.json, index.html}       what it says
experiments/<name>/plan.json                                         the size that it was planned with
An analysis of the same moment is written again: the same frame says the same. An interleaved experiment is not about
users in arms but about whose items they chose; its credit comes from what gateways showed (experiments.interleaving).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

import orjson

from pipelines.experiment_log import read_exposures
from pipelines.experiment_metrics import analysis_folder, baseline, measure
from pipelines.experiment_page import render_analysis, render_preference
from pipelines.experiment_preference import measure_preference
from sonder.core.config import SonderConfig
from sonder.core.errors import NotFound
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.experiments.analysis import analyse
from sonder.experiments.exposures import first_exposures
from sonder.experiments.interleaving_analysis import Preference
from sonder.experiments.planning import Plan, plan
from sonder.experiments.registry import Experiments
from sonder.experiments.results import Analysis
from sonder.experiments.specification import Experiment


@dataclass(frozen=True)
class Found:
    """An analysis of arms, or the preference of an interleaved experiment, and where it lies."""

    experiment: Experiment
    folder: Folder
    analysis: Analysis | None = None
    preference: Preference | None = None


def analyse_experiment(
    config: SonderConfig, name: str, *, until: datetime | None = None, num_workers: int | None = None
) -> Found:
    """NotFound where there is no such experiment, or nobody was exposed to it."""
    workspace = Workspace.at(config.workspace)
    experiment = Experiments(workspace).show(name).experiment
    if experiment.method == "interleave":
        return _preference(config, workspace, experiment, until)
    measured = measure(config, experiment, until=until, num_workers=num_workers)
    counts = measured.manifest["counts"]
    analysis = analyse(
        experiment,
        measured.users,
        exposures_by_arm=measured.manifest["users"],
        num_in_several=counts["in_several_arms"],
        until=measured.until,
        planned=kept_plan(workspace, name),
    )
    folder = analysis_folder(workspace, name, measured.until)
    told = {"exposure rows": counts["exposure_rows"], "erased users left out": counts["erased"],
            "exposed after the moment": counts["exposed_later"]}  # fmt: skip
    (folder / "analysis.json").write_bytes(analysis.model_dump_json(indent=1).encode())
    (folder / "index.html").write_bytes(render_analysis(experiment, analysis, told).encode())
    return Found(experiment, folder, analysis=analysis)


def plan_experiment(
    config: SonderConfig, experiment: Experiment, *, at: datetime | None = None, num_workers: int | None = None
) -> Plan:
    """How many users it needs, by a past week of the log without it (experiment_metrics.baseline)."""
    found = baseline(config, experiment, at=at, num_workers=num_workers)
    per_day = sum(found.users_per_day) / max(1, len(found.users_per_day))
    return plan(experiment, found.users, users_per_day=per_day or None)


def keep_plan(workspace: Workspace, planned: Plan, *, is_running: bool) -> bool:
    """Beside the experiment's versions: what an analysis holds its users against -> whether it is this one.

    A plan may be replaced until the experiment starts: a size that is chosen once numbers are seen promises nothing.
    """
    if is_running and kept_plan(workspace, planned.experiment) is not None:
        return False
    _plan_file(workspace, planned.experiment).write_json(planned.model_dump(mode="json"))
    return True


def kept_plan(workspace: Workspace, name: str) -> Plan | None:
    """What was planned; None where it never was, and then an analysis estimates the size, blind to the arms."""
    try:
        return Plan.model_validate_json(_plan_file(workspace, name).read_bytes())
    except NotFound:
        return None


def _plan_file(workspace: Workspace, name: str) -> Folder:
    return workspace.experiments / name / "plan.json"


def _preference(config: SonderConfig, workspace: Workspace, experiment: Experiment, until: datetime | None) -> Found:
    found = measure_preference(config, experiment, until=until)
    folder = analysis_folder(workspace, experiment.name, found.until)
    content = {"experiment": experiment.name, "until": found.until.isoformat(), **asdict(found.preference)}
    (folder / "analysis.json").write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    (folder / "index.html").write_bytes(render_preference(experiment, found).encode())
    return Found(experiment, folder, preference=found.preference)


def exposed_by_arm(workspace: Workspace, experiment: Experiment) -> dict[str, int]:
    """Users who were exposed so far, by arm; users of several arms are in none."""
    try:
        exposed, _ = first_exposures(read_exposures(workspace, experiment.name))
    except NotFound:
        return {arm.name: 0 for arm in experiment.arms}
    found = dict(exposed.group_by("arm").len().iter_rows())
    return {arm.name: int(found.get(arm.name, 0)) for arm in experiment.arms}
