"""`sonder canary` and `sonder release also`: what is served beside the current release.

A running `sonder serve` follows what these write within seconds; nothing here needs it to run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sonder.core.config import load
from sonder.core.errors import InvalidRequest

if TYPE_CHECKING:
    from sonder.releases.canary import Canaries, Step

app = typer.Typer(help="Let a share of users read a new release, compare, promote or go back.", no_args_is_help=True)
ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="the configuration file")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="override, such as encoder.dim=64; repeatable")]
ReasonOption = Annotated[str, typer.Option(help="kept in releases/CANARY")]
DEFAULT_CONFIG = Path("sonder.yaml")


@app.command("start")
def canary_start(
    release_id: Annotated[str, typer.Argument(metavar="RELEASE", help="the candidate")],
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="of the users, by a stable hash")] = 0.05,
    shadow: Annotated[bool, typer.Option("--shadow", help="the candidate answers too, and nobody sees it")] = False,
    ramp: Annotated[
        str | None, typer.Option(help="shares one after another, such as 0.01,0.05,0.25; the last one stays")
    ] = None,
    ramp_minutes: Annotated[float, typer.Option(help="of each share of the ramp")] = 30.0,
    salt: Annotated[str | None, typer.Option(help="which users; from both release ids, if not given")] = None,
    p99_ratio: Annotated[float, typer.Option(help="most that p99 may be of the served release's")] = 2.0,
    degraded: Annotated[float, typer.Option(help="most degraded answers above the served release's share")] = 0.02,
    errors: Annotated[float, typer.Option(help="most failed answers above the served release's share")] = 0.01,
    psi: Annotated[float, typer.Option(help="largest PSI of any score between the arms")] = 0.25,
    min_requests: Annotated[int, typer.Option(help="answers of each arm before a verdict")] = 200,
    reason: ReasonOption = "started by hand",
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """Verify a release against its digests and put it on trial beside the current one."""
    from pydantic import ValidationError

    from sonder.releases.canary import Limits

    try:
        limits = Limits(p99_ratio=p99_ratio, degraded=degraded, errors=errors, psi=psi, min_requests=min_requests)
        trial = _canaries(config, overrides).start(
            release_id,
            share=share,
            mode="shadow" if shadow else "canary",
            ramp=_steps(ramp, ramp_minutes),
            limits=limits,
            salt=salt,
            by=_whoever(),
            reason=reason,
        )
    except ValidationError as error:
        place = error.errors()[0]
        raise InvalidRequest(f"{'/'.join(map(str, place['loc']))}: {place['msg']}") from error
    told = f"{trial.share:.1%} of the users" + (f", then {ramp}" if ramp else "")
    read = f"{told} are answered by {trial.served}, and by {trial.candidate} unseen" if shadow else f"{told} read it"
    typer.echo(f"{trial.candidate} is on trial beside {trial.served}: {read}.")
    typer.echo("A running `sonder serve` follows within seconds. `sonder canary status` compares both.")


@app.command("status")
def canary_status(
    json_file: Annotated[Path | None, typer.Option("--json", help="write all numbers here")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """Both arms side by side, over all gateways and the last twenty minutes; or how the last trial ended."""
    from pipelines.terminal_canary import show_canary
    from sonder.core.workspace import Workspace

    show_canary(Workspace.at(load(config, overrides or ()).workspace), json_file)


@app.command("share")
def canary_share(
    share: Annotated[float, typer.Argument(min=0.0, max=1.0)],
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """Another share from now on; a ramp ends with it. Whoever was in a smaller one stays in."""
    if share <= 0:
        raise InvalidRequest("A share of 0", expected="more", do="`sonder canary stop` ends the trial.")
    trial = _canaries(config, overrides).set_share(share)
    typer.echo(f"{trial.share:.1%} of the users read {trial.candidate} within seconds.")


@app.command("stop")
def canary_stop(
    reason: ReasonOption = "stopped by hand", config: ConfigOption = DEFAULT_CONFIG, overrides: SetOption = None
) -> None:
    """End the trial; everybody reads the current release within seconds."""
    ended = _canaries(config, overrides).stop(by=_whoever(), reason=reason)
    typer.echo(f"The canary of {ended.trial.candidate} is stopped. {ended.trial.served} answers everybody.")


@app.command("promote")
def canary_promote(
    reason: ReasonOption = "promoted from its canary",
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """End the trial well: the candidate is verified again, passes the gate and becomes the current release."""
    from pipelines.promotion import gate_of

    gate = gate_of(load(config, overrides or ()))
    ended = _canaries(config, overrides).promote(by=_whoever(), reason=reason, gate=gate)
    typer.echo(
        f"{ended.trial.candidate} is current. A running `sonder serve` answers everybody from it within seconds."
    )


def also(
    release_id: str,
    end: Annotated[bool, typer.Option("--end", help="serve it no more")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """Serve a release beside the current one, to whoever names it: `?release=ID` or the header x-sonder-release."""
    canaries = _canaries(config, overrides)
    canary = canaries.end_also(release_id) if end else canaries.also(release_id)
    typer.echo(f"Served by name beside the current release: {', '.join(canary.also) or 'nothing'}.")


def _canaries(config: Path, overrides: list[str] | None) -> Canaries:
    from sonder.core.workspace import Workspace
    from sonder.releases.canary import Canaries

    return Canaries(Workspace.at(load(config, overrides or ()).workspace))


def _steps(ramp: str | None, minutes: float) -> list[Step]:
    from sonder.releases.canary import Step

    if ramp is None:
        return []
    try:
        shares = [float(share) for share in ramp.split(",")]
    except ValueError as error:
        raise InvalidRequest(f"A ramp {ramp!r}", expected="shares such as 0.01,0.05,0.25") from error
    if shares != sorted(shares):
        raise InvalidRequest(f"A ramp {ramp!r} that falls", expected="rising shares")
    return [Step(share=share, minutes=minutes) for share in shares]


def _whoever() -> str:
    from pipelines.promotion import operator

    return operator()
