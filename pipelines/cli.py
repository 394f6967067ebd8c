"""The `sonder` command. Each command reads a configuration, calls one job, and says what to do next.

This module parses and prints; the jobs live in their own files. Heavy imports happen inside the commands, so that
`sonder --help` answers at once.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines import (
    cli_adopt,
    cli_audience,
    cli_backfill,
    cli_canary,
    cli_cluster,
    cli_experiment,
    cli_features,
    cli_forget,
    cli_jobs,
    cli_keys,
    cli_probe,
    cli_release,
    cli_store,
    cli_target,
    cli_tracking,
)
from sonder.core.config import SonderConfig, load
from sonder.core.errors import ConfigurationError, SonderError

app = typer.Typer(
    name="sonder",
    help="From a product's event log to an understanding of each of its users.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cli_release.app.command("also")(cli_canary.also)
app.add_typer(cli_release.app, name="release")
app.add_typer(cli_canary.app, name="canary")
app.add_typer(cli_audience.app, name="audience")
app.add_typer(cli_backfill.app)  # `sonder backfill` and `sonder repair`
app.add_typer(cli_target.app)  # `sonder target` and `sonder uplift`
app.add_typer(cli_features.app, name="features")
app.add_typer(cli_store.app, name="store")
app.add_typer(cli_keys.app, name="keys")
app.add_typer(cli_jobs.app)  # `sonder submit` and `sonder jobs`
app.add_typer(cli_tracking.app)  # `sonder track`
app.add_typer(cli_forget.app)  # `sonder forget`
app.add_typer(cli_probe.app)  # `sonder probe`
app.add_typer(cli_cluster.app)  # `sonder node-environment`
app.add_typer(cli_adopt.app)  # `sonder adopt`
app.add_typer(cli_experiment.app, name="experiment")

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="the configuration file")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="override, such as encoder.dim=64; repeatable")]
DEFAULT_CONFIG = Path("sonder.yaml")
NOT_PROMOTED = 3  # exit status of `build --promote` whose release was made and is not served


def main() -> None:
    """Run the command; an expected error is one clear sentence, not a traceback (SONDER_DEBUG=1 shows it)."""
    from sonder.core import telemetry
    from sonder.core.loopback import LOOPBACK_ENVIRONMENT

    if not os.environ.get("RAY_ADDRESS"):  # a Ray that this process starts is its own; Ray looks when it is imported
        os.environ.update(LOOPBACK_ENVIRONMENT)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for chatty in ("httpx", "ray", "matplotlib"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    telemetry.configure("sonder")
    try:
        command = next((word for word in sys.argv[1:2] if word.isidentifier()), "")
        with telemetry.joined(os.environ), telemetry.span(f"sonder {command}".strip()):
            app()
    except SonderError as error:
        if os.environ.get("SONDER_DEBUG"):
            raise
        typer.secho(f"{error.title}. {error}", fg=typer.colors.RED, err=True)
        raise SystemExit(2 if isinstance(error, ConfigurationError) else 1) from None
    except KeyboardInterrupt:
        typer.secho("Interrupted. The same command goes on where it stopped.", err=True)
        raise SystemExit(130) from None


# -- before a build ------------------------------------------------------------------------------------------------


@app.command()
def init(
    log: Annotated[str, typer.Argument(help="file, folder, glob or URI of the event log")],
    out: Annotated[Path, typer.Option(help="configuration to write")] = DEFAULT_CONFIG,
    workspace: Annotated[str, typer.Option(help="where snapshots and releases will live")] = "./workspace",
    overwrite: Annotated[bool, typer.Option(help="replace an existing configuration")] = False,
) -> None:
    """Look at a log, guess its mapping, show five mapped rows and write a commented configuration."""
    from pipelines.terminal import show_rows
    from sonder.events.guess import guess_config, mapped_rows
    from sonder.events.guess_yaml import render_config

    if out.exists() and not overwrite:
        raise ConfigurationError(f"{out} exists", do="Name another file with --out, or pass --overwrite")
    guess = guess_config(log)
    show_rows("Five rows of the log, as Sonder understands them", mapped_rows(guess))
    out.write_text(render_config(guess, workspace), encoding="utf-8")
    load(out)
    typer.echo(f"Wrote {out}. Look at its comments, then: sonder build --config {out}")


@app.command()
def synth(
    out: Annotated[Path, typer.Option(help="folder to write")],
    users: Annotated[int, typer.Option(min=1)] = 5_000,
    days: Annotated[int, typer.Option(min=7)] = 90,
    seed: Annotated[int, typer.Option(min=0)] = 7,
) -> None:
    """Write a synthetic world: events, items, the truth behind them, and a configuration to build from."""
    from sonder.core.storage import Folder
    from sonder.events.synthetic import WorldConfig, write_world

    counts = write_world(WorldConfig(num_users=users, num_days=days, seed=seed), Folder.at(str(out.resolve())))
    typer.echo(" ".join(f"{name}={value:,}" for name, value in counts.items() if isinstance(value, int)))
    typer.echo(f"Wrote {out}. Next: sonder build --config {out / 'sonder.yaml'}")


@app.command()
def datasets() -> None:
    """List the public logs that Sonder reads, with licence and size. None of them is part of Sonder."""
    from pipelines.terminal import show_datasets

    show_datasets()


# -- the steps of a build ------------------------------------------------------------------------------------------


@app.command()
def prepare(config: ConfigOption = DEFAULT_CONFIG, overrides: SetOption = None) -> None:
    """Events -> history snapshot, item table, vocabulary, quarantine."""
    from pipelines.prepare import prepare_now  # and no module of a later step, which would take seconds to import

    _tell(prepare_now(load(config, overrides or ())))


@app.command()
def train(config: ConfigOption = DEFAULT_CONFIG, overrides: SetOption = None) -> None:
    """Fit the encoder (runs `prepare` first where needed)."""
    _run_until("train", load(config, overrides or ()))


@app.command()
def segment(config: ConfigOption = DEFAULT_CONFIG, overrides: SetOption = None) -> None:
    """Vectors, interests and lifecycle of every user (runs the steps before it where needed)."""
    _run_until("segment", load(config, overrides or ()))


@app.command()
def cluster(config: ConfigOption = DEFAULT_CONFIG, overrides: SetOption = None) -> None:
    """Behaviour clusters of every user, named and matched to the parent's (runs the steps before it where needed)."""
    _run_until("cluster", load(config, overrides or ()))


