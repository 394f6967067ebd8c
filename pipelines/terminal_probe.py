"""What `sonder probe` shows, with `rich`: the vector beside a constant and RFM, or two encoders beside each other.

Reads results, computes nothing. Every table names its moment, its metric and how many users it rests on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from pipelines.terminal import console

NAMES = {"none": "constant", "rfm": "RFM", "vector": "vector", "vector_rfm": "vector + RFM"}
WORDS = {"auc": "AUC", "spearman": "Spearman", "poisson_deviance": "Poisson deviance (low)", "nmae": "NMAE (low)"}


def show_probes(told: Mapping[str, Any]) -> None:
    """One release."""
    console.print(f"[bold]{escape(told['release'])}[/bold] · {_moment(told)}", soft_wrap=True)
    for reader in told["score"]:
        table = Table(title=f"{reader.capitalize()} reader, test users, 95 %", title_justify="left")
        for name in ("question", "users", "metric"):
            table.add_column(name, overflow="fold")
        for name in (*NAMES.values(), "vector adds to RFM"):
            table.add_column(name, justify="right")
        for name, question in told["questions"].items():
            found = question["readers"][reader]
            for metric in found["vector"]:
                cells = [_cell(found[features][metric]) for features in NAMES]
                added = _signed(found["vector_adds"][metric])
                table.add_row(name, f"{question['users_test']:,}", WORDS[metric], *cells, added)
        score = told["score"][reader]
        if score["vector"] is not None:
            cells = [_cell(score[features]) for features in NAMES]
            table.add_row("[bold]score[/bold]", f"{told['users_test']:,}", "mean, 0 to 1", *cells, "")
        console.print(table)
    _show_questions(told)


def show_comparison(told: Mapping[str, Any]) -> None:
    """Two releases on the same users: each one's numbers, and the paired difference."""
    pair = told["candidate"], told["current"]
    console.print(f"[bold]{escape(pair[0])}[/bold] against {escape(pair[1])} · {_moment(told)}", soft_wrap=True)
    both = [told["releases"][name] for name in pair]
    for reader, score in told["differences"]["score"].items():
        table = Table(title=f"{reader.capitalize()} reader, the vector alone, 95 %, paired", title_justify="left")
        for name in ("question", "users", "metric"):
            table.add_column(name, overflow="fold")
        for name in ("RFM", *pair, "difference"):
            table.add_column(escape(name), justify="right")
        table.add_column("better")
        for name, question in both[0]["questions"].items():
            differences = told["differences"]["questions"][name][reader]["vector"]
            for metric, difference in differences.items():
                readings = [side["questions"][name]["readers"][reader] for side in both]
                cells = [_cell(readings[0]["rfm"][metric]), *(_cell(found["vector"][metric]) for found in readings)]
                better = _better(difference, pair)
                table.add_row(name, f"{question['users_test']:,}", WORDS[metric], *cells, _signed(difference), better)
        if score["vector"] is not None:
            scores = [_cell(both[0]["score"][reader]["rfm"])]
            scores += [_cell(side["score"][reader]["vector"]) for side in both]
            cells = [*scores, _signed(score["vector"]), _better(score["vector"], pair)]
            table.add_row("[bold]score[/bold]", f"{both[0]['users_test']:,}", "mean, 0 to 1", *cells)
        console.print(table)
        borda = told["differences"]["borda"][reader]
        console.print(
            f"Questions answered better: {borda['a']:g} by {escape(pair[0])}, {borda['b']:g} by {escape(pair[1])};"
            f" {borda['clear']} of them beyond chance.",
            soft_wrap=True,
        )
    _show_questions(both[0])


def _moment(told: Mapping[str, Any]) -> str:
    sampling = f" · {told['sampling']}" if told["sampling"] else ""
    return f"cutoff {told['cutoff'][:16]}, the {told['within_days']} days after it · {told['protocol']}{sampling}"


def _show_questions(told: Mapping[str, Any]) -> None:
    for name, question in told["questions"].items():
        console.print(f"{name}: {escape(question['asked'])}.", soft_wrap=True)
    for name, reason in told["refused"].items():
        console.print(f"[yellow]{name}: not asked, {escape(reason)}.[/yellow]", soft_wrap=True)
    console.print("score: mean over the questions of 2 AUC - 1 and Spearman, 0 for a constant.", soft_wrap=True)


def _cell(measured: Mapping[str, Any]) -> str:
    interval = measured["interval"]
    ends = "" if interval is None or interval[0] == interval[1] else f"\n{interval[0]:.3f} to {interval[1]:.3f}"
    return f"{measured['value']:.4f}{ends}"


def _signed(measured: Mapping[str, Any]) -> str:
    interval = measured["interval"]
    return f"{measured['value']:+.4f}" + ("" if interval is None else f"\n{interval[0]:+.3f} to {interval[1]:+.3f}")


def _better(difference: Mapping[str, Any], pair: tuple[str, str]) -> str:
    if difference["better"] is None:
        return "within chance"
    return f"[bold]{escape(pair['ab'.index(difference['better'])])}[/bold]"
