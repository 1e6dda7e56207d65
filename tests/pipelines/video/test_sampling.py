"""Sampling by time, and the partition into segments."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.stream_specs import FRAME, Window
from pipelines.settings.sections import Sampling
from pipelines.video.header import VideoFacts
from pipelines.video.sampling import (
    ASSUMED_DURATION_S,
    MAX_DURATION_S,
    SEGMENT_FRAMES,
    num_segments,
    plan_segment,
    sample_frames,
    segment_frames,
)

FACTS = VideoFacts("mov", "h264", 640, 360, 0, 10.0, 25.0, 250)


def _constant(num_frames: int, fps: float) -> tuple[np.ndarray, float, np.ndarray]:
    """Timestamps, end and key frames (every tenth) of a video with a constant frame rate."""
    places = np.arange(num_frames)
    return places / fps, num_frames / fps, places % 10 == 0


def _facts(duration_s: float | None) -> VideoFacts:
    return dataclasses.replace(FACTS, duration_s=duration_s)


# 25 fps, 10 s, worked out by hand.
@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        # Targets 1.25, 3.75, 6.25, 8.75 s.
        (Sampling(policy="uniform", num_frames=4), [31, 93, 156, 218]),
        (Sampling(policy="uniform", num_frames=1), [125]),
        (Sampling(policy="interval", interval_s=3.0), [0, 75, 150, 225]),
        # A target at the very end, 10 s, shows nothing.
        (Sampling(policy="interval", interval_s=2.5), [0, 62, 125, 187]),
        (Sampling(policy="interval", interval_s=60.0), [0]),
        (Sampling(policy="fps", fps=1.0, max_duration_s=4.0), [0, 25, 50, 75]),
        (Sampling(policy="fps", fps=0.5, max_duration_s=300.0), [0, 50, 100, 150, 200]),
        # Middles 2.5 and 7.5 s: frames 62 and 187.
        (Sampling(policy="segments", num_frames=2, frames_per_segment=1), [62, 187]),
        (Sampling(policy="segments", num_frames=2, frames_per_segment=2), [62, 63, 187, 188]),
        (
            Sampling(policy="segments", num_frames=2, frames_per_segment=3),
            [61, 62, 63, 186, 187, 188],
        ),
        # Targets 0, 3, 6, 9 s; key frames every 0.4 s: 2.8 before 3.2, 6.0, 8.8.
        (Sampling(policy="keyframes", interval_s=3.0), [0, 70, 150, 220]),
    ],
)
def test_frames_of_each_policy(sampling: Sampling, expected: list[int]) -> None:
    ordinals = sample_frames(sampling, *_constant(250, 25.0))
    assert ordinals.dtype == np.int64
    assert ordinals.tolist() == expected


def test_a_key_frame_is_nearest_in_both_directions() -> None:
    timestamps_s, end_s, _ = _constant(250, 25.0)
    is_key = np.isin(np.arange(250), [10, 70, 85, 240])
    sampling = Sampling(policy="keyframes", interval_s=3.0)
    # Targets 0, 3, 6, 9 s are nearest to 0.4, 2.8, 3.4 (by 2.6 s, not 9.6 by 3.6 s) and 9.6 s.
    assert sample_frames(sampling, timestamps_s, end_s, is_key).tolist() == [10, 70, 85, 240]


@pytest.mark.parametrize(
    ("tolerance_s", "expected"),
    [
        # Targets 0, 3, 6, 9 s; distances 0.4, 0.2, 2.6 and 0.6 s.
        (0.0, [10, 70, 85, 240]),
        (2.6, [10, 70, 85, 240]),
        (2.59, [10, 70, 240]),
        (0.4, [10, 70]),
        (0.2, [70]),
        (0.1, []),
    ],
)
def test_a_key_frame_is_near_enough(tolerance_s: float, expected: list[int]) -> None:
    timestamps_s, end_s, _ = _constant(250, 25.0)
    is_key = np.isin(np.arange(250), [10, 70, 85, 240])
    sampling = Sampling(policy="keyframes", interval_s=3.0, keyframe_tolerance_s=tolerance_s)
    assert sample_frames(sampling, timestamps_s, end_s, is_key).tolist() == expected


@given(
    gaps_s=st.lists(st.floats(0.001, 2.0), min_size=1, max_size=100),
    keys=st.sets(st.integers(0, 99)),
    interval_s=st.floats(0.05, 20),
    tolerance_s=st.just(0.0) | st.floats(0.01, 20),
)
def test_keyframes_against_a_plain_search(
    gaps_s: list[float], keys: set[int], interval_s: float, tolerance_s: float
) -> None:
    ends_s = np.cumsum(gaps_s)
    timestamps_s, end_s = np.concatenate([[0.0], ends_s[:-1]]), float(ends_s[-1])
    is_key = np.isin(np.arange(len(gaps_s)), sorted(keys))
    sampling = Sampling(policy="keyframes", interval_s=interval_s, keyframe_tolerance_s=tolerance_s)
    found = sample_frames(sampling, timestamps_s, end_s, is_key).tolist()
    targets_s = [k * interval_s for k in range(max(1, math.ceil((end_s - 1e-6) / interval_s)))]
    shortest_s = {}
    for target_s in targets_s:
        distances = [(abs(timestamps_s[key] - target_s), key) for key in np.flatnonzero(is_key)]
        if distances:
            shortest_s[target_s] = min(distances)[0]
    limit_s = tolerance_s or math.inf
    # Each sample is the nearest one of a target within tolerance, to within rounding, and each such
    # target has its sample.
    for key in found:
        assert is_key[key]
        assert any(
            abs(timestamps_s[key] - target_s) <= min(shortest + 3e-6, limit_s + 3e-6)
            for target_s, shortest in shortest_s.items()
        )
    for target_s, shortest in shortest_s.items():
        if shortest < limit_s - 3e-6:
            assert any(abs(timestamps_s[key] - target_s) <= shortest + 3e-6 for key in found)


def test_no_key_frame_means_no_sample() -> None:
    timestamps_s, end_s, _ = _constant(250, 25.0)
    sampling = Sampling(policy="keyframes")
    assert sample_frames(sampling, timestamps_s, end_s, np.zeros(250, bool)).tolist() == []


def test_variable_frame_rate_is_sampled_by_time() -> None:
    # Ten frames in the first second, then one a second.
    timestamps_s = np.array([0.1 * i for i in range(10)] + [1.0, 2.0, 3.0])
    is_key = np.ones(13, bool)
    interval = Sampling(policy="interval", interval_s=1.0)
    assert sample_frames(interval, timestamps_s, 4.0, is_key).tolist() == [0, 10, 11, 12]
    # Targets 0.5, 1.5, 2.5, 3.5 s; by index they would be 1, 4, 8, 11.
    uniform = Sampling(policy="uniform", num_frames=4)
    assert sample_frames(uniform, timestamps_s, 4.0, is_key).tolist() == [5, 10, 11, 12]


@pytest.mark.parametrize("policy", ["uniform", "interval", "fps", "segments", "keyframes"])
def test_one_frame_is_sampled_once(policy: str) -> None:
    ordinals = sample_frames(Sampling(policy=policy), np.zeros(1), 0.0, np.ones(1, bool))
    assert ordinals.tolist() == [0]
    assert len(sample_frames(Sampling(policy=policy), np.zeros(0), 0.0, np.zeros(0, bool))) == 0


@given(
    num_frames=st.integers(1, 4000),
    fps=st.sampled_from([1.0, 10.0, 12.5, 19.62, 24.0, 25.0, 30000 / 1001, 30.0, 50.0, 60.0]),
    wanted=st.integers(1, 300),
)
def test_uniform_is_the_index_rule_at_a_constant_rate(
    num_frames: int, fps: float, wanted: int
) -> None:
    expected = {(2 * i + 1) * num_frames // (2 * wanted) for i in range(wanted)}
    sampling = Sampling(policy="uniform", num_frames=wanted)
    assert sample_frames(sampling, *_constant(num_frames, fps)).tolist() == sorted(expected)


SAMPLINGS = st.builds(
    Sampling,
    policy=st.sampled_from(["uniform", "interval", "fps", "segments", "keyframes"]),
    num_frames=st.integers(1, 200),
    interval_s=st.floats(0.05, 20),
    fps=st.floats(0.1, 30),
    max_duration_s=st.floats(0.5, 100),
    frames_per_segment=st.integers(1, 5),
)
"""Without a tolerance, so that there is a sample."""

GAPS_S = st.lists(st.floats(0.001, 2.0), min_size=1, max_size=300)


@given(sampling=SAMPLINGS, gaps_s=GAPS_S)
def test_samples_are_frames_and_segments_partition_them(
    sampling: Sampling, gaps_s: list[float]
) -> None:
    ends_s = np.cumsum(gaps_s)
    timestamps_s, end_s = np.concatenate([[0.0], ends_s[:-1]]), float(ends_s[-1])
    is_key = np.arange(len(gaps_s)) % 7 == 0
    ordinals = sample_frames(sampling, timestamps_s, end_s, is_key)
    assert len(ordinals) >= 1
    assert ordinals[0] >= 0
    assert ordinals[-1] < len(gaps_s)
    assert (np.diff(ordinals) > 0).all()

    # An honest header plans enough, however its last digits fall.
    count = num_segments(_facts(end_s - 0.5), sampling)
    windows = (FRAME, Window(num_frames=4))
    plans = [plan_segment(ordinals, k, count, timestamps_s, windows) for k in range(count)]
    assert np.concatenate([plan.wanted for plan in plans]).tolist() == ordinals.tolist()
    assert segment_frames(sampling) <= SEGMENT_FRAMES
    assert all(len(plan.wanted) <= segment_frames(sampling) for plan in plans)
    assert all(plan.num_unplanned == 0 for plan in plans)
    for before, plan in itertools.pairwise(plans):
        assert plan.before.tolist() == (before.wanted[-3:].tolist() if len(plan.wanted) else [])
    assert len(plans[0].before) == 0


def test_frames_beyond_the_plan_are_counted_by_its_last_segment() -> None:
    ordinals = np.arange(0, 1000, 5)
    plans = [plan_segment(ordinals, segment, 2, np.arange(1000.0)) for segment in range(2)]
    assert [len(plan.wanted) for plan in plans] == [64, 64]
    assert [plan.num_unplanned for plan in plans] == [0, 72]


def test_a_segment_beyond_the_end_is_empty() -> None:
    plan = plan_segment(np.arange(64), 1, 2, np.arange(64.0), (FRAME, Window(num_frames=2)))
    assert (len(plan.wanted), len(plan.before), plan.num_unplanned) == (0, 0, 0)


@pytest.mark.parametrize(
    ("sampling", "duration_s", "expected"),
    [
        (Sampling(policy="uniform", num_frames=25), 10.0, 1),
        (Sampling(policy="uniform", num_frames=65), None, 2),
        (Sampling(policy="segments", num_frames=33, frames_per_segment=2), None, 2),
        (Sampling(policy="interval", interval_s=3.0), 10.0, 1),
        (Sampling(policy="interval", interval_s=3.0), 7200.0, 38),
        (Sampling(policy="keyframes", interval_s=3.0), 7200.0, 38),
        (Sampling(policy="interval", interval_s=3.0), -5.0, 1),
        # 600 s are assumed: 201 frames.
        (Sampling(policy="interval", interval_s=3.0), None, 4),
        # 300 frames at most, whatever the length.
        (Sampling(policy="fps", fps=1.0, max_duration_s=300.0), None, 5),
        (Sampling(policy="fps", fps=1.0, max_duration_s=300.0), 7200.0, 5),
        (Sampling(policy="fps", fps=1.0, max_duration_s=300.0), 10.0, 1),
        (Sampling(policy="fps", fps=1.0, max_duration_s=1e9), None, 2700),
    ],
)
def test_planned_segments(sampling: Sampling, duration_s: float | None, expected: int) -> None:
    assert num_segments(_facts(duration_s), sampling) == expected


def test_a_damaged_header_does_not_flood_the_plan() -> None:
    sampling = Sampling(policy="interval", interval_s=3.0)
    most = num_segments(_facts(MAX_DURATION_S), sampling)
    assert num_segments(_facts(2.0**63 / 1e6), sampling) == most < 1000
    assert num_segments(_facts(None), sampling) == num_segments(
        _facts(ASSUMED_DURATION_S - 1), sampling
    )
