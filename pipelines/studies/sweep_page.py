"""The page of a sweep: the curves of DQ Figure 4 on the user's data, beside the paper's statements.

The page needs no network and no script; all text is escaped by its template.
"""

from dataclasses import dataclass
from math import ceil, floor, isfinite, log2, log10, nan, sqrt
from statistics import stdev

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.report.charts import (
    INK,
    NUM_STYLES,
    VARIABLES,
    Style,
    dress,
    settings_of,
    style_of,
    to_svg,
)
from pipelines.report.papers import tables as papers
from pipelines.report.template import template
from pipelines.text_table import aligned

PARAMETERS = ("D", "lambda3", "P")


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """The result of one setting of an encoder on a stream.

    Args:
        parameter: what was swept, out of `PARAMETERS`: D, the length of the vector, lambda3, the
            weight of the FV-VAE's class loss, or P, the length after compression.
        value: of the parameter.
        dimension: D.
        accuracy: over the tested videos of all folds; None where nothing was tested.
        map: as accuracy.
        fold_values: accuracy in each fold.

    Raises:
        ValueError: an unknown parameter, or a value that its axis does not have.
    """

    encoder: str
    stream: str
    parameter: str
    value: float
    dimension: int
    accuracy: float | None
    map: float | None
    fold_values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.parameter not in PARAMETERS:
            raise ValueError(
                f"SweepPoint: expected a parameter out of {PARAMETERS}, got {self.parameter!r}"
            )
        lowest = 0 if self.parameter == "lambda3" else 1
        if not isfinite(self.value) or self.value < lowest:
            raise ValueError(
                f"SweepPoint: expected {self.parameter} of at least {lowest}, got {self.value:g}"
            )


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The content of the page.

    Args:
        data: the data set, in some words.
        notes: what differs from the paper, and what else a reader must know.
        command: what makes these points again.
    """

    title: str
    data: str
    points: tuple[SweepPoint, ...]
    notes: tuple[str, ...] = ()
    command: str = ""


_HEADER = ("encoder", "stream", "parameter", "value", "D", "accuracy", "std. error", "mAP", "folds")


def text_table(sweep: Sweep) -> list[str]:
    """Return lines for a terminal: a header, then one line a point."""
    rows = [_HEADER, *(_row(point) for point in sorted_points(sweep))]
    return aligned(rows, left=range(3))


def sorted_points(sweep: Sweep) -> list[SweepPoint]:
    """Return points by parameter, encoder, stream and value."""
    return sorted(
        sweep.points, key=lambda p: (PARAMETERS.index(p.parameter), p.encoder, p.stream, p.value)
    )


def standard_error(point: SweepPoint) -> float | None:
    """Return the standard error of the mean over folds, s / sqrt(k), s with k - 1; None for fewer
    than 2 folds."""
    if len(point.fold_values) < 2:
        return None
    return stdev(point.fold_values) / sqrt(len(point.fold_values))


def _row(point: SweepPoint) -> tuple[str, ...]:
    return (
        point.encoder,
        point.stream,
        point.parameter,
        f"{point.value:,.10g}",
        f"{point.dimension:,}",
        _number(point.accuracy),
        _number(standard_error(point)),
        _number(point.map),
        str(len(point.fold_values)),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


@dataclass(frozen=True)
class Entry:
    """An entry of a legend: a mark, as a path around (0, 0), with or without a line, filled or
    not."""

    name: str
    path: str
    color: str
    dashes: str | None  # None: no line
    is_filled: bool


@dataclass(frozen=True)
class SweepChart:
    """One pair of axes, and the paper's statements about the curves in it."""

    title: str
    svg: str
    alt: str
    entries: tuple[Entry, ...]
    facts: tuple[str, ...]


@dataclass(frozen=True)
class _Reference:
    """A published point, drawn hollow with the mark of its encoder."""

    name: str
    mark: str
    place: float
    accuracy: float


