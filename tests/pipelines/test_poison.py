"""Videos that break their decoder: one failed row each, of the right error_type, in bounded time;
and the same DecodeSegments decodes the next video right."""

import contextlib
import os
import select
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest

from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.video.decode import decode_segment
from pipelines.video.header import VideoError, probe
from pipelines.video.isolation import IsolatedDecoder
from pipelines.video.stages import DecodeSegments, ProbeVideos

pytestmark = pytest.mark.nightly

MIB = 2**20
EIGHT = Sampling(policy="uniform", num_frames=8)
SMALL = Picture(resize_px=32, crop_px=32)

FRAME_S, SEGMENT_S = 1.2, 3.5
"""Short, but enough for the good clip that is decoded before and after, on a busy machine too."""

FRAME_LIMIT = f"decode.frame_timeout_s = {FRAME_S} s"
SEGMENT_LIMIT = f"decode.timeout_s = {SEGMENT_S} s"
BOUND_S = SEGMENT_S + 12.0
"""The limit, and what a busy machine may take on top for killing a process and starting another."""

# What each misbehaviour of poison.py must become: the type, and a part of the message.
POISON = {
    "hang_in_python": ("timeout", FRAME_LIMIT),
    "hang_in_c": ("timeout", FRAME_LIMIT),
    "hang_deaf": ("timeout", FRAME_LIMIT),
    "hang_without_alarm": ("timeout", SEGMENT_LIMIT),
    "stop": ("timeout", SEGMENT_LIMIT),
    "stop_while_answering": ("timeout", SEGMENT_LIMIT),
    "slow": ("timeout", SEGMENT_LIMIT),
    "die_while_answering": ("crashed", "exit code 9"),
    "abort": ("crashed", "SIGABRT"),
    "segfault": ("crashed", "SIGSEGV"),
    "leave": ("crashed", "exit code 3"),
    "close_everything": ("timeout", FRAME_LIMIT),
    "scribble": ("crashed", "cannot be read"),
    "promise_too_much": ("crashed", "cannot be read"),
    "promise_a_huge_array": ("crashed", "promises 18446744073709551616 bytes of arrays"),
    "answer_with_a_pickle": ("crashed", "cannot be read"),
    "answer_with_a_pickle_inside": ("crashed", "its header is no JSON"),
    "answer_with_pickled_objects": ("crashed", "describes an array by"),
    "answer_too_short": ("timeout", FRAME_LIMIT),
    "answer_half_and_leave": ("crashed", "exit code 3"),
    "answer_with_another_length": ("crashed", "images: expected uint8 (8, None, None, 3)"),
    "answer_with_other_pictures": ("crashed", "expected 32 px"),
    "answer_with_text": ("crashed", "expected SegmentFrames, got str 'no frames'"),
    "fill_heap": ("out_of_memory", "decode.memory_bytes"),
    "fill_shared_memory": ("out_of_memory", "decode.memory_bytes"),
    "leak": ("unexpected", "ValueError: after a leak (poison.py:"),
    "error_unpicklable": ("unexpected", "UnpicklableError"),
    "error_mute": ("unexpected", "MuteError"),
    "error_alien": ("unexpected", "Alien: from elsewhere"),
    "error_exit": ("unexpected", "SystemExit"),
    "error_interrupt": ("unexpected", "KeyboardInterrupt"),
    "error_huge": ("unexpected", "xxx..."),
    "error_not_text": ("damaged", "\\udcff\\udc00"),
    "result_no_message": ("unexpected", "no plain message can carry a function"),
    "babble": ("unexpected", "after babbling"),
    "fork_and_die": ("crashed", "SIGABRT"),
    "fork_and_return": ("unexpected", "one of two"),
}


def _segment(uri: Path | str, segment: int = 0, num_segments: int = 1) -> dict:
    return {
        "segment_id": f"v#{segment:05d}",
        "video_id": "v",
        "segment": segment,
        "num_segments": num_segments,
        "source": "s",
        "uri": str(uri),
        "status": "ok",
    }


