"""The list of frames is what a player shows: FFmpeg's own list, `-vsync passthrough`."""

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest

from pipelines.index.labels import read_labels
from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.video.decode import SegmentFrames, decode_segment
from pipelines.video.header import VideoError, open_stream, probe
from pipelines.video.listing.contents import Holds, content_check
from pipelines.video.listing.length import probe_length
from pipelines.video.pyav_decoder import PyAvVideo
from pipelines.video.sampling import num_segments
from tests.pipelines.video import films

SMALL = Picture(resize_px=32, crop_px=32)
needs_ffmpeg = pytest.mark.skipif(not films.HAS_FFMPEG, reason="no ffmpeg here")


def video(path: Path) -> PyAvVideo:
    return PyAvVideo(str(path), path.name, SMALL, Decode())


def sampled(path: Path, num_frames: int = 25) -> SegmentFrames:
    sampling = Sampling(policy="uniform", num_frames=num_frames)
    return decode_segment(str(path), 0, 1, sampling, SMALL, Decode())


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("films")


# --- the files on which the project was wrong --------------------------------------------------

FAULTY = {
    "raw_h264_bframes.h264": (100, 4.0, "decoding"),
    "raw_hevc.hevc": (100, 4.0, "decoding"),
    "test_b_16x16.264": (3, 0.12, "decoding"),
    "joined_reset.ts": (200, 8.0, "packets"),
    "joined_reset.mpg": (200, 8.0, "packets"),
    "joined_backwards.ts": (200, 8.0, "packets"),
    "mjpeg_exif.avi": (50, 2.0, "packets"),
    "open_gop_start_hevc.mkv": (75, 3.0, "packets"),
    "multiple_comments.gif": (5, None, "packets"),
    "comment_after_only_frame.gif": (1, None, "packets"),
    "dv_fps.dv": (3, 0.12, "packets"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_files_on_which_the_project_was_wrong(data: Path, name: str) -> None:
    num_frames, end_s, listed_by = FAULTY[name]
    path = data / "faulty" / name
    listed = video(path)
    assert len(listed.timestamps_s) == num_frames
    assert end_s is None or listed.end_s == pytest.approx(end_s, abs=1e-3)
    assert (np.diff(listed.timestamps_s) > 0).all()
    assert listed.listed_by == probe(str(path)).listed_by == listed_by
    frames = sampled(path)
    assert (frames.num_missing, frames.error) == (0, None)
    assert len(frames.frame_indices) == min(25, num_frames)
    assert frames.timestamps_s[0] < 0.17


def test_a_raw_stream_has_its_own_rate(data: Path) -> None:
    assert probe(str(data / "faulty" / "dv_fps.dv")).fps == 25.0
    assert probe(str(data / "faulty" / "raw_hevc.hevc")).fps == 25.0


@pytest.mark.parametrize("name", ["joined_reset.ts", "joined_reset.mpg"])
def test_a_joined_file_is_its_parts_one_after_the_other(data: Path, name: str) -> None:
    """The second part is the first one negated and mirrored."""
    path = data / "faulty" / name
    listed = video(path)
    assert listed.num_parts == sampled(path).num_parts == 2
    images, _ = listed.pictures([10, 50, 110, 150])
    first, second = (images[10], images[50]), (images[110], images[150])
    for one, other in zip(first, second, strict=True):
        assert np.abs(255.0 - one[:, ::-1] - other).mean() < 12
    assert np.diff(listed.timestamps_s).tolist() == pytest.approx([0.04] * 199)


@pytest.mark.parametrize(
    "name", ["asl_eat.mkv", "big_buck_bunny_0_30.webm", "mmaction_test.avi", "no_duration.webm"]
)
def test_a_joined_file_is_planned_by_its_whole_length(
    data: Path, tmp_path: Path, name: str
) -> None:
    """The header tells the length of the first part alone, or none."""
    content, path = (data / "clips" / name).read_bytes(), tmp_path / name
    path.write_bytes(content)
    alone_s = video(path).end_s
    assert probe_length(str(path)).duration_s == pytest.approx(alone_s, abs=0.09)
    # FFmpeg shows two recordings of a joined Matroska file at most.
    path.write_bytes(content * 2)
    assert probe_length(str(path)).duration_s == pytest.approx(2 * alone_s, abs=0.09)
    assert probe_length(str(path)).duration_s == pytest.approx(video(path).end_s, abs=0.09)


@pytest.mark.parametrize("name", ["joined_reset.ts", "joined_backwards.ts", "raw_hevc.hevc"])
def test_the_plan_holds_all_frames(data: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No segment says `longer_than_planned`."""
    monkeypatch.setattr("pipelines.video.sampling.SEGMENT_FRAMES", 8)
    sampling, path = Sampling(policy="fps", fps=5.0), str(data / "faulty" / name)
    num = num_segments(probe_length(path), sampling)
    segments = [decode_segment(path, k, num, sampling, SMALL, Decode()) for k in range(num)]
    assert [segment.error_type for segment in segments] == [None] * num
    assert sum(len(segment.frame_indices) for segment in segments) == 5 * video(Path(path)).end_s


@pytest.mark.parametrize(("name", "missing_s"), [("truncated.mp4", 1.56), ("truncated.mkv", 1.56)])
def test_a_file_that_was_cut_off_says_so(data: Path, name: str, missing_s: float) -> None:
    path = data / "faulty" / name
    assert video(path).missing_s == pytest.approx(missing_s, abs=1e-3)
    frames = sampled(path)
    assert frames.error_type == "shorter_than_planned"
    assert f"{missing_s:.2f} of 4.00 s are missing" in (frames.error or "")
    # A frame of 4 s is sampled each 0.16 s: those of the part that is there are those of the whole.
    assert frames.timestamps_s.tolist() == pytest.approx(
        [0.08 + 0.16 * k for k in range(len(frames.timestamps_s))], abs=0.041
    )
    assert len(frames.frame_indices) + frames.num_missing == 25


def test_blanks_at_the_ends_of_labels_make_no_class(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = read_labels(str(data / "faulty" / "labels" / "blank_after_label.csv"))
    assert {name for names in labels.labels.values() for name in names} == {"walk", "run"}
    twins = tmp_path / "labels.csv"
    twins.write_text("path,label\na.mp4,Ice skating\nb.mp4,ice  skating\nc.mp4,run\n")
    with caplog.at_level(logging.WARNING):
        read_labels(str(twins))
    assert "'Ice skating' and 'ice  skating'" in caplog.text


# --- files that are made -----------------------------------------------------------------------


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts", "h264"])
def test_two_fields_in_packets_of_their_own_are_one_frame(tmp_path: Path, suffix: str) -> None:
    path = films.field_film(tmp_path / f"fields.{suffix}")
    listed = video(path)
    expected = films.shown_by_ffmpeg(path)
    assert len(listed.timestamps_s) == len(expected) == 13
    assert listed.timestamps_s.tolist() == pytest.approx(expected.tolist(), abs=1e-3)
    assert probe(str(path)).fps == 25.0
    images, _ = listed.pictures(list(range(13)))
    # Frame k has fields of grey 40 + 7 k and one more.
    greys = [images[k].mean() for k in range(13)]
    assert np.diff(greys) == pytest.approx([7 * 255 / 219] * 12, abs=1.5)


def test_fields_are_told_by_number_and_parity() -> None:
    """A field whose other one is lost begins a frame, and so does the field after it."""
    import av

    context = av.CodecContext.create("h264", "r")
    check = content_check(context)
    assert check is not None
    packets = [av.Packet(content) for content in films.field_packets(3)]
    kinds = [check(packet) for packet in (*packets[:2], packets[2], *packets[4:])]
    frame, second = Holds.FRAME, Holds.SECOND_FIELD
    assert kinds == [frame, second, frame, frame, second]


@needs_ffmpeg
@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.9])
@pytest.mark.parametrize(
    ("codec", "suffix", "sound"),
    [
        *(("h264", "mp4", "aac"), ("h264", "mkv", "aac"), ("vp9", "webm", "libopus")),
        *(("mpeg4_no_b", "avi", "mp3"), ("mpeg4", "avi", ""), ("wmv2", "wmv", "wmav2")),
        *(("h264", "flv", "aac"), ("h264", "ts", "aac"), ("theora", "ogv", "libvorbis")),
        ("mpeg2", "mpg", "mp2"),
    ],
)
def test_the_first_part_of_a_file_is_not_whole(
    made: Path, tmp_path: Path, codec: str, suffix: str, sound: str, fraction: float
) -> None:
    whole = films.film(made, codec, suffix, sound=sound)
    if suffix == "mp4":
        films.run(
            [
                *("ffmpeg", "-v", "error", "-y", "-i", str(whole), "-c", "copy"),
                *("-movflags", "faststart", str(tmp_path / "fast.mp4")),
            ]
        )
        whole = tmp_path / "fast.mp4"
    assert video(whole).missing_s == 0.0
    assert sampled(whole).error is None
    cut = tmp_path / f"cut.{suffix}"
    content = whole.read_bytes()
    # Not where a transport packet ends.
    cut.write_bytes(content[: int(len(content) * fraction) // 188 * 188 + 77])
    frames = sampled(cut)
    assert frames.error_type == "shorter_than_planned"
    assert frames.num_missing > 0
    missing_s = video(cut).missing_s
    if suffix in ("ts", "ogv", "mpg"):
        assert missing_s is None
    else:
        assert missing_s == pytest.approx(3 * (1 - fraction), abs=0.5)


@needs_ffmpeg
def test_segments_beyond_the_end_of_a_cut_file_fail(made: Path, tmp_path: Path) -> None:
    whole = films.film(made, "h264", "mkv")
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 4])
    sampling = Sampling(policy="fps", fps=25.0)
    first = decode_segment(str(cut), 0, 2, sampling, SMALL, Decode())
    assert first.error_type == "shorter_than_planned"
    assert len(first.frame_indices) + first.num_missing == 64
    with pytest.raises(VideoError, match=r"cut off: .* of 3.00 s are missing") as caught:
        decode_segment(str(cut), 1, 2, sampling, SMALL, Decode())
    assert caught.value.error_type == "shorter_than_planned"


def differs(path: Path) -> str:
    """Return how the product's list of a file differs from FFmpeg's; "" where it does not."""
    with open_stream(str(path), path.name) as (_, stream):
        index = stream.index
    expected = films.shown_by_ffmpeg(path, index)
    listed = video(path)
    found = listed.timestamps_s
    if len(found) != len(expected):
        return f"{path.name}: {len(found)} frames listed, FFmpeg shows {len(expected)}"
    apart_s = np.abs(found - expected).max(initial=0.0)
    # FFmpeg joins parts by decoding times, which may be one frame of delay apart each time.
    allowed_s = 0.002 + 0.041 * (listed.num_parts - 1)
    return f"{path.name}: {apart_s:.3f} s apart" if apart_s > allowed_s else ""


COMBINATIONS = [
    (codec, suffix, gop)
    for codec, suffixes in films.CONTAINERS.items()
    for suffix, gop in itertools.product(suffixes, (12, 250))
]
QUICK = [c for c in COMBINATIONS if c[0] in ("h264", "mpeg4", "mpeg2", "vp9") and c[2] == 12]


@needs_ffmpeg
@pytest.mark.parametrize(("codec", "suffix", "gop"), QUICK)
def test_made_films_are_listed_as_ffmpeg_shows_them(
    made: Path, codec: str, suffix: str, gop: int
) -> None:
    assert differs(films.film(made, codec, suffix, gop)) == ""


@needs_ffmpeg
@pytest.mark.nightly
@pytest.mark.parametrize(("codec", "suffix", "gop"), [c for c in COMBINATIONS if c not in QUICK])
def test_all_made_films_are_listed_as_ffmpeg_shows_them(
    made: Path, codec: str, suffix: str, gop: int
) -> None:
    assert differs(films.film(made, codec, suffix, gop)) == ""


JOINED = [
    *(("h264", "ts", ""), ("h264_open", "ts", ""), ("hevc", "ts", ""), ("mpeg2", "ts", "")),
    *(("mpeg2", "mpg", ""), ("mpeg2", "vob", ""), ("theora", "ogv", ""), ("h264", "h264", "")),
    *(("h264", "ts", "aac"), ("mpeg2", "mpg", "mp2")),
]


@needs_ffmpeg
@pytest.mark.parametrize(("codec", "suffix", "sound"), JOINED)
def test_joined_films_are_shown_one_after_the_other(
    made: Path, tmp_path: Path, codec: str, suffix: str, sound: str
) -> None:
    first = films.film(made, codec, suffix, sound=sound)
    second = films.film(made, codec, suffix, filters="negate,hflip", sound=sound)
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(first.read_bytes() + second.read_bytes() + first.read_bytes())
    assert differs(path) == ""
    listed = video(path)
    assert len(listed.timestamps_s) == 225
    assert listed.end_s == pytest.approx(9.0, abs=0.05)
    assert probe_length(str(path)).duration_s == pytest.approx(listed.end_s, abs=0.05)
    images, _ = listed.pictures([40, 115, 190])
    assert np.abs(255.0 - images[40][:, ::-1] - images[115]).mean() < 14
    assert np.abs(images[40].astype(int) - images[190]).mean() < 6


@needs_ffmpeg
@pytest.mark.parametrize("offset_s", [100, 95442])
def test_times_that_jump_or_wrap_are_one_recording_on(
    made: Path, tmp_path: Path, offset_s: int
) -> None:
    film, late = films.film(made, "h264", "ts"), tmp_path / "late.ts"
    films.run(
        [
            *("ffmpeg", "-v", "error", "-i", str(film), "-c", "copy"),
            *("-output_ts_offset", str(offset_s), str(late)),
        ]
    )
    assert differs(late) == ""
    if offset_s > 2**33 / 90_000 - 10:
        # These times wrap, which FFmpeg mends where they are those of one recording.
        return
    for parts in ((film, late), (late, film)):
        path = tmp_path / "jump.ts"
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
        listed = video(path)
        assert len(listed.timestamps_s) == 150
        assert listed.end_s == pytest.approx(6.0, abs=0.01)


@needs_ffmpeg
@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        *(("h264", "ts"), ("h264_open", "ts"), ("mpeg2", "ts"), ("mpeg2", "mpg")),
        *(("mpeg2", "m2v"), ("h264", "h264"), ("hevc", "hevc")),
    ],
)
def test_a_start_in_the_middle_begins_with_the_first_frame_that_decodes(
    made: Path, tmp_path: Path, codec: str, suffix: str
) -> None:
    content = films.film(made, codec, suffix).read_bytes()
    path = tmp_path / f"start.{suffix}"
    path.write_bytes(content[len(content) // 3 :])
    assert differs(path) == ""
    frames = sampled(path)
    assert (frames.num_missing, frames.error) == (0, None)


@needs_ffmpeg
@pytest.mark.nightly
@pytest.mark.parametrize("folder", ["clips", "corrupt", "faulty"])
def test_every_file_is_listed_as_ffmpeg_shows_it(data: Path, folder: str) -> None:
    """Where damage keeps a frame from being shown, it is listed, and missing."""
    damaged = {*("decord_corrupted.mp4", "no_timescale.mp4", "test_case_1185230.mp4")}
    num, wrong = 0, []
    for path in sorted(path for path in (data / folder).iterdir() if path.is_file()):
        try:
            difference = differs(path)
        except VideoError:
            continue
        num += 1
        wrong += [difference] if difference and path.name not in damaged else []
    assert not wrong
    assert num >= {"clips": 60, "corrupt": 6, "faulty": 12}[folder]
