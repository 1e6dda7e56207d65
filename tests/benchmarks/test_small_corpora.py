"""The comparison of encoders over seeds, on descriptors whose classes are known."""

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.small_corpora import Corpus, accuracy, rows
from pipelines.describe.stage import described_streams
from pipelines.errors import ConfigError
from pipelines.run.saved import SavedRun
from pipelines.settings.config import Config
from pipelines.storage.columns import descriptors_to_arrow
from pipelines.storage.store import Store

CONFIG = Config().with_settings(
    [
        "describe.backbone=squeezenet1_0",
        "describe.nodes=features.5",
        "describe.streams=appearance",
        "picture.resize_px=64",
        "picture.crop_px=64",
        "vlad.num_centroids=2",
        "vlad.intra=true",
        "encode.encoders=ave,vlad,fv_vae@lambda3=10:num_steps=1:hidden=,ave@temporal_pyramid=2",
    ]
)
(STREAM,) = described_streams(CONFIG).values()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SavedRun:
    """Eight videos of two segments, of four groups; classes swap halfway, or do so the other way
    round."""
    store = Store(str(tmp_path_factory.mktemp("run")))
    draw = np.random.default_rng(0)
    videos, segments, values = [], [], []
    for n in range(8):
        label = "ab"[n % 2]
        videos.append({"video_id": f"v{n}", "labels": [label], "group": f"g{n // 2}"})
        for part in (1, 0):
            segments.append(
                {
                    "video_id": f"v{n}",
                    "segment": part,
                    "status": "ok",
                    "timestamps_s": [2.0 * part, 2.0 * part + 1],
                }
            )
            x = draw.random((2, STREAM.cells, STREAM.width))
            x[:, :, (n + part) % 2] += 4
            values.append(x.reshape(-1, STREAM.width).astype(np.float16))
    column = descriptors_to_arrow(values, STREAM.width)
    table = pa.Table.from_pylist(segments).append_column(STREAM.name, column)
    store.publish_table("descriptors/a.parquet", table, {})
    store.publish_table("videos/a.parquet", pa.Table.from_pylist(videos), {})
    return SavedRun(store, CONFIG, {"descriptors": "descriptors", "videos": "videos"})


def test_segments_are_put_together_in_the_order_of_time(run: SavedRun) -> None:
    corpus = Corpus(run, STREAM)
    assert [len(frames) for frames in corpus.videos] == [4] * 8
    np.testing.assert_allclose(corpus.places[0], [0, 1 / 3, 2 / 3, 1])
    for n, frames in enumerate(corpus.videos):
        assert [int(frame.mean(0).argmax()) for frame in frames] == [n % 2] * 2 + [1 - n % 2] * 2


def test_only_the_halves_tell_apart_what_differs_in_order_alone(run: SavedRun) -> None:
    corpus = Corpus(run, STREAM)
    halves, whole = (CONFIG.variant(name) for name in ("ave@temporal_pyramid=2", "ave"))
    assert accuracy(corpus, halves, CONFIG, seed=0) == 1
    assert accuracy(corpus, whole, CONFIG, seed=0) < 1


def test_each_encoder_has_a_line_with_the_mean_over_its_seeds(run: SavedRun) -> None:
    found = [row.split(" | ") for row in rows(run, CONFIG, seeds=2)]
    assert [row[2] for row in found] == list(CONFIG.encode.encoders)
    for (stream, videos, _, mean, seeds), number in zip(found, (1, 2, 2, 1), strict=True):
        values = [float(value) for value in seeds.split()]
        assert (stream, videos) == (STREAM.name, "8")
        assert len(values) == number
        assert float(mean) == pytest.approx(np.mean(values), abs=1e-3)


def test_a_smaller_corpus_is_of_whole_groups(run: SavedRun) -> None:
    corpus = Corpus(run, STREAM, 2)
    assert sorted(corpus.frames) == ["v0", "v1", "v2", "v3"]
    found = rows(run, CONFIG, seeds=1, sizes=[2, 4], num_folds=2)
    assert [row.split(" | ")[1] for row in found] == ["4"] * 4 + ["8"] * 4
    with pytest.raises(ConfigError, match="expected 4 at most, got 5"):
        Corpus(run, STREAM, 5)
    with pytest.raises(ConfigError, match="two groups and two folds at least, got 1 and 1"):
        list(rows(run, CONFIG, seeds=1, sizes=[1]))


def test_with_folds_every_video_is_tested_by_what_its_group_did_not_train(run: SavedRun) -> None:
    halves = CONFIG.variant("ave@temporal_pyramid=2")
    assert accuracy(Corpus(run, STREAM), halves, CONFIG, seed=0, num_folds=2) == 1
