import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from encoders.codebooks.pca import fit_pca
from encoders.codebooks.sample import FitSample
from encoders.fields import digested
from encoders.fv_vae import encoder as fv_vae_encoder
from encoders.fv_vae.encoder import FvVae
from encoders.fv_vae.information import DiagonalInformation, choose, estimate
from encoders.fv_vae.network import FvVaeNet, descriptor_moments
from encoders.registry import encoder_from_bytes
from encoders.settings import FvVaeSettings
from tests.encoders import oracles

C, L, N = 5, 3, 11
GRADIENT_SHAPE = (C, L + 1)


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def weights() -> dict[str, Tensor]:
    """An encoder C -> 4 -> L and its decoder, in which many but not all outputs are above zero."""
    return {
        "encoder.0.weight": random(4, C, seed=1),
        "encoder.0.bias": random(4, seed=2),
        "encoder.1.weight": random(L, 4, seed=3),
        "encoder.1.bias": random(L, seed=4),
        "decoder.weight": random(C, L, seed=5),
        "decoder.bias": random(C, seed=6),
        "var_x": 0.2 + random(C, seed=7).square(),
    }


def descriptors(num: int = N) -> Tensor:
    return random(num, C, seed=8).abs()


def autograd_gradient(x: Tensor, output: Callable[[Tensor], Tensor] = functional.relu) -> Tensor:
    """The gradient of one descriptor's -log N(x; mu_x, sigma_x^2) in the decoder, by torch."""
    net = weights()
    w, b = net["decoder.weight"].requires_grad_(), net["decoder.bias"].requires_grad_()
    hidden = functional.relu(net["encoder.0.weight"] @ x + net["encoder.0.bias"])
    z = net["encoder.1.weight"] @ hidden + net["encoder.1.bias"]
    model = torch.distributions.Normal(output(w @ z + b), net["var_x"].sqrt())
    gradient, gradient_bias = torch.autograd.grad(-model.log_prob(x).sum(), (w, b))
    return torch.cat([gradient, gradient_bias[:, None]], 1)


def test_each_gradient_equals_autograd() -> None:
    encoder, x = FvVae(weights()), descriptors()
    expected = torch.stack([autograd_gradient(row) for row in x])
    assert 0.2 < (expected[..., -1] == 0).double().mean() < 0.8  # the ReLU cuts some, not all
    delta, code = encoder.gradient_factors(x)
    ours = delta[:, :, None] * code[:, None, :]
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(encoder.accumulate(x).sums, expected.sum(0), rtol=1e-10, atol=1e-10)


