import math

import pytest
import torch
from torch import Tensor, distributions
from torch.nn import functional

from encoders.fv_vae.network import MIN_RELATIVE_VARIANCE, FvVaeNet, descriptor_moments
from encoders.settings import FvVaeSettings

C, T, B, K = 6, 5, 4, 3


def frames(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(B, T, C, generator=generator, dtype=torch.float64)


def net(num_classes: int = K, multi_label: bool = False, **settings: object) -> FvVaeNet:
    """In float64, with parameters away from where they start."""
    record = FvVaeSettings(num_latents=2, **settings)
    made = FvVaeNet(C, num_classes, record, seed=1, multi_label=multi_label).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
        made.scale.fill_(1.7)
    return made


def noise(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "settings", [{}, {"hidden": ()}, {"hidden": (7, 3), "scalar_sigma_x": True, "dropout": 0.2}]
)
def test_loss_is_what_torch_distributions_say(settings: dict) -> None:
    made, x, draws = net(**settings), frames(), noise()
    dropout = made.settings.dropout
    mask = torch.rand(x.shape, generator=draws) < 1 - dropout
    z_mean = 1.7 * x * mask / (1 - dropout)
    for i, layer in enumerate(made.encoder):
        z_mean = layer(z_mean.relu() if i else z_mean)
    sigma_z = made.log_var_z.exp().sqrt()
    z = z_mean + sigma_z * torch.randn(z_mean.shape, generator=draws, dtype=torch.float64)
    x_mean = made.decoder(z).relu() / 1.7
    sigma_x = made.log_var_x.exp().sqrt() / 1.7
    log_p = distributions.Normal(x_mean, sigma_x).log_prob(x).sum(-1)
    prior = distributions.Normal(torch.zeros_like(z), torch.ones_like(z))
    divergence = distributions.kl_divergence(distributions.Normal(z_mean, sigma_z), prior).sum(-1)

    total, parts = made.loss(x, None, noise())

    torch.testing.assert_close(parts["reconstruction"], -log_p.mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(parts["regularisation"], divergence.mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(total, sum(parts.values()))


def test_evaluation_has_no_dropout() -> None:
    made, x, draws = net().eval(), frames(), noise()
    latents = made.encode(x)
    latents = latents + (0.5 * made.log_var_z).exp() * torch.randn(
        latents.shape, generator=draws, dtype=torch.float64
    )
    square = (1.7 * x - made.decoder(latents).relu()).square() / made.log_var_x.exp()
    expected = 0.5 * (square + made.log_var_x + math.log(2 * math.pi)) - math.log(1.7)
    torch.testing.assert_close(
        made.loss(x, None, noise())[1]["reconstruction"], expected.sum(-1).mean()
    )


def class_scores(made: FvVaeNet, x: Tensor) -> Tensor:
    with torch.no_grad():
        made.log_var_z.fill_(-80)  # z = mu_z to the last digit
    return made.classifier(made.eval().encode(x))


def test_class_loss_of_each_descriptor_with_its_videos_label() -> None:
    made, x, targets = net(lambda3=2.5), frames(), torch.eye(K)[[2, 0, 0, 1]]
    log_p = class_scores(made, x).log_softmax(-1)
    expected = -torch.stack([log_p[i, :, k] for i, k in enumerate([2, 0, 0, 1])]).mean()
    total, parts = made.loss(x, targets, noise())
    torch.testing.assert_close(parts["classification"], expected)
    rest = parts["reconstruction"] + parts["regularisation"]
    torch.testing.assert_close(total, rest + 2.5 * expected)


def test_max_pooled_class_scores_give_one_loss_a_frame() -> None:
    made, x, targets = net(lambda3=1, class_pooling="max"), frames(), torch.eye(K)[[2, 0, 0, 1]]
    best = class_scores(made, x).max(1).values
    assert (class_scores(made, x).argmax(1) != 0).any()  # not simply the first descriptor's
    expected = functional.cross_entropy(best, torch.tensor([2, 0, 0, 1]))
    torch.testing.assert_close(made.loss(x, targets, noise())[1]["classification"], expected)


def test_multi_label_class_loss_sums_over_classes() -> None:
    targets = torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 1, 0], [1, 1, 1]], dtype=torch.float64)
    made, x = net(lambda3=1, multi_label=True, class_pooling="max"), frames()
    p = class_scores(made, x).max(1).values.sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum(1).mean()
    torch.testing.assert_close(made.loss(x, targets, noise())[1]["classification"], expected)


