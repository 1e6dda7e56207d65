"""The report of a run: one HTML page that needs no network and no script.

Everything in a `Report` may come from hostile files (paths, labels, messages): the template escapes
all of it, and the page's own policy forbids it to load or run anything.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.evaluate.best import Confusion
from pipelines.report.attention import picture
from pipelines.report.charts import NUM_STYLES, Chart, charts, gains_chart
from pipelines.report.papers.tables import DQ_DATA
from pipelines.report.records import ClassRow, Failures, Report, Result
from pipelines.report.template import template

_MAX_MATRIX = 50  # classes; above, a cell is too small to read
_MAX_NUMBERED = 20  # classes; above, a cell has no room for its number
_MAX_CLASSES = (
    40  # classes; above, the weakest and the strongest are shown and the rest folded away
)
_NUM_BEST = 5  # results above the fold
_MAX_GAINS = 40  # fusions in the chart; above, the best of them
_MAX_NAME = 40  # characters of an encoder in the chart


@dataclass(frozen=True)
class Confused:
    """Two classes that were mixed up: `count` videos, `share` of all videos of class `true`."""

    true: str
    predicted: str
    count: int
    share: float


def render(report: Report) -> str:
    """Return the page as the text of a UTF-8 file. Equal reports give equal pages."""
    ranked = report.ranked()
    best = ranked[0] if ranked and report.value(ranked[0]) is not None else None
    classes = _sorted_classes(report.per_class)
    known = [row for row in classes if row.ap.value is not None]
    many = len(known) > _MAX_CLASSES
    return template("report/page.html.j2").render(
        report=report,
        ranked=ranked,
        best=best,
        single=report.best_single,
        columns=_columns(report),
        sentence=_sentence(report, best) if best else "",
        top_alt=_top_alt(report, ranked[:_NUM_BEST]),
        num_best=_NUM_BEST,
        sorts=[(name, words) for name, words, _ in _sorts(report)],
        orders=_orders(report, ranked),
        num_columns=_num_columns(report, ranked),
        has_gains=any(result.gain.value is not None for result in ranked),
        gains=_gains(report),
        has_folds=any(result.fold_mean is not None for result in ranked),
        has_intervals=any(report.estimate(result).low is not None for result in ranked),
        has_cost=any(step.cost is not None for step in report.steps),
        has_cores=any(step.core_s is not None for step in report.steps),
        has_gpus=any(step.gpu_s for step in report.steps),
        classes=classes,
        extremes=[("Strongest", known[:10]), ("Weakest", known[-10:])] if many else [],
        confused=_most_confused(report.confusion)[:20],
        matrix_fits=report.confusion and len(report.confusion.labels) <= _MAX_MATRIX,
        matrix_numbered=report.confusion and len(report.confusion.labels) <= _MAX_NUMBERED,
        samples=[(s, s.attention and picture(s.attention)) for s in report.samples],
        has_attention=any(sample.attention for sample in report.samples),
        paper_data=DQ_DATA,
        charts=charts(report.curves),
        precision_recall=charts(report.precision_recall, prefix="pr", shares=True),
        num_styles=NUM_STYLES,
        reasons=_reasons(report.failures),
        total_s=sum(step.seconds or 0 for step in report.steps),
        total_core_s=sum(step.core_s or 0 for step in report.steps),
        total_gpu_s=sum(step.gpu_s or 0 for step in report.steps),
        has_plan=any(step.predicted_s is not None for step in report.steps),
        **_total_plan(report),
        total_cost=sum(step.cost or 0 for step in report.steps),
    )


def _sentence(report: Report, best: Result) -> str:
    """Return how good the best result is, in a sentence."""
    estimate = report.estimate(best)
    value = estimate.value or 0.0
    ends = f", {estimate.low:.3f} to {estimate.high:.3f}" if estimate.low is not None else ""
    if report.multi_label:
        said = f"{best.words} has the highest mAP, {value:.3f}{ends}"
    else:
        right = round(value * best.num_videos)
        said = (
            f"{best.words} names the class of {right:,} of {best.num_videos:,} tested videos: "
            f"accuracy {value:.3f}{ends}"
        )
    if report.chance:
        said += f", {value / report.chance:.1f} times chance ({report.chance:.3f})"
    single = report.best_single
    if best.fusion and single:
        least = report.value(single) or 0.0
        said += f". The best result that is not fused has {least:.3f}: {single.words}"
    return f"{said}."


def _top_alt(report: Report, results: list[Result]) -> str:
    values = [(r.words, report.value(r)) for r in results]
    said = "; ".join(f"{words} {value:.3f}" for words, value in values if value is not None)
    return f"{report.headline} of the best results: {said}"


def _sorts(report: Report) -> list[tuple[str, str, Callable[[Result], Any]]]:
    """Return (name, words, key) of the orders of all results; the table's own comes first."""

    def descending(field: str) -> Callable[[Result], float]:
        return lambda result: -(getattr(result, field).value or 0.0)

    metrics = [(field, name, descending(field)) for name, field in _columns(report)]
    return [
        *metrics,
        ("encoder", "encoder", lambda result: (result.encoder, result.stream)),
        ("stream", "stream", lambda result: (result.stream, result.encoder)),
    ]


