"""Memory that does not grow with the number or the length of videos; nothing left on the disk."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest

from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.video.isolation import IsolatedDecoder
from pipelines.video.sampling import SEGMENT_FRAMES
from pipelines.video.stages import DecodeSegments, ProbeVideos

pytestmark = pytest.mark.nightly

MIB = 2**20
EVERY_SECOND = Sampling(policy="fps", fps=1.0, max_duration_s=7200.0)
SMALL = Picture(resize_px=32, crop_px=32)
MEDIUM = Picture(resize_px=64, crop_px=64)

GROWTH_BYTES = 8 * MIB
"""Heaps settle within a few MiB. One picture kept per sampled frame of the film (22 MiB) or per
short video (10 MiB) would be seen."""


def _film(path: Path, seconds: int) -> Path:
    """One frame a second, a key frame a minute, each frame another grey."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 60
        for second in range(seconds):
            picture = np.full((48, 64, 3), second % 251, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                out.mux(packet)
        for packet in stream.encode(None):
            out.mux(packet)
    return path


def _resident_bytes(process: int) -> int:
    with open(f"/proc/{process}/status") as status:
        sizes = dict(line.split(":", 1) for line in status)
    return int(sizes["VmRSS"].split()[0]) * 1024


def _segment(uri: Path, segment: int, count: int) -> pa.Table:
    row = {
        "segment_id": f"v#{segment:05d}",
        "video_id": "v",
        "segment": segment,
        "num_segments": count,
        "source": "s",
        "uri": str(uri),
        "status": "ok",
    }
    return pa.Table.from_pylist([row])


def test_two_hours_take_no_more_memory_than_one_segment(tmp_path: Path) -> None:
    film = _film(tmp_path / "film.mp4", 7200)
    probes, decodes = (
        ProbeVideos(EVERY_SECOND, Decode()),
        DecodeSegments(EVERY_SECOND, SMALL, Decode()),
    )
    with probes.decoder, decodes.decoder:
        count = probes._row({"video_id": "v", "uri": str(film)})["num_segments"]
        assert count in (113, 114)
        child, indices, sizes = None, [], []
        for segment in range(count):
            (table,) = decodes(_segment(film, segment, count))
            (row,) = table.to_pylist()
            assert (row["status"], row["num_missing"]) == ("ok", 0)
            assert row["num_images"] <= SEGMENT_FRAMES + 1
            indices += row["frame_indices"]
            sizes.append(_resident_bytes(decodes.decoder.call(os.getpid)))
            child = child or decodes.decoder.call(os.getpid)
        assert indices == list(range(7200))
        # The same child all the time, so that there was something to grow.
        assert decodes.decoder.call(os.getpid) == child
        assert max(sizes[10:]) - sizes[10] < GROWTH_BYTES


@pytest.mark.parametrize("name", ["testsrc2_mpeg4.mp4", "zero_bytes.webm"])
def test_many_short_videos_take_no_more_memory_than_a_few(data: Path, name: str) -> None:
    folder = "clips" if (data / "clips" / name).exists() else "corrupt"
    uri = data / folder / name
    decodes = DecodeSegments(Sampling(policy="uniform", num_frames=8), MEDIUM, Decode())
    with decodes.decoder:
        sizes = []
        for _ in range(5):
            for _ in range(400):
                list(decodes(_segment(uri, 0, 1)))
            sizes.append(
                _resident_bytes(os.getpid()) + _resident_bytes(decodes.decoder.call(os.getpid))
            )
        assert sizes[-1] - sizes[0] < GROWTH_BYTES


def test_a_child_that_has_grown_is_replaced() -> None:
    with IsolatedDecoder(Decode(memory_bytes=128 * MIB)) as decoder:
        first = decoder.call(os.getpid)
        assert decoder.call(eval, "len(setattr(__import__('sys'), 'kept', b'x' * 2**25) or 'ab')")
        assert decoder.call(os.getpid) == first
        decoder.call(eval, "len(setattr(__import__('sys'), 'kept', b'x' * 80 * 2**20) or 'ab')")
        # Without that the next video would have 48 of its 128 MiB.
        second = decoder.call(eval, "(__import__('os').getpid(), len(bytes(100 * 2**20)))")
        assert second[0] != first


@pytest.mark.parametrize("victim", ["child", "parent"])
def test_a_killed_process_leaves_no_file(data: Path, tmp_path: Path, victim: str) -> None:
    """A remote video is copied for decoding; the copy has no name, so that nothing need remove
    it."""
    clip = data / "clips" / "chimp.mp4"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    script = tmp_path / "parent.py"
    helper = tmp_path / "holding.py"
    helper.write_text(
        "import os, time\n"
        "from pathlib import Path\n"
        "import fsspec\n"
        "from pipelines.video import decode\n"
        "def hold(clip, marker):\n"
        "    fsspec.filesystem('memory').pipe_file('/v.mp4', Path(clip).read_bytes())\n"
        "    with decode._seekable('memory://v.mp4', whole=True) as copy:\n"
        "        size = os.fstat(copy.fileno()).st_size\n"
        "        Path(marker).write_text(f'{os.getpid()} {size}')\n"
        "        time.sleep(60)\n"
    )
    marker = tmp_path / "marker"
    script.write_text(
        "import sys\n"
        f"sys.path[:0] = [{os.getcwd()!r}, {str(tmp_path)!r}]\n"
        "import holding\n"
        "from pipelines.settings.sections import Decode\n"
        "from pipelines.video.isolation import IsolatedDecoder\n"
        "from pipelines.video.header import VideoError\n"
        "with IsolatedDecoder(Decode(frame_timeout_s=3.0)) as decoder:\n"
        "    try:\n"
        f"        decoder.call(holding.hold, {str(clip)!r}, {str(marker)!r})\n"
        "    except VideoError as error:\n"
        "        print(error)\n"
    )
    environment = {**os.environ, "TMPDIR": str(temporary)}
    parent = subprocess.Popen(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True
    )
    _until(lambda: marker.exists() and " " in marker.read_text())
    child, size = map(int, marker.read_text().split())
    assert size == clip.stat().st_size
    os.kill(child if victim == "child" else parent.pid, signal.SIGKILL)
    output, _ = parent.communicate(timeout=30)
    assert output.strip() == ("crashed: the decoder died: SIGKILL" if victim == "child" else "")
    _until(lambda: not _runs(child))
    assert list(temporary.iterdir()) == []


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _until(condition) -> None:
    limit = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)
