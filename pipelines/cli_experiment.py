"""`sonder experiment plan | start | share | status | analyse | stop`: from a question to a verdict.

A running `sonder serve` follows what these write within seconds; nothing here needs it to run.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli_files import write_text
from sonder.core.config import SonderConfig, load

if TYPE_CHECKING:
    from sonder.experiments.registry import Experiments

app = typer.Typer(help="Ask users which of two ways is better, and read the answer.", no_args_is_help=True)
ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="the configuration file")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="override, such as seed=8; repeatable")]
WorkersOption = Annotated[int | None, typer.Option(help="Ray workers; as many as there are if not given")]
ReasonOption = Annotated[str, typer.Option(help="kept with the version")]
DEFAULT_CONFIG = Path("sonder.yaml")


@app.command("plan")
def experiment_plan(
    file: Annotated[Path, typer.Argument(help="the experiment in YAML (docs/experimentation.md)")],
    at: Annotated[datetime | None, typer.Option(help="start of the past week that users are taken from")] = None,
    workers: WorkersOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the plan here")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """How many users it needs and how long that takes, by what the log says of its metrics; writes it down."""
    from pipelines.experiment_analysis import keep_plan, plan_experiment
    from pipelines.terminal_experiment import show_plan
    from sonder.core.workspace import Workspace
    from sonder.experiments.specification import read_experiment

    settings, experiment = load(config, overrides or ()), read_experiment(file)
    planned = plan_experiment(
        settings, experiment, at=None if at is None else at.replace(tzinfo=UTC), num_workers=workers
    )
    show_plan(experiment, planned)
    version = _experiments(settings).plan(experiment, by=_whoever(), reason=f"planned from {file.name}")
    is_kept = keep_plan(Workspace.at(settings.workspace), planned, is_running=version.state == "running")
    if not is_kept:
        typer.echo("It runs already: the plan that it started with stays.")
    if json_file is not None:
        write_text(json_file, planned.model_dump_json(indent=1))
    next_step = "" if version.state == "running" else f" Next: sonder experiment start {experiment.name} -c {config}"
    typer.echo(f"{experiment.name} is {version.state}, version {version.version}.{next_step}")


@app.command("start")
def experiment_start(
    what: Annotated[str, typer.Argument(metavar="NAME|FILE", help="a planned experiment, or its YAML file")],
    reason: ReasonOption = "started by hand",
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """Verify its releases, give it users that no experiment of its layer has, and let gateways assign."""
    from sonder.experiments.specification import read_experiment

    asked = read_experiment(Path(what)) if what.endswith((".yaml", ".yml")) else what
    version = _experiments(load(config, overrides or ())).start(asked, by=_whoever(), reason=reason)
    arms = ", ".join(f"{arm.name}: {version.releases.get(arm.name, 'ranking')}" for arm in version.experiment.arms)
    typer.echo(f"{version.name} runs for {version.share_at(datetime.now(UTC)):.1%} of the users ({arms}).")
    typer.echo(
        f"A running `sonder serve` follows within seconds. Next: sonder experiment status {version.name} -c {config}"
    )


@app.command("share")
def experiment_share(
    name: Annotated[str, typer.Argument(help="a running experiment")],
    share: Annotated[float, typer.Argument(min=0.0, max=1.0, help="of all users; it can only rise")],
    reason: ReasonOption = "set by hand",
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """From now on this share, whatever its ramp says. Who is in an arm stays there."""
    version = _experiments(load(config, overrides or ())).set_share(name, share, by=_whoever(), reason=reason)
    typer.echo(f"{version.name} runs for {version.share_at(datetime.now(UTC)):.1%} of the users.")


@app.command("status")
def experiment_status(
    name: Annotated[str | None, typer.Argument(help="one experiment with its history; all if not given")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """What runs for whom; of one experiment also its changes and whom it has reached."""
    from pipelines.experiment_analysis import exposed_by_arm
    from pipelines.terminal_experiment import show_exposures, show_history, show_versions
    from sonder.core.workspace import Workspace

    settings = load(config, overrides or ())
    experiments, now = _experiments(settings), datetime.now(UTC)
    if name is None:
        show_versions(experiments.list(), now=now)
        return
    newest = experiments.show(name)
    show_versions([newest], now=now)
    show_history(experiments.history(name))
    show_exposures(exposed_by_arm(Workspace.at(settings.workspace), newest.experiment))


@app.command("analyse")
def experiment_analyse(
    name: Annotated[str, typer.Argument(help="an experiment that has reached users")],
    until: Annotated[datetime | None, typer.Option(help="UTC; the end of the log if not given")] = None,
    html: Annotated[
        Path | None, typer.Option(help="the page; beside the analysis in the workspace if not given")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all numbers here")] = None,
    workers: WorkersOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """Measure it over the log, and say what can be said: looking early is safe."""
    from pipelines.experiment_analysis import analyse_experiment
    from pipelines.terminal_experiment import show_analysis, show_preference

    moment = None if until is None else until.replace(tzinfo=UTC)
    found = analyse_experiment(load(config, overrides or ()), name, until=moment, num_workers=workers)
    if found.preference is not None:
        show_preference(found.experiment, found.preference)
    else:
        assert found.analysis is not None, "one of the two"
        show_analysis(found.experiment, found.analysis)
    page = found.folder / "index.html"
    if html is not None:
        write_text(html, page.read_bytes().decode())
    if json_file is not None:
        write_text(json_file, (found.folder / "analysis.json").read_bytes().decode())
    typer.echo(f"Wrote {html or page}.")


@app.command("stop")
def experiment_stop(
    name: Annotated[str, typer.Argument(help="a running experiment")],
    reason: ReasonOption = "stopped by hand",
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """Assign nobody any more; what was recorded stays."""
    version = _experiments(load(config, overrides or ())).stop(name, by=_whoever(), reason=reason)
    typer.echo(f"{version.name} is stopped. Everybody is answered by the served release.")


def _experiments(settings: SonderConfig) -> Experiments:
    from sonder.core.workspace import Workspace
    from sonder.experiments.registry import Experiments

    return Experiments(Workspace.at(settings.workspace))


def _whoever() -> str:
    from pipelines.promotion import operator

    return operator()
