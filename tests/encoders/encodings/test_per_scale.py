import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from encoders.codebooks.gmm import Gmm
from encoders.codebooks.sample import FitSample
from encoders.encodings.base import Encoder
from encoders.encodings.gmm_fisher import GmmFisher
from encoders.encodings.per_scale import POOLINGS, PerScale
from encoders.encodings.pooling import Average
from encoders.registry import fit_encoder
from encoders.settings import AveSettings, GmmFvSettings, VladSettings
from encoders.stream_specs import Scale
from tests.encoders import oracles
from tests.encoders.encodings.test_contract import REGISTERED
from tests.encoders.encodings.test_contract import C as WIDTH

C = 3
SHAPES = ((3, 2), (4, 5), (7, 6))


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def mixture() -> Gmm:
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    return Gmm(weights, random(2, C, seed=1), 0.4 + random(2, C, seed=2).square())


def maps(shapes: tuple[tuple[int, int], ...] = SHAPES) -> list[Tensor]:
    """[h, w, C] of each scale; the scales differ in how long their encodings are."""
    return [(1 + 3 * s) * random(*shape, C, seed=s) for s, shape in enumerate(shapes)]


def scales(shapes: tuple[tuple[int, int], ...] = SHAPES) -> list[Scale]:
    return [Scale(100 + s, h * w, h, w) for s, (h, w) in enumerate(shapes)]


def frame(position_maps: list[Tensor]) -> Tensor:
    """The descriptor [1, T C] of a frame: all rows of all scales."""
    return torch.cat([position_map.flatten() for position_map in position_maps])[None]


def fisher(pooling: str, *, regions: bool = False, **changed: object) -> PerScale:
    part, normalisation = GmmFisher(mixture(), normalisation="none"), "signed_sqrt_l2"
    given = {"regions": regions, "normalisation": normalisation}
    return PerScale(part, scales(), pooling, **given | changed)


def fisher_vector(rows: list[np.ndarray]) -> np.ndarray:
    return oracles.fisher_vector(*(t.numpy() for t in vars(mixture()).values()), np.array(rows))


def finish(vector: np.ndarray) -> np.ndarray:
    """Power and L2 normalisation."""
    vector = np.sign(vector) * np.sqrt(np.abs(vector))
    return vector / math.sqrt((vector**2).sum())


