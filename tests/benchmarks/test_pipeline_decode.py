"""The benchmark of decoding counts a side where it gives the frames that were asked for. Times are
not tested."""

from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks import pipeline_decode
from benchmarks.harness import Options
from benchmarks.pipeline_decode import encode, measure_file, pyav_seeking, pyav_sequential


def test_a_side_counts_where_its_frames_are_right(data: Path) -> None:
    def late(path: str, ordinals: list[int], ticks: list[int]) -> np.ndarray:
        return 255 - pyav_sequential(path, ordinals, ticks)

    def fails(path: str, ordinals: list[int], ticks: list[int]) -> np.ndarray:
        raise RuntimeError

    sides = {"in order": pyav_sequential, "seeking": pyav_seeking, "late": late, "fails": fails}
    times = measure_file(data / "clips" / "mmaction_part_0.mp4", sides, 1)
    assert list(times) == ["ours", "in order", "seeking"]
    assert min(times.values()) > 0
    assert measure_file(data / "clips" / "audio_only.mp4", sides, 1) == {}


def test_key_frames_come_where_they_are_wanted(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "film.mp4"
    source = data / "clips" / "camtrap_Hyena.AVI"
    encode(source, str(target), gop_frames=10, size=(128, 96), num_frames=25)
    with av.open(str(target)) as container:
        frames = list(container.decode(video=0))
        assert [place for place, frame in enumerate(frames) if frame.key_frame] == [0, 10, 20]
        assert (frames[0].width, frames[0].height, len(frames)) == (128, 96, 25)


def test_rows_name_both_sides(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_decode, "GOP_FRAMES", 20)
    (row,) = pipeline_decode.key_frames(Options(quick=True))
    assert row.detail["frames"]["keyframes"] == 3
    assert row.detail["frames"]["uniform"] == 25
    assert row.ratio == pytest.approx(
        row.detail["seconds"]["uniform"] / row.detail["seconds"]["keyframes"]
    )
