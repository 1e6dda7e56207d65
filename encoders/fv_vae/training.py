"""Training of an FV-VAE by stochastic gradient descent, on one worker or several (DQ Algorithm 1).

Letters: b frames of a batch, T descriptors of a frame, C channels, K classes.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from encoders import matmul
from encoders.codebooks.sample import FitSample
from encoders.fv_vae.network import FvVaeNet, descriptor_moments
from encoders.networks import training
from encoders.settings import EVALUATE_EVERY, FvVaeSettings

OPTIMISERS = {
    "adadelta": partial(torch.optim.Adadelta, rho=0.95, eps=1e-6),  # Zeiler's values
    "adam": torch.optim.Adam,
}


EVALUATE_FRAMES = 64
"""Held-out frames per chunk."""


@dataclass(frozen=True)
class Trunk:
    """Network that computes the descriptors, if it is trained too.

    Attributes:
        parameters: by name, the trained ones that `batch`'s descriptors depend on.
        learning_rate_factor: their learning rate, relative to that of the FV-VAE.
    """

    parameters: dict[str, nn.Parameter]
    learning_rate_factor: float


@matmul.fastest()
def fit_fv_vae(  # noqa: PLR0913 - a training run has this many independent inputs
    batch: Callable[[int, torch.Generator], tuple[Tensor, Tensor | None]],
    descriptor_dim: int,
    num_classes: int,
    settings: FvVaeSettings,
    *,
    seed: int,
    multi_label: bool = False,
    trunk: Trunk | None = None,
    held_out: Tensor | None = None,
    rank: int = 0,
    all_reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    state: dict | None = None,
    on_step: Callable[[int, dict[str, float], Callable[[], dict]], None] = lambda *_: None,
) -> FvVaeNet:
    """Train an FV-VAE over `settings.num_steps` batches, or until early stopping (DQ Algorithm 1).

    Gradients are averaged over the frames of all workers, whose shares may differ in size. The
    randomness of a step depends on (seed, step, rank) only, so that a run which is stopped and
    resumed gives the same weights as without the stop, bit for bit.

    Args:
        batch: (step, CPU generator of this step and rank) -> this worker's frames [b, T, C] and
            their targets [b, K] or None. The network goes where the frames are, in their dtype.
        num_classes: K; not used if lambda3 is 0.
        trunk: trained together with the FV-VAE, in place; gradients reach it through the
            descriptors.
        held_out: this worker's share [h, T, C] of the frames for early stopping, h may be 0; None
            without it. The weights with the highest evidence lower bound on them are kept.
        all_reduce: sums a tensor over workers and gives every worker the sum. Called once for the
            first batch's moments, then once a step, and once for each evaluation of held-out
            frames.
        state: the state that `on_step`'s last argument returned; the run goes on from it.
        on_step: called after each step with the number of steps done, the mean losses over workers
            (`total`, `reconstruction`, `regularisation`, `classification`; `held_out_bound` at
            steps with an evaluation) and a function that copies the state: tensors and plain
            values, for torch.save and torch.load(weights_only=True).

    Raises:
        ValueError: wrong shapes, no targets, a state of another run, or a loss that is not finite.
    """
    trainee = _Training(
        batch,
        FvVaeNet(descriptor_dim, num_classes, settings, seed=seed, multi_label=multi_label),
        trunk,
        seed=seed,
        rank=rank,
        held_out=held_out,
        all_reduce=all_reduce,
    )
    trainee.run |= {"seed": seed, "multi_label": multi_label}
    training.train(trainee, all_reduce=all_reduce, state=state, on_step=on_step)
    if trainee.stopping.weights:
        trainee.net.load_state_dict(trainee.stopping.weights)
    return trainee.net


class _Training(training.Trainee):
    """The FV-VAE, and the trunk if it is trained too, as the training loop takes them."""

    name = "FV-VAE"
    # The information is estimated later.
    free = ("num_steps", "information", "damping")

    def __init__(
        self,
        batch: Callable[[int, torch.Generator], tuple[Tensor, Tensor | None]],
        net: FvVaeNet,
        trunk: Trunk | None,
        *,
        seed: int,
        rank: int,
        held_out: Tensor | None,
        all_reduce: Callable[[Tensor], Tensor],
    ) -> None:
        settings = net.settings
        self.batch, self.net, self.trunk = batch, net, trunk
        self.seed, self.rank, self.all_reduce = seed, rank, all_reduce
        self.stopping = _Stopping(held_out, settings, all_reduce)
        self.is_ready = self.is_loaded = False
        self.run: dict[str, object] = asdict(settings)
        if trunk is not None:
            self.run |= {"trunk": list(trunk.parameters)}
            self.run |= {"trunk_factor": trunk.learning_rate_factor}
        self.advice = (
            "are the descriptors finite and normalised? If so, lower fv_vae.learning_rate "
            f"({settings.learning_rate:g}), fv_vae.sigma_learning_rate_factor "
            f"({settings.sigma_learning_rate_factor:g}) or fv_vae.lambda3 ({settings.lambda3:g})"
        )

    def phases(self) -> list[training.Phase]:
        settings, net = self.net.settings, self.net
        sigmas = [net.log_var_z, net.log_var_x]
        others = [value for name, value in net.named_parameters() if not name.startswith("log_var")]
        factors = [(others, 1.0), (sigmas, settings.sigma_learning_rate_factor)]
        if self.trunk is not None:
            values = list(self.trunk.parameters.values())
            factors.append((values, self.trunk.learning_rate_factor))
        groups = tuple(
            training.Group(parameters=tuple(values), learning_rate=settings.learning_rate * factor)
            for values, factor in factors
        )
        optimiser = OPTIMISERS[settings.optimiser]
        return [training.Phase(num_steps=settings.num_steps, groups=groups, optimiser=optimiser)]

    def parameters(self) -> list[nn.Parameter]:
        trunk = self.trunk.parameters.values() if self.trunk else ()
        return [*self.net.parameters(), *trunk]

    def parts(self, step: int) -> Iterator[training.Part]:
        cpu = training.generator("cpu", self.seed, step, self.rank, 0)
        frames, targets = self.batch(step, cpu)
        _check_frames(frames, self.net.decoder.out_features)
        if not self.is_ready:
            self.is_ready = True
            self.net.to(frames)
            if not self.is_loaded:
                self.net.start_at(self.all_reduce(descriptor_moments(frames.detach())))
        noise = training.generator(frames.device, self.seed, step, self.rank, 1)
        total, losses = self.net.loss(frames, targets, noise)
        yield training.Part({"total": total, **losses}, len(frames))

    def after_step(self, step: int) -> dict[str, float]:
        net = self.net
        with torch.no_grad():
            net.log_var_x.clamp_(min=net.min_log_var_x)
        noise = training.generator(net.log_var_x.device, self.seed, 0, self.rank, 2)
        return self.stopping.look(step, net, noise)

    def is_over(self, step: int) -> bool:
        return self.stopping.is_over(step)

    def state(self) -> dict:
        trunk = self.trunk.parameters if self.trunk else {}
        return {
            "model": self.net.state_dict(),
            "trunk": {name: value.detach() for name, value in trunk.items()},
            "stopping": self.stopping.state(),
        }

    @torch.no_grad()
    def load(self, state: dict) -> None:
        self.is_loaded = True
        self.net.load_state_dict(state["model"])
        for name, value in self.trunk.parameters.items() if self.trunk else ():
            value.copy_(state["trunk"][name])
        self.stopping.load(state["stopping"])


class _Stopping:
    """Early stopping: the weights with the best evidence lower bound on held-out frames.

    The frames are those of all workers. Without frames it never stops, and keeps nothing.
    """

    def __init__(
        self,
        frames: Tensor | None,
        settings: FvVaeSettings,
        all_reduce: Callable[[Tensor], Tensor],
    ) -> None:
        self.frames, self.settings, self.all_reduce = frames, settings, all_reduce
        self.step, self.bound, self.weights = 0, -math.inf, {}

    def look(self, step: int, net: FvVaeNet, noise: torch.Generator) -> dict[str, float]:
        """Return the evidence lower bound after `step` steps, by name; empty if none is due."""
        is_due = step % EVALUATE_EVERY == 0 or step == self.settings.num_steps
        if self.frames is None or not is_due:
            return {}
        bound = self._bound(self.frames, net, noise)
        if bound > self.bound:
            self.step, self.bound = step, bound
            self.weights = copy.deepcopy(net.state_dict())
        return {"held_out_bound": bound}

    def is_over(self, step: int) -> bool:
        return self.frames is not None and step - self.step >= self.settings.early_stopping_steps

    @torch.no_grad()
    def _bound(self, frames: Tensor, net: FvVaeNet, noise: torch.Generator) -> float:
        """Return the bound in nats per descriptor, without dropout."""
        total = torch.zeros(2, dtype=torch.float64)
        net.eval()
        for chunk in frames.split(EVALUATE_FRAMES) if len(frames) else ():
            parts, _ = net.evidence(chunk.to(net.scale), noise)
            bound = -float(parts["reconstruction"] + parts["regularisation"])
            total += torch.tensor([bound * len(chunk), len(chunk)], dtype=torch.float64)
        net.train()
        bound, count = self.all_reduce(total).tolist()
        return bound / count

    def state(self) -> dict:
        return {"step": self.step, "bound": self.bound, "weights": self.weights}

    def load(self, state: dict) -> None:
        self.step, self.bound, self.weights = (state[key] for key in ("step", "bound", "weights"))


def random_frames(
    sample: FitSample,
    batch_frames: int,
    generator: torch.Generator,
    held_out: Tensor | None = None,
) -> Tensor:
    """Draw the frames of this worker's share of a batch: random frames of random videos.

    Args:
        held_out: [v] bool, videos to leave out.
    """
    first, end = (batch_frames * (sample.rank + i) // sample.world_size for i in (0, 1))
    size = max(1, end - first)
    names, num_frames = sample.video.cpu().unique_consecutive(return_counts=True)
    starts = num_frames.cumsum(0) - num_frames
    if held_out is not None:
        starts, num_frames = (values[~held_out[names]] for values in (starts, num_frames))
    videos = torch.randint(len(num_frames), (size,), generator=generator)
    offsets = torch.rand(size, generator=generator, dtype=torch.float64) * num_frames[videos]
    return starts[videos] + offsets.long()


def with_steps(sample: FitSample, settings: FvVaeSettings) -> FvVaeSettings:
    """Return the settings with their steps, if need be from the number of sampled frames."""
    num_frames = sample.all_reduce(torch.tensor([len(sample.frames)], dtype=torch.float64))
    return replace(settings, num_steps=settings.steps_for(int(num_frames)))


def _check_frames(frames: Tensor, descriptor_dim: int) -> None:
    if frames.ndim != 3 or frames.shape[2] != descriptor_dim or 0 in frames.shape:
        raise ValueError(
            f"FV-VAE training: expected frames of shape [b, T, {descriptor_dim}], none of them 0, "
            f"got {list(frames.shape)}; each worker needs at least one frame a step"
        )