@app.command()
def score(config: ConfigOption = DEFAULT_CONFIG, overrides: SetOption = None) -> None:
    """Fit and calibrate the declared scores (runs the steps before it where needed)."""
    _run_until("score", load(config, overrides or ()))


@app.command()
def build(
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    promote: Annotated[bool, typer.Option(help="serve the new release at once")] = False,
    parent: Annotated[
        str | None, typer.Option(help="train on from this release's encoder, in a tenth of the epochs; or `current`")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="take only what is new since this release, and carry its models; or `auto`")
    ] = None,
    retrain: Annotated[bool, typer.Option(help="with --since: fit the models again, warm from that release")] = False,
) -> None:
    """All steps, into one immutable release. Killed or interrupted, the same command goes on where it stopped.

    With --promote, exit status 3 says that the release was made and its consumers' promises keep it from being served.
    """
    from pipelines.build import build as run_build
    from pipelines.build import with_parent
    from pipelines.increment import build_since
    from pipelines.promotion import promote_build, read_consumers
    from pipelines.terminal import show_build
    from pipelines.tracking import require_client, track_build

    resolved = load(config, overrides or ())
    if (retrain and since is None) or (parent and since):
        raise ConfigurationError(
            "--retrain without --since" if retrain and since is None else "--parent beside --since",
            expected="--since RELEASE to carry its models, --since RELEASE --retrain to train on from them",
        )
    if parent is not None:
        resolved = with_parent(resolved, parent)
    require_client(resolved)
    read_consumers(resolved)  # a mistake in what consumers ask for is found before hours of work
    release_id = run_build(resolved) if since is None else build_since(resolved, since, retrain=retrain)
    track_build(resolved, release_id)
    refusal = promote_build(resolved, release_id, asked=promote)
    show_build(resolved, release_id, config)
    if refusal is not None:
        typer.secho(f"{refusal.title}. {refusal}", fg=typer.colors.RED, err=True)
        raise typer.Exit(NOT_PROMOTED)


