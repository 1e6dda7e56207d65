"""Charts as inline SVG that takes its colours from the page, and so follows its theme.

matplotlib draws with marker colours; they are then replaced by the CSS variables of the template.
"""

import re
from dataclasses import dataclass
from io import StringIO
from math import isfinite
from typing import Any, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from pipelines.evaluate.best import Curve
from pipelines.evaluate.results import Estimate

# Marker colour -> CSS variable. Lines also differ in their dashes: colour is not all they have.
INK, GRID = "#010203", "#010204"
VARIABLES = {INK: "--muted", GRID: "--rule", **{f"#0102a{i}": f"--line-{i}" for i in range(4)}}
_DASHES = ((), (7, 3), (2, 2), (7, 2, 2, 2))
NUM_STYLES = 8  # beyond these, lines are drawn alike and counted
SETTINGS = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
    "axes.formatter.useoffset": False,
    "path.simplify_threshold": 0.3,
}


def settings_of(salt: str) -> dict[Any, Any]:
    """Return matplotlib's settings for a chart; `salt` makes the identifiers of its SVG."""
    return SETTINGS | {"svg.hashsalt": salt}


@dataclass(frozen=True)
class Line:
    """An entry of a legend."""

    name: str
    color: str  # a CSS value
    dashes: str  # an SVG stroke-dasharray
    last: float | None


@dataclass(frozen=True)
class Chart:
    """One pair of axes: an SVG element, its legend, and its content in words."""

    title: str
    svg: str
    lines: tuple[Line, ...]
    alt: str


def charts(
    curves: tuple[Curve, ...], *, prefix: str = "chart", shares: bool = False
) -> list[Chart]:
    """Return one chart for each `Curve.chart`, in order of appearance.

    Args:
        prefix: of the identifiers in the page; differs from those of the page's other charts.
        shares: both axes go from 0 to 1.
    """
    by_chart: dict[str, list[Curve]] = {}
    for curve in curves:
        by_chart.setdefault(curve.chart, []).append(curve)
    return [
        _chart(f"{prefix}{number}-", title, group, shares)
        for number, (title, group) in enumerate(by_chart.items())
    ]


def gains_chart(gains: list[tuple[str, Estimate]], metric: str) -> Chart:
    """Return a chart with a point and its interval for each fusion, best first, and a line at 0.

    Args:
        gains: (name, gain with a value).
    """
    prefix = "gains-"
    with mpl.rc_context(settings_of(prefix)):
        figure = Figure(figsize=(7.2, 0.7 + 0.27 * len(gains)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=0.8)
        for row, (_, gain) in enumerate(gains):
            if gain.low is not None and gain.high is not None:
                axes.plot((gain.low, gain.high), (row, row), color="#0102a0", linewidth=1.5)
            axes.plot(cast(float, gain.value), row, "o", color="#0102a0", markersize=4)
        dress(axes, f"gain in {metric} over the best part", "")
        axes.set_yticks(range(len(gains)), [name for name, _ in gains])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=GRID, lw=0.8)
        svg = to_svg(figure, prefix)
    alt = "; ".join(f"{name} {gain.value:+.3f}" for name, gain in gains)
    return Chart(f"Gain of each fusion in {metric}", svg, (), alt)


@dataclass(frozen=True)
class Style:
    """The style of a line: colour as a key of `VARIABLES`, SVG dashes, width in points."""

    color: str
    dashes: tuple[int, ...]
    width: float


def style_of(index: int, count: int) -> Style:
    """Return the style of line `index` of `count` in a chart."""
    if count > NUM_STYLES:
        return Style("#0102a0", (), 0.7)
    return Style(f"#0102a{index % 4}", _DASHES[(index + index // 4) % 4], 1.5)


def _chart(prefix: str, title: str, curves: list[Curve], shares: bool) -> Chart:
    with mpl.rc_context(settings_of(prefix)):
        figure = Figure(figsize=(5.2, 2.9), layout="constrained")
        axes = figure.add_subplot()
        lines = [_draw(axes, curve, style_of(i, len(curves))) for i, curve in enumerate(curves)]
        dress(axes, curves[0].x_label, curves[0].y_label)
        if shares:
            axes.set(xlim=(0, 1), ylim=(0, 1.02))
        else:
            cast(MaxNLocator, axes.xaxis.get_major_locator()).set_params(integer=True)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
        svg = to_svg(figure, prefix)
    ends = "; ".join(
        f"{line.name} ends at {line.last:.4g}"
        for line in lines[:NUM_STYLES]
        if line.last is not None
    )
    alt = f"{curves[0].y_label} against {curves[0].x_label}, {len(curves)} line(s). {ends}"
    return Chart(title, svg, tuple(lines), alt)


def _draw(axes: Axes, curve: Curve, style: Style) -> Line:
    points = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if isfinite(x) and isfinite(y)]
    xs, ys = zip(*points, strict=True) if points else ((), ())
    axes.plot(
        xs,
        ys,
        color=style.color,
        linewidth=style.width,
        linestyle=(0, style.dashes) if style.dashes else "-",
        marker="o" if len(points) == 1 else "",
        markersize=4,
    )
    return Line(
        curve.name,
        color=f"var({VARIABLES[style.color]})",
        dashes=" ".join(map(str, style.dashes)),
        last=ys[-1] if ys else None,
    )


def dress(axes: Axes, x_label: str, y_label: str) -> None:
    """Add labels, a grid of horizontal lines, and the page's colours to the axes."""
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.tick_params(colors=INK, length=0)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def to_svg(figure: Figure, prefix: str) -> str:
    """Return the <svg> element alone: no prologue, no metadata, identifiers unique in the page."""
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    buffer = StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    # A style sheet would apply to the whole page, whose fonts are used.
    svg = re.sub(
        r"<defs>\s*<style.*?</defs>|<!--.*?-->|font-family: [^;]*;", "", svg, flags=re.DOTALL
    )
    svg = re.sub(r' width="[^"]*pt" height="[^"]*pt"', "", svg, count=1)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
