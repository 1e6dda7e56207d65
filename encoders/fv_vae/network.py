"""The FV-VAE's network and loss (DQ 3.3, Algorithm 1, Table 7; METHODS 3.1).

Letters: b frames of a batch, T descriptors of a frame, C channels, L latents, K classes.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from encoders.networks.training import counted
from encoders.settings import FvVaeSettings

MIN_RELATIVE_VARIANCE = 1e-3
"""Floor of sigma_x^2, over the mean variance of the first batch's channels. A channel that never
fires in training would otherwise have an unbounded likelihood, and swamp the vector at its first
sign of life."""


class FvVaeNet(nn.Module):
    """The trainable network: encoder C -> .. -> L (mean only), decoder L -> C with a ReLU.

    If the first batch has values below zero (after a PCA, or of layers without a ReLU), the decoder
    has no ReLU.

    sigma_z [L] and sigma_x [C] (or [1]) are shared by all descriptors. There is a classifier L -> K
    only if lambda3 > 0. The same seed gives the same weights.

    Inside, descriptors are multiplied by `scale`, so that their root mean square is 1: the weights,
    and with them the size of a good step, then do not depend on how descriptors are normalised.
    (The released network's 158 does the same: the root of the 7 x 7 x 512 values of a unit map.)
    The losses are those of the descriptors as given; `FvVae.from_net` folds the scale into the
    weights.
    """

    # Buffers, which nn.Module finds by name.
    min_log_var_x: Tensor
    min_mean_x: Tensor
    scale: Tensor

    def __init__(
        self,
        descriptor_dim: int,
        num_classes: int,
        settings: FvVaeSettings,
        *,
        seed: int = 0,
        multi_label: bool = False,
    ) -> None:
        super().__init__()
        if settings.lambda3 > 0 and num_classes < (1 if multi_label else 2):
            raise ValueError(
                f"FV-VAE: lambda3 = {settings.lambda3:g} expects at least two classes (one with "
                f"multi_label), got {num_classes}; give labels, or set fv_vae.lambda3 to 0"
            )
        self.settings = settings
        self.multi_label = multi_label
        hidden = (descriptor_dim,) if settings.hidden is None else settings.hidden
        latents = settings.num_latents
        generator = torch.Generator().manual_seed(seed)
        widths = pairwise((descriptor_dim, *hidden, latents))
        self.encoder = nn.ModuleList(
            [_linear(num_inputs, num_outputs, generator) for num_inputs, num_outputs in widths]
        )
        # The gain is small, so that the first reconstructions are the mean and not noise.
        self.decoder = _linear(latents, descriptor_dim, generator, gain=0.1)
        self.classifier = _linear(latents, num_classes, generator) if settings.lambda3 else None
        self.log_var_z = nn.Parameter(torch.zeros(latents))
        self.log_var_x = nn.Parameter(torch.zeros(1 if settings.scalar_sigma_x else descriptor_dim))
        self.register_buffer("min_log_var_x", torch.tensor(-math.inf))
        self.register_buffer("min_mean_x", torch.tensor(0.0))
        self.register_buffer("scale", torch.tensor(1.0))

    def encode(self, descriptors: Tensor) -> Tensor:
        """Return mu_z [.., L] of descriptors [.., C]."""
        descriptors = descriptors * self.scale
        *hidden, last = self.encoder
        for layer in hidden:
            descriptors = functional.relu(layer(descriptors))
        return last(descriptors)

    def loss(
        self, frames: Tensor, targets: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return lambda1 L_rec + lambda2 L_reg + lambda3 L_cls, and the three losses (Algorithm 1).

        Means over descriptors (L_cls with max pooling: over frames) of nats. L_reg has the squares
        that Algorithm 1 misprints as norms. L_cls is softmax cross-entropy, for multi-label corpora
        the binary cross-entropy summed over classes. Dropout acts in training mode only.

        Args:
            frames: descriptors [b, T, C].
            targets: [b, K] of 0 and 1, or -1 where a video does not count for a class; read only
                if lambda3 > 0. A frame without a label adds nothing to the cross-entropy.
            generator: on the frames' device; gives the dropout mask and the noise of z.
        """
        parts, z = self.evidence(frames, generator)
        total = self.settings.lambda1 * parts["reconstruction"]
        total = total + self.settings.lambda2 * parts["regularisation"]
        if self.classifier is not None:
            parts["classification"] = self._classification_loss(self.classifier, z, targets)
            total = total + self.settings.lambda3 * parts["classification"]
        return total, parts

    def evidence(
        self, frames: Tensor, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return L_rec and L_reg of `loss` by name, and the sampled z [b, T, L].

        The evidence lower bound of a descriptor is minus the sum of the two.
        """
        inputs = frames
        if self.training and self.settings.dropout > 0:
            keep = 1 - self.settings.dropout
            mask = torch.rand(frames.shape, generator=generator, device=frames.device) < keep
            inputs = frames * mask / keep
        mean_z = self.encode(inputs)
        noise = torch.randn(
            mean_z.shape, generator=generator, device=mean_z.device, dtype=mean_z.dtype
        )
        z = mean_z + noise * (0.5 * self.log_var_z).exp()
        mean_x = self.decoder(z).clamp(min=self.min_mean_x)
        square = (frames * self.scale - mean_x).square()
        nats = square * (-self.log_var_x).exp() + self.log_var_x + math.log(2 * math.pi)
        divergence = mean_z.square() + self.log_var_z.exp() - 1 - self.log_var_z
        parts = {
            "reconstruction": (0.5 * nats - self.scale.log()).sum(-1).mean(),
            "regularisation": 0.5 * divergence.sum(-1).mean(),
        }
        return parts, z

    def _classification_loss(
        self, classifier: nn.Linear, z: Tensor, targets: Tensor | None
    ) -> Tensor:
        expected = [len(z), classifier.out_features]
        if targets is None or list(targets.shape) != expected:
            raise ValueError(
                f"FV-VAE: lambda3 = {self.settings.lambda3:g} expects targets of shape {expected}, "
                f"got {targets if targets is None else list(targets.shape)}; give the frames the "
                "labels of their videos, or set fv_vae.lambda3 to 0"
            )
        scores = classifier(z)
        if self.settings.class_pooling == "max":
            scores = scores.amax(1, keepdim=True)
        scores = scores.flatten(0, 1)
        targets = targets.to(z.dtype).repeat_interleave(len(scores) // len(z), 0)
        scores, targets = counted(scores, targets)
        if self.multi_label:
            losses = functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
            return losses.sum(-1).mean()
        return functional.cross_entropy(scores, targets)

    @torch.no_grad()
    def start_at(self, moments: Tensor) -> None:
        """Start at the data: scale and sign, decoder bias at the mean, sigma_x at the deviation.

        Args:
            moments: [2 + 2 C] as `descriptor_moments` gives them, summed over workers.

        Raises:
            ValueError: the descriptors are all zero, or not finite.
        """
        mean, mean_square = (moments[2:] / moments[0]).chunk(2)
        if not 0 < mean_square.mean() < math.inf:
            raise ValueError(
                "FV-VAE training, first batch: expected finite descriptors that are not all zero, "
                f"got a mean square of {mean_square.mean().item():g}; describe the videos again"
            )
        scale = mean_square.mean().rsqrt()
        mean, mean_square = mean * scale, mean_square * scale**2
        variance = (mean_square - mean.square()).clamp_min(0)
        floor = (MIN_RELATIVE_VARIANCE * variance.mean()).clamp_min(MIN_RELATIVE_VARIANCE**2)
        if self.settings.scalar_sigma_x:
            variance = variance.mean(0, keepdim=True)
        self.min_mean_x.fill_(0 if moments[1] == 0 else -math.inf)
        self.scale.copy_(scale)
        self.decoder.bias.copy_(mean)
        self.min_log_var_x.copy_(floor.log())
        self.log_var_x.copy_(variance.clamp_min(floor).log())


def descriptor_moments(frames: Tensor) -> Tensor:
    """Return moments [2 + 2 C] of frames [b, T, C], in float64.

    They are the numbers of descriptors and of negative values, the sum of x and the sum of x^2.
    """
    descriptors = frames.flatten(0, 1).double()
    count = descriptors.new_tensor([float(len(descriptors))])
    num_negative = (descriptors < 0).sum(dtype=torch.float64)[None]
    return torch.cat([count, num_negative, descriptors.sum(0), descriptors.square().sum(0)])


def _linear(
    num_inputs: int, num_outputs: int, generator: torch.Generator, gain: float = 1.0
) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, num_inputs, num_outputs)
    assert isinstance(layer, nn.Linear)  # its class is the first argument
    nn.init.xavier_uniform_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer
