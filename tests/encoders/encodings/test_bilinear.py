import numpy as np
import pytest
import torch
from torch import Tensor

from encoders.codebooks.chunks import CHUNK_DESCRIPTORS
from encoders.codebooks.pca import BLOCK_COLUMNS, fit_pca
from encoders.codebooks.sample import FitSample
from encoders.encodings.bilinear import Bilinear
from encoders.encodings.random_maps import SKETCHES, RandomMaclaurin
from encoders.registry import encoder_from_bytes
from encoders.settings import BilinearSettings
from tests.encoders import oracles
from tests.encoders.encodings.test_contract import assert_same

C = 5
FORMS = ("full", "upper", *SKETCHES)


def descriptors(num_rows: int, width: int = C, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, width, generator=generator, dtype=torch.float64)


def example(form: str, width: int = C, num_features: int = 7) -> Bilinear:
    drawn = SKETCHES[form].draw(width, num_features, seed=1) if form in SKETCHES else form
    return Bilinear(width, drawn, normalisation="none")


def test_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]])  # x x^T: [1 2; 2 4] and [9 -3; -3 1]
    assert Bilinear(2, normalisation="none").encode(x).tolist() == [5, -0.5, -0.5, 2.5]
    upper = Bilinear(2, "upper", normalisation="none").encode(x)
    np.testing.assert_allclose(upper, [5, -0.5 * np.sqrt(2), 2.5], rtol=1e-7)


@pytest.mark.parametrize("form", ["full", "upper"])
def test_inner_product_is_the_sum_of_squared_products(form: str) -> None:
    x, y = descriptors(9), descriptors(4, seed=1)
    encoder = example(form)
    product = encoder.encode(x).double() @ encoder.encode(y).double() * len(x) * len(y)
    expected = oracles.sum_of_squared_products(x.numpy(), y.numpy())
    assert float(product) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_of_channels_and_descriptors(dtype: torch.dtype) -> None:
    width, num_rows = 2 * BLOCK_COLUMNS + 3, CHUNK_DESCRIPTORS + 5
    x = descriptors(num_rows, width).to(dtype)
    vector = example("full", width).encode(x).view(width, width)
    expected = torch.einsum("ni,nj->ij", x.double(), x.double()) / num_rows
    assert torch.equal(vector, vector.T)
    torch.testing.assert_close(vector.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", SKETCHES)
def test_a_sketch_is_the_mean_of_those_of_the_descriptors(form: str) -> None:
    encoder, x = example(form), descriptors(6)
    tensors = {key: value.numpy() for key, value in encoder.tensors().items()}
    if form == "tensor_sketch":
        total = oracles.tensor_sketch(**tensors, num_features=7, x=x.numpy())
    else:
        total = oracles.random_maclaurin(**tensors, x=x.numpy())
    np.testing.assert_allclose(encoder.encode(x), total / len(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", SKETCHES)
def test_many_features_come_near_full_pooling(form: str) -> None:
    x, y = descriptors(9), descriptors(4, seed=1)
    sketch = example(form, num_features=20_000)
    full = example("full")
    expected = float(full.encode(x) @ full.encode(y))
    assert float(sketch.encode(x) @ sketch.encode(y)) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("form", "length"), [*zip(FORMS, (25, 15, 7, 7), strict=True)])
def test_a_form_has_its_length_and_stays_in_its_file(form: str, length: int) -> None:
    encoder, x = example(form), descriptors(8)
    again = encoder_from_bytes(encoder.to_bytes())
    assert encoder.encode(x).shape == (encoder.output_dim,) == (length,)
    assert_same(again, encoder)
    assert torch.equal(again.encode(x), encoder.encode(x))


def test_after_a_pca_the_descriptor_is_as_wide_as_before() -> None:
    wide = descriptors(40, 2 * C)
    pca = fit_pca(wide, C, whiten=True)
    encoder = Bilinear(C, pca=pca)
    assert (encoder.descriptor_dim, encoder.output_dim) == (2 * C, C * C)
    torch.testing.assert_close(encoder.encode(wide), Bilinear(C).encode(pca.transform(wide)))


def test_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bilinear: expected a form .*, got 'triangle'"):
        Bilinear(C, "triangle")


@pytest.mark.parametrize(
    "settings",
    [
        BilinearSettings(form="upper"),
        BilinearSettings(form="tensor_sketch", num_features=9),
        BilinearSettings(form="full", pca_components=3, pca_whiten=True),
        BilinearSettings(form="random_maclaurin", num_features=6, pca_components=2),
    ],
)
def test_fit_makes_what_the_settings_say_on_every_worker(settings: BilinearSettings) -> None:
    frames = descriptors(40).view(8, 5, C)

    def work(rank, all_reduce):
        share = frames.tensor_split(2)[rank]
        sample = FitSample(
            frames=share,
            video=torch.full((len(share),), rank),
            seed=11,
            rank=rank,
            world_size=2,
            all_reduce=all_reduce,
        )
        return Bilinear.fit(sample, settings, "l2")

    first, second = oracles.run_workers(2, work)
    assert_same(first, second)
    assert (first.normalisation, first.descriptor_dim) == ("l2", C)
    width = settings.pca_components or C
    lengths = {"full": width**2, "upper": width * (width + 1) // 2}
    assert first.output_dim == lengths.get(settings.form, settings.num_features)
    if settings.form in SKETCHES:
        drawn = SKETCHES[settings.form].draw(width, settings.num_features, seed=11)
        assert torch.equal(first.form.signs, drawn.signs)
    if settings.pca_whiten:
        mean_of_squares = Bilinear(3, pca=first.pca, normalisation="none").encode(
            frames.flatten(0, 1)
        )
        expected = 39 / 40 * torch.eye(3)  # the variance is over n - 1
        torch.testing.assert_close(mean_of_squares.view(3, 3), expected, rtol=0, atol=1e-5)


def test_signs_take_a_byte_each() -> None:
    assert example("random_maclaurin").form.signs.dtype == torch.int8
    assert isinstance(
        encoder_from_bytes(example("random_maclaurin").to_bytes()).form, RandomMaclaurin
    )