@app.command()
def evaluate(
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the flat metrics object here")] = None,
) -> None:
    """The quality table: encoder against popularity and item-kNN, and the scores (runs the build where needed)."""
    import orjson

    from pipelines.build import build_metrics
    from pipelines.terminal import show_quality

    resolved = load(config, overrides or ())
    metrics = build_metrics(resolved)
    show_quality(metrics, resolved)
    if json_file is not None:
        json_file.write_bytes(orjson.dumps(metrics, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
        typer.echo(f"Wrote {json_file}")


def _run_until(step: str, config: SonderConfig) -> None:
    from pipelines.build import run_until

    _tell(run_until(config, step))


def _tell(result: Mapping[str, Any]) -> None:
    typer.echo(" ".join(f"{key}={value}" for key, value in result.items() if isinstance(value, str | int | float)))


# -- after a build -------------------------------------------------------------------------------------------------


@app.command()
def serve(
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    host: Annotated[str | None, typer.Option(help="loopback unless told otherwise")] = None,
    port: Annotated[int | None, typer.Option()] = None,
    trace: Annotated[bool, typer.Option("--trace", help="print where the time of each request goes")] = False,
) -> None:
    """Serve the current release over HTTP with Ray Serve, until interrupted."""
    resolved = load(config, overrides or ())
    start = importlib.import_module("services.gateway.start")  # by name: pipelines and services are strangers
    start.serve_forever(
        workspace=resolved.workspace,
        host=host or resolved.serving.host,
        port=port or resolved.serving.port,
        gateways=resolved.serving.gateways,
        store=resolved.serving.store,
        local_dir=resolved.serving.local_dir,
        needs_keys=resolved.serving.needs_keys,
        log_features=resolved.serving.log_features,
        trace=trace,
        tokens=resolved.serving.tokens,
        grpc_port=resolved.serving.grpc_port,
    )


@app.command()
def profile(
    user_id: Annotated[str, typer.Argument(help="as the log spells it")],
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """One user's story: timeline, interests, segments, scores with their drivers, recommendations."""
    from pipelines.story import read_story
    from pipelines.terminal import show_story
    from sonder.core.workspace import Workspace

    show_story(read_story(Workspace.at(load(config, overrides or ()).workspace), user_id))


@app.command()
def lifecycle(
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    as_of: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="UTC, events before it are read; else all are"),
    ] = None,
    user: Annotated[str | None, typer.Option(help="one user: its state, why, and the states before")] = None,
) -> None:
    """Where users stood on any day: mix, growth, transitions, cohorts, and the forecast of the mix."""
    from pipelines.lifecycle import answer, answer_for_user, ask
    from pipelines.terminal_growth import show_overview, show_user
    from sonder.core.workspace import Workspace

    asked = ask(Workspace.at(load(config, overrides or ()).workspace), _microseconds(as_of))
    if user is None:
        show_overview(answer(asked), asked)
    else:
        show_user(answer_for_user(asked, user), asked)


@app.command()
def embed(
    out: Annotated[str, typer.Option(help="folder or URI to write vectors/bucket=NNN/part-0.parquet to")],
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    release: Annotated[str | None, typer.Option(help="whose encoder; the served one if not named")] = None,
    as_of: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="UTC, events before it are read; else all are"),
    ] = None,
) -> None:
    """Vectors of every user of the log at one moment, by a release's encoder (runs `prepare` first where needed)."""
    from pipelines.embed import embed_release
    from sonder.core.storage import Folder

    target = Folder.at(out if "://" in out else str(Path(out).resolve()))
    result = embed_release(load(config, overrides or ()), target, release_id=release, as_of_us=_microseconds(as_of))
    typer.echo(" ".join(f"{key}={value}" for key, value in result.items()))
    typer.echo(f"Wrote {target}: user_id and vector of {result['users']:,} users in vectors/bucket=*/part-0.parquet")


def _microseconds(time: datetime | None) -> int | None:
    return None if time is None else (time - datetime(1970, 1, 1)) // timedelta(microseconds=1)


@app.command()
def lookalike(
    seeds: Annotated[Path, typer.Option(help="user ids: .csv or .parquet with a column user_id, or text, one a line")],
    size: Annotated[int, typer.Option(min=1, help="users of the audience")],
    out: Annotated[Path, typer.Option(help=".parquet or .csv to write; OUT.json beside it has the reach curve")],
    exclude: Annotated[Path | None, typer.Option(help="user ids that may not be in the audience")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    release: Annotated[str | None, typer.Option(help="whose profiles; the served one if not named")] = None,
) -> None:
    """From a list of your best users to a ranked audience of others like them, of any size."""
    import polars as pl

    from pipelines.lookalike import Asked, check_out, grow_audience, write_audience
    from pipelines.terminal import show_audience
    from pipelines.user_lists import read_user_ids
    from sonder.core.workspace import Workspace

    check_out(out)
    excluded = pl.Series("user_id", [], dtype=pl.String) if exclude is None else read_user_ids(exclude)
    resolved = load(config, overrides or ())
    asked = Asked(read_user_ids(seeds), excluded, size, seed=resolved.seed)
    audience = grow_audience(Workspace.at(resolved.workspace), asked, release_id=release)
    beside = write_audience(audience, out)
    show_audience(audience.facts)
    typer.echo(f"Wrote {out}: {audience.facts['size']:,} users; {beside} has the reach curve.")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for the demo's log and workspace")] = Path("demo"),
) -> None:
    """The main job on a synthetic log: build, quality, two users, HTTP answers, what to do with your own log."""
    from pipelines.demo import run

    run(out)


if __name__ == "__main__":
    main()
