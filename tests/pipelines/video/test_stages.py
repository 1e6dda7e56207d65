"""A video that is replaced while the run goes: its new pixels are not given out under the old
label."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.cluster.meter import Meter, StepCounter
from pipelines.index.manifest import list_videos
from pipelines.ledger.source import source_of
from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.storage import ranges
from pipelines.storage.store import Store
from pipelines.video.header import probe
from pipelines.video.listing.length import probe_length
from pipelines.video.stages import DecodeSegments, ProbeVideos, plan_segments

FIRST, SECOND = "asl_eat.mkv", "big_buck_bunny_0_30.webm"


def planned(videos: str) -> pa.Table:
    """SEGMENTS of the only video, with what decoding needs beside them."""
    (row,) = list_videos(videos).to_pylist()
    rows = ProbeVideos(SAMPLING, Decode())(manifest_of(row))
    segments = plan_segments(rows).slice(0, 1)
    for name in ("uri", "status", "stage", "error_type", "error"):
        segments = segments.append_column(name, pa.array([rows[name][0].as_py()], pa.string()))
    return segments


def manifest_of(row: dict) -> pa.Table:
    """A manifest's row of a listed file."""
    source = source_of(row["uri"], row["size_bytes"], row["modified"])
    video = {
        "video_id": row["path"],
        "uri": row["uri"],
        "labels": [],
        "group": None,
        "fold": -1,
        "size_bytes": row["size_bytes"],
    }
    return pa.Table.from_pylist([video | {"source": source}])


SAMPLING, PICTURE = Sampling(policy="uniform", num_frames=2), Picture(resize_px=72, crop_px=64)


def described(segments: pa.Table) -> dict:
    decode = DecodeSegments(SAMPLING, PICTURE, Decode(), compares=True)
    (rows,) = decode(segments)
    decode.decoder.close()
    return rows.to_pylist()[0]


def assert_changed(row: dict) -> None:
    assert (row["status"], row["stage"], row["error_type"]) == ("failed", "decode", "changed")
    assert row["frame_indices"] == []
    assert row["num_images"] == 0
    assert "expected the file that was planned" in row["error"]


def touched(file: Path) -> None:
    """The same bytes, written again: nobody knows that but whoever reads them all."""
    os.utime(file, (1e9, 1e9))


@pytest.mark.parametrize(
    "change", [lambda file: shutil.copy(file.parents[1] / SECOND, file), touched]
)
def test_on_disk(data: Path, tmp_path: Path, change: Callable[[Path], object]) -> None:
    shutil.copy(data / "clips" / SECOND, tmp_path)
    (tmp_path / "videos").mkdir()
    file = Path(shutil.copy(data / "clips" / FIRST, tmp_path / "videos" / "a.webm"))
    segments = planned(str(file.parent))
    assert described(segments)["status"] == "ok"
    change(file)
    assert_changed(described(segments))
    assert described(planned(str(file.parent)))["status"] == "ok"


def test_a_link_that_a_manifest_names_is_the_file_it_leads_to(data: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(data / "clips" / FIRST, tmp_path / "file.webm"))
    (tmp_path / "link.webm").symlink_to(file)
    (tmp_path / "videos.csv").write_text("path\nlink.webm\n")
    segments = planned(str(tmp_path / "videos.csv"))
    assert described(segments)["status"] == "ok"
    shutil.copy(data / "clips" / SECOND, file)
    assert_changed(described(segments))


def test_what_is_read_counts_also_where_it_is_of_no_use(data: Path, s3_bucket: str) -> None:
    """Headers, segments, and segments that fail."""
    store = Store(f"{s3_bucket}/read")
    store.publish("a.webm", (data / "clips" / FIRST).read_bytes())
    counted, decode = _Counted(), Decode(decoder="pyav")
    (row,) = list_videos(store.root).to_pylist()
    probe = ProbeVideos(SAMPLING, decode, Meter(StepCounter(counted, ("index", 1, 0.0))))
    probe(manifest_of(row))
    probe.decoder.close()
    assert counted.requests == 2, "its size, and its first blocks"
    segments = planned(store.root)
    stage = DecodeSegments(
        SAMPLING, PICTURE, decode, Meter(StepCounter(counted, ("describe", 1, 0.0)))
    )
    before = counted.requests
    (rows,) = stage(segments)
    assert rows["status"].to_pylist() == ["ok"]
    after, before = counted.requests, counted.requests - before
    assert before >= 2
    store.publish("a.webm", b"no video" * 2**18)
    (rows,) = stage(segments)
    assert rows["status"].to_pylist() == ["failed"]
    assert counted.requests > after
    stage.decoder.close()


@pytest.mark.parametrize(("name", "more"), [("bikes.mp4", 0), ("asl_eat.mkv", 1)])
def test_a_header_that_tells_the_length_is_read_once(
    data: Path, s3_bucket: str, name: str, more: int
) -> None:
    """Where a container may go on, so is the place where it ends."""
    store = Store(f"{s3_bucket}/length")
    store.publish(name, (data / "clips" / name).read_bytes())
    ranges.taken()
    alone = probe(store.uri(name))
    requests = ranges.taken().requests
    assert probe_length(store.uri(name)) == alone
    assert ranges.taken().requests <= requests + more


class _Counted:
    """A counter of requests in place of the run's."""

    def __init__(self) -> None:
        self.tell, self.requests = self, 0

    def remote(self, _step: tuple, method: str, *details: object) -> None:
        if method == "moved":
            self.requests += int(str(details[0]))


def test_on_object_storage(data: Path, s3_bucket: str) -> None:
    store = Store(f"{s3_bucket}/replaced")
    store.publish("a.webm", (data / "clips" / FIRST).read_bytes())
    segments = planned(store.root)
    assert described(segments)["status"] == "ok"
    store.publish("a.webm", (data / "clips" / SECOND).read_bytes())
    assert_changed(described(segments))
