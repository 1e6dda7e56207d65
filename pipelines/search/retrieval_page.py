"""The page of a retrieval benchmark: mAP over the layers of the network (VU Figure 2.2), and the
paper's numbers beside one's own.

The page needs no network and no script; all text is escaped by its template.
"""

from collections.abc import Callable
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure

from pipelines.evaluate.results import Estimate
from pipelines.report.charts import (
    NUM_STYLES,
    VARIABLES,
    Chart,
    Line,
    dress,
    settings_of,
    style_of,
    to_svg,
)
from pipelines.report.papers.tables import PaperTable
from pipelines.report.template import template
from pipelines.run.saved import SavedRun
from pipelines.search.published import MAP_COMPRESSED, TABLES, VU_FIGURE_2_2
from pipelines.search.retrieve import Result, Retrieved
from pipelines.text_table import aligned

NUM_OWN_ROWS = 10
"""Own results beside a paper's table: the best ones."""


@dataclass(frozen=True)
class Beside:
    """A paper's table, and this run's results in the same metric, best first."""

    table: PaperTable
    own: tuple[tuple[str, Estimate], ...]


def publish(runs: list[SavedRun], found: Retrieved, command: str) -> str:
    """Publish the page in the first run, and return its URI."""
    name = f"report/retrieval-{found.truth.name}.html"
    runs[0].store.publish(name, render(found, command).encode("utf-8", "backslashreplace"))
    return runs[0].store.uri(name)


def render(found: Retrieved, command: str = "") -> str:
    """Return the page as the text of a UTF-8 file."""
    return template("search/retrieval.html.j2").render(
        found=found,
        ranked=_ranked(found),
        charts=charts(found),
        beside=beside(found),
        facts=VU_FIGURE_2_2,
        command=command,
    )


def lines(found: Retrieved) -> list[str]:
    """Return a table for a terminal, best first."""
    rows = [("encoder", "stream", "px", "D", "mAP", "", "P", "mAP after PCA")]
    rows += [
        (
            result.encoder,
            result.stream,
            result.sides_px,
            f"{result.dim:,}",
            f"{result.whole.value:.3f}",
            f"{result.whole.low:.3f} to {result.whole.high:.3f}",
            str(result.num_features),
            f"{result.compressed.value:.3f}",
        )
        for result in _ranked(found)
    ]
    return [
        *aligned(rows, left=(0, 1)),
        f"{len(found.truth.queries)} queries of {found.truth.name}",
    ]


def _ranked(found: Retrieved) -> list[Result]:
    return sorted(found.results, key=lambda result: -(result.whole.value or 0.0))


def beside(found: Retrieved) -> list[Beside]:
    """Return the paper's tables of the preset, with this run's results."""
    tables = []
    for table in TABLES.get(found.preset or "", ()):
        is_compressed = table.metrics == (MAP_COMPRESSED,)
        own = [
            (
                f"{r.encoder} on {r.stream}, {r.sides_px} px",
                r.compressed if is_compressed else r.whole,
            )
            for r in found.results
        ]
        own.sort(key=lambda pair: -(pair[1].value or 0.0))
        tables.append(Beside(table, tuple(own[:NUM_OWN_ROWS])))
    return tables


def charts(found: Retrieved) -> list[Chart]:
    """Return mAP over the layers, a line for each encoder, kind of stream and side: of whole
    vectors, and after PCA with whitening. None where there is one layer."""
    nodes = list(dict.fromkeys(result.node for result in found.results))
    if len(nodes) < 2:
        return []
    curves: dict[str, list[Result]] = {}
    for result in found.results:
        name = f"{result.encoder} on {result.kind}, {result.sides_px} px"
        curves.setdefault(name, []).append(result)
    return [
        _chart("Whole vectors", nodes, curves, lambda result: result.whole),
        _chart("After PCA with whitening", nodes, curves, lambda result: result.compressed),
    ]


def _chart(
    title: str,
    nodes: list[str],
    curves: dict[str, list[Result]],
    estimate_of: Callable[[Result], Estimate],
) -> Chart:
    prefix, legend = f"layers-{title.split()[0].lower()}-", []
    with mpl.rc_context(settings_of(prefix)):
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for i, (name, results) in enumerate(curves.items()):
            style = style_of(i % NUM_STYLES, NUM_STYLES)
            values = [estimate_of(result).value or 0.0 for result in results]
            axes.plot(
                [nodes.index(result.node) for result in results],
                values,
                color=style.color,
                linewidth=style.width,
                linestyle=(0, style.dashes) if style.dashes else "-",
                marker="o",
                markersize=4,
            )
            color = f"var({VARIABLES[style.color]})"
            legend.append(Line(name, color, " ".join(map(str, style.dashes)), values[-1]))
        dress(axes, "layer", "mAP")
        axes.set_xticks(range(len(nodes)), nodes, rotation=40, ha="right")
        svg = to_svg(figure, prefix)
    alt = f"mAP over the layers {', '.join(nodes)}. " + "; ".join(
        f"{name}: " + ", ".join(f"{estimate_of(result).value:.3f}" for result in results)
        for name, results in curves.items()
    )
    return Chart(title, svg, tuple(legend), alt)