@pytest.mark.parametrize("pooling", POOLINGS)
def test_equals_the_equations(pooling: str) -> None:
    rows = [position_map.flatten(0, 1).numpy() for position_map in maps()]
    expected = finish(oracles.multi_scale(fisher_vector, rows, pooling))
    np.testing.assert_allclose(fisher(pooling).encode(frame(maps())), expected, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_states_of_segments_add_up_scale_by_scale(pooling: str) -> None:
    """A video of two frames, described in two segments: the equations of all its rows."""
    first, second = maps(), [2 * position_map.flip(0) for position_map in maps()]
    encoder = fisher(pooling)
    merged = encoder.accumulate(frame(first)) + encoder.accumulate(frame(second))
    assert merged.sums.shape[:2] == (3, 1)
    rows = [
        np.concatenate([a.flatten(0, 1).numpy(), b.flatten(0, 1).numpy()])
        for a, b in zip(first, second, strict=True)
    ]
    expected = finish(oracles.multi_scale(fisher_vector, rows, pooling))
    np.testing.assert_allclose(encoder.finalise(merged), expected, atol=1e-6)


def region_rows(position_map: np.ndarray, region: int) -> list[np.ndarray]:
    """The descriptors whose centre is in the region: 0 whole, 1 top third, 2 middle, 3 bottom."""
    height, width, _ = position_map.shape
    return [
        position_map[r, c]
        for r in range(height)
        for c in range(width)
        if region == 0 or (region - 1) / 3 <= (r + 0.5) / height < region / 3
    ]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_regions_equal_the_equations(pooling: str) -> None:
    encoder = fisher(pooling, regions=True)
    parts = []
    for region in range(4):
        rows = [region_rows(position_map.numpy(), region) for position_map in maps()]
        parts.append(finish(oracles.multi_scale(fisher_vector, rows, pooling)))
    vector = encoder.encode(frame(maps()))
    assert len(vector) == encoder.output_dim
    np.testing.assert_allclose(vector, np.concatenate(parts) / 2, atol=1e-6)


@pytest.mark.parametrize("height", range(1, 12))
def test_every_row_is_in_the_third_of_its_centre(height: int) -> None:
    """One-hot rows, averaged: what is not zero shows who is in a region."""
    sizes = [Scale(1, height, height, 1)]
    encoder = PerScale(Average(height, "none"), sizes, "mpp", regions=True, normalisation="l2")
    members = encoder.encode(torch.eye(height).flatten()[None]).view(4, height) > 0
    for row in range(height):
        third = next(i for i in (1, 2, 3) if 3 * (2 * row + 1) < 2 * height * i)
        assert members[:, row].tolist() == [True, third == 1, third == 2, third == 3]


def test_each_scale_counts_alike_by_mpp_and_by_its_descriptors_in_nfk() -> None:
    x = torch.tensor([[1.0, 0, 0, 5, 0, 5, 0, 5]])
    average, sizes = Average(2, "none"), [Scale(1, 1), Scale(2, 3)]
    assert PerScale(average, sizes, "mpp").encode(x).tolist() == [0.5, 0.5]
    assert PerScale(average, sizes, "nfk").encode(x).tolist() == [0.25, 3.75]
    assert PerScale(average, sizes, "csf").encode(x).tolist() == [1, 0, 0, 1]


def unnormalised(encoder: Encoder) -> Encoder:
    return encoder.rebuilt(encoder.tensors(), encoder.settings() | {"normalisation": "none"})


@pytest.mark.parametrize("make", REGISTERED.values(), ids=REGISTERED)
def test_one_scale_or_equal_ones_are_the_plain_encoding(make: Callable[[], Encoder]) -> None:
    encoder, x = make(), random(20, WIDTH).abs()
    one, last = [Scale(7, 20)], encoder.normalisation
    for pooling in POOLINGS:
        alone = PerScale(unnormalised(encoder), one, pooling, normalisation=last)
        torch.testing.assert_close(
            alone.encode(x.flatten()[None]), encoder.encode(x), rtol=0, atol=1e-5
        )
    twice = PerScale(unnormalised(encoder), [*one, Scale(8, 20)], "mpp", normalisation=last)
    torch.testing.assert_close(
        twice.encode(x.flatten().repeat(2)[None]), encoder.encode(x), rtol=0, atol=1e-5
    )


def test_one_codebook_is_fitted_on_all_rows_of_the_sides_that_are_read() -> None:
    sizes = (Scale(10, 4, 2, 2), Scale(20, 9, 3, 3))
    frames = torch.cat([torch.rand(8, 4, C), 5 + torch.rand(8, 9, C)], 1)
    sample = FitSample(frames=frames, video=torch.arange(8), scales=sizes)
    settings = VladSettings(num_centroids=2)
    both = fit_encoder("vlad", sample, replace(settings, scales="mpp"), "signed_sqrt_l2")
    low, high = sorted(both.part.tensors()["centroids"].mean(1).tolist())
    assert low < 1
    assert high > 5
    one = fit_encoder("vlad", sample, replace(settings, sides=(20,)), "signed_sqrt_l2")
    assert float(one.part.tensors()["centroids"].min()) > 5
    plain = fit_encoder(
        "vlad",
        replace(sample, frames=frames[:, 4:].contiguous(), scales=()),
        settings,
        "signed_sqrt_l2",
    )
    x = frames[:3]
    torch.testing.assert_close(
        one.encode(x.flatten(1)), plain.encode(x[:, 4:].flatten(0, 1)), rtol=0, atol=1e-6
    )


def test_a_map_of_one_row_is_middle_alone() -> None:
    sizes = [Scale(1, 4, 1, 4)]
    part = GmmFisher(mixture(), normalisation="none")
    encoder = PerScale(part, sizes, "mpp", regions=True, normalisation="l2")
    regions = encoder.encode(random(1, 12)).view(4, -1)
    assert regions.any(1).tolist() == [True, False, True, False]
    assert torch.equal(regions[0], regions[2])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scales: expected one of .*, got 'max'"):
        PerScale(Average(C), scales(), "max")
    with pytest.raises(ValueError, match=r"sides: expected some of .* \[100, 101, 102\], got \[7"):
        PerScale(Average(C), scales(), "mpp", sides=(7,))
    with pytest.raises(ValueError, match=r"regions: expected a stream of positions"):
        PerScale(Average(C), [Scale(1, 5)], "mpp", regions=True)
    with pytest.raises(ValueError, match=r"expected some of picture\.scales"):
        PerScale(Average(C), [], "mpp")


def test_settings_say_when_scales_are_told_apart() -> None:
    assert not GmmFvSettings().is_scaled
    for changed in ({"scales": "nfk"}, {"sides": (224,)}, {"regions": True}):
        assert AveSettings(**changed).is_scaled


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_row_alone_is_a_picture_with_nothing_else(pooling: str) -> None:
    """What FK 4.5 paints: the equations with but one row of one scale."""
    encoder, x = fisher(pooling), maps()[1].flatten(0, 1)
    found = encoder.encode_rows(x, 101, 0)
    for row, vector in zip(x, found, strict=True):
        alone = finish(fisher_vector([row.numpy()]))
        expected = alone
        if pooling == "csf":
            empty = np.zeros_like(alone)
            expected = np.concatenate([empty, alone, empty])
        np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_a_row_alone_is_in_the_whole_picture_and_in_its_third() -> None:
    encoder, x = fisher("mpp", regions=True), maps()[2].flatten(0, 1)
    found = encoder.encode_rows(x[12:30], 102, 12).view(18, 4, -1)
    alone = fisher("mpp").encode_rows(x[12:30], 102, 12) / math.sqrt(2)
    for place, (regions, vector) in enumerate(zip(found, alone, strict=True)):
        third = 3 * (2 * ((12 + place) // 6) + 1) // 14
        for region in range(4):
            held = vector if region in (0, 1 + third) else 0 * vector
            torch.testing.assert_close(regions[region], held, rtol=0, atol=1e-6)


def test_a_picture_of_one_row_is_that_row() -> None:
    part = GmmFisher(mixture(), normalisation="none")
    encoder = PerScale(part, [Scale(227, 1, 1, 1)], "mpp", normalisation="signed_sqrt_l2")
    x = random(1, C)
    torch.testing.assert_close(
        encoder.encode_rows(x, 227, 0), encoder.encode(x)[None], rtol=0, atol=1e-6
    )
