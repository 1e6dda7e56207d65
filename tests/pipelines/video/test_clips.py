"""What must come out of each real clip: clips.csv, one line per file, frozen.

Columns: number of frames; distance between their times (smallest-largest where they differ by more
than rounding); time of the last one after the first; `times`, the first digits of the SHA-256 of
all times in whole microseconds (little-endian int64); size and rotation as shown; index of the
chosen stream; or the error of a file without video. `decord`: "same" frames, or its error. `note`:
why the counts of the data's README, or of decord, are others.
"""

import csv
import functools
import hashlib
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.video.decode import SegmentFrames, decode_segment
from pipelines.video.header import VideoError, open_stream, probe
from pipelines.video.pyav_decoder import PyAvVideo

with Path(__file__).with_name("clips.csv").open(encoding="utf-8", newline="") as _lines:
    CLIPS = {row["file"]: row for row in csv.DictReader(_lines)}
VIDEOS = [name for name, row in CLIPS.items() if not row["error_type"]]

EIGHT = Sampling(policy="uniform", num_frames=8)
PICTURE = Picture()
PYAV, DECORD = Decode(decoder="pyav"), Decode(decoder="decord")

LARGEST_DIFFERENCE = 5.0
"""Grey levels, mean over a frame. decord scales by another kernel and at half the chroma, so the
more
saturated and the smaller the picture the more they differ: at most 4.3 (clip1024.flv, 112x80), in
the middle 1.7. That a frame is not its neighbour, which may differ by less, is asserted apart."""


@functools.cache
def _decode(path: Path, decode: Decode) -> SegmentFrames:
    return decode_segment(str(path), 0, 1, EIGHT, PICTURE, decode)


@functools.cache
def _listed(path: Path) -> PyAvVideo:
    return PyAvVideo(str(path), path.name, PICTURE, PYAV)


def _microseconds(times_s: np.ndarray) -> np.ndarray:
    return np.round(times_s * 1e6).astype("<i8")


def _spacing(times_s: np.ndarray) -> str:
    gaps = np.diff(_microseconds(times_s))
    if len(gaps) == 0:
        return ""
    smallest, largest = f"{gaps.min() / 1e6:.6f}", f"{gaps.max() / 1e6:.6f}"
    return smallest if gaps.max() - gaps.min() <= 1 else f"{smallest}-{largest}"


def _readme_counts(data: Path) -> dict[str, list[str]]:
    """{file: [header, PyAV, decord, OpenCV]} of the table of clips in the data's README."""
    text = (data / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## Clips") : text.index("## Corrupt")]
    rows = [[cell.strip(" `") for cell in line.split("|")] for line in section.splitlines()]
    return {row[1]: row[9:13] for row in rows if len(row) > 12 and row[1] in CLIPS}


def test_the_table_names_every_clip(data: Path) -> None:
    assert sorted(path.name for path in (data / "clips").iterdir()) == sorted(CLIPS)
    assert len(CLIPS) == 72


def test_counts_are_those_of_the_readme_or_explained(data: Path) -> None:
    counts = _readme_counts(data)
    assert counts.keys() == CLIPS.keys()
    for name, (header, pyav, decord, opencv) in counts.items():
        row = CLIPS[name]
        ours = row["frames"] or "no video stream"
        same_decord = decord == ours if row["decord"] == "same" else decord == "fail"
        explained = pyav == ours and same_decord and (opencv in (ours, "0"))
        assert row["note"] or (explained and header in (ours, "0", "-")), name


@pytest.mark.parametrize("name", [name for name, row in CLIPS.items() if row["error_type"]])
@pytest.mark.parametrize("decode", [PYAV, DECORD], ids=["pyav", "decord"])
def test_a_file_without_video_fails(data: Path, name: str, decode: Decode) -> None:
    for function, arguments in ((probe, ()), (_decode, (decode,))):
        with pytest.raises(VideoError) as caught:
            function(data / "clips" / name if arguments else str(data / "clips" / name), *arguments)
        assert caught.value.error_type == CLIPS[name]["error_type"]
        assert name in caught.value.message


@pytest.mark.parametrize("name", VIDEOS)
def test_clip(data: Path, name: str) -> None:
    path, row = data / "clips" / name, CLIPS[name]
    times_s = _listed(path).timestamps_s
    assert len(times_s) == int(row["frames"])
    assert times_s[0] == 0.0
    assert f"{times_s[-1]:.6f}" == row["last_s"]
    assert _spacing(times_s) == row["spacing_s"]
    assert hashlib.sha256(_microseconds(times_s).tobytes()).hexdigest()[:8] == row["times"]
    facts = probe(str(path))
    shown = (facts.width_px, facts.height_px, facts.rotation_deg)
    assert shown == (int(row["width_px"]), int(row["height_px"]), int(row["rotation_deg"]))
    with open_stream(str(path), name) as (_, stream):
        assert stream.index == int(row["stream"])


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_of_a_clip(data: Path, name: str) -> None:
    """All eight frames decode, and each is the one that is shown in the middle of its eighth."""
    video, frames = _listed(data / "clips" / name), _decode(data / "clips" / name, PYAV)
    num_frames = len(video.timestamps_s)
    assert (frames.num_missing, frames.error_type, frames.error) == (0, None, None)
    assert (frames.decoder, frames.decoder_version.split()[0]) == ("pyav", av.__version__)
    assert frames.image_indices.tolist() == frames.frame_indices.tolist()
    assert frames.images.shape == (len(frames.frame_indices), 224, 224, 3)
    assert (frames.images.dtype, frames.frame_indices.dtype) == (np.uint8, np.int64)
    assert frames.images.flags.c_contiguous
    targets_s = (np.arange(8) + 0.5) * video.end_s / 8
    expected = {int((video.timestamps_s <= target + 1e-6).sum()) - 1 for target in targets_s}
    assert frames.frame_indices.tolist() == sorted(expected)
    assert len(expected) == min(8, num_frames) or "-" in CLIPS[name]["spacing_s"]
    assert np.array_equal(frames.timestamps_s, video.timestamps_s[frames.frame_indices])


@pytest.mark.parametrize("name", [name for name in VIDEOS if int(CLIPS[name]["frames"]) <= 170])
def test_times_are_those_of_the_decoded_frames(data: Path, name: str) -> None:
    """The times come from packets; FFmpeg's decoder carries them to the frames on its own."""
    path = data / "clips" / name
    with av.open(str(path)) as container:
        stream = container.streams[int(CLIPS[name]["stream"])]
        ticks = np.sort([frame.pts for frame in container.decode(stream)])
        times_s = (ticks - ticks[0]) * float(stream.time_base)
    assert np.allclose(_listed(path).timestamps_s, times_s, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in VIDEOS if CLIPS[name]["decord"] == "same"])
