"""Templates of pages: the loader, and how numbers are written."""

import base64
import re
from functools import cache
from importlib import resources
from urllib.parse import quote

import jinja2
from markupsafe import Markup, escape

from pipelines.evaluate.results import Estimate

_OPENED = ("file", "http", "https", "s3", "gs", "az", "abfs")
"""Schemes that a page links to; browsers open the first three, people copy the others."""

_NONE = Markup("<span class='none' title='not available'>&ndash;</span>")


@cache
def template(name: str) -> jinja2.Template:
    """Return a template of this folder.

    It escapes all values, and formats them with the filters below.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "metric": _metric,
        "interval": _interval,
        "gain": _gain,
        "decimals": _decimals,
        "ratio": _ratio,
        "money": _money,
        "count": _count,
        "seconds": _seconds,
        "duration": _duration,
        "breakable": _breakable,
        "jpeg": _jpeg,
        "png": _png,
        "link": _link,
        "markup": Markup,  # only for the SVG that report_charts and attention_picture made
    }
    return environment.get_template(name)


def _source(name: str) -> str:
    return resources.files("pipelines").joinpath(name).read_text(encoding="utf-8")


def _metric(value: float | None) -> str:
    """Return three decimals, as in the papers; never per cent."""
    return _NONE if value is None else f"{value:.3f}"


def _interval(estimate: Estimate) -> str:
    """Return the ends, as in "0.812 to 0.934"; empty where there are none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.low:.3f} to {estimate.high:.3f}"


def _gain(estimate: Estimate) -> str:
    """Return a gain with its sign and its interval, as in "+0.017 (-0.010 to 0.050)"."""
    if estimate.value is None:
        return _NONE
    ends = _interval(estimate)
    return f"{estimate.value:+.3f}" + (f" ({ends})" if ends else "")


def _count(value: int | None) -> str:
    return _NONE if value is None else f"{value:,}"


def _decimals(value: float | None) -> str:
    """Return one decimal, thousands with commas."""
    return _NONE if value is None else f"{value:,.1f}"


def _ratio(value: float | None) -> str:
    """Return two decimals."""
    return _NONE if value is None else f"{value:.2f}"


def _money(value: float) -> str:
    """Return a sum of money, small sums with more decimals."""
    return f"{value:,.2f}" if value >= 1 or not value else f"{value:.4f}"


def _seconds(time_s: float) -> str:
    return f"{time_s:.1f} s"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return _NONE
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _breakable(text: str) -> Markup:
    """Return the text escaped, with allowed breaks after the marks that join names and paths."""
    parts = re.split(r"(?<=[+/])", text)
    return Markup("<wbr>").join(escape(part) for part in parts)


def _link(uri: str) -> str:
    """Return an address that a browser may open; empty for any other."""
    if uri.startswith("/"):
        return f"file://{quote(uri)}"
    scheme, mark, rest = uri.partition("://")
    return f"{scheme}://{quote(rest)}" if mark and scheme in _OPENED else ""


def _png(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"


def _jpeg(content: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"
