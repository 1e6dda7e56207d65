"""Recipes of images give the streams and vectors of the papers."""

import pytest

from encoders.stream_specs import Scale
from pipelines.describe.stage import described_streams
from pipelines.settings.recipes import recipe


def test_cub_has_784_rows_of_vgg19() -> None:
    [stream] = described_streams(recipe("cub")).values()
    assert stream.scales == (Scale(448, 784, 28, 28),)
    assert (stream.width, stream.cells) == (512, 784)


@pytest.mark.parametrize("name", ["voc2007", "indoor67", "flowers102"])
def test_fk_has_4410_rows_of_128_values(name: str) -> None:
    config = recipe(name)
    [stream] = described_streams(config).values()
    # FK Table 1.
    assert [scale.rows for scale in stream.scales] == [1, 9, 64, 196, 484, 1156, 2500]
    assert (stream.cells, stream.width, stream.raw_width) == (4410, 128, 4096)
    assert config.variant("gmm_fv@scales=mpp").settings.num_components == 256
