"""The report of a run: one HTML page that needs no network and no script.

Everything in a `Report` may come from hostile files (paths, labels, messages): the template escapes
all of it, and the page's own policy forbids it to load or run anything.
"""

from dataclasses import dataclass

from pipelines.evaluate.best import Confusion
from pipelines.report.attention import picture
from pipelines.report.charts import NUM_STYLES, Chart, charts, gains_chart
from pipelines.report.papers import DQ_DATA
from pipelines.report.records import ClassRow, Failures, Report
from pipelines.report.template import template

_MAX_MATRIX = 50  # classes; above, a cell is too small to read
_MAX_NUMBERED = 20  # classes; above, a cell has no room for its number
_MAX_CLASSES = (
    40  # classes; above, the weakest and the strongest are shown and the rest folded away
)
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