def test_starts_at_the_data_whatever_its_scale() -> None:
    x = frames()
    x[..., 4] = 0
    starts = {}
    for factor in (1.0, 1e-3):
        made = FvVaeNet(C, 0, FvVaeSettings(num_latents=2), seed=1).double()
        made.start_at(descriptor_moments(factor * x[:2]) + descriptor_moments(factor * x[2:]))
        starts[factor] = made, *made.loss(factor * x, None, noise())
    (made, total, _), (small, small_total, _) = starts.values()
    flat = x.flatten(0, 1)
    scale = flat.square().mean().rsqrt()
    torch.testing.assert_close(made.decoder.bias.data, scale * flat.mean(0))
    variance = scale**2 * flat.var(0, correction=0)
    variance[4] = MIN_RELATIVE_VARIANCE * variance.mean()
    torch.testing.assert_close(made.log_var_x.data.exp(), variance)
    # A density of y = f x is that of x over f a channel; all else about the training is the same.
    torch.testing.assert_close(small_total, total + C * math.log(1e-3))
    gradients = torch.autograd.grad(total, list(made.parameters()))
    small_gradients = torch.autograd.grad(small_total, list(small.parameters()))
    for gradient, small_gradient in zip(gradients, small_gradients, strict=True):
        torch.testing.assert_close(gradient, small_gradient)


def test_descriptors_below_zero_are_reconstructed() -> None:
    """On one worker of two they are enough, so that all have one network."""
    for x, has_relu in ((frames(), True), (torch.cat([frames()[:3], -frames()[3:]]), False)):
        made = FvVaeNet(C, 0, FvVaeSettings(num_latents=2, dropout=0), seed=1).double()
        made.start_at(descriptor_moments(x[:2]) + descriptor_moments(x[2:]))
        with torch.no_grad():
            made.decoder.bias[::2] -= 1
        parts, z = made.evidence(x, noise())
        mean_x = made.decoder(z)
        assert 0.2 < (mean_x < 0).double().mean() < 0.8
        square = (x * made.scale - (mean_x.relu() if has_relu else mean_x)).square()
        nats = square / made.log_var_x.exp() + made.log_var_x + math.log(2 * math.pi)
        expected = (nats / 2 - made.scale.log()).sum(-1).mean()
        torch.testing.assert_close(parts["reconstruction"], expected)


def test_scalar_sigma_starts_at_the_mean_variance() -> None:
    made = FvVaeNet(C, 0, FvVaeSettings(num_latents=2, scalar_sigma_x=True)).double()
    made.start_at(descriptor_moments(frames()))
    flat = frames().flatten(0, 1)
    expected = (flat.var(0, correction=0).mean() / flat.square().mean()).log()
    torch.testing.assert_close(made.log_var_x.data, expected[None])


def test_seed_gives_the_weights_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (
        FvVaeNet(C, K, FvVaeSettings(num_latents=2, lambda3=1), seed=seed) for seed in (7, 7, 8)
    )
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(one.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.encoder[0].weight, other.encoder[0].weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)


def test_wrong_inputs() -> None:
    with pytest.raises(ValueError, match=r"lambda3 = 10 expects at least two classes.*got 1"):
        net(num_classes=1, lambda3=10)
    with pytest.raises(ValueError, match=r"targets of shape \[4, 3\], got None; give the frames"):
        net(lambda3=1).loss(frames(), None, noise())
    with pytest.raises(ValueError, match=r"targets of shape \[4, 3\], got \[4, 2\]"):
        net(lambda3=1).loss(frames(), torch.zeros(4, 2), noise())
    for bad in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"first batch: expected finite descriptors"):
            net().start_at(descriptor_moments(torch.full((2, T, C), bad)))


@pytest.mark.parametrize("multi_label", [True, False])
def test_a_class_that_a_video_does_not_count_for_has_no_part_in_its_loss(
    multi_label: bool,
) -> None:
    made, x = net(lambda3=1, multi_label=multi_label, class_pooling="max"), frames()
    targets = torch.eye(K, dtype=torch.float64)[torch.arange(len(x)) % K]
    targets[0, 1] = targets[1, 2] = -1
    assert made.classifier is not None
    bias = made.classifier.bias
    found = made.loss(x, targets, noise())[1]["classification"]
    scores = made.classifier(made.evidence(x, noise())[1]).amax(1)
    expected = []
    for row, target in zip(scores, targets, strict=True):
        left = [k for k in range(K) if target[k] >= 0]
        truth = target[left]
        if multi_label:
            shares = row[left].sigmoid()
            parts = truth * shares.log() + (1 - truth) * (1 - shares).log()
        else:
            parts = truth * row[left].log_softmax(0)
        expected.append(-parts.sum())
    torch.testing.assert_close(found, torch.stack(expected).mean())
    # Alone, the second frame says nothing about the third class.
    (gradient,) = torch.autograd.grad(
        made.loss(x[1:2], targets[1:2], noise())[1]["classification"], bias
    )
    assert gradient[2] == 0
    assert gradient[1] != 0
