import pytest
import torch

from encoders.codebooks.gmm import Gmm
from encoders.codebooks.sample import FitSample
from encoders.descriptors.streams import KINDS
from encoders.encodings.base import Encoder
from encoders.encodings.bilinear import Bilinear
from encoders.encodings.gmm_fisher import GmmFisher
from encoders.encodings.pooling import Average, Concatenation, GlobalActivation
from encoders.encodings.vlad import Vlad
from encoders.fv_vae.encoder import FvVae
from encoders.registry import ENCODERS, fit_encoder
from encoders.settings import AveSettings, EncoderSettings

C, POSITIONS = 512, 49


def fitted(encoder: type[Encoder], cells: int, width: int) -> Encoder:
    frames = torch.zeros(2, cells, width)
    sample = FitSample(frames=frames, video=torch.tensor([0, 1]))
    return encoder.fit(sample, EncoderSettings(), "none")


def gmm_fv() -> Encoder:
    ones = torch.ones(128, C, dtype=torch.float64)
    return GmmFisher(Gmm(ones[:, 0] / 128, ones, ones))


def fv_vae() -> Encoder:
    layers = {"encoder.0": (C, C), "encoder.1": (255, C), "decoder": (C, 255)}
    weights = {f"{name}.weight": torch.zeros(shape) for name, shape in layers.items()}
    weights |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in layers.items()}
    return FvVae(weights | {"var_x": torch.ones(C)})


@pytest.mark.parametrize(
    ("encoder", "length"),
    [
        (fitted(GlobalActivation, 1, 4096), 4096),
        (fitted(Concatenation, POSITIONS, C), 25_088),
        (fitted(Average, POSITIONS, C), 512),
        (gmm_fv(), 131_072),
        (Vlad(torch.eye(256, C)), 131_072),
        (Bilinear(C), 262_144),
        (fv_vae(), 131_072),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_lengths_are_those_of_the_published_comparison(encoder: Encoder, length: int) -> None:
    """DQ Table 2: pool5 and fc7 of VGG-19."""
    assert encoder.output_dim == length
    assert encoder.encode(torch.ones(3, encoder.descriptor_dim)).shape == (length,)


def frames(num_frames: int = 6, cells: int = 4, width: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_frames, cells, width, generator=generator)


def test_average_is_that_of_all_positions_of_all_frames() -> None:
    x = frames()
    vector = fitted(Average, 4, 3).encode(x.flatten(0, 1))
    expected = sum(x[f, t].double() for f in range(6) for t in range(4)) / 24
    torch.testing.assert_close(vector.double(), expected, rtol=0, atol=1e-7)


def test_concatenation_keeps_positions_apart_and_averages_frames() -> None:
    x = frames()
    vector = fitted(Concatenation, 4, 3).encode(x.flatten(1))
    for t in range(4):
        expected = sum(x[f, t].double() for f in range(6)) / 6
        place = vector[3 * t : 3 * t + 3].double()
        torch.testing.assert_close(place, expected, rtol=0, atol=1e-7)


def test_the_sum_is_in_float64() -> None:
    x = torch.tensor([[2.0**24], [1.0], [1.0]])
    assert fitted(Average, 1, 1).encode(x).item() == pytest.approx((2**24 + 2) / 3, rel=1e-7)
    assert fitted(Average, 1, 1).accumulate(x).sums.item() == 2**24 + 2


def test_encoders_read_kinds_of_stream_that_exist() -> None:
    assert all(encoder.reads and encoder.reads <= set(KINDS) for encoder in ENCODERS.values())
    assert {name for name, encoder in ENCODERS.items() if encoder.per_frame} == {"concat"}
    assert {name for name, encoder in ENCODERS.items() if "global" in encoder.reads} == {"ga"}


LEARNS_NOTHING = [name for name, kind in ENCODERS.items() if not kind.learns]
AVES = [AveSettings(), AveSettings(levels=(1,)), AveSettings(per_level=True)]


@pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, EncoderSettings()) for name in LEARNS_NOTHING), *(("ave", ave) for ave in AVES)],
)
def test_the_shape_of_the_descriptors_makes_an_encoder_that_learns_nothing(
    name: str, settings: EncoderSettings
) -> None:
    """So that no sample is drawn for it, and no training started."""

    def made(num_frames: int) -> dict[str, bytes]:
        frames = torch.rand(num_frames, 5, 3)
        video = torch.zeros(num_frames, dtype=torch.int64)
        sample = FitSample(frames=frames, video=video, levels=(2, 1))
        return fit_encoder(name, sample, settings, "l2").files()

    assert made(0) == made(4)
