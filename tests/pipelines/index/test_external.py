"""Vectors of one's own: what is read, and what is said of a file that cannot be right."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import ConfigError
from pipelines.index import external
from pipelines.settings.config import EXTERNAL, Config

PATHS = ["a.mp4", "b.mp4", "c.mp4"]
VECTORS = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


def write(folder: Path, paths: list = PATHS, vectors: list = VECTORS, kind: pa.DataType = None):
    """The configuration with vectors of these paths."""
    kind = kind or pa.list_(pa.float64())
    file = folder / "vectors.parquet"
    pq.write_table(pa.table({"path": paths, "vector": pa.array(vectors, kind)}), file)
    return Config().with_settings([f"encode.external=idt:{file}"])


def read(config: Config, video_ids: list[str]) -> dict[str, list[float]]:
    parts = external.vectors(config, "idt", frozenset(video_ids))
    return {
        path: row.tolist() for paths, rows in parts for path, row in zip(paths, rows, strict=True)
    }


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.list_(pa.float64()), pa.large_list(pa.float32())),
        *(pa.list_(pa.float32(), 2), pa.list_(pa.float16())),
    ],
    ids=str,
)
def test_vectors_of_the_videos_are_read_as_they_are(tmp_path: Path, kind: pa.DataType) -> None:
    vectors = [[np.float16(v) for v in row] for row in VECTORS] if "half" in str(kind) else VECTORS
    config = write(tmp_path, [*PATHS], vectors, kind)
    assert read(config, ["c.mp4", "a.mp4"]) == {"a.mp4": [1, 2], "c.mp4": [5, 6]}
    assert external.width(config, "idt") == 2


def test_a_file_that_changes_is_another_source(tmp_path: Path) -> None:
    first = external.sources(write(tmp_path), PATHS)
    assert external.sources(write(tmp_path), PATHS).keys() == first.keys() == {"idt"}
    longer = [*PATHS, "d.mp4"]
    assert external.sources(write(tmp_path, longer, [*VECTORS, [0.0, 0.0]]), PATHS) != first


def test_the_name_stands_for_an_encoder(tmp_path: Path) -> None:
    config = write(tmp_path)
    assert config.encoder_names == (*config.encode.encoders, "idt")
    variant = config.variant("idt")
    assert (variant.base, variant.codebook, variant.uses_labels) == (EXTERNAL, "idt", False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paths": ["a.mp4", "x.mp4", "y.mp4"]}, r"of each of 3 videos, found none of 2, such as "),
        ({"paths": ["a.mp4", "b.mp4", "c.mp4"][:2], "vectors": VECTORS[:2]}, r"none of 1, .*c.mp4"),
        (
            {"paths": [*PATHS, "a.mp4"], "vectors": [*VECTORS, [0, 0]]},
            r"several of 1, such as \['a",
        ),
        ({"kind": pa.list_(pa.int64()), "vectors": [[1]] * 3}, r"lists of floating-point numbers"),
    ],
)
def test_a_file_that_does_not_fit_is_told_before_the_run(
    tmp_path: Path, change: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        external.sources(write(tmp_path, **change), PATHS)
    assert str(caught.value).startswith(f"encode.external=idt: {tmp_path}/vectors.parquet: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0, 2.0], [3.0], [5.0, 6.0]], r"vectors of one length, got 2 values and 1, of b.mp4"),
        ([[1.0, 2.0], None, [5.0, 6.0]], r"vectors of one length, got 2 values and 0, of b.mp4"),
        ([[1.0, np.nan], [3.0, np.inf], [5.0, 6.0]], r"NaN or infinity in 2 vectors, .* of a.mp4"),
        ([[1.0, 1e300], [3.0, 4.0], [5.0, 6.0]], r"finite numbers in float32, .* in 1 vectors"),
    ],
)
def test_vectors_that_cannot_be_encodings_are_refused(
    tmp_path: Path, vectors: list, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read(write(tmp_path, PATHS, vectors), PATHS)


def test_other_files_are_refused(tmp_path: Path) -> None:
    gone = Config().with_settings(["encode.external=idt:/nowhere/x.parquet"])
    with pytest.raises(ConfigError, match=r"/nowhere/x.parquet: no such file"):
        external.sources(gone, PATHS)
    (tmp_path / "x.parquet").write_bytes(b"no table")
    odd = Config().with_settings([f"encode.external=idt:{tmp_path}/x.parquet"])
    with pytest.raises(ConfigError, match=r"x.parquet: cannot read it \(ArrowInvalid"):
        external.sources(odd, PATHS)
    pq.write_table(pa.table({"path": PATHS, "values": VECTORS}), tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match=r"expected columns path and vector, got path,values; ve"):
        external.sources(odd, PATHS)


@pytest.mark.parametrize("entry", ["idt", "i-dt:a.parquet", "vlad:a.parquet", "x:a,x:b"])
def test_wrong_names_are_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"encode.external"):
        Config().with_settings([f"encode.external={entry}"])
