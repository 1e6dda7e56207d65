"""Class activation maps on the page, and gains by class."""

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.report.activations import class_gains
from pipelines.report.attention import painted
from pipelines.report.over_time import spans_of
from pipelines.report.records import Span, TimeFigure
from tests.pipelines.run.examples import example


def metric(encoder: str, metric: str, value: float, label: str | None = None) -> dict:
    return {
        "encoder": encoder,
        "stream": "rgb",
        "fusion": "none",
        "split": "all",
        "metric": metric,
        "class": label,
        "value": value,
    }


def test_the_classes_that_the_better_network_improves_most_come_first() -> None:
    job = example("nowhere", "network.networks=tsn,tdn")
    rows = [metric("tsn", "accuracy", 0.5), metric("tdn", "accuracy", 0.6)]
    for place in range(7):
        rows.append(metric("tsn", "AP", 0.5, f"c{place}"))
        rows.append(metric("tdn", "AP", 0.5 + 0.01 * place, f"c{place}"))
    (gains,) = class_gains(job, rows)
    assert (gains.name, gains.over) == ("tdn on rgb", "tsn")
    assert [label for label, _ in gains.rows] == ["c6", "c5", "c4", "c3", "c2"]
    assert dict(gains.rows)["c6"] == pytest.approx(0.06)


def test_spans_last_until_the_first_class_changes() -> None:
    labels = ["run", "run", "walk", "walk", "walk", "run"]
    spans = spans_of([(2.0 * second, label) for second, label in enumerate(labels)])
    assert spans == [Span("run", 0.0, 4.0), Span("walk", 4.0, 10.0), Span("run", 10.0, 12.0)]
    assert spans_of([(3.0, "run")]) == [Span("run", 3.0, 4.0)]
    figure = TimeFigure("v", "lstm on rgb", ("run",), "v", tuple(spans), ())
    # Six seconds each: the first of equals.
    assert figure.predicted == "run"
    assert figure.is_right


def test_one_network_has_nothing_to_gain_over() -> None:
    job = example("nowhere", "network.networks=tdn")
    assert class_gains(job, [metric("tdn", "accuracy", 0.6)]) == ()


def test_a_map_is_painted_where_its_values_are_high() -> None:
    grey = np.full((96, 96, 3), 128, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "JPEG")
    values = np.zeros((6, 6))
    values[0, 5] = 1
    plain, own = (
        np.asarray(Image.open(io.BytesIO(data))).astype(int)
        for data in painted(buffer.getvalue(), values.ravel().tolist())
    )
    assert plain.shape == own.shape
    brightness = own.sum(2)
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert row < own.shape[0] / 4
    assert column > own.shape[1] * 3 / 4
    assert abs(plain - 128).max() < 6
