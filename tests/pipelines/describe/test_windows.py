"""The frames that streams read: chosen against plain loops, decoded once, described once, wherever
a video is cut."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoders.backbones import load
from encoders.descriptors.streams import appearance
from encoders.stream_specs import FRAME, Window
from pipelines.describe import stage
from pipelines.describe.segments import stored_frames
from pipelines.describe.stage import DescribeFrames, described_streams
from pipelines.errors import ConfigError
from pipelines.settings.config import Config
from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.storage.columns import descriptors_from_arrow
from pipelines.video.decode import SegmentFrames, decode_segment
from pipelines.video.pyav_decoder import PyAvVideo
from pipelines.video.sampling import plan_segment, window_frames
from tests.pipelines.video.segments import decoded

SMALL = Picture(resize_px=36, crop_px=32)
WINDOWS = (
    FRAME,
    Window(num_frames=2),
    Window(num_frames=4),
    Window(num_frames=2, gap=3),
    Window(num_frames=3, gap=2),
    Window(num_frames=2, gap_s=0.2),
    Window(num_frames=3, gap_s=0.12),
)


def window_loop(window: Window, ordinal: int, times_s: list[float]) -> list[int] | None:
    """What the window reads for one sampled frame, frame by frame; None where the video is too
    short."""
    span = window.num_frames - 1
    if window.gap:
        last = max(ordinal, span * window.gap)
        if last >= len(times_s):
            return None
        return [last - (span - k) * window.gap for k in range(span + 1)]
    far_enough = [i for i in range(len(times_s)) if times_s[i] >= span * window.gap_s - 1e-6]
    if not far_enough:
        return None
    last = max(ordinal, far_enough[0])
    frames = []
    for k in range(span, 0, -1):
        target_s = times_s[last] - k * window.gap_s
        # Of two that are as near, to a microsecond, the earlier one.
        frames.append(min(range(last), key=lambda i: (round(abs(times_s[i] - target_s), 5), i)))
    return [*frames, last]


@given(
    st.builds(
        lambda frames, gap, ms: Window(num_frames=frames, gap=gap, gap_s=0.0 if gap else ms / 1000),
        st.integers(2, 5),
        st.integers(0, 7),
        st.integers(1, 900),
    ),
    st.lists(st.integers(1, 12), min_size=1, max_size=40),
    st.data(),
)
def test_windows_of_source_frames_are_those_of_a_plain_loop(
    window: Window, gaps: list[int], data: st.DataObject
) -> None:
    """At variable frame rates too: frames are 0.04 s or a multiple of that apart."""
    times_s = np.concatenate([[0.0], np.cumsum(gaps)]) * 0.04
    places = data.draw(st.sets(st.integers(0, len(times_s) - 1), min_size=1, max_size=9))
    ordinals = np.array(sorted(places))
    found = window_frames(window, ordinals, times_s)
    expected = [window_loop(window, i, times_s.tolist()) for i in sorted(places)]
    if None in expected:
        assert set(map(str, expected)) == {"None"}
        assert found.shape == (0, window.num_frames)
        return
    assert found.tolist() == expected
    assert (np.diff(found, axis=1) >= 0).all()
    assert (found[:, -2] < found[:, -1]).all()
    assert (found[:, -1] >= ordinals).all()


def test_a_plan_decodes_each_frame_once() -> None:
    ordinals, times_s = np.arange(10, 400, 3), np.arange(420) / 25
    plan = plan_segment(ordinals, 1, 3, times_s, WINDOWS)
    assert plan.ordinals == sorted(set(plan.ordinals))
    assert plan.before.tolist() == ordinals[61:64].tolist()
    assert plan_segment(ordinals, 1, 3, times_s).ordinals == ordinals[64:128].tolist()


def frames_of(
    path: Path, sampling: Sampling, windows: tuple[Window, ...] = WINDOWS, picture: Picture = SMALL
) -> SegmentFrames:
    return decode_segment(str(path), 0, 1, sampling, picture, Decode(), windows)


@pytest.mark.parametrize("name", ["bikes.mp4", "nasa_13013_vfr.mp4", "mmaction_test.avi"])
def test_what_windows_read_is_what_lies_there(
    data: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each frame is scaled once, and is the one that decoding it alone gives."""
    scaled = []
    image = PyAvVideo._image
    monkeypatch.setattr(
        PyAvVideo, "_image", lambda self, *args: scaled.append(1) or image(self, *args)
    )
    path = data / "clips" / name
    frames = frames_of(path, Sampling(policy="uniform", num_frames=6))
    assert len(scaled) == len(frames.images) == len(set(frames.image_indices.tolist()))
    assert frames.num_missing == 0
    times_s = PyAvVideo(str(path), name, SMALL, Decode()).timestamps_s.tolist()
    for window in WINDOWS:
        read = frames.image_indices[frames.places[window]].tolist()
        own = frames.frame_indices.tolist()
        if window.is_sampled:
            reach = window.num_frames - 1
            assert read == [own[k - reach : k + 1] for k in range(reach, len(own))]
        else:
            assert read == [window_loop(window, i, times_s) for i in own]
    every = Sampling(policy="fps", fps=200.0)
    alone = decode_segment(str(path), 0, 99, every, SMALL, Decode())
    for place, index in enumerate(frames.image_indices.tolist()):
        if index < len(alone.images):
            assert np.array_equal(frames.images[place], alone.images[index])


