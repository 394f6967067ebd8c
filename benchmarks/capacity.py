"""Nodes, memory, disk and cost for 10, 100 and 500 million users, and what breaks first: arithmetic over measurements.

    python -m benchmarks.capacity            # print the tables
    python -m benchmarks.capacity --write    # put them into docs/capacity.md
    python -m benchmarks.capacity --set users=2e6 --set events_per_user=140 --set vcpu_hour=0.03

Model: the cost of a stage is linear in users or events, at the rate of one core of the machine that was measured
(benchmarks.capacity_plan); the numbers stand in benchmarks.capacity_constants, each with its source.
Limits: no stage was measured at these sizes. Where linearity is known to end is what benchmarks.capacity_limits holds.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.capacity_constants import ASSUMED, CONSTANTS, Values, values
from benchmarks.capacity_limits import LIMITS, MIB, breaks_at
from benchmarks.capacity_plan import Plan, plan

PAGE = Path(__file__).parents[1] / "docs" / "capacity.md"
SIZES = (10e6, 100e6, 500e6)
_LIMITED = ("what does not grow with the nodes", "where", "allowed")


def render(v: Values, sizes: tuple[float, ...] = SIZES) -> str:
    """The tables of the page, as Markdown."""
    plans = [plan(users, v) for users in sizes]
    heads = [f"{_short(users)} users" for users in sizes]
    blocks = [
        _table(["what is needed", *heads], _needs(plans, v)),
        _table(["core hours of a full build", *heads], _stages(plans)),
        _table([*_LIMITED, *heads, "breaks at", "what to change then"], _limits(sizes, v)),
        _table(["constant", "value", "unit", "source", "how"], _constants(v)),
    ]  # fmt: skip
    blocks[2] = _firsts(sizes, v) + "\n\n" + blocks[2]
    titles = ("## What it takes", "## Where the hours go", "## What breaks first", "## The constants")
    return "\n\n".join(f"{title}\n\n{block}" for title, block in zip(titles, blocks, strict=True)) + "\n"


def _needs(plans: list[Plan], v: Values) -> list[list[str]]:
    lmdb = v["lmdb_mib_million"] / v["redis_mib_million"]
    rows: list[tuple[str, Callable[[Plan], str]]] = [
        ("events in the history", lambda p: _short(p.events)),
        ("stored reads/s at the peak", lambda p: f"{p.reads_s:,.0f}"),
        ("online events/s at the peak", lambda p: f"{p.events_s:,.0f}"),
        ("core hours of a full build", lambda p: f"{p.build_core_h:,.0f}"),
        (f"hours of training a night, {v['train_workers']:.0f} workers", lambda p: f"{p.train_h:,.1f}"),
        (f"`work` pods to end within {v['night_h']:.0f} h", lambda p: f"{p.work_pods:,}"),
        ("serving pods", lambda p: f"{p.serving_pods:,}"),
        ("of these needed for the requests", lambda p: f"{p.request_pods:,}"),
        ("needed for the vectors of two retrieval replicas", lambda p: f"{p.vector_pods:,}"),
        ("Redis, two releases, GiB", lambda p: f"{p.redis_gib:,.0f}"),
        ("LMDB instead, a node's disk, two releases, GiB", lambda p: f"{p.redis_gib * lmdb:,.0f}"),
        ("object store, GiB", lambda p: f"{p.object_store_gib:,.0f}"),
        *((f"{name} a month", lambda p, name=name: f"{p.monthly[name]:,.0f}") for name in plans[0].monthly),
        ("**all a month, in units of the price parameters**", lambda p: f"**{sum(p.monthly.values()):,.0f}**"),
        ("a month for a million users", lambda p: f"{sum(p.monthly.values()) / p.users * 1e6:,.0f}"),
    ]  # fmt: skip
    return [[name, *(cell(one) for one in plans)] for name, cell in rows]


def _stages(plans: list[Plan]) -> list[list[str]]:
    return [[name, *(f"{one.stages_core_h[name]:,.1f}" for one in plans)] for name in plans[0].stages_core_h]


def _limits(sizes: tuple[float, ...], v: Values) -> list[list[str]]:
    rows = []
    for limit in sorted(LIMITS, key=lambda one: breaks_at(one, v)):
        cells = []
        for users in sizes:
            needed = limit.needed(users, v)
            cells.append(f"**{needed:,.3g}**" if needed > limit.allowed(v) else f"{needed:,.3g}")
        bucket_mib = sizes[-1] * v["events_per_user"] / v["max_buckets"] * v["bucket_bytes_event"] / MIB
        at = breaks_at(limit, v)
        allowed = _plain(f"{limit.allowed(v):,.3g} {limit.unit}")
        when = "never" if math.isinf(at) else f"{_short(at)} users"
        change = limit.change.format(bucket_mib=f"{bucket_mib:,.0f}")
        rows.append([limit.name, _link(limit.where), allowed, *map(_plain, cells), when, change])
    return rows


def _firsts(sizes: tuple[float, ...], v: Values) -> str:
    """For each size what has given way since the one before, in its order."""
    lines, before = [], 0.0
    for users in sizes:
        found = sorted((breaks_at(one, v), one.name) for one in LIMITS if before < breaks_at(one, v) <= users)
        told = "; ".join(f"{name} ({_short(at)})" for at, name in found) or "nothing"
        lines.append(f"- On the way to **{_short(users)} users**: {told}.")
        before = users
    return "\n".join(lines)


def _constants(v: Values) -> list[list[str]]:
    return [[f"`{one.name}`", f"{v[one.name]:,.10g}", one.unit, _link(one.source), one.how] for one in CONSTANTS]


def _link(source: str) -> str:
    return source if source == ASSUMED else f"[{source.split('/')[-1]}](../{source})"


def _plain(cell: str) -> str:
    """No powers of ten in a table for people."""
    return re.sub(r"[\d.]+e[+-]\d+", lambda found: f"{float(found[0]):,.0f}", cell)


def _short(number: float) -> str:
    for size, unit in ((1e9, "billion"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


BEGIN, END = "<!-- printed by `make capacity` -->\n", "<!-- end -->"


def written(page: str, tables: str) -> str:
    """The page with these tables between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Nodes, memory, disk and cost, and what breaks first.")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/capacity.md")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a constant, or users")
    asked = parser.parse_args()
    changed = {name: float(value) for name, _, value in (one.partition("=") for one in asked.set)}
    sizes = (changed.pop("users"),) if "users" in changed else SIZES
    tables = render(values(**changed), sizes)
    if asked.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), tables), encoding="utf-8")
    else:
        print(tables, end="")


if __name__ == "__main__":
    main()