def _orders(report: Report, ranked: list[Result]) -> list[list[tuple[str, int]]]:
    """Return for each result its place in each order."""
    places = []
    for name, _, key in _sorts(report):
        order = sorted(range(len(ranked)), key=lambda index: key(ranked[index]))
        places.append([(name, order.index(index)) for index in range(len(ranked))])
    return [list(row) for row in zip(*places, strict=True)]


def _num_columns(report: Report, ranked: list[Result]) -> int:
    """Return the number of columns of the table of results."""
    optional = (
        any(result.gain.value is not None for result in ranked),
        any(result.fold_mean is not None for result in ranked),
    )
    return 4 + len(_columns(report)) + sum(optional)


def _gains(report: Report) -> list[Chart]:
    """Return the chart of the fusions' gains, the largest first; None without gains."""
    gains = [(r, value) for r in report.ranked() if (value := r.gain.value) is not None]
    largest = sorted(gains, key=lambda pair: -pair[1])[:_MAX_GAINS]
    named_gains = [(f"{_short(r.encoder)}: {r.fusion.split(' ')[0]}", r.gain) for r, _ in largest]
    return [gains_chart(named_gains, report.headline)] if named_gains else []


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 2]}.."


def _total_plan(report: Report) -> dict[str, float | None]:
    """Return predicted and measured seconds of the steps that have both."""
    planned_and_run = [step for step in report.steps if step.ratio is not None]
    predicted_s = sum(step.predicted_s or 0.0 for step in planned_and_run)
    measured_s = sum(step.seconds or 0.0 for step in planned_and_run)
    return {
        "total_predicted_s": predicted_s,
        "total_ratio": measured_s / predicted_s if planned_and_run else None,
    }


def _columns(report: Report) -> list[tuple[str, str]]:
    """Return (name, field of a result) of the metrics.

    The headline comes first, where a phone shows it without scrolling.
    """
    columns = [("accuracy", "accuracy"), (f"top-{report.top_k}", "top_k")]
    return [("mAP", "map"), *columns] if report.multi_label else [*columns, ("mAP", "map")]


def _sorted_classes(rows: tuple[ClassRow, ...]) -> list[ClassRow]:
    """Return classes by AP, best first, those without a value last."""
    return sorted(rows, key=lambda row: (row.ap.value is None, -(row.ap.value or 0), row.label))


def _most_confused(confusion: Confusion | None) -> list[Confused]:
    if confusion is None:
        return []
    pairs = [
        Confused(true, predicted, count, count / sum(row))
        for true, row in zip(confusion.labels, confusion.matrix, strict=True)
        for predicted, count in zip(confusion.labels, row, strict=True)
        if count and predicted != true
    ]
    return sorted(pairs, key=lambda pair: (-pair.count, -pair.share, pair.true, pair.predicted))


def _reasons(failures: Failures) -> list[tuple[tuple[str, str, str], int]]:
    """Return ((stage, status, error type), count), the most frequent first."""
    return sorted(failures.counts.items(), key=lambda item: (-item[1], item[0]))
