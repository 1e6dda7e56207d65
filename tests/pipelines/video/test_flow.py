"""Optical flow against displacements that are known, its levels, and the flow of real clips."""

import itertools
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from encoders.descriptors.views import mirrored_flow
from encoders.stream_specs import FRAME, FlowSpec, FlowWindow, Window, kind_of
from pipelines.errors import ConfigError
from pipelines.settings.config import Config
from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.video import flow
from pipelines.video.decode import SegmentFrames, decode_segment
from pipelines.video.header import VideoError
from pipelines.video.isolation import IsolatedDecoder
from pipelines.video.sampling import window_frames
from pipelines.video.stages import DecodeSegments

SIZE = 96
METHODS = ("dis", "tvl1")
FLOW = FlowWindow(num_frames=2, gap=1, method="dis", bound_px=20.0)
PICTURE = Picture(resize_px=64, crop_px=48)
THREE = Sampling(policy="uniform", num_frames=3)


def texture(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A picture uint8 [h, w, 3] of waves of many lengths, given at any places, so that nothing is
    interpolated."""
    draws = np.random.default_rng(7)
    total = np.zeros_like(x)
    for length in (5.0, 8.0, 13.0, 21.0, 34.0, 55.0):
        for _ in range(4):
            angle, phase = draws.uniform(0, 2 * np.pi, 2)
            along = x * np.cos(angle) + y * np.sin(angle)
            total += np.sqrt(length) * np.sin(2 * np.pi * along / length + phase)
    grey = np.rint(127.5 + 127.5 * np.tanh(total / 18))
    return np.repeat(grey.astype(np.uint8)[..., None], 3, 2)


def places() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:SIZE, :SIZE].astype(float)
    return x, y


def flow_between(before: np.ndarray, after: np.ndarray, method: str) -> np.ndarray:
    """The flow between two pictures in colour."""
    grey = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (before, after))
    return flow.flow_between(*grey, method)


def inner(field: np.ndarray) -> np.ndarray:
    """Without the border, where what moves comes from outside the picture."""
    return field[16:-16, 16:-16]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shift", [(0.5, 0.0), (0.0, -0.75), (1.25, 2.0), (-4.5, 3.25)])
def test_a_shift_is_the_flow(method: str, shift: tuple[float, float]) -> None:
    x, y = places()
    before, after = texture(x, y), texture(x - shift[0], y - shift[1])
    found = flow_between(before, after, method)
    assert (found.dtype, found.shape) == (np.float32, (SIZE, SIZE, 2))
    error = np.linalg.norm(inner(found - np.float32(shift)), axis=-1)
    assert np.median(error) < 0.1
    assert error.mean() < 0.25


@pytest.mark.parametrize("method", METHODS)
def test_a_rotation_is_the_flow(method: str) -> None:
    x, y = places()
    turn, middle = np.deg2rad(3.0), (SIZE - 1) / 2
    cos, sin = np.cos(turn), np.sin(turn)
    dx, dy = x - middle, y - middle
    # What is at d in the first picture is at R d in the second, which so shows at d what was at R^T
    # d.
    after = texture(middle + cos * dx + sin * dy, middle - sin * dx + cos * dy)
    expected = np.stack([cos * dx - sin * dy - dx, sin * dx + cos * dy - dy], -1)
    error = np.linalg.norm(inner(flow_between(texture(x, y), after, method) - expected), axis=-1)
    assert np.median(error) < 0.1


@pytest.mark.parametrize("method", METHODS)
def test_nothing_moves_in_a_still_video(method: str) -> None:
    still = texture(*places())
    for image in (still, np.full_like(still, 255)):
        levels = flow.to_levels(flow_between(image, image, method), 40.0)
        assert (levels == 128).all()


flows = arrays(np.float32, (2, 3, 4), elements=st.floats(-100, 100, width=32))


@given(flows, st.sampled_from([40.0, 20.0, 7.5, 0.1]))
def test_levels_are_the_flow_within_half_a_level(found: np.ndarray, bound_px: float) -> None:
    levels = flow.to_levels(found, bound_px)
    for level, value in zip(levels.ravel().tolist(), found.ravel().tolist(), strict=True):
        cut_off = max(-bound_px, min(bound_px, value))
        assert abs(level - (cut_off + bound_px) * 255 / (2 * bound_px)) <= 0.5 + 1e-4
    in_px = levels * np.float32(bound_px / 127.5) - np.float32(bound_px)
    error = np.abs(in_px - np.clip(found, -bound_px, bound_px))
    assert error.max() <= bound_px / 255 * 1.001
    assert (flow.to_levels(in_px, bound_px) == levels).all()


def test_the_bounds_are_the_first_and_the_last_level() -> None:
    values = np.array([-1e6, -40, -39.9, 0, 39.9, 40, 1e6])
    assert flow.to_levels(values, 40.0).tolist() == [0, 0, 0, 128, 255, 255, 255]


@given(arrays(np.float32, (1, 2, 3, 4), elements=st.floats(-9, 9, width=32)))
def test_the_mirror_image_of_flow_is_that_of_the_mirrored_motion(found: np.ndarray) -> None:
    """Up to the tie: 0 px lies between two levels."""
    mirrored = found[:, :, ::-1].copy()
    mirrored[..., ::2] *= -1
    expected = flow.to_levels(mirrored, 8.0).astype(int)
    levels = mirrored_flow(torch.from_numpy(flow.to_levels(found, 8.0))).numpy().astype(int)
    assert (levels[..., 1::2] == expected[..., 1::2]).all()
    scaled = mirrored[..., ::2].clip(-8, 8) * (127.5 / 8)
    is_tie = np.abs(scaled - np.rint(scaled)) < 1e-3
    off = np.abs(levels - expected)[..., ::2]
    assert (off <= is_tie).all()


def test_stacks_are_the_flows_through_their_frames() -> None:
    draws = np.random.default_rng(0)
    images = {k: texture(*(place + 2 * k for place in places())) for k in range(5)}
    images[3] = draws.integers(0, 256, images[3].shape).astype(np.uint8)
    window = FlowWindow(num_frames=4, gap=1, method="dis", bound_px=8.0)
    frames = np.array([[0, 1, 2, 3], [1, 2, 3, 4]])
    found = flow.stacks(images, frames, window, 50)
    assert found.shape == (2, 50, 50, 6)
    for row, through in zip(found, frames, strict=True):
        for place, (before, after) in enumerate(itertools.pairwise(through)):
            alone = flow_between(images[before], images[after], "dis")
            expected = flow.to_levels(alone, 8.0)[23:73, 23:73]
            assert (row[..., 2 * place : 2 * place + 2] == expected).all()


def segment(path: Path, *windows: Window, **changes: object) -> SegmentFrames:
    arguments = {"sampling": THREE, "picture": PICTURE, "segment": 0, "num_segments": 1} | changes
    return decode_segment(
        str(path),
        arguments["segment"],
        arguments["num_segments"],
        arguments["sampling"],
        arguments["picture"],
        Decode(),
        (FRAME, *windows),
    )


@pytest.mark.parametrize(
    "name",
    [
        "v_Basketball_g01_c01.avi",
        "nasa_13013_vfr.mp4",
        "nasa_13013_rotated.mp4",
        "testsrc2_odd_height_and_width_vp9.mp4",
        "pigs_in_a_polka.gif",
    ],
)
def test_flow_of_a_clip_is_that_of_its_pictures(data: Path, name: str) -> None:
    """The same pictures are decoded for a difference of the same frames, whole, and flow is
    computed here."""
    stack = FlowWindow(num_frames=3, gap=2, method="dis", bound_px=20.0)
    path = data / "clips" / name
    found = segment(path, FLOW, stack)
    alone = segment(path)
    # Pictures stay what they are, and those that flow alone needs do not travel.
    assert (found.images == alone.images).all()
    assert (
        found.frame_indices.tolist() == found.image_indices.tolist() == alone.frame_indices.tolist()
    )
    assert found.num_missing == 0
    for window in (FLOW, stack):
        gaps = Window(num_frames=window.num_frames, gap=window.gap)
        whole = segment(path, gaps, picture=Picture(resize_px=64, crop_px=64))
        levels = found.flows[window]
        assert levels.shape == (3, 48, 48, window.num_channels)
        assert found.places[window].tolist() == [[0], [1], [2]]
        for row, read in zip(levels, whole.places[gaps], strict=True):
            for place, (before, after) in enumerate(itertools.pairwise(read)):
                moved = flow_between(whole.images[before], whole.images[after], "dis")
                expected = flow.to_levels(moved, 20.0)[8:56, 8:56]
                assert (row[..., 2 * place : 2 * place + 2] == expected).all()


@pytest.mark.parametrize("name", ["one_frame_mpeg4.mp4", "one_frame_rotated_90.mp4"])
def test_a_video_that_is_too_short_has_no_flow_and_no_error(data: Path, name: str) -> None:
    found = segment(data / "clips" / name, FLOW)
    assert len(found.frame_indices) == len(found.images) == 1
    assert (found.num_missing, found.error) == (0, None)
    assert found.flows[FLOW].shape == (0, 48, 48, 2)
    assert found.places[FLOW].shape == (0, 1)


def test_nothing_depends_on_where_a_video_was_cut(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = data / "clips" / "v_Basketball_g01_c01.avi"
    six = Sampling(policy="uniform", num_frames=6)
    window = FlowWindow(num_frames=4, gap=3, method="dis", bound_px=20.0)
    whole = segment(path, window, sampling=six)
    monkeypatch.setattr("pipelines.video.sampling.SEGMENT_FRAMES", 2)
    parts = [segment(path, window, sampling=six, segment=k, num_segments=3) for k in range(3)]
    assert (np.concatenate([part.flows[window] for part in parts]) == whole.flows[window]).all()


@pytest.mark.slow
def test_the_child_computes_the_same_flow_on_one_thread(data: Path) -> None:
    path = data / "clips" / "v_Basketball_g01_c01.avi"
    with IsolatedDecoder(Decode()) as decoder:
        arguments = (str(path), 0, 1, THREE, PICTURE, Decode(), (FRAME, FLOW))
        found: SegmentFrames = decoder.call(decode_segment, *arguments)
        assert decoder.call(eval, "__import__('cv2').getNumThreads()") == 1
    assert (found.flows[FLOW] == segment(path, FLOW).flows[FLOW]).all()
    assert f"OpenCV {flow.opencv_version()}" in found.decoder_version


def test_the_time_limit_grows_with_the_flows() -> None:
    """25 frames with ten flows each, of VU's pictures: 170 s of an unloaded core."""
    ten = FlowWindow(num_frames=11, gap=1, method="tvl1", bound_px=20.0)
    assert flow.limit_s((FRAME, ten), 25, 256) == pytest.approx(4 * 250 * 0.69)
    assert flow.limit_s((ten, FLOW), 25, 512) == pytest.approx(16 * (250 * 0.69 + 25 * 0.0065))
    assert flow.limit_s((FRAME, Window(num_frames=2)), 25, 256) == 0


@pytest.mark.slow
def test_segments_with_flow_may_take_longer() -> None:
    stage = DecodeSegments(THREE, PICTURE, Decode(timeout_s=0.3), windows=(FRAME, FLOW))
    limit = f"0.3 s and {flow.limit_s((FLOW,), 3, 64):.0f} s more for optical flow; raise"
    with stage.decoder as decoder:
        assert decoder._flow_s == flow.limit_s((FLOW,), 3, 64)
        with pytest.raises(VideoError, match=rf"decode\.timeout_s = {limit}"):
            decoder.call(time.sleep, 60)
    with IsolatedDecoder(Decode(timeout_s=0.1), flow_s=60.0) as decoder:
        assert decoder.call(eval, "__import__('time').sleep(0.5) or 3") == 3


def test_a_machine_without_opencv_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    flow._opencv.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match=r"not installed .*; install video-fisher\[flow\]"):
        flow.require_opencv()
    stage = (THREE, PICTURE, Decode())
    with pytest.raises(ConfigError, match="install video-fisher"):
        DecodeSegments(*stage, windows=(FRAME, FLOW))
    DecodeSegments(*stage, windows=(FRAME,)).decoder.close()


