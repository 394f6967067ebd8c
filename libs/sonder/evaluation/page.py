"""What every page of Sonder shares: the template environment, its filters for numbers, and the style sheets.

Everything that comes from data is escaped by Jinja's autoescape; a name that a template asks for and nobody gave is an
error. Pages ask nothing of the network and run no script.
"""

from __future__ import annotations

import re
from importlib import resources

import jinja2
from markupsafe import Markup, escape

from sonder.evaluation.report_facts import percent

_UNBREAKABLE = re.compile(r"(\d{4}-\d{2}-\d{2}|\d[\d.,]* %)")


def page_environment() -> jinja2.Environment:
    """Finds the templates of this package."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sonder.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {
        "count": _count,
        "percent": _percent,
        "decimals": _decimals,
        "size": _size,
        "unbroken": _unbroken,
    }
    return environment


def styles(*names: str) -> Markup:
    """Style sheets of the templates' folder, one after the other."""
    templates = resources.files("sonder.evaluation").joinpath("templates")
    return Markup("".join(templates.joinpath(name).read_text(encoding="utf-8") for name in names))


def _unbroken(text: str) -> Markup:
    """Keep dates and percentages on one line."""
    parts = _UNBREAKABLE.split(text)  # the odd ones are the matches
    return Markup("").join(
        Markup('<span class="nowrap">{}</span>').format(part) if place % 2 else escape(part)
        for place, part in enumerate(parts)
    )


def _count(value: int) -> str:
    return f"{value:,}"


def _percent(value: float | None) -> str:
    return "not measured" if value is None else percent(value)


def _decimals(value: float | None, places: int = 4) -> str:
    return "not measured" if value is None else f"{value:.{places}f}"


def _size(size_bytes: int) -> str:
    value = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
