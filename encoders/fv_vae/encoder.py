"""FV-VAE: the gradient of a variational auto-encoder's reconstruction loss as a Fisher vector.

DQ 3.4, Eq. 11-13; METHODS 3.1. Letters: n descriptors, T descriptors of a frame, C channels,
L latents; D = C (L + 1).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from encoders.codebooks.chunks import CHUNK_DESCRIPTORS, Scratch, add_products, groups
from encoders.codebooks.pca import Pca, fit_sample_pca, input_width, projected
from encoders.codebooks.sample import FitSample
from encoders.encodings.base import Encoder, FitWork
from encoders.fv_vae.information import INFORMATION, Information, choose, estimate
from encoders.fv_vae.network import FvVaeNet
from encoders.fv_vae.training import fit_fv_vae, random_frames, with_steps
from encoders.settings import CODEBOOK, INFORMATION_FILE, FvVaeSettings
from encoders.tensor_files import load_tensors, save_tensors

SHORTEST_GRADIENT = 1e-12
"""Least length of a gradient for a gradient power."""

HELD_OUT_SHARE, HELD_OUT_FRAMES = 0.1, 512
"""Early stopping: held-out share of the training videos, and most frames of them to evaluate."""

SHORT_BATCH_FRAMES = 32
"""Most frames of a step of a short fit: nearly all of a step's time is spent on its frames."""


