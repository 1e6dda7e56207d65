"""docs/scale.md's tables, and its pictures, from the rows of a benchmark."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

from pipelines.report.charts import INK, SETTINGS, dress, style_of, to_svg

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "scale-2core-cpu.json"
PAGE, PICTURES = ROOT / "docs" / "scale.md", ROOT / "docs" / "scale"

SIZE_IN = (9, 3.6)
STYLE = """<style>
text { font-family: sans-serif }
svg { --muted: #57606a; --rule: #d0d7de;
  --line-0: #0550ae; --line-1: #bc4c00; --line-2: #1a7f37; --line-3: #8250df }
@media (prefers-color-scheme: dark) {
svg { --muted: #9da7b3; --rule: #3d444d;
  --line-0: #79c0ff; --line-1: #ffa657; --line-2: #7ee787; --line-3: #d2a8ff }
}
</style>"""


def write() -> None:
    """Page and pictures from the committed rows."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    for name, svg in pictures(rows).items():
        (PICTURES / name).write_text(svg, encoding="utf-8")


def filled(page: str, rows: list[dict]) -> str:
    """The page with today's tables between their marks.

    Raises:
        ValueError: a table has no place in the page.
    """
    for name, table in tables(rows).items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if begin not in page or end not in page:
            raise ValueError(f"{PAGE.name}: expected the lines {begin.strip()} and {end}")
        before, after = page.split(begin)[0], page.split(end)[1]
        page = before + begin + table + end + after
    return page


def tables(rows: list[dict]) -> dict[str, str]:
    found = {}
    for corpus, grid in grids(rows).items():
        found[f"{corpus} clusters"] = _clusters(grid)
        found[f"{corpus} steps"] = _steps(grid)
    return found | {
        "stops": _stops(grids(rows)),
        "variants": _variants(rows),
        "costs": _costs(rows),
    }


def grids(rows: list[dict]) -> dict[str, dict[int, list[dict]]]:
    """{corpus: {CPUs a GPU: points}}."""
    found: dict[str, dict[int, list[dict]]] = {}
    for row in rows:
        detail = row["detail"]
        if "points" in detail:
            found.setdefault(detail["corpus"], {})[detail["cores_per_gpu"]] = detail["points"]
    return found


def _table(head: list[str], lines: list[list[str]]) -> str:
    cells = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _number(value: float) -> str:
    """Three digits."""
    if value == 0:
        return "0"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def _clusters(grid: dict[int, list[dict]]) -> str:
    lines = []
    for place, first in enumerate(next(iter(grid.values()))):
        line = [str(first["gpu_nodes"])]
        for points in grid.values():
            p = points[place]
            hours = _number(p["gpu_node_hours"])
            if p["cpu_node_hours"]:
                hours += f" + {_number(p['cpu_node_hours'])}"
            line.append(
                f"{_number(p['describe_h'])} h ({p['limit']})<br>"
                f"**{_number(p['wall_h'])} h**{_range(p)}<br>"
                f"{hours} node-h<br>"
                f"{_number(p['price_on_demand'])} / {_number(p['price_spot'])} USD"
            )
        lines.append(line)
    return _table(["GPU nodes", *(f"{ratio} CPUs a GPU" for ratio in grid)], lines)


def _range(point: dict) -> str:
    """Of the run, by the share of the GPU's peak, where it was simulated."""
    if "range_h" not in point:
        return ""
    return f" ({' to '.join(map(_number, point['range_h']))})"


NAMES = (
    ("index", ("start", "index")),
    ("describe", ("describe",)),
    ("fit", ("fit: sample", "fit")),
    ("encode", ("encode",)),
    ("classify", ("classify",)),
    ("evaluate", ("evaluate",)),
)
RATIO = 32
"""CPUs a GPU of the table of steps."""


def _steps(grid: dict[int, list[dict]]) -> str:
    """Hours of each step, at one number of CPUs a GPU."""
    points = grid.get(RATIO) or next(iter(grid.values()))
    lines = []
    for p in points:
        seconds = p["steps_s"]
        looking_s = sum(s for name, s in seconds.items() if name.endswith("looking"))
        hours = [sum(seconds[part] for part in parts) / 3600 for _, parts in NAMES]
        lines.append([str(p["gpu_nodes"]), *map(_number, [*hours, looking_s / 3600])])
    return _table(["GPU nodes", *(name for name, _ in NAMES), "looking into files"], lines)


WORTH = 1.5
"""A doubling of the nodes is worth it where the step becomes that many times shorter."""


def _stops(found: dict[str, dict[int, list[dict]]]) -> str:
    """The most nodes that were worth doubling to, by step and run; what limits there; and the best
    compromise."""
    lines = []
    for corpus, grid in found.items():
        for ratio, points in grid.items():
            describe, whole = (_last_worth(points, name) for name in ("describe_h", "wall_h"))
            best = min(points, key=lambda p: p["price_spot"] * p["spot_h"])
            lines.append(
                [
                    corpus,
                    str(ratio),
                    f"{describe['gpu_nodes']} ({describe['limit']})",
                    points[-1]["limit"],
                    str(whole["gpu_nodes"]),
                    (
                        f"{best['gpu_nodes']}: {_number(best['spot_h'])} h,"
                        f" {_number(best['price_spot'])} USD"
                    ),
                ]
            )
    head = [
        "corpus",
        "CPUs a GPU",
        "describe: to",
        "limit at 64",
        "run: to",
        "least price x hours, spot",
    ]
    return _table(head, lines)


def _last_worth(points: list[dict], name: str) -> dict:
    for few, many in itertools.pairwise(points):
        doublings = math.log2(many["gpu_nodes"] / few["gpu_nodes"])
        if few[name] / many[name] < WORTH**doublings:
            return few
    return points[-1]


def _variants(rows: list[dict]) -> str:
    lines = []
    for detail in (row["detail"] for row in rows if "variant" in row["detail"]):
        if not lines:
            lines.append(
                ["as it is", _number(detail["base_describe_h"]), _number(detail["base_h"]), "", ""]
            )
        lost = f"{detail['lost_nodes']} / {detail['lost_segments']:,}"
        prices = f"{_number(detail['price_on_demand'])} / {_number(detail['price_spot'])}"
        lines.append(
            [
                detail["variant"],
                f"{_number(detail['describe_h'])} ({detail['limit']})",
                _number(detail["wall_h"]),
                prices,
                lost,
            ]
        )
    head = ["", "describe, h", "run, h", "on demand / spot, USD", "lost nodes / segments again"]
    return _table(head, lines)


def _costs(rows: list[dict]) -> str:
    costs = next(row["detail"]["costs"] for row in rows if "costs" in row["detail"])
    lines = [[name, f"{c['value']:.3g}", c["source"]] for name, c in costs.items()]
    return _table(["what", "value", "source"], lines)


def pictures(rows: list[dict]) -> dict[str, str]:
    """{file name: SVG that follows the reader's theme}."""
    found = grids(rows)
    return {
        "scaling.svg": _picture(found, ("GPU nodes", "hours"), _scaling),
        "price.svg": _picture(found, ("hours of the whole run", "USD on spot nodes"), _price),
    }


def _picture(
    found: dict[str, dict[int, list[dict]]],
    labels: tuple[str, str],
    draw: Callable[[Axes, dict[int, list[dict]]], None],
) -> str:
    """One pair of axes for each corpus, both logarithmic."""
    prefix = draw.__name__.strip("_")
    with mpl.rc_context(SETTINGS | {"svg.hashsalt": prefix, "legend.frameon": False}):
        figure = Figure(figsize=SIZE_IN, layout="constrained")
        places = figure.subplots(1, len(found), squeeze=False)[0]
        for axes, (corpus, grid) in zip(places, found.items(), strict=True):
            dress(axes, *labels)
            axes.set(xscale="log", yscale="log")
            axes.set_title(corpus, color=INK, fontsize=10, loc="left")
            draw(axes, grid)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_minor_locator(NullLocator())
                axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.legend(labelcolor=INK, fontsize=8)
        svg = to_svg(figure, f"{prefix}-")
    width, height = (round(72 * side) for side in SIZE_IN)
    svg = svg.replace("<svg ", f'<svg width="{width}" height="{height}" ', 1)
    end = svg.index(">") + 1
    return svg[:end] + STYLE + svg[end:].rstrip() + "\n"


def _line(axes: Axes, xs: list[float], ys: list[float], place: int, label: str) -> None:
    style = style_of(place, 4)
    dashes = (0, style.dashes) if style.dashes else "-"
    axes.plot(xs, ys, color=style.color, lw=1.5, ls=dashes, marker="o", ms=3, label=label)


def _scaling(axes: Axes, grid: dict[int, list[dict]]) -> None:
    """Hours of the describe step, and of a whole run, by nodes."""
    points = grid.get(RATIO) or next(iter(grid.values()))
    nodes = [p["gpu_nodes"] for p in points]
    for place, (ratio, line) in enumerate(grid.items()):
        hours = [p["describe_h"] for p in line]
        _line(axes, nodes, hours, place, f"describe, {ratio} CPUs a GPU")
    one = points[0]["describe_h"]
    axes.plot(
        nodes, [one / n for n in nodes], color=INK, lw=0.8, ls=(0, (1, 3)), label="n nodes, 1/n"
    )
    whole = [p["wall_h"] for p in points]
    axes.plot(nodes, whole, color=INK, lw=1.5, marker="s", ms=3, label="whole run")
    axes.xaxis.set_major_locator(FixedLocator(nodes))


def _price(axes: Axes, grid: dict[int, list[dict]]) -> None:
    """What a faster run costs; points are numbers of GPU nodes."""
    for place, (ratio, line) in enumerate(grid.items()):
        hours = [p["wall_h"] for p in line]
        _line(axes, hours, [p["price_spot"] for p in line], place, f"{ratio} CPUs a GPU")
        if place == 0:
            for p in line:
                where = (p["wall_h"], p["price_spot"])
                axes.annotate(
                    str(p["gpu_nodes"]),
                    where,
                    (0, -11),
                    textcoords="offset points",
                    ha="center",
                    color=INK,
                    fontsize=7,
                )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
