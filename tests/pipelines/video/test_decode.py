"""Decoding of real files: which frames, which way up, and what becomes of bad files."""

import dataclasses
import io
import itertools
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import av
import fsspec
import numpy as np
import pytest
from PIL import Image

from encoders.stream_specs import FRAME, Window
from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.storage import ranges
from pipelines.video import decode as video_decode
from pipelines.video.decode import SegmentFrames, decode_segment
from pipelines.video.header import ERROR_TYPES, VideoError, open_stream, probe
from pipelines.video.packets import PacketReader
from pipelines.video.pyav_decoder import PyAvVideo
from pipelines.video.sampling import num_segments

EIGHT = Sampling(policy="uniform", num_frames=8)
PICTURE = Picture()
PAIR = Window(num_frames=2)
SQUARE = Picture(resize_px=224, crop_px=224)
PYAV, DECORD = Decode(decoder="pyav"), Decode(decoder="decord")

# (frames listed, of eight uniform ones those that decode), or the error of a file.
CORRUPT: dict[str, tuple[int, list[int]] | str] = {
    "bipbop_cbcs_video_init.mp4": "no_frames",
    "bipbop_nonfragment_header.mp4": "no_frames",
    "chunk_out_of_range.mp4": "not_a_video",
    # The first 28 frames are sound; the only key frame is before them.
    "decord_corrupted.mp4": (50, [3, 9, 15, 21]),
    "invalid_userdata.mp4": "no_frames",
    # FFmpeg gives 170 frames, grey from the first key frame on, and marks that one as damaged.
    "no_timescale.mp4": "damaged",
    "one_pixel_1x1.mp4": (5, [0, 1, 2, 3, 4]),
    "test_case_1185230.mp4": "damaged",
    "two_pixel_2x2.mp4": (3, [0, 1, 2]),
    "zero_bytes.webm": "empty_file",
}


def _decode(path: Path | str, sampling: Sampling = EIGHT, **changes: object) -> SegmentFrames:
    arguments = {"segment": 0, "num_segments": 1, "picture": PICTURE, "decode": PYAV} | changes
    return decode_segment(str(path), sampling=sampling, **arguments)


def _error_type(function: Callable, *arguments: object, **named: object) -> str:
    with pytest.raises(VideoError) as caught:
        function(*arguments, **named)
    assert caught.value.error_type in ERROR_TYPES
    return caught.value.error_type


def _in_order(path: Path, picture: Picture = PICTURE) -> list[np.ndarray]:
    """Every frame, by decoding the whole file from its start: slow, and right by construction."""
    video = PyAvVideo(str(path), str(path), picture, PYAV)
    scaler = av.video.reformatter.VideoReformatter()
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        return [video._image(scaler, frame) for frame in container.decode(stream)]


def test_the_table_names_every_file(data: Path) -> None:
    assert sorted(path.name for path in (data / "corrupt").iterdir()) == sorted(CORRUPT)


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_file(data: Path, name: str) -> None:
    path, expected = data / "corrupt" / name, CORRUPT[name]
    if isinstance(expected, str):
        assert _error_type(_decode, path) == expected
        return
    listed, decoded = expected
    assert len(PyAvVideo(str(path), name, PICTURE, PYAV).timestamps_s) == listed
    frames = _decode(path)
    assert frames.frame_indices.tolist() == decoded
    assert len(frames.images) == len(decoded)
    assert frames.num_missing == min(8, listed) - len(decoded)
    assert frames.error_type == ("damaged" if frames.num_missing else None)
    assert (name in (frames.error or "")) == bool(frames.num_missing)


def test_facts_of_a_header(data: Path) -> None:
    facts = probe(str(data / "clips" / "nasa_13013.mp4"))
    assert dataclasses.astuple(facts) == (
        "mov,mp4,m4a,3gp,3g2,mj2",
        "h264",
        480,
        270,
        0,
        13.013,
        pytest.approx(30000 / 1001),
        390,
        "packets",
        False,
    )
    assert probe(str(data / "clips" / "one_frame_av1.mp4")).codec == "av1"
    nothing = probe(str(data / "corrupt" / "bipbop_cbcs_video_init.mp4"))
    assert (nothing.duration_s, nothing.fps, nothing.num_frames_header) == (None, None, None)


