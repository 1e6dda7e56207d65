"""What holds of every encoder: a new entry of ENCODERS has all of it checked.

It is fitted with its default settings, if REGISTERED has no small example of it.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from encoders.codebooks.gmm import Gmm
from encoders.codebooks.pca import fit_pca
from encoders.codebooks.sample import FitSample
from encoders.encodings.base import Encoder
from encoders.encodings.bilinear import Bilinear
from encoders.encodings.gmm_fisher import GmmFisher
from encoders.encodings.per_scale import PerScale
from encoders.encodings.pooling import Average, Concatenation, GlobalActivation
from encoders.encodings.random_maps import TensorSketch
from encoders.encodings.spatial import Spatial
from encoders.encodings.vlad import Vlad
from encoders.fv_vae.encoder import FvVae
from encoders.fv_vae.information import KroneckerInformation
from encoders.registry import ENCODERS, encoder_from_bytes, fit_encoder
from encoders.settings import (
    AveSettings,
    BilinearSettings,
    FvVaeSettings,
    GmmFvSettings,
    PyramidSettings,
    VladSettings,
)
from encoders.stream_specs import Scale
from pipelines.settings.config import Config

C, N = 6, 37


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def average() -> Encoder:
    return Average(C)


def bilinear() -> Encoder:
    pca = fit_pca(random(40, C, seed=1), 4, whiten=True)
    return Bilinear(4, TensorSketch.draw(4, 7, seed=2), pca)


def concat() -> Encoder:
    return Concatenation(C)


def ga() -> Encoder:
    return GlobalActivation(C)


def fv_vae() -> Encoder:
    weights = {
        "encoder.0.weight": random(5, C, seed=5),
        "encoder.0.bias": random(5, seed=6),
        "encoder.1.weight": random(3, 5, seed=7),
        "encoder.1.bias": random(3, seed=8),
        "decoder.weight": random(C, 3, seed=9),
        "decoder.bias": random(C, seed=10),
        "var_x": 0.5 + random(C, seed=11).square(),
    }
    a, b = (random(9, size, seed=size) for size in (C, 4))
    return FvVae(weights, KroneckerInformation(a.T @ a, b.T @ b, damping=0.1))


def gmm_fv() -> Encoder:
    pca = fit_pca(random(40, C, seed=1), 4, whiten=True)
    variances = 0.4 + random(3, 4, seed=2).square()
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    return GmmFisher(Gmm(weights, random(3, 4, seed=3), variances), pca)


def vlad() -> Encoder:
    pca = fit_pca(random(40, C, seed=1), 4)
    return Vlad(random(5, 4, seed=4).float(), pca, intra=True)


@functools.cache
def fitted(name: str) -> Encoder:
    """Return the encoder with its default settings, fitted on a small sample."""
    generator = torch.Generator().manual_seed(4)
    frames = torch.rand(12, 5, C, generator=generator)
    sample = FitSample(frames=frames, video=torch.arange(4).repeat_interleave(3))
    return fit_encoder(name, sample, Config().variant(name).settings, "signed_sqrt_l2")


REGISTERED: dict[str, Callable[[], Encoder]] = {
    name: functools.partial(fitted, name) for name in ENCODERS
} | {
    "ave": average,
    "bilinear": bilinear,
    "concat": concat,
    "fv_vae": fv_vae,
    "ga": ga,
    "gmm_fv": gmm_fv,
    "vlad": vlad,
}

ON_PYRAMIDS: dict[str, PyramidSettings] = {
    "ave": AveSettings(),
    "bilinear": BilinearSettings(form="upper"),
    "fv_vae": FvVaeSettings(
        num_latents=3, hidden=(), num_steps=3, optimiser="adam", learning_rate=0.01
    ),
    "gmm_fv": GmmFvSettings(num_components=3, max_iterations=3),
    "vlad": VladSettings(num_centroids=4, intra=True),
}
"""Encoders whose settings are `PyramidSettings`: each may use levels, and those with
`SpatialSettings` places."""

SWITCHES = {
    "places": {"position_weight": 0.5},
    "levels": {"per_level": True},
    "one level": {"levels": (1,)},
    "both": {"position_weight": 0.5, "per_level": True, "pca_components": 2},
}
LEVELS, NUM_CELLS = (2, 1), 5


@functools.cache
def spatial(name: str, switch: str) -> Encoder:
    """Fitted on frames of two views, without what is stored in other files."""
    generator = torch.Generator().manual_seed(3)
    sample = FitSample(
        frames=torch.rand(12, 2 * NUM_CELLS, 3, generator=generator),
        video=torch.arange(4).repeat_interleave(3),
        levels=LEVELS,
    )
    settings = replace(ON_PYRAMIDS[name], **SWITCHES[switch])
    return fit_encoder(name, sample, settings, "signed_sqrt_l2")


SCALES = (Scale(8, 2, 2, 1), Scale(16, 12, 4, 3))
SCALED = {
    "mpp": {"scales": "mpp", "regions": True},
    "csf": {"scales": "csf"},
    "one": {"sides": (16,)},
}


@functools.cache
def scaled(name: str, switch: str) -> Encoder:
    """Fitted on frames of two sizes, without what is stored in other files."""
    frames = torch.rand(12, 14, 3, generator=torch.Generator().manual_seed(3))
    video = torch.arange(4).repeat_interleave(3)
    sample = FitSample(frames=frames, video=video, scales=SCALES)
    settings = replace(ON_PYRAMIDS[name], **SCALED[switch])
    return fit_encoder(name, sample, settings, "signed_sqrt_l2")


EXAMPLES = (
    REGISTERED
    | {
        f"{name} by {switch}": functools.partial(scaled, name, switch)
        for name, switch in [
            *((name, "mpp") for name in ON_PYRAMIDS),
            ("vlad", "csf"),
            ("vlad", "one"),
        ]
    }
    | {
        f"{name} with {switch}": functools.partial(spatial, name, switch)
        for name, own in ON_PYRAMIDS.items()
        for switch, changes in SWITCHES.items()
        if changes.keys() <= vars(own).keys()
    }
)

pytestmark = pytest.mark.parametrize("name", EXAMPLES)
repeatable = settings(derandomize="CI" in os.environ, deadline=None, max_examples=25)


def descriptors(encoder: Encoder, seed: int = 0) -> Tensor:
    return random(N, encoder.descriptor_dim, seed=seed).abs()


def assert_same(encoder: Encoder, other: Encoder) -> None:
    """The same class, settings and tensors, bit for bit."""
    assert type(encoder) is type(other)
    assert encoder.settings() == other.settings()
    assert encoder.tensors().keys() == other.tensors().keys()
    for key, tensor in encoder.tensors().items():
        assert tensor.dtype == other.tensors()[key].dtype
        assert torch.equal(tensor, other.tensors()[key])


def assert_same_sums(sums: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(sums, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


def test_examples_cover_the_registry(name: str) -> None:
    sections = vars(Config()).items()
    assert {key for key, own in sections if isinstance(own, PyramidSettings)} == ON_PYRAMIDS.keys()
    base = name.partition(" ")[0]
    encoder = EXAMPLES[name]()
    part = encoder.parts[0] if isinstance(encoder, Spatial) else encoder
    part = encoder.part if isinstance(encoder, PerScale) else part
    assert type(part) is ENCODERS[base]
    assert isinstance(encoder, Spatial) == (" with " in name)
    assert isinstance(encoder, PerScale) == (" by " in name)
    assert ENCODERS[base].name == base


def test_declared_widths_hold(name: str) -> None:
    encoder = EXAMPLES[name]()
    state = encoder.accumulate(descriptors(encoder))
    vector = encoder.finalise(state)
    widths = {Spatial: 30, PerScale: 42}
    assert encoder.descriptor_dim == widths.get(type(encoder), C)
    assert (vector.shape, vector.dtype) == ((encoder.output_dim,), torch.float32)
    assert (state.count, state.sums.dtype) == (N, torch.float64)
    assert vector.isfinite().all()
    assert float(vector.norm()) == pytest.approx(1, abs=1e-6)


@repeatable
@given(cuts=st.lists(st.integers(0, N), max_size=4))
def test_states_of_any_parts_add_up_to_the_whole(name: str, cuts: list[int]) -> None:
    encoder = EXAMPLES[name]()
    x = descriptors(encoder)
    parts = [encoder.accumulate(part) for part in x.tensor_split(sorted(cuts))]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    whole = encoder.accumulate(x)
    assert total.count == whole.count
    assert_same_sums(total.sums, whole.sums)
    torch.testing.assert_close(encoder.finalise(total), encoder.finalise(whole), rtol=0, atol=1e-6)


@repeatable
@given(order=st.permutations(range(N)))
def test_order_does_not_matter(name: str, order: list[int]) -> None:
    encoder = EXAMPLES[name]()
    x = descriptors(encoder)
    assert_same_sums(encoder.accumulate(x[order]).sums, encoder.accumulate(x).sums)


def test_no_descriptor_gives_zeros(name: str) -> None:
    encoder = EXAMPLES[name]()
    state = encoder.accumulate(torch.zeros(0, encoder.descriptor_dim))
    assert (state.count, state.sums.any().item()) == (0, False)
    assert state.sums.shape == encoder.accumulate(descriptors(encoder)).sums.shape
    assert torch.equal(encoder.finalise(state), torch.zeros(encoder.output_dim))


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_one_descriptor_gives_a_finite_vector(name: str, value: float) -> None:
    encoder = EXAMPLES[name]()
    assert encoder.encode(torch.full((1, encoder.descriptor_dim), value)).isfinite().all()


def test_the_set_twice_is_the_same_vector(name: str) -> None:
    encoder = EXAMPLES[name]()
    x = descriptors(encoder)
    torch.testing.assert_close(encoder.encode(x.repeat(2, 1)), encoder.encode(x), rtol=0, atol=1e-6)


def test_other_descriptors_give_another_vector(name: str) -> None:
    encoder = EXAMPLES[name]()
    difference = encoder.encode(descriptors(encoder)) - encoder.encode(descriptors(encoder, seed=1))
    assert difference.norm() > 1e-3


def test_input_and_encoder_stay_as_they_are(name: str) -> None:
    encoder = EXAMPLES[name]()
    x = descriptors(encoder)
    before = x.clone()
    encoder.encode(x)
    assert torch.equal(x, before)
    assert_same(encoder, EXAMPLES[name]())


def test_float32_is_near_float64(name: str) -> None:
    encoder = EXAMPLES[name]()
    x = descriptors(encoder).float()
    single, double = encoder.accumulate(x), encoder.accumulate(x.double())
    assert (single.sums - double.sums).norm() < 1e-6 * double.sums.norm()
    # The square root turns an error of e in a value near 0 into one of sqrt(e).
    assert (encoder.finalise(single) - encoder.finalise(double)).norm() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_as_float32(name: str, dtype: torch.dtype) -> None:
    encoder = EXAMPLES[name]()
    x = descriptors(encoder).to(dtype)
    torch.testing.assert_close(encoder.encode(x), encoder.encode(x.float()), rtol=0, atol=1e-6)


def test_a_strided_view_is_as_good_as_a_copy(name: str) -> None:
    encoder = EXAMPLES[name]()
    x = descriptors(encoder)
    view = x.T.contiguous().T
    assert not view.is_contiguous()
    torch.testing.assert_close(encoder.encode(view), encoder.encode(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes_round_trip_keeps_every_bit(name: str, dtype: torch.dtype) -> None:
    encoder = EXAMPLES[name]()
    x = descriptors(encoder).to(dtype)
    again = encoder_from_bytes(encoder.to_bytes())
    assert_same(again, encoder)
    assert torch.equal(again.encode(x), encoder.encode(x))


def test_same_input_same_bits(name: str) -> None:
    encoder = EXAMPLES[name]()
    x = descriptors(encoder)
    assert torch.equal(encoder.encode(x), EXAMPLES[name]().encode(x.clone()))


def test_descriptors_that_come_from_a_network_in_training_are_taken(name: str) -> None:
    encoder = EXAMPLES[name]()
    x = descriptors(encoder).float()
    vector = encoder.encode(x.clone().requires_grad_())
    assert torch.equal(vector, encoder.encode(x))
    assert not vector.requires_grad


@pytest.mark.parametrize("shape", [(3, 1), (0,), (2, 3, 0), (0, -1)])
def test_another_shape_is_refused(name: str, shape: tuple[int, ...]) -> None:
    """The last number is what is added to C."""
    encoder = EXAMPLES[name]()
    width = encoder.descriptor_dim
    with pytest.raises(
        ValueError,
        match=(
            rf"{encoder.name}: expected descriptors of shape \[n, {width}\], got \[.*\]; encode"
            r" with"
        ),
    ):
        encoder.accumulate(torch.zeros(*shape[:-1], width + shape[-1]))


@repeatable
@given(lengths=st.lists(st.integers(0, 9), max_size=6), most=st.sampled_from([1, 4, 2048]))
def test_a_batch_is_each_video_by_itself(name: str, lengths: list[int], most: int) -> None:
    encoder = EXAMPLES[name]()
    x = random(sum(lengths), encoder.descriptor_dim, seed=1).abs()
    with pytest.MonkeyPatch.context() as patch:
        for module in ("encodings.gmm_fisher", "fv_vae.encoder", "encodings.vlad"):
            patch.setattr(f"encoders.{module}.CHUNK_DESCRIPTORS", most)
        states, vectors = encoder.accumulate_batch(x, lengths), encoder.encode_batch(x, lengths)
    assert [state.count for state in states] == lengths
    assert (vectors.shape, vectors.dtype) == ((len(lengths), encoder.output_dim), torch.float32)
    for video, state, vector in zip(x.split(lengths), states, vectors, strict=True):
        alone = encoder.accumulate(video)
        assert state.sums.shape == alone.sums.shape
        assert state.sums.dtype == torch.float64
        torch.testing.assert_close(state.sums, alone.sums, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(vector, encoder.finalise(alone), rtol=0, atol=1e-5)


def test_states_of_a_batch_share_no_memory(name: str) -> None:
    encoder = EXAMPLES[name]()
    states = encoder.accumulate_batch(random(7, encoder.descriptor_dim, seed=1), [3, 4])
    for state in states:
        assert state.sums.untyped_storage().nbytes() == 8 * state.sums.numel()
    before = states[1].sums.clone()
    states[0].sums.zero_()
    assert torch.equal(states[1].sums, before)


@pytest.mark.parametrize("lengths", [[3, 3], [8], [], [9, -2]])
def test_lengths_of_other_videos_are_refused(name: str, lengths: list[int]) -> None:
    encoder = EXAMPLES[name]()
    with pytest.raises(
        ValueError,
        match=rf"{encoder.name}: expected lengths of 0 or more that add up to 7 descriptors, got "
        rf"{len(lengths)} of sum {sum(lengths)}, the smallest {min(lengths, default=0)}; give",
    ):
        encoder.accumulate_batch(random(7, encoder.descriptor_dim, seed=1), lengths)


def test_a_batch_of_another_width_is_refused(name: str) -> None:
    encoder = EXAMPLES[name]()
    width = encoder.descriptor_dim
    wanted = rf"{encoder.name}: expected descriptors of shape \[n, {width}\]"
    with pytest.raises(ValueError, match=wanted):
        encoder.encode_batch(torch.zeros(4, width + 1), [4])


def test_on_another_device_it_is_the_same_encoder(name: str) -> None:
    encoder = EXAMPLES[name]()
    x = descriptors(encoder).float()
    assert torch.equal(encoder.to("cpu").encode(x), encoder.encode(x))
    if torch.cuda.is_available():
        on_gpu = encoder.to("cuda").encode(x.cuda())
        assert on_gpu.is_cuda
        torch.testing.assert_close(on_gpu.cpu(), encoder.encode(x), rtol=0, atol=1e-4)
        lengths = [5, 0, 12, 20]
        batch = encoder.to("cuda").encode_batch(x.cuda(), lengths)
        torch.testing.assert_close(batch.cpu(), encoder.encode_batch(x, lengths), rtol=0, atol=1e-4)
