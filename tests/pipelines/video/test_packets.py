"""Packets that are read again, and frames that are passed over: fewer, and never other ones."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.video import packets as video_packets
from pipelines.video import pyav_decoder
from pipelines.video.decode import decode_segment
from pipelines.video.packets import PacketReader
from pipelines.video.pyav_decoder import PyAvVideo

PICTURE = Picture(resize_px=64, crop_px=48)


def _film(path: Path, codec: str, num_frames: int = 90, gop: int = 30, **options: str) -> Path:
    """Noise that moves, each frame another one."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (96, 160, 3), np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 128, 96, "yuv420p", gop
        stream.codec_context.thread_count = 1
        if "b_frames" in options:
            stream.codec_context.max_b_frames = int(options["b_frames"])
        for place in range(num_frames):
            picture = np.ascontiguousarray(np.roll(noise, place, 1)[:, :128])
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = place, Fraction(1, 25)
            for packet in stream.encode(frame):
                out.mux(packet)
        for packet in stream.encode(None):
            out.mux(packet)
    return path


def _video(path: Path) -> PyAvVideo:
    return PyAvVideo(str(path), path.name, PICTURE, Decode())


def _every(path: Path) -> list[np.ndarray]:
    video = _video(path)
    scaler = av.video.reformatter.VideoReformatter()
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        return [video._image(scaler, frame) for frame in container.decode(stream)]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many frames come out of each call of the decoder."""
    counts: list[int] = []
    decode = pyav_decoder._decode_packet

    def counting(context, packet):
        frames, error = decode(context, packet)
        counts.append(len(frames))
        return frames, error

    monkeypatch.setattr("pipelines.video.pyav_decoder._decode_packet", counting)
    return counts


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are opened."""
    uris: list[str] = []
    open_stream = video_packets.open_stream

    def counting(source, uri, max_frame_px):
        uris.append(uri)
        return open_stream(source, uri, max_frame_px)

    monkeypatch.setattr("pipelines.video.packets.open_stream", counting)
    return uris


