"""The page of an increment: what was new, what was computed and what was kept, and how the carried models did since.

The models' own page is that of the release that they were fitted for; this one names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment

from sonder.core.storage import Folder

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Sonder: {{ release }}</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%}td{border-bottom:1px solid #ddd;padding:.3rem .5rem}
td:last-child{text-align:right;font-variant-numeric:tabular-nums}</style></head><body>
<h1>Release {{ release }}</h1>
<p>An increment of {{ made.parent }}: the models are those of {{ made.root }}, fitted for {{ fitted }}, and were
carried. Every profile is as of {{ as_of }}. What the models are worth by their own test stands on the page of
{{ made.root }}.</p>
{% for title, rows in tables.items() %}{% if rows %}
<h2>{{ title }}</h2>
<table>{% for name, value in rows %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</table>
{% endif %}{% endfor %}
{% if made.forward.reason %}<p>Forward test: {{ made.forward.reason }}.</p>{% endif %}
</body></html>
"""


def write_increment_report(
    folder: Folder, release_id: str, made: Mapping[str, Any], metrics: Mapping[str, float]
) -> None:
    """Write index.html and metrics.json."""
    delivery, users = made["delivery"] or {}, made["users"]
    new = [(name.replace("_", " "), f"{value:,}") for name, value in delivery.items() if isinstance(value, int)]
    done = [(name.replace("_", " "), f"{value:,}") for name, value in users.items()]
    forward = [(name, f"{metrics[name]:.4g}") for name in sorted(metrics) if name.startswith("forward.")]
    cutoff = _moment(made["forward"]["cutoff_us"])
    tables = {
        "New in the log": new,
        "Users": done,
        f"Forward test (temporal, cutoff {cutoff}, until {_moment(made['as_of_us'])})": forward,
    }
    page = Environment(autoescape=True).from_string(_PAGE)
    html = page.render(
        release=release_id,
        made=made,
        fitted=_moment(made["fitted_as_of_us"]),
        as_of=_moment(made["as_of_us"]),
        tables=tables,
    )
    (folder / "index.html").write_bytes(html.encode())
    (folder / "metrics.json").write_json(dict(metrics))


def _moment(time_us: int) -> str:
    return f"{datetime.fromtimestamp(time_us / 1e6, tz=UTC):%Y-%m-%d %H:%M} UTC"