def test_opencv_without_its_contributed_modules_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "optflow")
    with pytest.raises(ConfigError, match=r"without cv2\.optflow; uninstall"):
        flow.require_opencv()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("flow@method=farneback", "expected one of .*'dis', 'tvl1'.*, got 'farneback'"),
        ("flow@stack=0", "stack: expected 1 to 20 flows, got 0"),
        ("flow@gap=-1", "gap: expected 1 to 10000 source frames, got -1"),
        ("flow@gap_s=0.08:gap=2", "gap_s: expected no gap in source frames beside it, got 2"),
        ("flow@bound_px=0", r"bound_px: expected 0\.1 to 1000 px, in whole tenths, got 0"),
        ("flow@bound_px=nan", "bound_px: expected"),
        ("flow@size=3", "no field 'size'"),
    ],
)
def test_wrong_fields_are_told(entry: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config().with_settings([f"describe.streams={entry}"])


def test_a_gap_in_seconds_is_that_many_frames_of_any_rate() -> None:
    by_time = FlowSpec(gap_s=0.08, stack=2, bound_px=10).window
    for rate, frames in ((10, 1), (25, 2), (60, 5)):
        counted = FlowSpec(gap=frames, stack=2).window
        wanted, times_s = np.array([20, 25]), np.arange(40) / rate
        expected = window_frames(counted, wanted, times_s)
        np.testing.assert_array_equal(window_frames(by_time, wanted, times_s), expected)
    assert kind_of("features_12_flow_gap0_08s_x2_bound10") == "flow"


def test_flow_needs_neighbours_and_a_picture_of_some_size() -> None:
    with pytest.raises(ConfigError, match="no gap and no flow where"):
        Config().with_settings(["describe.streams=flow", "sampling.policy=keyframes"])
    small = ["picture.resize_px=8", "picture.crop_px=8", "describe.streams=flow"]
    with pytest.raises(ConfigError, match=r"picture\.resize_px: expected at least 12 px"):
        Config().with_settings(small)
