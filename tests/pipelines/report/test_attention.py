"""Where and when a video was looked at: the map over a frame, the curve over time, and what the
page says of them."""

import io
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipelines.report.attention import MAX_COLUMNS, attention_map, picture
from pipelines.report.records import Sample
from pipelines.report.render import render
from tests.pipelines.report.examples import EMPTY, FULL, strip
from tests.pipelines.report.page import Page, assert_stands_alone


def by_loops(cells: np.ndarray, levels: tuple[int, ...], height: int, width: int) -> np.ndarray:
    """The map pixel by pixel: bilinear between the middles of cells, levels weighted by their
    cells."""
    out = np.zeros((height, width))
    for r in range(height):
        for c in range(width):
            start = 0
            for side in levels:
                y = min(max((r + 0.5) / height * side - 0.5, 0), side - 1)
                x = min(max((c + 0.5) / width * side - 0.5, 0), side - 1)
                top, left = min(int(y), side - 1), min(int(x), side - 1)
                for i in {top, min(top + 1, side - 1)}:
                    for j in {left, min(left + 1, side - 1)}:
                        weight = (1 - abs(y - i)) * (1 - abs(x - j))
                        out[r, c] += side * side * weight * cells[start + i * side + j]
                start += side * side
    return out / sum(side * side for side in levels)


def test_attention_map_equals_plain_loops_and_keeps_the_frame_value():
    cells = np.random.default_rng(1).random(50)
    levels = (6, 3, 2, 1)
    np.testing.assert_allclose(
        attention_map(cells, levels, 31, 47), by_loops(cells, levels, 31, 47), rtol=1e-12
    )
    # The map is as strong in all as the frame's value, the sum of its cells.
    assert attention_map(cells, levels, 36, 72).mean() * 50 == pytest.approx(cells.sum())


def test_attention_shows_where_and_when_in_words():
    full = Page(render(FULL))
    alts = [a["alt"] for t, a in full.elements if t == "img" and a["alt"].startswith("attention")]
    assert alts == 2 * [
        "attention at 0.0 s: the same everywhere",
        "attention at 1.0 s: the same everywhere",
        "attention at 2.0 s: the same everywhere",
    ]
    cells = np.ones((2, 14), np.float32)
    cells[0, 2], cells[1, 9 + 2] = 9.0, 9.0
    where = [column.where for column in picture(strip(cells, 2)).columns]
    assert where == ["highest at the top right", "highest at the bottom left"]
    drawn = [a["aria-label"] for t, a in full.elements if a.get("role") == "img"]
    curves = [words for words in drawn if words.startswith("Attention")]
    # Values 14, 42, 14, 14, 14 over their mean 19.6.
    assert curves == 2 * [
        "Attention over time, in multiples of the mean: goes from 0.71 at 0.0 s to 0.71 at 2.0 s, "
        "highest at 0.5 s (2.14), lowest at 0.0 s (0.71)"
    ]
    change = ": a map is of the change that leads to the frame"
    assert full.text.count(change) == full.text.count(f"pool5_difference{change}") == 1
    rising = picture(strip(np.outer([1, 4, 2], np.ones(14)))).curve_alt
    assert "rises from 0.43 at 0.0 s to 0.86 at 1.0 s, highest at 0.5 s (1.71)" in rising
    falling = picture(strip(np.outer([3, 4, 2], np.ones(14)))).curve_alt
    assert "falls from 1.00 at 0.0 s to 0.67 at 1.0 s" in falling


def test_the_curve_is_aligned_with_the_columns():
    curve = picture(strip(np.outer([1, 3, 2, 1, 1], np.ones(14)))).curve
    assert 'viewBox="0 0 300 84"' in curve
    # Five values at equal times over three columns; the highest at the top.
    assert 'points="50.0,62.0 100.0,22.0 150.0,42.0 200.0,62.0 250.0,62.0"' in curve
    dots = re.findall(r'<circle cx="([0-9.]+)" cy="([0-9.]+)"', curve)
    assert dots == [("50.0", "62.0"), ("150.0", "42.0"), ("250.0", "62.0")]
    for middle in (50, 150, 250):
        assert f'points="{middle}.0,0 {middle}.0,10.0 {middle}.0,74.0 {middle}.0,84.0"' in curve
    uneven = picture(strip(np.ones((3, 14)), times_s=(0.0, 0.5, 2.0))).curve
    assert 'points="150.0,0 100.0,10.0 100.0,74.0 150.0,84.0"' in uneven