class FvVae(Encoder):
    """The Fisher vector of a trained FV-VAE (DQ Eq. 11-13): D = C (L + 1).

    One descriptor's gradient of L_rec in the decoder's (W, b) is delta outer [z, 1], where z = mu_z
    (no sampling), mu_x = relu(W z + b) and delta = (mu_x - x) / sigma_x^2 * [mu_x > 0]. Summed over
    descriptors it is one matrix product, delta^T [z, 1]. Without the ReLU, delta = (mu_x - x) /
    sigma_x^2.

    The vector is that sum [C, L + 1] over the number of descriptors, whitened if there is an
    information, row after row: L weights of the first channel, its bias, then the next channel.
    """

    name = "fv_vae"
    non_negative = True  # mu_x is not below 0 either
    has_attention = True

    def __init__(
        self,
        weights: dict[str, Tensor],
        information: Information | None = None,
        normalisation: str = "signed_sqrt_l2",
        pca: Pca | None = None,
        gradient_power: float = 1.0,
        has_relu: bool = True,
    ) -> None:
        """Build the encoder from its tensors.

        Args:
            weights: `encoder.<i>.weight` and `.bias` of each encoder layer (ReLU between them),
                `decoder.weight` [C, L], `decoder.bias` [C] and the variances `var_x` [C].
            information: of this network's gradients, see `encoders.fv_vae.information`.
            normalisation: a key of `encoders.encodings.normalise.NORMALISATIONS`.
            pca: of the descriptors; C is then its number of components.
            gradient_power: see `FvVaeSettings`.
            has_relu: after the decoder; not for descriptors with values below zero.
        """
        self.gradient_power = gradient_power
        self.has_relu = has_relu
        self.width, self.num_latents = weights["decoder.weight"].shape
        self.pca = pca
        self.descriptor_dim = input_width(pca, self.width, self.name)
        self.output_dim = self.width * (self.num_latents + 1)
        self.information = information
        self.statistics: dict[str, Tensor] | None = None
        self.normalisation = normalisation
        self._weights = weights
        self._layers_by_dtype: dict[torch.dtype, tuple[list[tuple[Tensor, Tensor]], Tensor]] = {}
        self._num_layers = sum(key.startswith("encoder.") for key in weights) // 2
        first, last = weights["encoder.0.weight"], weights[f"encoder.{self._num_layers - 1}.weight"]
        shapes = (first.shape[1], last.shape[0], tuple(weights["var_x"].shape))
        if shapes != (self.width, self.num_latents, (self.width,)):
            raise ValueError(
                f"fv_vae: a decoder of shape {[self.width, self.num_latents]} expects an "
                f"encoder {self.width} -> {self.num_latents} and as many variances as "
                f"channels, got {shapes[0]} -> {shapes[1]} and var_x of shape {list(shapes[2])}; "
                "do the tensors belong to one network?"
            )

    @classmethod
    def from_net(
        cls,
        net: FvVaeNet,
        normalisation: str = "signed_sqrt_l2",
        pca: Pca | None = None,
    ) -> Self:
        """Build the encoder of a trained network, with a copy of its weights."""
        state = {key: value.detach() for key, value in net.state_dict().items()}
        scale = state["scale"]
        weights = {
            key: state[key].clone() for key in state if key.startswith(("encoder.", "decoder."))
        }
        weights["encoder.0.weight"] *= scale
        weights["decoder.weight"] /= scale
        weights["decoder.bias"] /= scale
        weights["var_x"] = state["log_var_x"].exp().expand(net.decoder.out_features) / scale**2
        has_relu = bool(state["min_mean_x"] == 0)
        return cls(weights, None, normalisation, pca, net.settings.gradient_power, has_relu)

    @classmethod
    def fit(cls, sample: FitSample, settings: FvVaeSettings, normalisation: str) -> Self:
        """Train over all workers, then estimate the Fisher information of the training frames.

        Each frame of a batch is a random frame of a random video. The losses of each step are
        logged.

        Raises:
            ValueError: there are no frames on this worker, or see `fit_fv_vae`.
        """
        num_frames = _frames_of_videos(sample)
        settings = with_steps(sample, settings)
        pca = fit_sample_pca(sample, settings)
        held_out = sample.held_out(HELD_OUT_SHARE) if settings.early_stopping_steps else None

        net = fit_fv_vae(
            _batches(sample, settings.batch_frames, pca, held_out),
            settings.pca_components or sample.frames.shape[2],
            0 if sample.targets is None else sample.targets.shape[1],
            settings,
            seed=sample.seed,
            multi_label=sample.multi_label,
            held_out=None if held_out is None else _held_out_frames(sample, held_out, pca),
            rank=sample.rank,
            all_reduce=sample.all_reduce,
            state=sample.state,
            on_step=sample.after_step,
        )
        plain = cls.from_net(net.to(sample.frames.device), normalisation, pca)
        videos = (part.flatten(0, 1).float() for part in sample.frames.split(num_frames.tolist()))
        statistics = estimate(plain, videos, sample.all_reduce)
        fitted = plain.with_information(choose(statistics, settings)).to("cpu")
        fitted.statistics = {name: value.cpu() for name, value in statistics.items()}
        return fitted

    @classmethod
    def fit_work(cls, settings: FvVaeSettings, num_frames: int, cells: int) -> FitWork:
        """Return the work of a fit.

        A training step has a batch, whatever the sample; the information is of all descriptors.
        """
        steps = settings.steps_for(num_frames)
        return FitWork(num_frames * cells, steps, settings.batch_frames * cells)

    @classmethod
    def short_fit(cls, settings: FvVaeSettings, steps: int) -> FvVaeSettings:
        """Return settings of so few steps, with small batches."""
        batch = min(settings.batch_frames, SHORT_BATCH_FRAMES)
        return replace(settings, num_steps=steps, batch_frames=batch)

    def files(self) -> dict[str, bytes]:
        """Return the network, and in another file the Fisher information of both forms.

        Raises:
            ValueError: `fit` did not make this encoder, so the information was not estimated.
        """
        if self.statistics is None:
            raise ValueError(
                "fv_vae: expected an encoder that fit made, got one without statistics"
            )
        return {
            CODEBOOK: self.with_information(None).to_bytes(),
            INFORMATION_FILE: save_tensors(self.statistics, "information", {}),
        }

    def with_files(self, files: dict[str, bytes], settings: FvVaeSettings) -> Self:
        """Return this network with the information that `settings` name."""
        statistics = load_tensors(files[INFORMATION_FILE])
        loaded = self.with_information(choose(statistics, settings))
        loaded.statistics = statistics
        return loaded

    def with_information(self, information: Information | None) -> Self:
        """Return the same network with another information."""
        return type(self)(
            self._weights,
            information,
            self.normalisation,
            self.pca,
            self.gradient_power,
            self.has_relu,
        )

    @torch.no_grad()
    def latents(self, descriptors: Tensor) -> Tensor:
        """Return z = mu_z [.., L] of descriptors [.., C], as float64 or float32."""
        x = self._rows(descriptors)
        code = self._code(x, Scratch(x.dtype, x.device))
        return code[:, :-1].unflatten(0, descriptors.shape[:-1])

    @torch.no_grad()
    def gradient_factors(self, descriptors: Tensor) -> tuple[Tensor, Tensor]:
        """Return delta [.., C] and [z, 1] [.., L + 1]; their outer product is the gradient.

        With a gradient power, delta is scaled so that the outer product has its new length.
        """
        x = self._rows(descriptors)
        scratch = Scratch(x.dtype, x.device)
        code = self._code(x, scratch)
        delta = self._residuals(x, code, scratch) / self._weights["var_x"].to(x.dtype)
        shape = descriptors.shape[:-1]
        return delta.unflatten(0, shape), code.unflatten(0, shape)

    def attention(self, descriptors: Tensor) -> Tensor:
        """Return attention [.., T] of descriptors [.., T, C]: sums of |gradient| (DQ appendix B).

        This is spatial attention of a frame's cells; its sum over T is temporal attention.
        In closed form, |delta|_1 |[z, 1]|_1.
        """
        delta, code = self.gradient_factors(descriptors)
        return delta.abs().sum(-1) * code.abs().sum(-1)

    def tensors(self) -> dict[str, Tensor]:
        estimated = self.information.tensors() if self.information else {}
        weights = self._weights | {f"information.{key}": t for key, t in estimated.items()}
        return weights | (self.pca.tensors() if self.pca else {})

    def settings(self) -> dict[str, Any]:
        form = self.information and {
            "kind": self.information.kind,
            "damping": self.information.damping,
        }
        settings: dict[str, Any] = {"information": form, "normalisation": self.normalisation}
        if self.gradient_power != 1:
            settings["gradient_power"] = self.gradient_power
        if not self.has_relu:
            settings["has_relu"] = False
        return settings

    @classmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Self:
        prefix = "information."
        weights = {
            key: value for key, value in tensors.items() if not key.startswith((prefix, "pca."))
        }
        estimated = {
            key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
        form = settings["information"]
        information = form and INFORMATION[form["kind"]](**estimated, damping=form["damping"])
        return cls(
            weights,
            information,
            settings["normalisation"],
            Pca.from_tensors(tensors),
            settings.get("gradient_power", 1.0),
            settings.get("has_relu", True),
        )

    def _batch_sums(self, descriptors: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        variances = self._weights["var_x"].double().unsqueeze(1)
        sums = [variances.new_zeros(self.width, self.num_latents + 1) for _ in lengths]
        scratch = Scratch(_compute_dtype(descriptors), descriptors.device)
        for rows, pieces in groups(lengths, CHUNK_DESCRIPTORS, descriptors.device):
            x = self._rows(descriptors[rows])
            code = self._code(x, scratch)
            add_products(sums, self._residuals(x, code, scratch), code, pieces)
        for total in sums:
            total /= variances
        return sums

    def _vector(self, sums: Tensor, count: int) -> Tensor:
        gradient = sums / count
        if self.information is not None:
            gradient = self.information.whiten(gradient)
        return gradient.flatten()

    def _rows(self, descriptors: Tensor) -> Tensor:
        """Return descriptors [n, C] after the PCA, in the dtype of the computation."""
        return projected(descriptors.flatten(0, -2).to(_compute_dtype(descriptors)), self.pca)

    def _code(self, x: Tensor, scratch: Scratch) -> Tensor:
        """Return [z, 1] [n, L + 1] of x [n, C], in scratch memory."""
        layers, _ = self._layers(x.dtype)
        for i, (weight, bias) in enumerate(layers):
            x = x.relu_() if i else x
            x = torch.addmm(bias, x, weight, out=scratch(f"layer {i}", len(x), len(bias)))
        return x

    def _residuals(self, x: Tensor, code: Tensor, scratch: Scratch) -> Tensor:
        """Return delta sigma_x^2 = (mu_x - x) [mu_x > 0], [n, C]; without a ReLU, mu_x - x.

        The sums are divided by sigma_x^2 later. With a gradient power, times |g|^(power - 1), where
        a gradient's length |g| is that of the residual in standard deviations sigma_x times that of
        [z, 1].
        """
        _, decoder = self._layers(x.dtype)
        linear = torch.mm(code, decoder, out=scratch("linear", *x.shape))  # mu_x before its ReLU
        residuals = torch.sub(linear, x, out=scratch("residuals", *x.shape))
        if self.has_relu:
            torch.ops.aten.threshold_backward.grad_input(
                residuals, linear, 0.0, grad_input=residuals
            )
        if self.gradient_power != 1:
            deviations = torch.mul(
                residuals, self._weights["var_x"].to(x.dtype).rsqrt(), out=linear
            )
            length = deviations.norm(dim=1) * code.norm(dim=1)
            residuals *= (
                length.clamp_min(SHORTEST_GRADIENT) ** (self.gradient_power - 1)
            ).unsqueeze(1)
        return residuals

    def _layers(self, dtype: torch.dtype) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Return the encoder's layers (W^T, b) and the decoder's [W, b]^T; computed once per dtype.

        The last layer has one more output, which is always 1: so [z, 1] and mu_x are one product
        each.
        """
        if dtype not in self._layers_by_dtype:
            weights = {key: value.to(dtype) for key, value in self._weights.items()}
            layers = [
                (weights[f"encoder.{i}.weight"], weights[f"encoder.{i}.bias"])
                for i in range(self._num_layers)
            ]
            weight, bias = layers[-1]
            layers[-1] = functional.pad(weight, (0, 0, 0, 1)), functional.pad(bias, (0, 1), value=1)
            decoder = torch.cat([weights["decoder.weight"], weights["decoder.bias"][:, None]], 1)
            self._layers_by_dtype[dtype] = [(weight.T, bias) for weight, bias in layers], decoder.T
        return self._layers_by_dtype[dtype]


def _compute_dtype(descriptors: Tensor) -> torch.dtype:
    return torch.float64 if descriptors.dtype == torch.float64 else torch.float32


def _frames_of_videos(sample: FitSample) -> Tensor:
    """Return the number of frames of each video of this worker, in their order."""
    if len(sample.frames) == 0:
        raise ValueError(
            f"fit section: expected frames on each of {sample.world_size} workers, got none on "
            f"worker {sample.rank}; lower fit.num_workers or sample more videos"
        )
    return sample.video.cpu().unique_consecutive(return_counts=True)[1]


def _held_out_frames(sample: FitSample, held_out: Tensor, pca: Pca | None) -> Tensor:
    """Return this worker's share [h, T, C] of held-out frames, evenly spread over them.

    All workers together have at most `HELD_OUT_FRAMES`.
    """
    indices = held_out[sample.video.cpu()].nonzero().flatten()
    most = max(1, HELD_OUT_FRAMES // sample.world_size)
    if len(indices) > most:
        indices = indices[torch.arange(most) * len(indices) // most]
    return projected(sample.frames[indices.to(sample.frames.device)].float(), pca)


def _batches(
    sample: FitSample,
    batch_frames: int,
    pca: Pca | None = None,
    held_out: Tensor | None = None,
) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor | None]]:
    """Return a function that draws this worker's share of a batch: random frames, and targets.

    Raises:
        ValueError: all of this worker's videos are held out.
    """
    if held_out is not None and held_out[sample.video.cpu()].all():
        raise ValueError(
            f"fit section: expected a training video on each of {sample.world_size} workers, got "
            f"none but held-out ones on worker {sample.rank}; lower fit.num_workers, or set "
            "fv_vae.early_stopping_steps=0"
        )

    def batch(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        chosen = random_frames(sample, batch_frames, generator, held_out)
        frames = projected(sample.frames[chosen.to(sample.frames.device)].float(), pca)
        targets = sample.targets
        if targets is not None:
            targets = targets[sample.video[chosen]].to(frames.device)
        return frames, targets

    return batch