def _rows(stage: DecodeSegments, *segments: dict) -> list[dict]:
    return [row for out in stage(pa.Table.from_pylist(list(segments))) for row in out.to_pylist()]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """decode_segment is that of poison.py, in the children too."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import poison

    monkeypatch.setattr("pipelines.video.stages.decode_segment", poison.decode_segment)


@pytest.fixture
def stage(planted: None) -> Iterator[DecodeSegments]:
    # Limits of time for those that hang alone: a slow machine must not decide the others.
    limits = Decode(frame_timeout_s=30.0, timeout_s=60.0, memory_bytes=256 * MIB)
    stage = DecodeSegments(EIGHT, SMALL, limits)
    yield stage
    stage.decoder.close()


@pytest.fixture
def hasty(planted: None) -> Iterator[DecodeSegments]:
    limits = Decode(frame_timeout_s=FRAME_S, timeout_s=SEGMENT_S, memory_bytes=256 * MIB)
    stage = DecodeSegments(EIGHT, SMALL, limits)
    yield stage
    stage.decoder.close()


@pytest.mark.parametrize("behaviour", POISON)
def test_poison_costs_its_row(
    data: Path,
    request: pytest.FixtureRequest,
    behaviour: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mark = tmp_path / "ran"
    monkeypatch.setenv("VIDEO_FISHER_TEST_MARK", str(mark))
    monkeypatch.setenv("VIDEO_FISHER_DATA", str(data))
    error_type, message = POISON[behaviour]
    stage = request.getfixturevalue("hasty" if error_type == "timeout" else "stage")
    clip = data / "clips" / "carphone_pristine.mp4"
    expected = decode_segment(str(clip), 0, 1, EIGHT, SMALL, Decode()).images.tobytes()
    # Started before, so that the time is the poison's.
    (before,) = _rows(stage, _segment(clip))
    assert before["status"] == "ok"
    started = time.monotonic()
    (row,) = _rows(stage, _segment(f"/videos/{behaviour}.mp4"))
    seconds = time.monotonic() - started
    assert (row["status"], row["error_type"]) == ("failed", error_type)
    assert message in row["error"]
    assert len(row["error"]) < 2100
    assert (row["stage"], row["num_images"], row["images"]) == ("decode", 0, b"")
    if error_type == "timeout":
        limit_s = FRAME_S if "frame_timeout_s" in message else SEGMENT_S
        assert limit_s <= seconds < BOUND_S
    (after,) = _rows(stage, _segment(clip))
    assert (after["status"], after["images"]) == ("ok", expected)
    assert not mark.exists()


def test_what_a_child_says_unasked_is_no_answer(stage: DecodeSegments, data: Path) -> None:
    (row,) = _rows(stage, _segment("scribble_later.mp4"))
    assert row["error_type"] == "damaged"
    unasked, _, _ = select.select([stage.decoder._pipe], [], [], 60)
    assert unasked
    (after,) = _rows(stage, _segment(data / "clips" / "carphone_pristine.mp4"))
    assert (after["status"], after["num_images"]) == ("ok", 8)


def test_what_a_call_forked_ends_with_it(stage: DecodeSegments, data: Path) -> None:
    def session() -> set[int]:
        found = set()
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == child and fields[0] != "Z":
                found.add(int(path.parent.name))
        return found

    child = stage.decoder.call(os.getpid)
    assert session() == {child}
    (row,) = _rows(stage, _segment("fork_and_die.mp4"))
    assert row["error_type"] == "crashed"
    limit = time.monotonic() + 10.0
    while session() and time.monotonic() < limit:
        time.sleep(0.02)
    assert session() == set()


def test_nothing_is_printed_and_no_core_is_left(data: Path, tmp_path: Path) -> None:
    code = (
        "import resource, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import poison\n"
        "from pipelines.settings.sections import Decode\n"
        "from pipelines.video.isolation import IsolatedDecoder\n"
        "from pipelines.video.header import VideoError\n"
        "for behaviour in (poison.babble, poison.abort, poison.error_huge):\n"
        "    with IsolatedDecoder(Decode()) as decoder:\n"
        "        try:\n"
        "            decoder.call(behaviour)\n"
        "        except VideoError as error:\n"
        "            print(error.error_type)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {os.getcwd()!r})\n{code}"],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
        check=True,
        text=True,
    )
    assert (run.stdout.split(), run.stderr) == (["unexpected", "crashed", "unexpected"], "")
    assert list(tmp_path.iterdir()) == []


# Pictures whose header says 30,000 x 30,000: 1.35 GB and more if they were decoded.
SIDE = 30_000


def _vp9(path: Path, side: int, shown: int = 64) -> Path:
    """A VP9 file whose container says shown x shown, and whose frames say side x side."""
    with av.open(str(path), "w", format="matroska") as out:
        stream = out.add_stream("libvpx-vp9", rate=25)
        stream.width = stream.height = shown
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((shown, shown, 3), np.uint8), format="rgb24")
        (packet,) = [*stream.encode(frame), *stream.encode(None)]
        # Uncompressed header, profile 0: width - 1 and height - 1, 16 bits each, from bit 36 on.
        bits = int.from_bytes(bytes(packet), "big")
        shift = packet.size * 8 - 36 - 32
        sizes = (side - 1) << 16 | (side - 1)
        bits = bits & ~((2**32 - 1) << shift) | sizes << shift
        lying = av.Packet(bits.to_bytes(packet.size, "big"))
        lying.pts = lying.dts = 0
        lying.time_base, lying.is_keyframe, lying.stream = packet.time_base, True, stream
        out.mux(lying)
    return path


def _png(path: Path) -> Path:
    """Write a film of one PNG, whose own header says SIDE x SIDE, and the film's 64 x 64."""
    with av.open(str(path), "w", format="mov") as out:
        stream = out.add_stream("png", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "rgb24"
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        (packet,) = [*stream.encode(frame), *stream.encode(None)]
        content = bytearray(bytes(packet))
        content[16:24] = struct.pack(">II", SIDE, SIDE)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        lying = av.Packet(bytes(content))
        lying.pts = lying.dts = 0
        lying.time_base, lying.is_keyframe, lying.stream = packet.time_base, True, stream
        out.mux(lying)
    return path


def _peak_bytes(decoder: IsolatedDecoder) -> int:
    status = decoder.call(eval, "open('/proc/self/status').read()")
    sizes = dict(line.split(":", 1) for line in status.splitlines())
    return int(sizes["VmPeak"].split()[0]) * 1024


@pytest.mark.parametrize("make", [lambda path: _vp9(path, SIDE), _png], ids=["vp9", "png"])
def test_a_huge_header_allocates_nothing(tmp_path: Path, make) -> None:
    path = make(tmp_path / "huge.mov")
    with IsolatedDecoder(Decode()) as decoder:
        small = make(tmp_path / "other.mov")
        before = _peak_bytes(decoder)
        for uri in (path, small):
            with pytest.raises(VideoError) as caught:
                decoder.call(probe, str(uri))
            assert caught.value.error_type == "frame_too_large"
            assert "30000x30000" in caught.value.message
            with pytest.raises(VideoError):
                decoder.call(decode_segment, str(uri), 0, 1, EIGHT, SMALL, Decode())
        assert _peak_bytes(decoder) - before < 64 * MIB


def test_the_limit_is_what_keeps_a_large_frame_from_being_allocated(tmp_path: Path) -> None:
    """FFmpeg itself would take 16,000 x 16,000, in 384 MB; decode.max_frame_px does not."""
    path = str(_vp9(tmp_path / "large.mkv", 16_000))
    grown = []
    for max_frame_px in (Decode.max_frame_px, 2**40):
        with IsolatedDecoder(Decode()) as decoder:
            before = _peak_bytes(decoder)
            with contextlib.suppress(VideoError):
                decoder.call(probe, path, max_frame_px)
            grown.append(_peak_bytes(decoder) - before)
    assert grown[0] < 64 * MIB
    assert grown[1] > 300 * MIB


def test_a_huge_frame_is_a_row_of_the_index(tmp_path: Path) -> None:
    path = _vp9(tmp_path / "huge.mov", SIDE)
    stage = ProbeVideos(EIGHT, Decode())
    row = stage._row({"video_id": "v", "uri": str(path)})
    stage.decoder.close()
    assert (row["status"], row["error_type"]) == ("failed", "frame_too_large")