def _pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(float)


def test_frames_of_a_video_share_one_scale():
    grey = tuple(np.full((60, 60, 3), 128, np.uint8) for _ in range(3))
    shown = picture(strip(np.outer([1, 2, 3], np.ones(14)), frames=grey))
    assert shown.scale == pytest.approx((0.5, 1.5))
    ramp = _pixels(shown.legend)
    ends = [ramp[:, :4].mean((0, 1)), ramp[:, 78:82].mean((0, 1)), ramp[:, -4:].mean((0, 1))]
    for column, expected in zip(shown.columns, ends, strict=True):
        np.testing.assert_allclose(_pixels(column.painted).mean((0, 1)), expected, atol=8)
    assert np.linalg.norm(ends[0] - ends[2]) > 100


def test_a_strip_is_small_and_has_few_columns():
    many = strip(np.random.default_rng(3).random((40, 14)), num_shown=20)
    assert len(picture(many).columns) == MAX_COLUMNS
    assert [c.time_s for c in picture(many).columns][:: MAX_COLUMNS - 1] == [0.0, 19.5]
    noise = np.random.default_rng(4).integers(0, 256, (MAX_COLUMNS, 224, 224, 3), dtype=np.uint8)
    worst = strip(
        np.random.default_rng(3).random((8, 14)), num_shown=MAX_COLUMNS, frames=tuple(noise)
    )
    sample = Sample("v", ("a",), "a", 1.0, attention=worst)
    size = len(render(replace(EMPTY, samples=(sample,)))) - len(render(EMPTY))
    assert size < 150_000


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (np.full((3, 14), np.nan), "Attention over time: no values"),
        (np.full((3, 14), np.inf), "Attention over time: no values"),
        (np.zeros((3, 14)), "Attention over time: the same in 3 frame(s)"),
        (np.ones((1, 14)), "Attention over time: the same in 1 frame(s)"),
        (-np.ones((3, 14)), "Attention over time: the same in 3 frame(s)"),
    ],
)
def test_odd_attention_is_survived_and_said(cells, said):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        look = strip(cells, num_shown=len(cells))
        html = render(replace(EMPTY, samples=(Sample("v", ("a",), "a", 1.0, attention=look),)))
    assert_stands_alone(html)
    assert said in Page(html).text
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"base64,[^\"]*", "", html))


def test_a_frame_without_values_is_left_out_and_counted():
    cells = np.ones((3, 14))
    cells[1, 0] = np.nan
    sample = Sample("v", ("a",), "a", 1.0, attention=strip(cells))
    html = render(replace(EMPTY, samples=(sample,)))
    assert "1 of 3 frames have no finite value; their maps are not painted" in Page(html).text
    assert "attention at 0.5 s: no values" in html
    plain = picture(strip(cells))
    assert np.ptp(_pixels(plain.columns[1].painted), axis=2).max() < 8, "grey"
    assert plain.curve.count("<circle") == 2


def test_impossible_strips_are_refused():
    with pytest.raises(
        ValueError, match=r"cells \[5, 14\] for 5 times and levels \(3, 2, 1\), got"
    ):
        strip(np.ones((5, 13)))
    with pytest.raises(ValueError, match="one ascending place for each of 3 frames"):
        strip(shown=(2, 1, 0))
    with pytest.raises(ValueError, match="one ascending place for each of 0 frames, and one frame"):
        strip(shown=(), frames=())
    with pytest.raises(ValueError, match="places from 0 to 4, got"):
        strip(shown=(0, 1, 5))