def test_decord_gives_the_same_frames(data: Path, name: str) -> None:
    path = data / "clips" / name
    ours, theirs = _decode(path, PYAV), _decode(path, DECORD)
    assert theirs.decoder == "decord"
    assert ours.frame_indices.tolist() == theirs.frame_indices.tolist()
    assert np.array_equal(ours.timestamps_s, theirs.timestamps_s)
    assert (_differences(ours.images, theirs.images) < LARGEST_DIFFERENCE).all()
    # Nor is any of them a neighbour of the right one.
    video = _listed(path)
    places = ours.frame_indices[[1, -1] if len(ours.frame_indices) > 1 else [0]].tolist()
    beside = {p + step for p in places for step in (-1, 1)} & set(range(len(video.timestamps_s)))
    neighbours, _ = video.pictures(sorted(beside))
    for place in places:
        at = ours.frame_indices.tolist().index(place)
        right = _square(ours.images[at], theirs.images[at])
        for neighbour in (neighbours.get(place - 1), neighbours.get(place + 1)):
            # Frames that differ less than the decoders' scaling does cannot be told apart.
            if neighbour is not None and _square(ours.images[at], neighbour) > 10.0:
                assert right < _square(theirs.images[at], neighbour)


@pytest.mark.parametrize(
    "name", [n for n in VIDEOS if CLIPS[n]["decord"] != "same"] + ["set1_41_8_0.avi"]
)
def test_decord_is_not_used_where_it_is_wrong(data: Path, name: str) -> None:
    path = data / "clips" / name
    if not path.exists():
        path = next((data / "labelled" / "ut_interaction").rglob(name))
    with pytest.raises(VideoError) as caught:
        _decode(path, DECORD)
    assert caught.value.error_type == "unsupported"
    assert "decode.decoder = pyav" in caught.value.message


def test_ut_interaction_headers_count_too_much(data: Path) -> None:
    """Frames are those that decode; the header's number, 1 or 2 more, goes nowhere but into
    VIDEOS."""
    paths = sorted((data / "labelled" / "ut_interaction").rglob("*.avi"))[::8]
    assert len(paths) >= 9
    for path in paths:
        video = _listed(path)
        with av.open(str(path)) as container:
            decoded = sum(1 for _ in container.decode(video=0))
        assert len(video.timestamps_s) == decoded
        assert 1 <= probe(str(path)).num_frames_header - decoded <= 2
        frames = _decode(path, PYAV)
        assert (len(frames.images), frames.num_missing) == (8, 0)
        assert frames.frame_indices[-1] < decoded


def _differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(int) - b).mean(axis=(-3, -2, -1))


def _square(a: np.ndarray, b: np.ndarray) -> float:
    """Mean squared difference: to that of scaling, which is the same in all frames, motion adds."""
    return float(((a.astype(int) - b) ** 2).mean())
