"""Several sizes of a picture in one run: rows of all scales, smallest first; images and films."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from encoders.backbones import load
from encoders.codebooks.pca import fit_pca_of_parts
from encoders.codebooks.sample import FitSample
from encoders.encodings.per_scale import PerScale
from encoders.registry import encoder_from_bytes, fit_encoder
from encoders.stream_specs import Scale
from encoders.tensor_files import save_tensors
from pipelines.cluster.meter import SILENT
from pipelines.describe.projection import DescribeRows, unprojected
from pipelines.describe.segments import stored_frames
from pipelines.describe.stage import DescribeFrames, described_streams
from pipelines.errors import ConfigError
from pipelines.settings.config import Config
from pipelines.settings.sections import Decode
from pipelines.storage.columns import descriptors_from_arrow
from pipelines.storage.ranges import Traffic
from pipelines.video.stages import DecodeSegments

BASE = (
    "describe.backbone=squeezenet1_0",
    "describe.nodes=features.5",
    "describe.streams=dense,difference",
    "describe.spp_levels=2,1",
    "describe.weights=random:0",
    "sampling.policy=uniform",
    "sampling.num_frames=3",
    "picture.views=mirror",
)
WEIGHTS = load.random_filters("squeezenet1_0", 0)
SIDES = (48, 64)


def config(*settings: str) -> Config:
    return Config().with_settings([*BASE, *settings])


SCALED = config("picture.scales=48,64")
DENSE, DIFFERENCE = described_streams(SCALED).values()


class Here:
    """Calls without a child of their own, which takes seconds to start."""

    def call(self, function: Callable, *args: object, patience: float = 1.0) -> object:
        return function(*args)

    def taken(self) -> Traffic:
        return Traffic()


def described(
    file: Path, of: Config, projection: Callable[[], bytes] | None = None
) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """The row of a file, and {stream: its rows [f, V T, C]}."""
    row = {"segment_id": "a#0", "video_id": "a", "segment": 0, "source": "1", "uri": str(file)}
    row |= {"num_segments": 1, "status": "ok"}
    decode = DecodeSegments(of.sampling, of.picture, Decode(), windows=of.describe.windows)
    decode.decoder = Here()
    frames = pa.concat_tables(decode(pa.Table.from_pylist([row])))
    streams = described_streams(of)
    stage = DescribeFrames(lambda: WEIGHTS, of, streams, num_threads=1, projection=projection)
    table = stage(frames)
    return table, {name: stored_frames(table, stream) for name, stream in streams.items()}


@pytest.fixture(scope="module")
def film(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An animation: films are resized by FFmpeg where one size is asked for, these by Pillow."""
    shown = np.random.default_rng(0).integers(0, 255, (3, 60, 90, 3), np.uint8)
    first, *others = map(Image.fromarray, shown)
    file = tmp_path_factory.mktemp("film") / "a.png"
    first.save(file, save_all=True, append_images=others, duration=40)
    return file


def test_a_stream_knows_how_many_rows_each_scale_has() -> None:
    assert DENSE.scales == (Scale(48, 100, 10, 10), Scale(64, 196, 14, 14))
    assert (DENSE.cells, DENSE.views, DENSE.num_descriptors) == (296, 2, 592)
    assert DIFFERENCE.scales == (Scale(48, 5), Scale(64, 5))
    assert DENSE.spans == [slice(0, 100), slice(100, 296)]


def test_rows_are_those_of_runs_at_each_size(film: Path) -> None:
    table, rows = described(film, SCALED)
    assert table["status"].to_pylist() == ["ok"]
    assert table["num_frames"].to_pylist() == [3]
    for name, stream in described_streams(SCALED).items():
        views = rows[name].reshape(-1, 2, stream.cells, stream.width)
        assert len(views) == (2 if stream is not DENSE and "difference" in name else 3)
        for side, span in zip(SIDES, stream.spans, strict=True):
            alone = config(f"picture.resize_px={side}", f"picture.crop_px={side}")
            _, expected = described(film, alone)
            assert np.array_equal(
                views[:, :, span].reshape(len(views), -1, stream.width), expected[name]
            )


