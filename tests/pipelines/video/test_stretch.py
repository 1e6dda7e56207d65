"""A stretch of a file is the video that a cut of it would be."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.stream_specs import FRAME, Window
from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.video.decode import SegmentFrames, decode_segment
from pipelines.video.header import VideoError
from pipelines.video.listing.stretch import Stretch

SMALL = Picture(resize_px=64, crop_px=64)
EVERY = Sampling(policy="interval", interval_s=0.005)
PYAV = Decode()
GAP = Window(num_frames=2, gap=2)


def frames(
    data: Path,
    stretch: tuple[float, float] | None,
    sampling: Sampling = EVERY,
    decode: Decode = PYAV,
) -> SegmentFrames:
    uri = str(data / "clips" / "carphone_pristine.mp4")
    return decode_segment(uri, 0, 1, sampling, SMALL, decode, (FRAME, GAP), stretch)


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_frames_are_those_of_the_file_between_the_times(data: Path, decoder: str) -> None:
    decode = Decode(decoder="decord" if decoder == "decord" else "pyav")
    whole = frames(data, None, decode=decode)
    middle_s = float(whole.timestamps_s[-1]) / 2
    times = (middle_s - 0.3, middle_s + 0.2)
    part = frames(data, times, decode=decode)
    first, last = np.searchsorted(whole.timestamps_s, np.array(times) - 1e-6)
    first -= whole.timestamps_s[first] > times[0] + 1e-6
    inside = slice(first, last)
    assert len(part.frame_indices) > 10
    assert np.array_equal(part.frame_indices, whole.frame_indices[inside])
    assert np.allclose(part.timestamps_s, whole.timestamps_s[inside])
    pictures = whole.images[whole.places[FRAME][inside].ravel()]
    assert np.array_equal(part.images[part.places[FRAME].ravel()], pictures)
    # What a difference reads does not reach before the stretch.
    assert part.image_indices.min() == part.frame_indices[0]


def test_few_frames_are_spread_over_the_stretch_alone(data: Path) -> None:
    part = frames(data, (1.0, 1.4), Sampling(policy="uniform", num_frames=2))
    assert part.timestamps_s == pytest.approx([1.1, 1.3], abs=0.05)


def test_the_whole_file_as_a_stretch_is_the_file(data: Path) -> None:
    whole, part = frames(data, None), frames(data, (0.0, 1e6))
    assert np.array_equal(part.images, whole.images)
    assert np.array_equal(part.frame_indices, whole.frame_indices)


def test_a_stretch_behind_the_end_is_a_row_that_says_so(data: Path) -> None:
    with pytest.raises(VideoError, match=r"no_frames: .*expected frames from 100 to 101 s, got a"):
        frames(data, (100.0, 101.0))


@given(
    steps=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=20),
    start_s=st.floats(0, 12),
    length_s=st.floats(0.02, 12),
)
def test_it_holds_what_is_shown_between_its_times(
    steps: list[float], start_s: float, length_s: float
) -> None:
    times_s = np.concatenate([[0.0], np.cumsum(steps)])
    end_s = float(times_s[-1] + 0.04)
    part = Stretch.of((start_s, start_s + length_s), times_s, end_s)
    ends_s = np.append(times_s[1:], end_s)
    # Within a tick of either end a frame may be in or out.
    surely = (times_s < start_s + length_s - 1e-5) & (ends_s > start_s + 1e-5)
    maybe = (times_s < start_s + length_s + 1e-5) & (ends_s > start_s - 1e-5)
    held = set(range(part.first, part.last))
    assert set(np.flatnonzero(surely).tolist()) <= held <= set(np.flatnonzero(maybe).tolist())
    if held:
        assert part.times_s(times_s)[0] == 0
        assert part.begin_s + part.end_s <= end_s + 1e-9