def test_a_mirrored_video_is_marked_and_shown_as_players_do(data: Path, tmp_path: Path) -> None:
    clip = data / "clips" / "nasa_13013.mp4"
    one, scale = (1 << 16).to_bytes(4), (1 << 30).to_bytes(4)
    plain = one + bytes(12) + one + bytes(12) + scale
    mirrored = (-(1 << 16)).to_bytes(4, signed=True) + plain[4:]
    content = clip.read_bytes()
    # The matrices of the tracks; the first one is of the whole film.
    heads = [at for at in range(len(content)) if content.startswith(b"tkhd", at)]
    for head in heads:
        place = content.index(plain, head)
        content = content[:place] + mirrored + content[place + len(plain) :]
    turned = tmp_path / "mirrored.mp4"
    turned.write_bytes(content)
    facts = probe(str(turned))
    assert (facts.is_mirrored, facts.rotation_deg) == (True, 0)
    assert probe(str(clip)).is_mirrored is False
    assert probe(str(data / "clips" / "nasa_13013_rotated.mp4")).is_mirrored is False
    shown, before = _decode(turned).images, _decode(clip).images
    assert np.array_equal(shown, before[:, :, ::-1])


@pytest.mark.parametrize(
    ("name", "size", "rotation_deg"),
    [
        ("clips/decord_video_0.mov", (568, 320), 0),
        ("clips/decord_video_90.mov", (320, 568), 270),
        ("clips/decord_video_180.mov", (568, 320), 180),
        ("clips/nasa_13013_rotated.mp4", (270, 480), 90),
        ("corrupt/no_timescale.mp4", (320, 240), 0),
    ],
)
def test_size_as_shown(data: Path, name: str, size: tuple[int, int], rotation_deg: int) -> None:
    facts = probe(str(data / name))
    assert ((facts.width_px, facts.height_px), facts.rotation_deg) == (size, rotation_deg)


def test_a_rotated_clip_is_turned(data: Path) -> None:
    """nasa_13013_rotated.mp4 is the start of nasa_13013.mp4, turned by its header alone."""
    sampling = Sampling(policy="fps", fps=29.97, max_duration_s=0.4)
    plain = _decode(data / "clips" / "nasa_13013.mp4", sampling, picture=SQUARE)
    turned = _decode(data / "clips" / "nasa_13013_rotated.mp4", sampling, picture=SQUARE)
    assert len(plain.images) == 12
    assert np.array_equal(np.rot90(plain.images, 1, axes=(1, 2)), turned.images)


# What a display matrix (a, b, c, d) of the file makes of a picture.
MATRICES = [
    ((1, 0, 0, 1), lambda image: image),
    ((-1, 0, 0, 1), np.fliplr),
    ((1, 0, 0, -1), np.flipud),
    ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
    # Clockwise, as phones held upright write it.
    ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
    ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
    ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
    ((0, -1, -1, 0), lambda image: np.rot90(image, 2).swapaxes(0, 1)),
    ((0, 0, 0, 0), lambda image: image),
    ((1, 1, -1, 1), lambda image: image),
]


@pytest.mark.parametrize(("matrix", "shown"), MATRICES, ids=[str(m) for m, _ in MATRICES])
def test_every_orientation(
    data: Path, tmp_path: Path, matrix: tuple[int, int, int, int], shown: Callable
) -> None:
    source = data / "clips" / "decord_video_0.mov"
    content = bytearray(source.read_bytes())
    # In the track's header: 16.16 numbers a, b, (u), c, d.
    place = content.index(b"tkhd") + 44
    assert content[place : place + 4] == (65536).to_bytes(4, "big")
    for value, offset in zip(matrix, (0, 4, 12, 16), strict=True):
        content[place + offset : place + offset + 4] = (value * 65536).to_bytes(
            4, "big", signed=True
        )
    turned = tmp_path / "turned.mov"
    turned.write_bytes(content)
    expected = shown(_decode(source).images[0])
    assert np.array_equal(_decode(turned).images[0], expected)


