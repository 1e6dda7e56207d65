"""Class activation maps on the page, and gains by class."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipelines.report.activations import class_gains, compared_results, gains_by_class
from pipelines.report.attention import painted
from pipelines.report.over_time import spans_of
from pipelines.report.records import AccuracyGains, FlowFigure, Span, TimeFigure
from pipelines.report.render import render
from pipelines.run.job import Job
from pipelines.storage.tables import SCORES
from tests.pipelines.report.examples import EMPTY
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


def put_scores(job: Job, pair: tuple[str, str], guesses: dict[str, str]) -> None:
    rows = [
        {
            "video_id": video,
            "encoder": pair[0],
            "stream": pair[1],
            "fold": 0,
            "label": label,
            "is_true": label == "ab"[int(video[1:]) % 2],
            "score": float(label == guess),
        }
        for video, guess in guesses.items()
        for label in "ab"
    ]
    job.store.publish_table(f"{job.scores(*pair)}/a.parquet", SCORES.build(rows), {})


def test_accuracy_by_class_is_of_the_best_network_less_the_best_vectors(tmp_path) -> None:
    job = example(str(tmp_path), "network.networks=tdn")
    right = {f"v{n}": "ab"[n % 2] for n in range(6)}
    # The network is wrong about one of three of class a; vectors about all of class b, and they
    # have no score of another video.
    put_scores(job, ("tdn", "rgb"), right | {"v0": "b"})
    vectors = right | dict.fromkeys(("v1", "v3"), "a")
    vectors.pop("v5")
    put_scores(job, ("vlad", "n_appearance"), vectors)
    rows = [metric("tdn", "accuracy", 0.8)]
    for encoder, value in (("vlad", 0.5), ("ave", 0.4)):
        rows.append(metric(encoder, "accuracy", value) | {"stream": "n_appearance"})
    compared = compared_results(job, rows)
    assert compared == (("tdn", "rgb"), ("vlad", "n_appearance"))
    found = gains_by_class(job.store, {p: job.scores(*p) for p in compared}, job.failures)
    assert found == (("b", 1.0), ("a", pytest.approx(-1 / 3)))
    assert compared_results(job, rows[:1]) == ()


def test_flow_is_shown_with_its_extrapolated_frame_in_red() -> None:
    figure = FlowFigure(
        video_id="v",
        network="actionflownet on rgb",
        error_px=0.5,
        length_px=1.25,
        columns=((3, False, b"\xff\xd8", b"\x89P", b"\x89T"), (4, True, b"\xff\xd8", b"E", b"T")),
    )
    gains = AccuracyGains("one", "other", (("up", 0.25), ("down", -0.5)))
    page = render(replace(EMPTY, flows=(figure,), accuracy_gains=gains))
    assert "v: 0.50 px wrong, 1.25 px without flow" in page
    assert page.count('class="extrapolated"') == 1
    assert 'class="extrapolated" alt="estimated flow from frame 4"' in page
    assert page.count('alt="flow of the pictures from frame') == 2
    bars = [
        part.split("</li>")[0] for part in page.split('<ul class="gains">')[1].split("<li>")[1:]
    ]
    assert 'class="gain" style="width: 2.0rem"' in bars[0]
    assert bars[0].rstrip().endswith("+0.25")
    assert 'class="loss" style="width: 4.0rem"' in bars[1]
    assert bars[1].rstrip().endswith("-0.50")
