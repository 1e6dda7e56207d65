"""The warning of codebooks with few descriptors, as the driver gives it before they are fitted."""

import dataclasses

import pyarrow as pa
import pytest

from encoders.descriptors.streams import Stream
from pipelines.fit.codebooks import Task, scarcities
from pipelines.run.codebook import Codebook
from pipelines.settings.config import Config
from pipelines.storage.store import Store
from pipelines.storage.tables import SAMPLES

STREAM = Stream("pool5_appearance", "pool5", "appearance", 50, 4)


def warned(
    store: Store, variant: str, videos: list[str], folds: tuple[int, ...] = (-1,)
) -> list[str]:
    """Of a sample of 10 frames of "a" and 30 of "b"."""
    config = Config().with_settings([f"encode.encoders={variant}", "fit.num_frames=40"])
    rows = [
        {"video_id": v, "frame": f} for v, count in (("a", 10), ("b", 30)) for f in range(count)
    ]
    store.publish_table("sample/x.parquet", pa.Table.from_pylist(rows, schema=SAMPLES.schema()), {})
    found = config.variant(variant)
    tasks = [
        Task(
            codebook=Codebook.of(found, STREAM.name, fold, f"{fold}"),
            sample="sample",
            videos=frozenset(videos),
            labels={},
            footer={},
        )
        for fold in folds
    ]
    return scarcities(tasks, store, config, {STREAM.name: STREAM})


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path))


def test_every_view_counts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.STREAM", dataclasses.replace(STREAM, views=10))
    assert not warned(store, "vlad@num_centroids=200", ["a", "b"])
    assert "20,000 descriptors for" in warned(store, "vlad@num_centroids=201", ["a", "b"])[0]


def test_the_warning_says_what_there_is_and_what_to_set(store: Store) -> None:
    assert warned(store, "vlad@num_centroids=21", ["a", "b"], folds=(0, 1)) == [
        "vlad@num_centroids=21 on pool5_appearance: 2,000 descriptors for vlad.num_centroids = 21,"
        " less than 100 each; raise fit.num_frames (now 40) where videos have more frames, or lower"
        " vlad.num_centroids"
    ]


@pytest.mark.parametrize(
    ("variant", "is_scarce"),
    [
        ("vlad@num_centroids=20", False),
        ("gmm_fv@num_components=21", True),
        ("fv_vae@num_latents=21", True),
        ("fv_vae@num_latents=20", False),
        ("vlad@num_centroids=1:per_level=true", True),
        ("vlad@num_centroids=2:levels=2", True),
        ("vlad@num_centroids=2:levels=2/1", False),
        ("vlad@num_centroids=1:levels=3/2:per_level=true", False),
        ("bilinear", False),
        ("ave", False),
    ],
)
def test_each_size_is_held_against_the_descriptors(
    store: Store, variant: str, is_scarce: bool
) -> None:
    """Of 40 frames of 50 cells, of which the coarsest level has one."""
    assert bool(warned(store, variant, ["a", "b"])) == is_scarce


def test_videos_of_another_fold_do_not_count(store: Store) -> None:
    assert warned(store, "vlad@num_centroids=6", ["a"])
    assert not warned(store, "vlad@num_centroids=6", ["b"])