def render_sweep(sweep: Sweep) -> str:
    """Return the page as the text of a UTF-8 file. Equal sweeps give equal pages."""
    charts = []
    for parameter in PARAMETERS:
        points = [point for point in sorted_points(sweep) if point.parameter == parameter]
        if points:
            charts.append(_chart(parameter, points))
    return template("studies/sweep.html.j2").render(
        sweep=sweep,
        charts=charts,
        points=[(point, standard_error(point)) for point in sorted_points(sweep)],
    )


# matplotlib's marker -> the same shape for a legend.
_MARKS = {
    "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",
    "s": "M-3.6 -3.6H3.6V3.6H-3.6Z",
    "^": "M0 -4L4 4H-4Z",
    "D": "M0 -4.6L4.6 0L0 4.6L-4.6 0Z",
    "v": "M0 4L4 -4H-4Z",
}
_MARK_OF = {
    **{"fv_vae": "o", "vlad": "s", "gmm_fv": "^"},
    **{"fewer latents of fv_vae": "o", "PCA of fv_vae": "s", "random Maclaurin of fv_vae": "^"},
}
_FEATURE_MARKS = {"FV-VAE": "o", "VLAD": "s", "FV": "^", "FV-VAE^-": "D"}
_OTHER_MARK = "v"


def _chart(parameter: str, points: list[SweepPoint]) -> SweepChart:
    """Draw lines of accuracy, one for each encoder and stream, and the published points as hollow
    marks."""
    drawn = [point for point in points if point.accuracy is not None]
    lines: dict[str, list[SweepPoint]] = {}
    for point in drawn:
        lines.setdefault(f"{point.encoder} on {point.stream}", []).append(point)
    axis = _AXES[parameter](drawn)
    with mpl.rc_context(settings_of(parameter)):
        figure = Figure(figsize=(4.4, 2.9), layout="constrained")
        axes = figure.add_subplot()
        dress(axes, axis.label, "accuracy")
        axis.dress(axes)
        entries = []
        for i, (name, line) in enumerate(lines.items()):
            style = style_of(i % NUM_STYLES, NUM_STYLES)
            # Side by side, so that error bars at one value do not hide each other.
            shift = (i - (len(lines) - 1) / 2) * 0.05
            entries.append(_draw(axes, axis, name, line, style, shift))
        entries += [_draw_reference(axes, reference) for reference in axis.references]
        svg = to_svg(figure, prefix=f"{parameter}-")
    summary = "; ".join(f"{name}: {_in_words(line)}" for name, line in lines.items())
    published = "; ".join(reference.name for reference in axis.references)
    alt = (
        f"Accuracy against {axis.label}. {summary or 'No values'}. Marks of the paper: {published}"
    )
    return SweepChart(axis.title, svg, alt, tuple(entries), axis.facts)


def _reference(row: papers.Published) -> _Reference:
    return _Reference(
        f"{row.feature} {row.accuracy:.4f} at {row.dimension:,}, {papers.DQ_DATA}",
        _FEATURE_MARKS[row.feature],
        log2(row.dimension),
        row.accuracy,
    )


class _DimensionAxis:
    """D in powers of 2, from 2^12 to 2^17 or as far as the points go."""

    title = "Accuracy against the length of the vector"
    label = "D"
    facts = papers.DQ_FIGURE_4A
    references = tuple(
        _reference(row)
        for row in (*papers.DQ_TABLE_2, papers.DQ_SEVEN_LATENTS)
        if row.feature in ("FV-VAE", "VLAD", "FV")
    )

    def __init__(self, points: list[SweepPoint]) -> None:
        positions = [12.0, 17.0, *(log2(point.value) for point in points)]
        self._powers = range(floor(min(positions)), ceil(max(positions)) + 1)

    def place(self, value: float) -> float:
        return log2(value)

    def dress(self, axes: Axes) -> None:
        axes.set_xticks(self._powers, [f"2^{power}" for power in self._powers])
        axes.set_xlim(self._powers[0] - 0.4, self._powers[-1] + 0.4)


