"""FV-VAE: the gradient of a variational auto-encoder's reconstruction loss as a Fisher vector.

DQ 3.4, Eq. 11-13; METHODS 3.1. Letters: n descriptors, T descriptors of a frame, C channels,
L latents; D = C (L + 1).
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from encoders.base import Encoder
from encoders.fisher_information import INFORMATION, Information, estimate
from encoders.fv_vae_net import FvVaeNet
from encoders.fv_vae_training import fit_fv_vae
from encoders.sample import FitSample
from encoders.settings import FvVaeSettings

CHUNK_DESCRIPTORS = 4096
"""Rows of one float32 product; more are added up in float64."""


class FvVae(Encoder):
    """The Fisher vector of a trained FV-VAE (DQ Eq. 11-13): D = C (L + 1).

    One descriptor's gradient of L_rec in the decoder's (W, b) is delta outer [z, 1], where z = mu_z
    (no sampling), mu_x = relu(W z + b) and delta = (mu_x - x) / sigma_x^2 * [mu_x > 0]. Summed over
    descriptors it is one matrix product, delta^T [z, 1].

    The vector is that sum [C, L + 1] over the number of descriptors, whitened if there is an
    information, row after row: L weights of the first channel, its bias, then the next channel.
    """

    name = "fv_vae"

    def __init__(
        self,
        weights: dict[str, Tensor],
        information: Information | None = None,
        normalisation: str = "signed_sqrt_l2",
    ) -> None:
        """
        Args:
            weights: `encoder.<i>.weight` and `.bias` of each encoder layer (ReLU between them),
                `decoder.weight` [C, L], `decoder.bias` [C] and the variances `var_x` [C].
            information: of this network's gradients, see `encoders.fisher_information`.
            normalisation: a key of `encoders.normalise.NORMALISATIONS`.
        """
        self.descriptor_dim, self.num_latents = weights["decoder.weight"].shape
        self.output_dim = self.descriptor_dim * (self.num_latents + 1)
        self.information = information
        self.normalisation = normalisation
        self._weights = weights
        self._num_layers = sum(key.startswith("encoder.") for key in weights) // 2
        first, last = weights["encoder.0.weight"], weights[f"encoder.{self._num_layers - 1}.weight"]
        found = (first.shape[1], last.shape[0], tuple(weights["var_x"].shape))
        if found != (self.descriptor_dim, self.num_latents, (self.descriptor_dim,)):
            raise ValueError(
                f"fv_vae: a decoder of shape {[self.descriptor_dim, self.num_latents]} expects an "
                f"encoder {self.descriptor_dim} -> {self.num_latents} and as many variances as "
                f"channels, got {found[0]} -> {found[1]} and var_x of shape {list(found[2])}; "
                "do the tensors belong to one network?"
            )

    @classmethod
    def from_net(
        cls,
        net: FvVaeNet,
        information: Information | None = None,
        normalisation: str = "signed_sqrt_l2",
    ) -> Self:
        """The encoder of a trained network; its weights are copied."""
        state = {key: value.detach() for key, value in net.state_dict().items()}
        scale = state["scale"]
        weights = {
            key: state[key].clone() for key in state if key.startswith(("encoder.", "decoder."))
        }
        weights["encoder.0.weight"] *= scale
        weights["decoder.weight"] /= scale
        weights["decoder.bias"] /= scale
        weights["var_x"] = state["log_var_x"].exp().expand(net.decoder.out_features) / scale**2
        return cls(weights, information, normalisation)

    @classmethod
    def fit(cls, sample: FitSample, settings: FvVaeSettings, normalisation: str) -> Self:
        """Training over all workers, then the Fisher information of the frames it was trained on.

        Each frame of a batch is a random frame of a random video. Logs the losses of each step.

        Raises:
            ValueError: no frames on this worker, or what `fit_fv_vae` raises.
        """
        num_frames = _own_frames(sample)

        def on_step(step: int, losses: dict[str, float], state: Callable[[], dict]) -> None:
            for quantity, value in losses.items():
                sample.log(quantity, step, value)
            sample.checkpoint(state)

        net = fit_fv_vae(
            _batches(sample, num_frames, settings.batch_frames),
            sample.frames.shape[2],
            0 if sample.targets is None else sample.targets.shape[1],
            settings,
            seed=sample.seed,
            multi_label=sample.multi_label,
            rank=sample.rank,
            all_reduce=sample.all_reduce,
            state=sample.state,
            on_step=on_step,
        )
        plain = cls.from_net(net.to(sample.frames.device)).tensors()
        videos = (part.flatten(0, 1).float() for part in sample.frames.split(num_frames.tolist()))
        information = estimate(cls(plain), videos, settings, sample.all_reduce)
        return cls(plain, information, normalisation).to("cpu")

    def latents(self, descriptors: Tensor) -> Tensor:
        """z = mu_z [.., L] of descriptors [.., C], in float64 if they are, else in float32."""
        z = descriptors.to(_compute_dtype(descriptors))
        for layer in range(self._num_layers):
            z = self._linear(f"encoder.{layer}", functional.relu(z) if layer else z)
        return z

    def gradient_factors(self, descriptors: Tensor) -> tuple[Tensor, Tensor]:
        """delta [.., C] and [z, 1] [.., L + 1]; a descriptor's gradient is their outer product."""
        z = self.latents(descriptors)
        mean_x = self._linear("decoder", z)  # before the ReLU: where it is negative, delta is zero
        delta = (mean_x - descriptors.to(z.dtype)) / self._weights["var_x"].to(z.dtype)
        return delta * (mean_x > 0), functional.pad(z, (0, 1), value=1.0)

    def attention(self, descriptors: Tensor) -> Tensor:
        """[.., T] of descriptors [.., T, C]: the sum of |gradient| of each (DQ appendix B).

        Spatial attention of a frame's cells; its sum over T is the frame's temporal attention.
        In closed form, |delta|_1 |[z, 1]|_1.
        """
        delta, code = self.gradient_factors(descriptors)
        return delta.abs().sum(-1) * code.abs().sum(-1)

    def tensors(self) -> dict[str, Tensor]:
        learnt = self.information.tensors() if self.information else {}
        return self._weights | {f"information.{key}": value for key, value in learnt.items()}

    def settings(self) -> dict[str, object]:
        form = self.information and {
            "kind": self.information.kind,
            "damping": self.information.damping,
        }
        return {"information": form, "normalisation": self.normalisation}

    @classmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, object]) -> Self:
        prefix = "information."
        weights = {key: value for key, value in tensors.items() if not key.startswith(prefix)}
        learnt = {
            key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
        form = settings["information"]
        information = form and INFORMATION[form["kind"]](**learnt, damping=form["damping"])
        return cls(weights, information, settings["normalisation"])

    def _sums(self, descriptors: Tensor) -> Tensor:
        sums = self._zeros()
        for chunk in descriptors.split(CHUNK_DESCRIPTORS):
            delta, code = self.gradient_factors(chunk)
            sums += delta.T @ code
        return sums

    def _zeros(self) -> Tensor:
        shape = (self.descriptor_dim, self.num_latents + 1)
        return self._weights["var_x"].new_zeros(shape, dtype=torch.float64)

    def _vector(self, sums: Tensor, count: int) -> Tensor:
        gradient = sums / count
        if self.information is not None:
            gradient = self.information.whiten(gradient)
        return gradient.flatten()

    def _linear(self, layer: str, inputs: Tensor) -> Tensor:
        weight, bias = self._weights[f"{layer}.weight"], self._weights[f"{layer}.bias"]
        return functional.linear(inputs, weight.to(inputs.dtype), bias.to(inputs.dtype))


def load_released(
    tensors: dict[str, Tensor],
    information: Information | None = None,
    normalisation: str = "signed_sqrt_l2",
) -> FvVae:
    """The encoder out of the authors' released tensors, whose `sigma_x` is a standard deviation.

    It expects descriptors whose map was divided by its own L2 norm and multiplied by 158.
    """
    weights = {key: value for key, value in tensors.items() if key != "sigma_x"}
    weights["var_x"] = tensors["sigma_x"].square()
    return FvVae(weights, information, normalisation)


def _compute_dtype(descriptors: Tensor) -> torch.dtype:
    return torch.float64 if descriptors.dtype == torch.float64 else torch.float32


def _own_frames(sample: FitSample) -> Tensor:
    """How many frames each video of this worker has, in the order of the frames."""
    if len(sample.frames) == 0:
        raise ValueError(
            f"fit section: expected frames on each of {sample.world_size} workers, got none on "
            f"worker {sample.rank}; lower fit.num_workers or sample more videos"
        )
    return sample.video.cpu().unique_consecutive(return_counts=True)[1]


def _batches(
    sample: FitSample, num_frames: Tensor, batch_frames: int
) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor | None]]:
    """This worker's share of a batch: random frames of random videos, and their targets."""
    first, end = (batch_frames * (sample.rank + i) // sample.world_size for i in (0, 1))
    size = max(1, end - first)
    starts = num_frames.cumsum(0) - num_frames

    def batch(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        videos = torch.randint(len(num_frames), (size,), generator=generator)
        places = torch.rand(size, generator=generator, dtype=torch.float64) * num_frames[videos]
        chosen = starts[videos] + places.long()
        frames = sample.frames[chosen.to(sample.frames.device)].float()
        targets = sample.targets
        if targets is not None:
            targets = targets[sample.video[chosen]].to(frames.device)
        return frames, targets

    return batch