def test_a_real_film_has_all_scales(data: Path) -> None:
    _, rows = described(data / "clips" / "arm_wrestling.mp4", SCALED)
    assert rows[DENSE.name].shape == (3, 592, 256)
    assert rows[DIFFERENCE.name].shape == (2, 20, 512)
    assert np.isfinite(rows[DENSE.name]).all()
    alone = config("picture.resize_px=64", "picture.crop_px=64")
    _, expected = described(data / "clips" / "arm_wrestling.mp4", alone)
    near = rows[DENSE.name].reshape(3, 2, 296, 256)[:, :, 100:].reshape(3, 392, 256)
    difference = np.abs(near.astype(np.float32) - expected[DENSE.name]).mean()
    # FFmpeg resizes chroma by itself where one size is asked for.
    assert difference < 0.1 * np.abs(expected[DENSE.name].astype(np.float32)).mean()


def test_an_encoder_pools_the_scales_of_views_and_frames(film: Path) -> None:
    _, rows = described(film, SCALED)
    x = torch.from_numpy(rows[DENSE.name].copy()).float()
    frames = x.view(-1, 296, 256)
    sample = FitSample(
        frames=frames, video=torch.arange(3).repeat_interleave(2), scales=DENSE.scales
    )
    of = SCALED.variant("ave@scales=mpp:normalisation=l2")
    encoder = encoder_from_bytes(
        fit_encoder(of.base, sample, of.settings, of.normalisation).to_bytes()
    )
    assert isinstance(encoder, PerScale)
    vector = encoder.encode(x.reshape(-1, encoder.descriptor_dim))
    means = [frames[:, span].flatten(0, 1).mean(0) for span in DENSE.spans]
    expected = sum(mean / mean.norm() for mean in means)
    torch.testing.assert_close(vector, expected / expected.norm(), rtol=0, atol=1e-5)


def test_what_several_sizes_do_not_go_with_is_refused() -> None:
    for settings, message in (
        (("picture.scales=64,48",), "sides in px, ascending"),
        (("picture.scales=48,64", "picture.views=ten"), "centre or mirror where picture.scales"),
        (("picture.scales=48,64", "describe.streams=flow"), "none where describe.streams has flow"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(*settings)
    with pytest.raises(ConfigError, match=r"picture.scales|px"):
        described_streams(config("picture.scales=4,64"))


def test_rows_are_projected_before_they_are_stored(film: Path) -> None:
    of = config("picture.scales=48,64", "describe.pca_components=8")
    streams = described_streams(of)
    assert {(s.width, s.raw_width) for s in streams.values()} == {(8, 256), (8, 512)}
    _, raw = described(film, SCALED)
    pcas = {
        n: fit_pca_of_parts([torch.from_numpy(raw[n].copy()).flatten(0, 1)], 8) for n in streams
    }
    named = {f"{n}/{key}": t for n, pca in pcas.items() for key, t in pca.tensors().items()}
    _, rows = described(film, of, lambda: save_tensors(named, "projection", {}))
    for name, pca in pcas.items():
        expected = pca.transform(torch.from_numpy(raw[name].copy()).float())
        # The stored raw rows were rounded to half precision.
        assert float((torch.from_numpy(rows[name].copy()).float() - expected).abs().max()) < 0.01
    with pytest.raises(ConfigError, match=r"expected the projection of the run"):
        described(film, of)
    with pytest.raises(ConfigError, match=r"pca_components: expected at most the 256 values"):
        described_streams(config("describe.pca_components=257"))


def test_the_first_pass_keeps_some_rows_of_each_segment(film: Path) -> None:
    of = config("picture.scales=48,64", "describe.pca_components=8")
    whole, raw = described(film, SCALED)
    stage = DescribeRows(lambda: WEIGHTS, of, unprojected(described_streams(of)), 1, SILENT)
    stage.describe = lambda _: whole
    kept = {
        name: descriptors_from_arrow(stage(whole)[name][0])
        for name in (DENSE.name, DIFFERENCE.name)
    }
    assert kept[DENSE.name].shape == (256, 256)
    every = {row.tobytes() for row in raw[DENSE.name].reshape(-1, 256)}
    assert all(row.tobytes() in every for row in kept[DENSE.name])
    assert np.array_equal(kept[DIFFERENCE.name], raw[DIFFERENCE.name].reshape(-1, 512))
    again = descriptors_from_arrow(stage(whole)[DENSE.name][0])
    assert np.array_equal(again, kept[DENSE.name])