@pytest.fixture
def unkept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is too long to keep, and every gap worth a seek."""
    monkeypatch.setattr("pipelines.video.packets.KEPT_BYTES", 0)
    monkeypatch.setattr("pipelines.video.packets.SEEK_BYTES", 0)


@pytest.mark.parametrize(
    ("name", "codec", "can_skip"),
    [
        ("film.mp4", "libx264", True),
        ("film.mkv", "libx264", True),
        ("film.ts", "mpeg2video", True),
        ("film.mp4", "mpeg4", False),
        ("film.mp4", "libx265", False),
    ],
)
def test_frames_that_are_passed_over_change_no_other(
    tmp_path: Path, decoded: list[int], name: str, codec: str, can_skip: bool
) -> None:
    path = _film(tmp_path / name, codec, b_frames="2", **{"x265-params": "log-level=none"})
    every, video = _every(path), _video(path)
    assert video._can_skip == can_skip
    ordinals = [0, 7, 8, 31, 44, 75, 89]
    images, _ = video.pictures(ordinals)
    assert sorted(images) == ordinals
    for ordinal in ordinals:
        assert np.array_equal(images[ordinal], every[ordinal])
    num_decoded = sum(decoded)
    video._can_skip = False
    video.pictures(ordinals)
    assert (num_decoded < sum(decoded) - num_decoded) == can_skip


def test_interlaced_frames_are_decoded_without_passing_over_any(
    tmp_path: Path, decoded: list[int]
) -> None:
    path = _film(tmp_path / "film.mp4", "mpeg2video", b_frames="2", flags="+ildct+ilme")
    every, video = _every(path), _video(path)
    images, _ = video.pictures([20, 80])
    assert np.array_equal(images[20], every[20])
    assert np.array_equal(images[80], every[80])
    assert decoded.count(0) < 8


def test_a_key_frame_costs_one_decoded_frame(tmp_path: Path, decoded: list[int]) -> None:
    path = _film(tmp_path / "film.mp4", "libx264", sc_threshold="0")
    sampling = Sampling(policy="keyframes", interval_s=0.5)
    frames = decode_segment(str(path), 0, 1, sampling, PICTURE, Decode())
    assert frames.frame_indices.tolist() == [0, 30, 60]
    assert frames.timestamps_s.tolist() == [0.0, 1.2, 2.4]
    assert sum(decoded) == 3


@pytest.mark.parametrize("name", ["clips/arm_wrestling.mp4", "labelled/ut_interaction"])
def test_a_small_file_is_opened_once(data: Path, opened: list[str], name: str) -> None:
    """AVI with B-frames, which is listed by decoding, too."""
    path = data / name
    if path.is_dir():
        path = sorted(path.rglob("*.avi"))[0]
    sampling = Sampling(policy="uniform", num_frames=25)
    frames = decode_segment(str(path), 0, 1, sampling, PICTURE, Decode())
    assert len(frames.images) == 25
    assert opened == [str(path)]


@pytest.mark.usefixtures("unkept")
@pytest.mark.parametrize(
    ("name", "opens"),
    [
        ("bikes.mp4", 1),
        ("flipping_a_pancake.mkv", 1),
        ("clip1024.flv", 1),
        ("camtrap_PICT0021.ASF", 1),
        ("v_Basketball_g01_c01.avi", 1),
        ("no_duration.webm", 1),
        ("discard_first_keyframe.mp4", 1),
        # Times after a seek are others: it is read in order again.
        ("anomaly_detection.mpg", 2),
    ],
)
def test_a_long_file_is_read_by_seeking(
    data: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, name: str, opens: int
) -> None:
    path = data / "clips" / name
    video = _video(path)
    num_frames = len(video.timestamps_s)
    ordinals = [num_frames // 9, num_frames // 2, num_frames - 1]
    images, _ = video.pictures(ordinals)
    assert video._reader._kept is None
    assert len(opened) == opens
    monkeypatch.undo()
    expected, _ = _video(path).pictures(ordinals)
    assert sorted(images) == ordinals
    for ordinal in ordinals:
        assert np.array_equal(images[ordinal], expected[ordinal])


@pytest.mark.usefixtures("unkept")
def test_a_seek_saves_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _film(tmp_path / "film.mp4", "libx264", sc_threshold="0")
    video = _video(path)
    read: list[int] = []
    packets = video_packets.packets

    def counting(container, stream) -> Iterator[av.Packet]:
        for packet in packets(container, stream):
            read.append(packet.size)
            yield packet

    monkeypatch.setattr("pipelines.video.packets.packets", counting)
    images, _ = video.pictures([60])
    assert len(images) == 1
    assert len(read) == 1


@pytest.mark.usefixtures("unkept")
def test_a_file_that_reads_differently_after_a_seek_is_read_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    """What comes is known by its times, place and size, packet by packet."""
    path = _film(tmp_path / "film.mp4", "libx264", sc_threshold="0")
    every, video = _every(path), _video(path)
    monkeypatch.setattr(PacketReader, "_is_listed", lambda self, packet, place: place != 65)
    opened.clear()
    images, _ = video.pictures([40, 75])
    assert np.array_equal(images[40], every[40])
    assert np.array_equal(images[75], every[75])
    assert len(opened) == 1


def test_packets_are_numbers_in_order_of_the_file(data: Path) -> None:
    path = data / "clips" / "bikes.mp4"
    reader = PacketReader(str(path), "bikes", Decode())
    listed = reader.scan()
    with av.open(str(path)) as container:
        expected = [packet for packet in container.demux(video=0) if packet.size]
    assert listed.tick.tolist() == [packet.pts for packet in expected]
    assert listed.is_key.tolist() == [packet.is_keyframe for packet in expected]
    assert listed.is_shown.all()
    assert [bytes(packet) for packet in reader.read(3, 5)] == [bytes(p) for p in expected[3:6]]
    reader.close()
