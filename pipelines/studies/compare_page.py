"""The page of a comparison: needs no network and no script; all text is escaped."""

import matplotlib as mpl
from matplotlib.figure import Figure

from pipelines.report.charts import GRID, Chart, dress, settings_of, to_svg
from pipelines.report.template import template
from pipelines.studies.compare import Comparison


def render(found: Comparison) -> str:
    """Return the page."""
    names = list(dict.fromkeys(name for entry in found.entries for name in entry.settings))
    page = template("studies/compare.html.j2")
    return page.render(found=found, names=names, chart=_chart(found))


def _chart(found: Comparison) -> Chart:
    """Return a chart with a point and its interval for each configuration."""
    prefix, entries = "compare-", found.entries
    with mpl.rc_context(settings_of(prefix)):
        figure = Figure(figsize=(7.2, 0.8 + 0.3 * len(entries)), layout="constrained")
        axes = figure.add_subplot()
        for row, entry in enumerate(entries):
            value = entry.value
            if value.low is not None and value.high is not None:
                axes.plot((value.low, value.high), (row, row), color="#0102a0", linewidth=1.5)
            if value.value is not None:
                axes.plot(value.value, row, "o", color="#0102a0", markersize=4)
        dress(axes, found.metric, "")
        axes.set_yticks(range(len(entries)), [entry.name for entry in entries])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=GRID, lw=0.8)
        svg = to_svg(figure, prefix)
    alt = "; ".join(f"{e.name} {e.value.value or 0:.3f}" for e in entries)
    return Chart(f"{found.metric} of the best result of each", svg, (), alt)
