"""The Ray callables as plain objects, without Ray."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from encoders import backbones
from encoders.descriptors import appearance, difference
from encoders.pooling import Average
from pipelines.config import Config, Decode
from pipelines.descriptor_stages import (
    Codebook,
    DescribeFrames,
    EncodeVideos,
    SampleFrames,
    encodings_of,
)
from pipelines.storage import Store
from pipelines.tables import ENCODINGS, VIDEOS, descriptors_from_arrow
from pipelines.video_stages import DecodeSegments, ProbeVideos, plan_segments

SETTINGS = (
    "describe.backbone=squeezenet1_0",
    "describe.nodes=features.5",
    "describe.weights=random:0",
    "sampling.policy=fps",
    "sampling.fps=3",
    "picture.resize_px=72",
    "picture.crop_px=64",
)
CONFIG = Config().with_settings(list(SETTINGS))
APPEARANCE, DIFFERENCE = CONFIG.describe.stream_columns


def manifest(*files: Path) -> pa.Table:
    rows = [
        {
            "video_id": file.name,
            "uri": str(file),
            "size_bytes": file.stat().st_size if file.exists() else 0,
            "source": "1",
            "labels": ["x"],
            "group": None,
            "fold": -1,
        }
        for file in files
    ]
    names = ["video_id", "uri", "labels", "group", "fold", "size_bytes", "source"]
    return pa.Table.from_pylist(rows, schema=pa.schema([VIDEOS.schema().field(n) for n in names]))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(str(tmp_path_factory.mktemp("run")))
    store.publish("weights.safetensors", backbones.random_filters("squeezenet1_0", 0))
    return store


@pytest.fixture(scope="module")
def decoded(data: Path) -> tuple[pa.Table, list[pa.Table]]:
    """VIDEOS of a 30 s clip, which has two segments at 3 fps, and of two that fail; their frames."""
    clips = data / "clips"
    files = (clips / "big_buck_bunny_0_30.webm", clips / "audio_only.mp4", clips / "gone.mp4")
    videos = ProbeVideos(CONFIG.sampling, Decode())(manifest(*files))
    segments = plan_segments(videos)
    for name in ("uri", "status", "stage", "error_type", "error"):
        column = dict(zip(videos["video_id"].to_pylist(), videos[name].to_pylist(), strict=True))
        values = [column[video] for video in segments["video_id"].to_pylist()]
        segments = segments.append_column(name, pa.array(values, pa.string()))
    decode = DecodeSegments(CONFIG.sampling, CONFIG.picture, Decode())
    return videos, list(decode(segments))


@pytest.fixture(scope="module")
def described(store: Store, decoded: tuple[pa.Table, list[pa.Table]]) -> pa.Table:
    stage = DescribeFrames(store, "weights.safetensors", CONFIG, num_threads=1)
    return stage(pa.concat_tables(decoded[1]))


def test_every_planned_segment_has_a_row(
    decoded: tuple[pa.Table, list[pa.Table]], described: pa.Table
) -> None:
    videos, _ = decoded
    assert videos["status"].to_pylist() == ["ok", "failed", "failed"]
    assert videos["error_type"].to_pylist() == [None, "no_video_stream", "not_found"]
    assert videos["num_segments"].to_pylist() == [2, 1, 1]
    rows = described.to_pylist()
    assert [row["segment_id"] for row in rows] == [
        "big_buck_bunny_0_30.webm#00000",
        "big_buck_bunny_0_30.webm#00001",
        "audio_only.mp4#00000",
        "gone.mp4#00000",
    ]
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "failed"]
    assert [row["stage"] for row in rows[2:]] == ["index", "index"]
    assert [row["num_frames"] for row in rows] == [64, 26, 0, 0]
    assert rows[2][APPEARANCE] is None


def test_nothing_depends_on_where_a_video_was_cut(
    store: Store, decoded: tuple[pa.Table, list[pa.Table]], described: pa.Table
) -> None:
    """Two segments together hold the descriptors of the whole video, differences over the cut too."""
    first, second = decoded[1][:2]
    assert second["has_predecessor"].to_pylist() == [True]
    frames = [
        np.frombuffer(t["images"][0].as_py(), np.uint8).reshape(-1, 64, 64, 3)
        for t in (first, second)
    ]
    np.testing.assert_array_equal(frames[0][-1], frames[1][0])
    whole = torch.from_numpy(np.concatenate([frames[0], frames[1][1:]]))
    backbone = backbones.build("squeezenet1_0", ("features.5",), store.read("weights.safetensors"))
    maps = backbone.maps(whole)["features.5"]
    for column, expected in (
        (APPEARANCE, appearance(maps, "per_position")),
        (DIFFERENCE, difference(maps, "per_position")),
    ):
        found = np.concatenate([descriptors_from_arrow(described[column][i]) for i in (0, 1)])
        np.testing.assert_allclose(found, expected.flatten(0, 1).numpy(), atol=2e-3)


@pytest.fixture(scope="module")
def placed(store: Store, described: pa.Table) -> pa.Table:
    """Where the segments of the good video are, in two files."""
    store.publish_table("d/a.parquet", described.slice(1, 1), {})
    store.publish_table("d/b.parquet", described.slice(0, 1), {})
    return pa.table(
        {
            "video_id": ["big_buck_bunny_0_30.webm"],
            "source": ["1"],
            "files": [["d/b.parquet", "d/a.parquet"]],
            "rows": [[0, 0]],
        }
    )


def test_a_video_is_encoded_from_all_its_segments(
    store: Store, described: pa.Table, placed: pa.Table
) -> None:
    books = [Codebook("ave", DIFFERENCE, -1, "abc")]
    width = described.schema.field(DIFFERENCE).type.value_type.list_size
    store.publish(f"{books[0].folder}/codebook.safetensors", Average(width).to_bytes())
    table = encodings_of(EncodeVideos(store, books, "float32")(placed), books[0])
    parts = [descriptors_from_arrow(described[DIFFERENCE][i]) for i in (0, 1)]
    everything = torch.from_numpy(np.concatenate(parts)).float()
    assert table["num_descriptors"].to_pylist() == [len(everything)] == [89 * 50]
    assert table.schema.names == [*ENCODINGS.schema().names, "vector"]
    expected = Average(width).encode(everything)
    np.testing.assert_allclose(table["vector"][0].as_py(), expected, rtol=1e-6)


def test_the_sample_is_the_same_however_it_is_read(store: Store, described: pa.Table) -> None:
    width = described.schema.field(DIFFERENCE).type.value_type.list_size
    places = [
        {"video_id": "big_buck_bunny_0_30.webm", "file": f"d/{name}.parquet", "row": 0}
        for name in ("a", "b")
    ]

    def draw(rate: float, seed: int, rows: list[dict]) -> list[int]:
        stage = SampleFrames(store, DIFFERENCE, CONFIG.describe, width, rate, seed)
        table = stage(pa.Table.from_pylist(rows))
        for descriptors in table["descriptors"]:
            assert descriptors_from_arrow(descriptors).shape == (50, width)
        return sorted(table["frame"].to_pylist())

    half = draw(0.5, 0, places)
    assert half == draw(0.5, 0, places[::-1])
    assert half != draw(0.5, 1, places)
    assert set(half) <= set(draw(0.8, 0, places))
    assert 25 < len(half) < 65
    assert len(draw(1.0, 0, places)) == 89
