"""Whole maps out of DESCRIPTORS: what was described comes back, position for position."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from encoders.descriptors.streams import Stream
from pipelines.networks.maps import StoredMaps
from pipelines.storage.columns import descriptors_to_arrow
from pipelines.storage.store import Store

SHAPE = (5, 2, 3)
STREAM = Stream("n_positions", "n", "positions", 6, 5, scaling="whole_map", views=2)
FRAMES = {"a": (3, 2), "b": (4,), "c": (1, 1)}
"""Frames of each video's segments."""


def whole(maps: torch.Tensor) -> torch.Tensor:
    """The maps over the L2 norm of each, times 158."""
    return maps / maps.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * 158


@pytest.fixture
def stored(tmp_path: Path) -> tuple[StoredMaps, Store, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    maps = {v: torch.rand(sum(n), *SHAPE, generator=draw) for v, n in FRAMES.items()}
    rows, values, indices = [], [], []
    for video, sizes in FRAMES.items():
        start = 0
        for size in sizes:
            own, places = maps[video][start : start + size], torch.arange(size)[:, None]
            # The second view is another picture.
            views = [STREAM.describe(part, places) for part in (own, own.flip(3) + 1)]
            values.append(torch.cat(views, 1).half().numpy().reshape(-1, SHAPE[0]))
            indices.append(list(range(10 * start, 10 * (start + size), 10)))
            rows.append(video)
            start += size
    # Segments of a video are in several files, and not in the order of time.
    files: dict[str, list] = {"0.parquet": [4, 1, 2], "1.parquet": [0, 3]}
    places = {}
    for name, numbers in files.items():
        column = descriptors_to_arrow([values[n] for n in numbers], SHAPE[0])
        own = [indices[n] for n in numbers]
        times_s = [[index / 25 for index in part] for part in own]
        table = {STREAM.name: column, "frame_indices": own, "timestamps_s": times_s}
        pq.write_table(pa.table(table), tmp_path / name, row_group_size=2)
        places |= {number: (name, row) for row, number in enumerate(numbers)}
    videos = [
        {
            "video_id": video,
            "source": video,
            "files": [places[n][0] for n, v in enumerate(rows) if v == video],
            "rows": [places[n][1] for n, v in enumerate(rows) if v == video],
            "num_frames": sum(FRAMES[video]),
        }
        for video in FRAMES
    ]
    found = StoredMaps(STREAM, SHAPE, pa.Table.from_pylist(videos))
    return found, Store(str(tmp_path)), maps


def test_a_video_is_read_as_it_was_described(
    stored: tuple[StoredMaps, Store, dict[str, torch.Tensor]],
) -> None:
    one, store, maps = stored
    reader = one.reader(store)
    for row in one.videos.to_pylist():
        found, indices, times_s = one.read(reader, row["files"], row["rows"])
        assert found.dtype == np.float16
        expected = whole(maps[row["video_id"]]).numpy()
        np.testing.assert_allclose(found, expected, rtol=2e-3)
        assert indices == list(range(0, 10 * row["num_frames"], 10))
        assert times_s == [index / 25 for index in indices]


def test_workers_share_whole_videos(
    stored: tuple[StoredMaps, Store, dict[str, torch.Tensor]],
) -> None:
    one, store, maps = stored
    dealt = []
    for rank in (0, 1):
        found, videos, counts = one.share(store, frozenset("abc"), rank, 2)
        expected = torch.cat([whole(maps[video]) for video in videos])
        np.testing.assert_allclose(found, expected.numpy(), rtol=2e-3)
        assert counts == [len(maps[video]) for video in videos]
        # Not in memory, however many there are.
        assert isinstance(found, np.memmap)
        dealt.append(videos)
    assert dealt == [["a", "c"], ["b"]]
    assert one.share(store, frozenset("b"), 1, 2)[1] == []