def test_variable_frame_rate_is_sampled_by_time(data: Path) -> None:
    path = data / "clips" / "nasa_13013_vfr.mp4"
    video = PyAvVideo(str(path), "vfr", PICTURE, PYAV)
    frames = _decode(path)
    targets_s = (np.arange(8) + 0.5) * video.end_s / 8
    next_s = np.append(video.timestamps_s, video.end_s)[frames.frame_indices + 1]
    assert (frames.timestamps_s <= targets_s).all()
    assert (targets_s < next_s).all()
    assert frames.frame_indices.tolist() != [(2 * i + 1) * 50 // 16 for i in range(8)]


def test_times_start_at_the_first_frame(data: Path) -> None:
    for name in ("test_non_zero_start.mp4", "sine_stereo_mp2.mpg", "discard_first_keyframe.mp4"):
        video = PyAvVideo(str(data / "clips" / name), name, PICTURE, PYAV)
        assert video.timestamps_s[0] == 0.0
        assert video.timestamps_s[1] == pytest.approx(1 / probe(video._source).fps, rel=1e-3)


# Many key frames, so that decoding starts in the middle; codecs and containers of all kinds;
# B-frames in AVI (mmaction_test.avi, set1_41_8_0.avi), where the packets' times are wrong.
@pytest.mark.parametrize(
    "name",
    [
        "clips/anomaly_detection.mpg",
        "clips/bikes.mp4",
        "clips/camtrap_PICT0021.ASF",
        "clips/clip1024.flv",
        "clips/discard_first_keyframe.mp4",
        "clips/h265_video.mp4",
        "clips/mmaction_test.avi",
        "clips/no_duration.webm",
        "clips/pigs_in_a_polka.gif",
        "clips/v_Basketball_g01_c01.avi",
        "clips/v_GGSY1Qvo990.mp4",
        "labelled/ut_interaction/set1_41_8_0.avi",
    ],
)
def test_frames_are_those_of_decoding_in_order(data: Path, name: str) -> None:
    path = data / name
    if not path.exists():
        (path,) = data.joinpath("labelled/ut_interaction").rglob(path.name)
    every = _in_order(path)
    video = PyAvVideo(str(path), name, PICTURE, PYAV)
    assert len(video.timestamps_s) == len(every)
    ordinals = sorted({0, 1, len(every) // 3, len(every) // 2, len(every) - 2, len(every) - 1})
    images, _ = video.pictures(ordinals)
    assert sorted(images) == ordinals
    for ordinal in ordinals:
        assert np.array_equal(images[ordinal], every[ordinal])


def test_key_frames_are_listed(data: Path) -> None:
    frames = _decode(data / "clips" / "bikes.mp4", Sampling(policy="keyframes", interval_s=0.1))
    with av.open(str(data / "clips" / "bikes.mp4")) as container:
        keys = [i for i, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert len(keys) > 3
    assert frames.frame_indices.tolist() == keys
    listing = PyAvVideo(str(data / "clips" / "bikes.mp4"), "", PICTURE, PYAV)._listing
    # Nothing but the key frames is decoded.
    assert np.array_equal(listing.first[keys], listing.last[keys])


def test_segments_partition_the_samples(data: Path) -> None:
    uri = str(data / "clips" / "bottle-detection.mp4")
    sampling = Sampling(policy="fps", fps=4.0)
    count = num_segments(probe(uri), sampling)
    assert count == 3
    segments = [
        _decode(uri, sampling, segment=k, num_segments=count, windows=(FRAME, PAIR))
        for k in range(count)
    ]
    indices = np.concatenate([segment.frame_indices for segment in segments])
    # 39.85 s at 29.83 fps.
    assert indices.tolist() == [int(0.25 * i * 179 / 6 + 1e-6) for i in range(160)]
    pairs = [segment.image_indices[segment.places[PAIR]] for segment in segments]
    assert np.concatenate(pairs).tolist() == list(map(list, itertools.pairwise(indices.tolist())))
    assert [len(segment.images) for segment in segments] == [64, 65, 33]
    assert [segment.num_missing for segment in segments] == [0, 0, 0]
    for before, segment in itertools.pairwise(segments):
        assert np.array_equal(before.images[-1], segment.images[0])
        assert segment.timestamps_s[0] - before.timestamps_s[-1] == pytest.approx(0.25, abs=0.04)


def test_a_header_that_promises_too_little_makes_the_last_segment_partial(data: Path) -> None:
    frames = _decode(
        data / "clips" / "camtrap_04250002.MP4", Sampling(policy="interval", interval_s=0.5)
    )
    assert frames.num_missing == 0
    every = Sampling(policy="segments", num_frames=25, frames_per_segment=4)
    frames = _decode(data / "clips" / "chimp.mp4", every)
    assert (len(frames.images), frames.num_missing) == (64, 36)
    assert frames.error_type == "longer_than_planned"
    assert "36 frames" in frames.error


def test_a_header_that_promises_too_much_leaves_segments_empty(data: Path) -> None:
    frames = _decode(data / "clips" / "bikes.mp4", segment=3, num_segments=4)
    assert frames.images.shape == (0, 224, 224, 3)
    assert (frames.num_missing, frames.error_type) == (0, None)
    assert frames.places[FRAME].shape == (0, 1)
    assert len(frames.frame_indices) == len(frames.timestamps_s) == 0


def test_damage_ends_at_the_next_key_frame(data: Path) -> None:
    """decord_corrupted.mp4 has one key frame, the first: nothing after the damage is trusted."""
    frames = _decode(data / "corrupt" / "decord_corrupted.mp4", Sampling(policy="fps", fps=10.0))
    assert frames.frame_indices.tolist() == list(range(len(frames.images)))
    # 28 decode before the error; some of them are predicted from frames that come after it.
    assert 24 <= len(frames.images) <= 28
    assert frames.num_missing == 50 - len(frames.images)


def _damaged(source: Path, packet: int, target: Path) -> Path:
    """A copy of an mp4 in which the second half of a packet is zero."""
    with av.open(str(source)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    start, size = packets[packet].pos, packets[packet].size
    content = bytearray(source.read_bytes())
    content[start + size // 2 : start + size] = bytes(size - size // 2)
    target.write_bytes(content)
    return target


def test_a_lost_predecessor_is_left_out(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = data / "clips" / "bikes.mp4"
    key = int(np.flatnonzero(PyAvVideo(str(source), "", PICTURE, PYAV).is_key)[2])
    path = _damaged(source, key - 9, tmp_path / "damaged.mp4")
    every = Sampling(policy="fps", fps=25.0)
    # The second segment starts at the key frame after the damage.
    monkeypatch.setattr("pipelines.video.sampling.SEGMENT_FRAMES", key)
    before, after = (
        _decode(path, every, segment=k, num_segments=9, windows=(FRAME, PAIR)) for k in (0, 1)
    )
    assert before.error_type == "damaged"
    assert key - 1 not in before.frame_indices
    assert (after.num_missing, after.error) == (0, None)
    assert len(after.places[PAIR]) == len(after.frame_indices) - 1
    assert after.frame_indices[0] == key
    assert len(after.images) == len(after.frame_indices)


@pytest.mark.parametrize("packet", [66, 121])
def test_a_frame_is_right_or_missing(data: Path, tmp_path: Path, packet: int) -> None:
    """Damage in the middle of a file: decoders guess, and the guess must not get through."""
    source = data / "clips" / "bikes.mp4"
    every = _in_order(source)
    path = _damaged(source, packet, tmp_path / "damaged.mp4")
    frames = _decode(path, Sampling(policy="uniform", num_frames=50))
    assert frames.error_type == "damaged"
    assert frames.num_missing == 50 - len(frames.images)
    assert 0 < frames.num_missing < 30
    for index, image in zip(frames.frame_indices, frames.images, strict=True):
        assert np.array_equal(image, every[index])
    # One at a time too: what damages a frame may be decoded before it and shown after it.
    video = PyAvVideo(str(path), "damaged", PICTURE, PYAV)
    for ordinal in range(packet - 4, packet + 4):
        images, _ = video.pictures([ordinal])
        assert ordinal not in images or np.array_equal(images[ordinal], every[ordinal])


def test_damage_in_a_frame_that_no_other_needs_costs_that_frame_alone(
    data: Path, tmp_path: Path
) -> None:
    source = data / "clips" / "bikes.mp4"
    path = _damaged(source, 60, tmp_path / "damaged.mp4")
    assert _decode(path, Sampling(policy="fps", fps=25.0), num_segments=4).error_type == "damaged"
    uniform = Sampling(policy="uniform", num_frames=50)
    damaged, sound = _decode(path, uniform), _decode(source, uniform)
    assert damaged.error is None
    assert np.array_equal(damaged.images, sound.images)


def test_packets_falsely_marked_as_key_frames_do_no_harm(data: Path, tmp_path: Path) -> None:
    source = data / "clips" / "v_Basketball_g01_c01.avi"
    lying = tmp_path / "lying.mp4"
    with av.open(str(source)) as container, av.open(str(lying), "w") as out:
        copy = out.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size:
                packet.is_keyframe, packet.stream = True, copy
                out.mux(packet)
    assert PyAvVideo(str(lying), "lying", PICTURE, PYAV).is_key.all()
    assert np.array_equal(_decode(lying).images, _decode(source).images)


def test_hidden_vp8_frames_are_not_counted(data: Path, tmp_path: Path) -> None:
    """VP8 keeps reference frames in packets of their own, marked not to be shown."""
    source = data / "clips" / "big_buck_bunny_0_30.webm"
    hidden = tmp_path / "hidden.mkv"
    with av.open(str(source)) as container, av.open(str(hidden), "w") as out:
        stream = container.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for place, packet in enumerate(container.demux(stream)):
            if packet.size and place < 40:
                content = bytearray(bytes(packet))
                if place == 10:
                    content[0] &= ~0x10
                shown = av.Packet(bytes(content))
                shown.pts, shown.dts, shown.time_base = packet.pts, packet.dts, packet.time_base
                shown.is_keyframe, shown.stream = packet.is_keyframe, copy
                out.mux(shown)
    video = PyAvVideo(str(hidden), "hidden", PICTURE, PYAV)
    assert len(video.timestamps_s) == 39
    frames = _decode(hidden, Sampling(policy="uniform", num_frames=39))
    # The frame before the hidden one is shown at two of the 39 times.
    assert (frames.num_missing, len(frames.images)) == (0, 38)


def test_decord_reports_what_it_would_replace(data: Path) -> None:
    """decord puts neighbours in the place of frames it loses, unless told not to."""
    corrupted = _decode(data / "corrupt" / "decord_corrupted.mp4", decode=DECORD)
    assert corrupted.frame_indices.tolist() == [3, 9, 15, 21]
    assert (corrupted.num_missing, corrupted.error_type) == (4, "damaged")


def test_too_large_frames_are_refused(data: Path) -> None:
    path = data / "clips" / "bikes.mp4"
    small = {"max_frame_px": 640 * 272 - 1}
    for decode in (PYAV, DECORD):
        limited = dataclasses.replace(decode, **small)
        assert _error_type(_decode, path, decode=limited) == "frame_too_large"
    assert _error_type(probe, str(path), 640 * 272 - 1) == "frame_too_large"
    assert probe(str(path), 640 * 272).width_px == 640


def test_files_that_are_no_video(data: Path, tmp_path: Path) -> None:
    clip = (data / "clips" / "camtrap_Hyena.AVI").read_bytes()
    unknown = tmp_path / "unknown_codec.avi"
    unknown.write_bytes(clip.replace(b"FMP4", b"QZQZ"))
    for uri, error_type in {
        str(tmp_path / "absent.mp4"): "not_found",
        "memory://absent.mp4": "not_found",
        str(tmp_path): "unreadable",
        str(data / "README.md"): "not_a_video",
        str(unknown): "unsupported",
    }.items():
        assert _error_type(probe, uri) == error_type
        assert _error_type(_decode, uri) == error_type


def test_no_key_frame_for_a_policy_that_needs_one(data: Path) -> None:
    path = data / "corrupt" / "test_case_1185230.mp4"
    assert not PyAvVideo(str(path), "", PICTURE, PYAV).is_key.any()
    assert _error_type(_decode, path, Sampling(policy="keyframes")) == "no_frames"


def test_no_key_frame_near_enough_says_what_to_do(data: Path) -> None:
    # A key frame at 0 s alone is near to a time that is sampled; the first segment has it.
    path = data / "clips" / "white_300_frames.mp4"
    times_s = PyAvVideo(str(path), "", PICTURE, PYAV).timestamps_s
    sampling = Sampling(policy="keyframes", interval_s=7.0, keyframe_tolerance_s=0.01)
    frames = _decode(path, sampling)
    assert frames.frame_indices.tolist() == [0]
    assert frames.timestamps_s.tolist() == [times_s[0]]
    # Where the first frame is no key frame.
    with pytest.raises(VideoError, match=r"sampling.keyframe_tolerance_s = 0.01 s.*raise it") as e:
        _decode(data / "clips" / "discard_first_keyframe.mp4", sampling)
    assert e.value.error_type == "no_frames"


@pytest.mark.parametrize("decode", [PYAV, DECORD], ids=["pyav", "decord"])
def test_a_video_in_remote_storage(data: Path, decode: Decode) -> None:
    # Its index is at the end of the file.
    path = data / "clips" / "arm_wrestling.mp4"
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/videos/a:b.mp4", path.read_bytes())
    try:
        uri = "memory://videos/a:b.mp4"
        assert probe(uri) == probe(str(path))
        assert np.array_equal(
            _decode(uri, decode=decode).images, _decode(path, decode=decode).images
        )
    finally:
        memory.rm("/videos", recursive=True)


@pytest.fixture
def opened_remote(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URI of each file that is opened in remote storage."""
    found, really = [], video_decode.open_remote

    def counting(uri: str, *arguments: object) -> AbstractContextManager[BinaryIO]:
        found.append(uri)
        return really(uri, *arguments)

    monkeypatch.setattr("pipelines.video.decode.open_remote", counting)
    return found


@pytest.mark.parametrize("name", ["car-detection.mp4", "fall_subject1_13.mp4", "bikes.mp4"])
def test_of_a_long_remote_video_the_index_and_the_wanted_frames_are_read(
    data: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames are those of the local file, of which each segment is decoded alone."""
    monkeypatch.setattr("pipelines.video.packets.KEPT_BYTES", 1000)
    monkeypatch.setattr("pipelines.video.packets.SEEK_BYTES", 1000)
    monkeypatch.setattr("pipelines.storage.ranges.BLOCK_BYTES", 2048)
    monkeypatch.setattr("pipelines.video.sampling.SEGMENT_FRAMES", 2)
    sampling = Sampling(policy="uniform", num_frames=6)
    path = next(data.rglob(name))
    memory, size = fsspec.filesystem("memory"), path.stat().st_size
    memory.pipe_file("/long.mp4", path.read_bytes())
    try:
        for k in range(3):
            ranges.taken()
            local = decode_segment(str(path), k, 3, sampling, PICTURE, PYAV)
            assert ranges.taken().requests == 0
            remote = decode_segment("memory://long.mp4", k, 3, sampling, PICTURE, PYAV)
            assert len(remote.images) == 2
            assert np.array_equal(local.images, remote.images)
            assert np.array_equal(local.timestamps_s, remote.timestamps_s)
            traffic = ranges.taken()
            assert traffic.requests > 0
            assert traffic.num_bytes < 0.75 * size
    finally:
        memory.rm("/long.mp4")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("big_buck_bunny_0_30.webm", PYAV),
        ("big_buck_bunny_0_30.webm", DECORD),
        # Listed by decoding.
        ("mmaction_test.avi", PYAV),
    ],
)
def test_a_long_remote_video_is_copied_once_by_the_process_that_decodes_it(
    data: Path,
    name: str,
    settings: Decode,
    opened_remote: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And listed once; the frames are those of segments that are decoded alone."""
    scans, scan = [], PacketReader.scan
    monkeypatch.setattr(PacketReader, "scan", lambda self: scans.append(1) or scan(self))
    monkeypatch.setattr("pipelines.video.sampling.SEGMENT_FRAMES", 8)
    every = Sampling(policy="uniform", num_frames=30)
    path, memory = data / "clips" / name, fsspec.filesystem("memory")

    def segment(uri: str, k: int) -> SegmentFrames:
        return decode_segment(uri, k, 4, every, PICTURE, settings)

    memory.pipe_file("/long", path.read_bytes())
    memory.pipe_file("/other", path.read_bytes())
    try:
        found = [segment("memory://long", k) for k in range(4)]
        assert opened_remote == ["memory://long"]
        assert len(scans) == (1 if settings == PYAV else 4)
        # After the last segment nothing is kept, and of another video nothing either.
        assert video_decode._kept is None
        for uri in ("memory://long", "memory://other", "memory://long"):
            segment(uri, 1)
        assert opened_remote[1:] == ["memory://long", "memory://other", "memory://long"]
        kept = video_decode._kept
        with pytest.raises(VideoError, match="not_found"):
            segment("memory://gone", 1)
        assert video_decode._kept is None
        assert kept.source._copy.closed
        for k in (2, 0, 3, 1):
            monkeypatch.setattr(video_decode, "_kept", None)
            alone = segment(str(path), k)
            assert alone.frame_indices.tolist() == found[k].frame_indices.tolist()
            assert np.array_equal(alone.images, found[k].images)
    finally:
        memory.rm("/long")
        memory.rm("/other")


def test_a_local_file_that_is_replaced_is_listed_again(data: Path, tmp_path: Path) -> None:
    path, clips = tmp_path / "a.mp4", data / "clips"
    for name in ("bikes.mp4", "chimp.mp4"):
        path.write_bytes((clips / name).read_bytes())
        first, expected = (
            decode_segment(str(file), 0, 2, EIGHT, PICTURE, PYAV) for file in (path, clips / name)
        )
        assert np.array_equal(first.images, expected.images)


def test_local_uris(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # FFmpeg would take this for a protocol.
    odd = tmp_path / "a:b #1.mp4"
    odd.write_bytes((data / "clips" / "one_frame_hevc.mp4").read_bytes())
    monkeypatch.chdir(tmp_path)
    images = [_decode(uri).images for uri in (odd, odd.name, f"file://{odd}")]
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(images[0], images[2])


class _Counting(io.FileIO):
    num_bytes = 0

    def read(self, size: int = -1) -> bytes:
        content = super().read(size)
        self.num_bytes += len(content)
        return content


def test_a_header_is_read_without_the_film(data: Path) -> None:
    path = data / "clips" / "long_1080p.mp4"
    with _Counting(path) as file, open_stream(file, "long") as (_, stream):
        assert stream.frames == 3678
        assert file.num_bytes < 0.1 * path.stat().st_size


def test_scaling_is_antialiased_and_of_full_chroma(data: Path) -> None:
    """As torchvision's resize with antialiasing, of which Pillow's is the model."""
    path = data / "clips" / "long_1080p.mp4"
    with av.open(str(path)) as container:
        full = next(container.decode(video=0)).to_image(interpolation="BILINEAR")
    expected = full.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    image = _decode(path, Sampling(policy="interval", interval_s=1e6)).images[0]
    assert np.abs(image - np.asarray(expected, int)).mean() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("order", ["torch, av, decord", "av, decord, torch"])
def test_decord_and_torch_live_together(data: Path, order: str) -> None:
    path = str(data / "clips" / "decord_video_0.mov")
    code = (
        f"import {order}\n"
        "import decord, torch\n"
        f"image = decord.VideoReader({path!r}, num_threads=1)[0].asnumpy()\n"
        "assert torch.from_numpy(image).float().mean() > 0\n"
        "assert (torch.ones(64, 64) @ torch.ones(64, 64)).sum() == 64**3\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_avi_whose_pictures_are_gone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listed by decoding, of which there is nothing: found by tests/fuzz.py."""
    path = tmp_path / "emptied.avi"
    content = (data / "clips" / "mmaction_test.avi").read_bytes()
    path.write_bytes(content[: content.index(b"movi") + 4])
    with av.open(str(data / "clips" / "mmaction_test.avi")) as container:
        assert container.streams.video[0].codec_context.has_b_frames
    monkeypatch.setattr("pipelines.video.packets.packets", lambda *_: iter(()))
    assert _error_type(_decode, data / "clips" / "mmaction_test.avi") == "no_frames"
    assert _error_type(_decode, path) in ("no_frames", "not_a_video")