def test_without_a_relu_each_gradient_equals_autograd_too() -> None:
    encoder, x = FvVae(weights(), has_relu=False), random(N, C, seed=8)
    expected = torch.stack([autograd_gradient(row, lambda mean_x: mean_x) for row in x])
    delta, code = encoder.gradient_factors(x)
    torch.testing.assert_close(
        delta[:, :, None] * code[:, None, :], expected, rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(encoder.accumulate(x).sums, expected.sum(0), rtol=1e-10, atol=1e-10)
    again = encoder_from_bytes(encoder.to_bytes())
    assert not again.has_relu
    assert not again.with_information(None).has_relu
    assert torch.equal(again.encode(x), encoder.encode(x))


def test_the_decoder_has_a_relu_where_descriptors_had_one() -> None:
    assert FvVae.fit(sample(), small(), "none").has_relu
    assert not FvVae.fit(sample(), small(pca_components=2), "none").has_relu


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_each_gradient_has_its_length_to_the_power(power: float) -> None:
    """Its length is that of the residual in standard deviations times that of [z, 1]: of the
    gradient times sigma_x."""
    encoder, x = FvVae(weights(), gradient_power=power), descriptors()
    deviations = weights()["var_x"].sqrt()[:, None]
    expected = []
    for gradient in map(autograd_gradient, x):
        length = math.sqrt(float((gradient * deviations).square().sum()))
        expected.append(gradient * length ** (power - 1))
    expected = torch.stack(expected)
    delta, code = encoder.gradient_factors(x)
    ours = delta[:, :, None] * code[:, None, :]
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(encoder.accumulate(x).sums, expected.sum(0), rtol=1e-10, atol=1e-10)
    again = encoder_from_bytes(encoder.to_bytes())
    assert again.gradient_power == encoder.with_information(None).gradient_power == power
    assert torch.equal(again.encode(x), encoder.encode(x))


def test_a_power_of_1_changes_nothing_and_a_fit_takes_the_settings() -> None:
    plain = FvVae(weights()).encode(descriptors())
    assert torch.equal(FvVae(weights(), gradient_power=1.0).encode(descriptors()), plain)
    fitted = FvVae.fit(sample(), small(gradient_power=0.5), "none")
    assert fitted.gradient_power == fitted.to("cpu").gradient_power == 0.5


def test_vector_is_the_mean_gradient_row_by_row_with_the_bias_last() -> None:
    encoder, x = FvVae(weights(), normalisation="none"), descriptors()
    mean = torch.stack([autograd_gradient(row) for row in x]).mean(0)
    vector = encoder.encode(x)
    assert encoder.output_dim == len(vector) == C * (L + 1)
    for c in range(C):
        row = vector[c * (L + 1) : (c + 1) * (L + 1)]
        torch.testing.assert_close(row, mean[c].float())


def test_information_whitens_before_the_normalisation() -> None:
    information = DiagonalInformation(random(*GRADIENT_SHAPE, seed=9).square(), 0.1)
    encoder, x = FvVae(weights(), information, "signed_sqrt_l2"), descriptors()
    mean = torch.stack([autograd_gradient(row) for row in x]).mean(0)
    white = information.whiten(mean).flatten()
    root = white.sign() * white.abs().sqrt()
    torch.testing.assert_close(encoder.encode(x), (root / root.norm()).float())


def test_chunks_and_float32_change_only_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, x = FvVae(weights()), descriptors(100)
    whole = encoder.accumulate(x).sums
    monkeypatch.setattr(fv_vae_encoder, "CHUNK_DESCRIPTORS", 7)
    torch.testing.assert_close(encoder.accumulate(x).sums, whole, rtol=1e-12, atol=1e-12)
    single = encoder.accumulate(x.float()).sums
    assert single.dtype == torch.float64
    torch.testing.assert_close(single, whole, rtol=0, atol=1e-5 * whole.abs().max().item())
    half = x.half()
    expected = encoder.accumulate(half.float()).sums
    torch.testing.assert_close(encoder.accumulate(half).sums, expected, rtol=1e-6, atol=1e-6)


def test_attention_is_the_absolute_sum_of_each_descriptors_gradient() -> None:
    x = descriptors(12)
    expected = torch.stack([autograd_gradient(row).abs().sum() for row in x]).view(3, 4)
    torch.testing.assert_close(FvVae(weights()).attention(x.view(3, 4, C)), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_released_network(data: Path, dtype: torch.dtype, tolerance: float) -> None:
    name = data / "oracle" / "fv_vae_ucf101_split1_vgg19"
    weights = safetensors.torch.load_file(f"{name}.weights.safetensors")
    # The authors' sigma_x is a standard deviation.
    weights["var_x"] = weights.pop("sigma_x").square()
    encoder = FvVae(weights)
    case = np.load(f"{name}.case.npz")
    maps = torch.from_numpy(case["maps"]).to(dtype)
    maps = 158 * maps / maps.flatten(1).norm(dim=1)[:, None, None, None]
    levels = [functional.adaptive_max_pool2d(maps, side).flatten(2) for side in (6, 3, 2, 1)]
    frames = torch.cat(levels, 2).mT
    found = {
        "z": encoder.latents(frames),
        "raw_fv": encoder.accumulate(frames.flatten(0, 1)).sums / len(frames),
        "spatial_attention": encoder.attention(frames),
    }
    assert encoder.output_dim == 131_584
    for key, value in found.items():
        expected = torch.from_numpy(case[key])
        atol = tolerance * expected.abs().max().item()
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=atol, msg=key)


@pytest.mark.parametrize("scalar", [False, True])
def test_encoder_of_a_net_takes_the_gradient_of_its_training_loss(scalar: bool) -> None:
    settings = FvVaeSettings(hidden=(4,), num_latents=L, scalar_sigma_x=scalar)
    net, x = FvVaeNet(C, 0, settings, seed=2).double().eval(), 40 * descriptors()
    net.start_at(descriptor_moments(x[None]))
    with torch.no_grad():
        net.decoder.weight *= 5
        net.log_var_z.fill_(-80)  # z = mu_z to the last digit
    encoder = FvVae.from_net(net)
    loss = net.loss(x[None], None, torch.Generator())[1]["reconstruction"]
    inside = torch.autograd.grad(loss, (net.decoder.weight, net.decoder.bias))
    # The net's decoder is for descriptors times `scale`, and so are its weights.
    expected = net.scale * torch.cat([inside[0], inside[1][:, None]], 1)
    state = encoder.accumulate(x)
    torch.testing.assert_close(state.sums / state.count, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(encoder.latents(x), net.encode(x).detach())


def test_from_net_copies() -> None:
    net = FvVaeNet(C, 0, FvVaeSettings(num_latents=L))
    encoder = FvVae.from_net(net)
    before = encoder.to_bytes()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert encoder.to_bytes() == before


@pytest.mark.parametrize("informed", [False, True])
def test_round_trip_through_bytes(informed: bool) -> None:
    square = random(*GRADIENT_SHAPE, seed=9).square()
    information = DiagonalInformation(square, 0.25) if informed else None
    encoder = FvVae(weights(), information, "l2")
    again = encoder_from_bytes(encoder.to_bytes())
    assert again.settings() == encoder.settings()
    assert torch.equal(again.encode(descriptors()), encoder.encode(descriptors()))
    assert (again.information is not None) == informed


def test_tensors_of_different_networks() -> None:
    with pytest.raises(ValueError, match=r"decoder of shape \[5, 3\].*got 5 -> 4 and"):
        FvVae({key: value for key, value in weights().items() if not key.startswith("encoder.1")})
    with pytest.raises(ValueError, match=r"var_x of shape \[1\]; do the tensors belong to one"):
        FvVae(weights() | {"var_x": torch.ones(1)})


def sample(rank: int = 0, world_size: int = 1, **others: object) -> FitSample:
    """Seven videos of 1 to 4 frames of 6 descriptors, in half precision, dealt out in turn."""
    num_frames = [3, 1, 4, 2, 4, 1, 3]
    video = torch.arange(7).repeat_interleave(torch.tensor(num_frames))
    frames = random(len(video), 6, C, seed=10).abs().half()
    own = video % world_size == rank
    return FitSample(
        frames=frames[own],
        video=video[own],
        targets=torch.eye(2)[[0, 1, 1, 0, 1, 0, 0]],
        seed=3,
        rank=rank,
        world_size=world_size,
        **others,
    )


def small(**changed: object) -> FvVaeSettings:
    settings = {"num_latents": L, "optimiser": "adam", "learning_rate": 0.01, "num_steps": 6}
    return FvVaeSettings(**(settings | {"lambda3": 1.0, "batch_frames": 8} | changed))


@pytest.mark.parametrize("information", ["none", "diagonal", "kronecker"])
def test_fit_on_several_workers(information: str) -> None:
    settings = small(information=information)

    def work(rank, all_reduce):
        return FvVae.fit(sample(rank, 3, all_reduce=all_reduce), settings, "l2")

    books = oracles.run_workers(3, work)
    assert books[0].to_bytes() == books[1].to_bytes() == books[2].to_bytes()
    whole = sample()
    videos = [whole.frames[whole.video == v].flatten(0, 1).float() for v in range(7)]
    statistics = estimate(FvVae(books[0]._weights), videos)
    for key, value in statistics.items():
        torch.testing.assert_close(books[0].statistics[key], value)
    expected = choose(statistics, settings)
    assert (expected is None) == (information == "none")
    if expected:
        for key, value in expected.tensors().items():
            torch.testing.assert_close(books[0].information.tensors()[key], value)
    assert books[0].normalisation == "l2"


def test_fit_that_is_stopped_and_resumed_is_undisturbed() -> None:
    files = []

    def keep(state):
        data = io.BytesIO()
        torch.save(state(), data)
        files.append(data.getvalue())

    undisturbed = FvVae.fit(sample(checkpoint=keep), small(), "l2").to_bytes()
    assert len(files) == 6
    for file in files[1], files[-1]:
        state = torch.load(io.BytesIO(file), weights_only=True)
        assert FvVae.fit(sample(state=state), small(), "l2").to_bytes() == undisturbed


@pytest.mark.parametrize("kind", ["none", "diagonal", "kronecker"])
def test_the_information_is_chosen_from_what_lies_beside_the_network(kind: str) -> None:
    """Fitted with one form, used with another: the same as fitted with it, and nothing trained
    again."""
    fitted = FvVae.fit(sample(), small(information="diagonal"), "l2")
    wanted = small(information=kind, damping=0.2)
    files = fitted.files()
    loaded = encoder_from_bytes(files["codebook.safetensors"])
    assert loaded.information is None
    with_files = loaded.with_files(files, wanted)
    assert with_files.to_bytes() == FvVae.fit(sample(), wanted, "l2").to_bytes()
    assert digested(wanted) == digested(small()), "one codebook for both"
    assert digested(small(dropout=0.1)) != digested(small())
    with pytest.raises(ValueError, match="expected an encoder that fit made"):
        loaded.files()


def test_after_a_pca_it_is_the_encoder_of_the_components() -> None:
    """The network sees components only; the vector is that of a plain one on projected
    descriptors."""
    settings = small(pca_components=3, information="kronecker")
    whole = sample()
    encoder = encoder_from_bytes(FvVae.fit(whole, settings, "none").to_bytes())
    assert (encoder.descriptor_dim, encoder.output_dim) == (C, 3 * (L + 1))
    pca = fit_pca(whole.descriptors(), 3)
    torch.testing.assert_close(encoder.pca.components, pca.components.float())
    projected = FitSample(
        frames=encoder.pca.transform(whole.frames.float()),
        video=whole.video,
        targets=whole.targets,
        seed=3,
    )
    plain = FvVae.fit(projected, small(information="kronecker"), "none")
    x = random(20, C, seed=4).abs().float()
    torch.testing.assert_close(encoder.encode(x), plain.encode(encoder.pca.transform(x)))


def test_fit_logs_its_losses() -> None:
    rows = []
    FvVae.fit(sample(log=lambda *row: rows.append(row)), small(lambda3=0), "l2")
    assert {name for name, _, _ in rows} == {"total", "reconstruction", "regularisation"}
    assert [step for name, step, _ in rows if name == "total"] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(value) for _, _, value in rows)


def test_batches_are_random_frames_of_random_videos_and_carry_their_labels() -> None:
    whole = sample()
    num_frames = torch.tensor([3, 1, 4, 2, 4, 1, 3])
    batch = fv_vae_encoder._batches(whole, batch_frames=7000)
    frames, targets = batch(0, torch.Generator().manual_seed(0))
    assert frames.dtype == torch.float32
    same = (frames[:, None] == whole.frames.float()[None]).flatten(2).all(2)
    assert (same.sum(1) == 1).all()
    place = same.int().argmax(1)
    assert torch.equal(targets, whole.targets[whole.video[place]])
    counts = place.bincount(minlength=18).double()
    # 1,000 a video and evenly over its frames; a count's standard deviation is below 32.
    expected = (1000 / num_frames).repeat_interleave(num_frames)
    assert ((counts - expected).abs() < 5 * 32).all()


def test_shares_of_a_batch_add_up() -> None:
    sizes = [
        len(fv_vae_encoder._batches(sample(rank, 3), 8)(0, torch.Generator())[0])
        for rank in range(3)
    ]
    assert sizes == [2, 3, 3]


def test_a_worker_without_frames() -> None:
    empty = FitSample(
        frames=torch.zeros(0, 6, C), video=torch.zeros(0, dtype=torch.int64), rank=2, world_size=3
    )
    with pytest.raises(ValueError, match=r"got none on worker 2; lower fit.num_workers"):
        FvVae.fit(empty, small(lambda3=0), "l2")


def test_early_stopping_trains_without_the_held_out_videos() -> None:
    whole = sample()
    held_out = torch.zeros(7, dtype=torch.bool)
    held_out[[1, 4]] = True
    frames, _ = fv_vae_encoder._batches(whole, 700, held_out=held_out)(
        0, torch.Generator().manual_seed(0)
    )
    same = (frames[:, None] == whole.frames.float()[None]).flatten(2).all(2)
    assert set(whole.video[same.int().argmax(1)].tolist()) == {0, 2, 3, 5, 6}
    looked_at = fv_vae_encoder._held_out_frames(whole, held_out, None)
    assert torch.equal(looked_at, whole.frames[held_out[whole.video]].float())
    logged = []
    settings = small(lambda3=0, num_steps=60, early_stopping_steps=25)
    fitted = FvVae.fit(sample(log=lambda *row: logged.append(row)), settings, "l2")
    assert "held_out_bound" in {name for name, _, _ in logged}
    assert fitted.to_bytes() == FvVae.fit(sample(), settings, "l2").to_bytes()
    with pytest.raises(ValueError, match=r"got none but held-out ones on worker 0; lower fit.num"):
        fv_vae_encoder._batches(whole, 8, held_out=torch.ones(7, dtype=torch.bool))