def test_variable_frame_rates_are_bridged_by_time(data: Path) -> None:
    """The partner is within half a frame of the time asked for, where a gap in frames is not."""
    path = data / "clips" / "nasa_13013_vfr.mp4"
    timed, counted = Window(num_frames=2, gap_s=0.2), Window(num_frames=2, gap=5)
    frames = frames_of(path, Sampling(policy="uniform", num_frames=20), (FRAME, timed, counted))
    times_s = PyAvVideo(str(path), "", SMALL, Decode()).timestamps_s
    gaps_s = {
        window: np.ptp(times_s[frames.image_indices[frames.places[window]]], axis=1)
        for window in (timed, counted)
    }
    widest_s = np.diff(times_s).max()
    assert (np.abs(gaps_s[timed] - 0.2) <= widest_s / 2 + 1e-6).all()
    assert gaps_s[counted].max() > gaps_s[counted].min() + 0.02


@pytest.mark.parametrize("size", [3, 7])
def test_nothing_depends_on_the_cut(data: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    path, sampling = data / "clips" / "bikes.mp4", Sampling(policy="uniform", num_frames=12)
    whole = frames_of(path, sampling)
    monkeypatch.setattr("pipelines.video.sampling.SEGMENT_FRAMES", size)
    count = -(-12 // size)
    parts = [
        decode_segment(str(path), k, count, sampling, SMALL, Decode(), WINDOWS)
        for k in range(count)
    ]
    for window in WINDOWS:
        expected = whole.images[whole.places[window]]
        found = np.concatenate([part.images[part.places[window]] for part in parts])
        assert np.array_equal(found, expected)
    assert np.concatenate([part.frame_indices for part in parts]).tolist() == (
        whole.frame_indices.tolist()
    )


def test_a_short_video_has_no_window_and_is_no_error(data: Path) -> None:
    far, near = Window(num_frames=2, gap=9000), Window(num_frames=2, gap_s=0.2)
    sampling = Sampling(policy="uniform", num_frames=3)
    frames = frames_of(data / "clips" / "bikes.mp4", sampling, (FRAME, far, near))
    assert (frames.num_missing, frames.error, len(frames.frame_indices)) == (0, None, 3)
    assert frames.places[far].shape == (0, 2)
    assert frames.places[near].shape == (3, 2)


def test_a_frame_whose_neighbours_are_lost_is_missing_from_all_streams(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, window = data / "clips" / "bikes.mp4", Window(num_frames=2, gap=3)
    whole = frames_of(path, Sampling(policy="uniform", num_frames=6), (FRAME, window))
    lost = int(whole.image_indices[whole.places[window][2, 0]])
    pictures = PyAvVideo.pictures

    def damaged(self: PyAvVideo, ordinals: list[int]) -> tuple[dict, str]:
        images, _ = pictures(self, ordinals)
        images.pop(lost)
        return images, "damaged"

    monkeypatch.setattr(PyAvVideo, "pictures", damaged)
    frames = frames_of(path, Sampling(policy="uniform", num_frames=6), (FRAME, window))
    assert frames.frame_indices.tolist() == np.delete(whole.frame_indices, 2).tolist()
    assert (frames.num_missing, frames.error_type) == (1, "damaged")
    read = frames.image_indices[frames.places[window]]
    assert read.tolist() == [[i - 3, i] for i in frames.frame_indices.tolist()]


SETTINGS = (
    "describe.backbone=squeezenet1_0",
    "describe.nodes=features.5",
    "describe.streams=appearance,difference,difference@gap=3,difference@gap_s=0.2:nodes=input/features.3,"
    "rank@gap=1:frames=4,rank@frames=2:scaling=whole_map",
    "describe.weights=random:0",
    "describe.spp_levels=2,1",
    "sampling.policy=uniform",
    "sampling.num_frames=5",
    "picture.resize_px=72",
    "picture.crop_px=64",
)


def described(data: Path, *settings: str) -> tuple[Config, pa.Table, pa.Table, list[int]]:
    """The configuration, a clip's decoded and described rows, and the pictures of each forward
    pass."""
    config = Config().with_settings([*SETTINGS, *settings])
    (frames,) = decoded(config, data / "clips" / "bikes.mp4")
    weights = load.random_filters("squeezenet1_0", 0)
    describe = DescribeFrames(lambda: weights, config, described_streams(config), num_threads=1)
    sizes: list[int] = []
    describe.backbones[None].network.register_forward_pre_hook(
        lambda _, args: sizes.append(len(args[0]))
    )
    return config, frames, describe(frames), sizes


def changes(maps: torch.Tensor, windows: np.ndarray) -> torch.Tensor:
    """Signed weighted sums [k, 2C, h, w] in float64, one window after the other."""
    found = []
    for window in windows.tolist():
        total = torch.zeros_like(maps[0], dtype=torch.float64)
        for t, place in enumerate(window, start=1):
            total += (2 * t - len(window) - 1) * maps[place].double()
        found.append(torch.cat([total.clamp_min(0), (-total).clamp_min(0)]))
    return torch.stack(found)


@pytest.mark.parametrize("views", ["centre", "mirror", "ten"])
def test_streams_are_those_of_a_plain_loop_and_the_network_runs_once_a_frame(
    data: Path, views: str
) -> None:
    config, frames, rows, sizes = described(data, f"picture.views={views}")
    count = {"centre": 1, "mirror": 2, "ten": 10}[views]
    side = {"ten": 72}.get(views, 64)
    num_images = frames["num_images"][0].as_py()
    assert sum(sizes) == count * num_images
    path, windows = data / "clips" / "bikes.mp4", config.describe.windows
    distinct = frames_of(path, config.sampling, windows, config.picture).image_indices
    assert num_images == len(set(distinct.tolist()))
    images = np.frombuffer(frames["images"][0].as_py(), np.uint8).reshape(-1, side, side, 3)
    margin = side - 64
    corners = [(margin // 2, margin // 2)]
    if views == "ten":
        corners += [(0, 0), (0, margin), (margin, 0), (margin, margin)]
    crops = []
    for top, left in corners:
        crop = images[:, top : top + 64, left : left + 64]
        crops += [crop] if views == "centre" else [crop, crop[:, :, ::-1]]
    network = load.build(
        "squeezenet1_0",
        ("features.5", "features.3", "input"),
        load.random_filters("squeezenet1_0", 0),
    )
    maps = [network.maps(torch.from_numpy(crop.copy())) for crop in crops]
    streams = described_streams(config)
    assert list(streams) == [
        "features_5_appearance",
        "features_5_difference",
        "features_5_difference_gap3",
        "features_5_rank_gap1x4",
        "features_5_rank_x2_whole_map",
        "input_difference_gap0_2s",
        "features_3_difference_gap0_2s",
    ]
    flat = dict(zip(config.describe.windows, frames["places"][0].as_py(), strict=True))
    for name, stream in streams.items():
        assert stream.views == count
        places = np.array(flat[stream.window]).reshape(-1, stream.window.num_frames)
        found = stored_frames(rows, stream).reshape(len(places), count, stream.cells, -1)
        for view, own in enumerate(maps):
            node = own[stream.node]
            parts = node[places[:, -1]] if stream.kind == "appearance" else changes(node, places)
            expected = appearance(parts.double(), stream.scaling, (2, 1)).numpy()
            tolerance = 2e-3 * max(1.0, np.abs(expected).max())
            np.testing.assert_allclose(found[:, view], expected, atol=tolerance, err_msg=name)


def test_the_centre_view_is_the_same_among_ten(data: Path) -> None:
    alone, ten = (described(data, f"picture.views={views}") for views in ("centre", "ten"))
    for name, stream in described_streams(alone[0]).items():
        frames = stored_frames(ten[2], described_streams(ten[0])[name])
        assert np.array_equal(frames[:, : stream.cells], stored_frames(alone[2], stream))


def test_a_difference_alone_is_what_it_always_was(data: Path) -> None:
    """Other entries add columns, and the pictures that they need; its name and kind stay."""
    alone = described(data, "describe.streams=appearance,difference")
    assert alone[1]["num_images"].to_pylist() == [5]
    assert list(described_streams(alone[0])) == ["features_5_appearance", "features_5_difference"]
    beside = described(data)
    for name in described_streams(alone[0]):
        first, second = (
            descriptors_from_arrow(made[2][name][0]).astype(np.float64) for made in (alone, beside)
        )
        # The last bits of a forward pass depend on how many frames it has.
        np.testing.assert_allclose(first, second, atol=1e-3)


@pytest.mark.slow
def test_early_maps_are_held_a_few_at_a_time(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a whole segment take gigabytes. The network runs once a frame all the same."""
    streams = "difference@gap=1:nodes=input/stages,rank@frames=3:gap_s=0.2:nodes=input,appearance"
    settings = (f"describe.streams={streams}", "sampling.num_frames=12", "picture.views=mirror")
    config, _, whole, sizes = described(data, *settings)
    held, add = [], stage._Maps.add

    def watched(self: stage._Maps, maps: torch.Tensor) -> None:
        add(self, maps)
        held.append(sum(part.nbytes for part in self.parts))

    monkeypatch.setattr(stage._Maps, "add", watched)
    monkeypatch.setattr(stage, "MAPS_BYTES", 2**18)
    _, frames, few, few_sizes = described(data, *settings)
    num_images = frames["num_images"][0].as_py()
    assert num_images > 24
    assert sum(few_sizes) == sum(sizes) == 2 * num_images
    assert max(held) < 2**18 + 3 * 2**20 / 4
    for stream in described_streams(config).values():
        expected = stored_frames(whole, stream).astype(np.float64)
        found = stored_frames(few, stream).astype(np.float64)
        assert len(found) == 12
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_keyframes_have_no_neighbours() -> None:
    settings = ["sampling.policy=keyframes", "describe.streams=appearance,difference"]
    assert Config().with_settings(settings).describe.windows == (FRAME, Window(num_frames=2))
    for entry in ("difference@gap=1", "rank@gap_s=0.1"):
        with pytest.raises(
            ConfigError, match=r"no gap and no flow where sampling\.policy is keyframes"
        ):
            Config().with_settings(["sampling.policy=keyframes", f"describe.streams={entry}"])


def test_ten_views_are_cut_of_the_resized_frame() -> None:
    ten = dataclasses.replace(SMALL, views="ten")
    assert (SMALL.decoded_px, ten.decoded_px) == (32, 36)