class _Lambda3Axis:
    """lambda3 in powers of 10, from 1 to 1e5 or as far as the points go, and 0 apart on the
    left."""

    title = "Accuracy against the weight of the class loss"
    label = "lambda3"
    facts = papers.DQ_FIGURE_4B

    def __init__(self, points: list[SweepPoint]) -> None:
        positions = [0.0, 5.0, *(log10(point.value) for point in points if point.value)]
        self._powers = range(floor(min(positions)), ceil(max(positions)) + 1)
        self._zero = self._powers[0] - 1.0
        self.references = tuple(
            _Reference(
                f"{row.feature} {row.accuracy:.4f} on {network}, UCF101 split 1",
                _FEATURE_MARKS[row.feature],
                self._zero,
                row.accuracy,
            )
            for network, row in papers.DQ_NO_CLASS_LOSS.items()
        )

    def place(self, value: float) -> float:
        return log10(value) if value else self._zero

    def dress(self, axes: Axes) -> None:
        labels = ["1" if power == 0 else f"1e{power}" for power in self._powers]
        axes.set_xticks([self._zero, *self._powers], ["0", *labels])
        axes.set_xlim(self._zero - 0.4, self._powers[-1] + 0.4)
        axes.axvline(self._zero + 0.5, color=INK, linewidth=0.8, linestyle=(0, (2, 3)))


class _CompressedAxis(_DimensionAxis):
    """P in powers of 2."""

    title = "Accuracy against the length after compression"
    label = "P"
    facts = papers.DQ_FIGURE_4C
    references = tuple(_reference(row) for row in (papers.DQ_SEVEN_LATENTS, papers.DQ_TABLE_2[-1]))


_AXES = {"D": _DimensionAxis, "lambda3": _Lambda3Axis, "P": _CompressedAxis}


def _draw(
    axes: Axes,
    axis: _DimensionAxis | _Lambda3Axis,
    name: str,
    line: list[SweepPoint],
    style: Style,
    shift: float,
) -> Entry:
    mark = _MARK_OF.get(line[0].encoder, _OTHER_MARK)
    # lambda3 = 0 is another loss, not a point of the curve.
    apart = [p for p in line if p.parameter == "lambda3" and p.value == 0]
    for part in (apart, [p for p in line if p not in apart]):
        axes.errorbar(
            [axis.place(p.value) + shift for p in part],
            [_accuracy(p) for p in part],
            yerr=[standard_error(p) or 0.0 for p in part],
            color=style.color,
            linewidth=style.width,
            linestyle=(0, style.dashes) if style.dashes else "-",
            elinewidth=0.9,
            marker=mark,
            markersize=5,
        )
    return Entry(
        name, _MARKS[mark], f"var({VARIABLES[style.color]})", " ".join(map(str, style.dashes)), True
    )


def _draw_reference(axes: Axes, reference: _Reference) -> Entry:
    axes.plot(
        [reference.place],
        [reference.accuracy],
        reference.mark,
        color=INK,
        markerfacecolor="none",
        markersize=6.5,
    )
    return Entry(
        f"paper: {reference.name}", _MARKS[reference.mark], f"var({VARIABLES[INK]})", None, False
    )


def _accuracy(point: SweepPoint) -> float:
    """Return the accuracy of a point that is drawn; nan where nothing was tested."""
    return nan if point.accuracy is None else point.accuracy


def _in_words(line: list[SweepPoint]) -> str:
    best = max(line, key=_accuracy)
    first, last = line[0], line[-1]
    return (
        f"{first.accuracy:.3f} at {first.value:,.10g}, {last.accuracy:.3f} at {last.value:,.10g}, "
        f"highest {best.accuracy:.3f} at {best.value:,.10g}"
    )
