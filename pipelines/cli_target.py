"""`sonder target` and `sonder uplift`: whom to act on for a budget, and what acting changes. Parses and prints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from sonder.core.config import load
from sonder.core.errors import InvalidRequest
from sonder.core.workspace import Workspace

app = typer.Typer()
ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="the configuration file")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="override, such as workspace=./other; repeatable")]
ReleaseOption = Annotated[str | None, typer.Option(help="the served one if not named")]
DEFAULT_CONFIG = Path("sonder.yaml")
TABLE_HELP = (
    "instead of --value: what each end brings, a cost below 0, "
    "true_positive=9.8,false_positive=-0.2,false_negative=0,true_negative=0"
)
SAID = {"probability": "come true", "amount": "sum of the amounts", "uplift": "come true because we act"}


@app.command()
def target(
    task: Annotated[str | None, typer.Option(help="a score of the release, such as churn_60d")] = None,
    uplift: Annotated[str | None, typer.Option(help="instead: what `sonder uplift` learnt under this name")] = None,
    cost: Annotated[float, typer.Option(min=0, help="of one contact")] = 0.0,
    value: Annotated[float | None, typer.Option(help="of a user for whom it comes true, or of a unit")] = None,
    effect: Annotated[float, typer.Option(help="share of the value that acting recovers; 1 is an upper bound")] = 1.0,
    table: Annotated[str | None, typer.Option(help=TABLE_HELP)] = None,
    budget: Annotated[float | None, typer.Option(min=0, help="money for contacts")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="most users")] = None,
    audience: Annotated[str | None, typer.Option(help="only users for whom this saved audience's rule holds")] = None,
    rule: Annotated[str | None, typer.Option(help="only users for whom this rule holds")] = None,
    purpose: Annotated[str | None, typer.Option(help="only users who granted it, such as ads")] = None,
    exclude: Annotated[Path | None, typer.Option(help="user ids that may not be chosen")] = None,
    out: Annotated[Path | None, typer.Option(help=".parquet or .csv to write; OUT.json says the rest")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    release: ReleaseOption = None,
) -> None:  # fmt: skip
    """Whom to act on for a budget: the users of most expected gain, and what they will bring."""
    from pipelines.target import AskedTarget, choose_targets, write_targets
    from pipelines.user_lists import read_user_ids

    resolved = load(config, overrides or ())
    asked = AskedTarget(
        payoff=_payoff(table, cost=cost, value=value, effect=effect, is_uplift=uplift is not None),
        task=task,
        uplift=uplift,
        cost=cost,
        budget=budget,
        size=size,
        effect=None if table is not None else effect,
        audience=audience,
        rule=rule,
        purpose=purpose,
        exclude=() if exclude is None else tuple(read_user_ids(exclude).to_list()),
        seed=resolved.seed,
    )
    targets = choose_targets(Workspace.at(resolved.workspace), asked, release_id=release)
    _show_target(targets.facts)
    if out is not None:
        beside = write_targets(targets, out, min_size=resolved.audiences.min_export_size)
        typer.echo(f"Wrote {out}: {len(targets.users):,} users; {beside} says how they were chosen.")


@app.command()
def uplift(
    name: Annotated[str | None, typer.Option(help="of the configuration's `uplift`; the only one if not named")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    release: ReleaseOption = None,
) -> None:
    """What a randomised treatment changed and for whom, judged on users that the model was not fitted to."""
    from pipelines.uplift import learn_uplift

    resolved = load(config, overrides or ())
    told = learn_uplift(resolved, name, release_id=release)
    _show_uplift(told)
    learnt = told["uplift"]["name"]
    typer.echo(f"Wrote {Workspace.at(resolved.workspace).uplift / learnt}: uplift of {told['users']:,} users")
    if told["quality"]["is_better_than_random"]:
        typer.echo(f"Next: sonder target --uplift {learnt} --cost … --value … -c {config}")


def _payoff(table: str | None, *, cost: float, value: float | None, effect: float, is_uplift: bool) -> Any:
    from sonder.scoring.decisions import CostTable, simple_payoff

    if (table is None) == (value is None):
        raise InvalidRequest("Two payoffs" if value is not None else "No payoff", expected="one of --value and --table")
    if table is not None:
        if is_uplift or effect != 1.0:
            raise InvalidRequest("A cost table with an uplift or an effect", expected="--cost and --value")
        return CostTable.parse(table).payoff
    if is_uplift and effect != 1.0:
        raise InvalidRequest("An effect beside an uplift", expected="no --effect: an uplift is the effect of acting")
    assert value is not None
    return simple_payoff(cost=cost, value=value, effect=effect)


def _show_target(facts: dict[str, Any]) -> None:
    from pipelines.terminal import show_rows

    typer.echo(f"{facts['score']}, {facts['within_days']} days; {facts['protocol']}")
    typer.echo(f"Release {facts['release']} as of {facts['as_of']}. {_threshold(facts['payoff'])}")
    left_out = {reason.replace("_", " "): number for reason, number in facts["left_out"].items() if number}
    typer.echo(
        f"{facts['candidates']:,} users may be chosen"
        + (f" ({', '.join(f'{reason} {number:,}' for reason, number in left_out.items())})" if left_out else "")
        + f"; {facts['chosen']:,} are ({facts['share']:.1%}), {_money(facts['spent'])} spent. "
        f"Stopped by: {facts['stopped_by']}."
    )
    expected, following = facts["expected"], facts["next"]
    rows = [
        _row("chosen", facts["chosen"], expected["gain"], expected["gain_interval"]),
        _row("as many random users", facts["chosen"], facts["random_gain"]),
        _row("the next 10 % in addition", following["users"], following["gain"]),
    ]
    show_rows(f"Expected gain (95 %: {expected['interval_of']})", rows)
    low, high = expected["sum_interval"]
    between = "" if math.isnan(low) else f", 95 % {low:,.0f} to {high:,.0f}"
    typer.echo(f"Expected: {SAID[facts['kind']]} {expected['sum']:,.1f} of {facts['chosen']:,}{between}.")
    if facts["held_out"] is not None:
        _show_held_out(facts["held_out"])
    for note in facts["notes"]:
        typer.secho(note, fg=typer.colors.YELLOW)


def _show_held_out(held_out: dict[str, Any]) -> None:
    from pipelines.terminal import show_rows

    rows = [
        _row("promised by the score", held_out["num_chosen"], held_out["promised"]),
        _row("came true", held_out["num_chosen"], held_out["gain"], held_out["gain_interval"]),
        _row("as many random users", held_out["num_chosen"], held_out["random"]),
    ]
    if held_out["perfect"] is not None:
        rows.append(_row("as many in the perfect order", held_out["num_chosen"], held_out["perfect"]))
    cutoff, num_users = held_out["cutoff"], held_out["num_users"]
    show_rows(f"The same share of the {num_users:,} users of the held-out window from {cutoff}", rows)


def _show_uplift(told: dict[str, Any]) -> None:
    from pipelines.terminal import show_rows

    drawn, quality = told["randomisation"], told["quality"]
    typer.echo(f"{told['uplift']['name']}: {told['protocol']}. Release {told['release']}.")
    typer.echo(
        f"{drawn['num_treated']:,} treated, {drawn['num_control']:,} controls (share {drawn['share']:g} declared, "
        f"p = {drawn['ratio_p_value']:.2g}); arms told apart with AUC {drawn['auc']:.3f}, largest difference "
        f"{drawn['largest_difference']:.2f} deviations (chance stays below {drawn['difference_bound']:.2f})."
    )
    for warning in drawn["warnings"]:
        typer.secho(f"Look at this: {warning}.", fg=typer.colors.YELLOW)
    rows = [
        _number("average effect", quality["average_effect"], quality["average_effect_interval"]),
        _number("outcome of the controls", quality["outcome_of_controls"]),
        _number("Qini", quality["qini"], quality["qini_interval"]),
        _number("Qini of the two-model baseline", quality["baseline_qini"], quality["baseline_qini_interval"]),
        _number(
            "Qini over the baseline", quality["qini"] - quality["baseline_qini"], quality["over_baseline_interval"]
        ),
        _number("AUUC", quality["auuc"]),
        _number("AUUC of a random order", quality["auuc_of_random"]),
    ]
    show_rows(f"On {quality['users']:,} held-out users", rows)
    groups = [
        {
            "users": f"{group['users']:,}",
            "predicted": f"{group['predicted']:.4f}",
            "observed": f"{group['observed']:.4f}",
            "95 %": "{:.4f} to {:.4f}".format(*group["interval"]),
        }
        for group in quality["groups"]
    ]
    show_rows("Fifths by predicted uplift, most first", groups)
    typer.secho(told["verdict"], fg=None if quality["is_better_than_random"] else typer.colors.YELLOW)


def _threshold(payoff: dict[str, Any]) -> str:
    if payoff["acts"] in ("always", "never"):
        return f"Acting pays {payoff['acts']}, whatever the score."
    return f"Acting pays {payoff['acts']} a score of {payoff['break_even']:.4g}."


def _row(who: str, users: int, gain: float, interval: Any = None) -> dict[str, Any]:
    has_interval = interval is not None and not math.isnan(interval[0])
    each = gain / users if users else 0.0
    between = f"{_money(interval[0])} to {_money(interval[1])}" if has_interval else None
    return {"users": who, "number": f"{users:,}", "gain": _money(gain), "95 %": between, "a user": f"{each:,.3f}"}


def _number(name: str, value: float, interval: Any = None) -> dict[str, Any]:
    between = None if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"
    return {"measure": name, "value": f"{value:.4f}", "95 %": between}


def _money(amount: float) -> str:
    return f"{amount:,.2f}"
