"""Training of an FV-VAE by stochastic gradient descent, on one worker or several (DQ Algorithm 1).

Letters: b frames of a batch, T descriptors of a frame, C channels, K classes.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from encoders.codebooks.sample import FitSample
from encoders.fv_vae.network import FvVaeNet, descriptor_moments
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
    run = {**asdict(settings), "seed": seed, "multi_label": multi_label}
    if trunk is not None:
        run |= {"trunk": list(trunk.parameters), "trunk_factor": trunk.learning_rate_factor}
    net = FvVaeNet(descriptor_dim, num_classes, settings, seed=seed, multi_label=multi_label)
    trained = _Trained(net, trunk)
    stopping = _Stopping(held_out, settings, all_reduce)
    first_step = 0
    if state is not None:
        _check_same_run(state["run"], run)
        trained.load(state)
        first_step = state["step"]
        stopping.load(state["stopping"])
    for step in range(first_step, settings.num_steps):
        if stopping.is_over(step):
            break
        frames, targets = batch(step, _generator("cpu", seed, step, rank, 0))
        _check_frames(frames, descriptor_dim)
        if step == first_step:
            net.to(frames)
            if state is None:
                net.start_at(all_reduce(descriptor_moments(frames.detach())))
            else:
                # A copy, because torch would change the caller's tensors.
                trained.optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
        noise = _generator(frames.device, seed, step, rank, 1)
        losses = _step(trained, net.loss(frames, targets, noise), len(frames), all_reduce)
        if not all(math.isfinite(value) for value in losses.values()):
            raise ValueError(
                f"FV-VAE training, step {step}: expected finite losses, got {losses}; are the "
                "descriptors finite and normalised? If so, lower fv_vae.learning_rate "
                f"({settings.learning_rate:g}), fv_vae.sigma_learning_rate_factor "
                f"({settings.sigma_learning_rate_factor:g}) or fv_vae.lambda3 "
                f"({settings.lambda3:g})"
            )
        losses |= stopping.look(step + 1, net, _generator(frames.device, seed, 0, rank, 2))
        on_step(step + 1, losses, partial(trained.state, run, step + 1, stopping))
    if stopping.weights:
        net.load_state_dict(stopping.weights)
    return net


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
        return {"step": self.step, "bound": self.bound, "weights": copy.deepcopy(self.weights)}

    def load(self, state: dict) -> None:
        self.step, self.bound, self.weights = (state[key] for key in ("step", "bound", "weights"))


class _Trained:
    """The parameters of a run, of the network and of the trunk, and their optimiser."""

    def __init__(self, net: FvVaeNet, trunk: Trunk | None) -> None:
        self.net, self.trunk = net, trunk.parameters if trunk else {}
        settings = net.settings
        sigmas = [net.log_var_z, net.log_var_x]
        others = [value for name, value in net.named_parameters() if not name.startswith("log_var")]
        factors = [(others, 1.0), (sigmas, settings.sigma_learning_rate_factor)]
        if trunk is not None:
            factors.append((list(trunk.parameters.values()), trunk.learning_rate_factor))
        groups = [
            {"params": parameters, "lr": settings.learning_rate * factor}
            for parameters, factor in factors
        ]
        self.optimiser = OPTIMISERS[settings.optimiser](groups)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.net.parameters(), *self.trunk.values()]

    def state(self, run: dict, step: int, stopping: _Stopping) -> dict:
        live = {
            "model": self.net.state_dict(),
            "trunk": {name: value.detach() for name, value in self.trunk.items()},
            "optimiser": self.optimiser.state_dict(),
        }
        progress = {"run": run, "step": step, "stopping": stopping.state()}
        return progress | copy.deepcopy(live)

    @torch.no_grad()
    def load(self, state: dict) -> None:
        """Load the parameters of a state; the optimiser waits until they are on their device."""
        self.net.load_state_dict(state["model"])
        for name, value in self.trunk.items():
            value.copy_(state["trunk"][name])


def _step(
    trained: _Trained,
    loss: tuple[Tensor, dict[str, Tensor]],
    num_frames: int,
    all_reduce: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """Take one optimiser step on the gradients of all workers; return their mean losses."""
    total, parts = loss
    losses = {"total": total, **parts}
    net, parameters = trained.net, trained.parameters
    gradients = torch.autograd.grad(total, parameters)
    # Losses are sent with the gradients: one message a step, and all workers stop on one step.
    values = [value.detach().reshape(1) for value in losses.values()]
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), *values])
    reduced = all_reduce(torch.cat([flat * num_frames, flat.new_tensor([float(num_frames)])]))
    flat = reduced[:-1] / reduced[-1]
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, gradient in zip(parameters, flat[: sum(sizes)].split(sizes), strict=True):
        parameter.grad = gradient.view_as(parameter)
    trained.optimiser.step()
    with torch.no_grad():
        net.log_var_x.clamp_(min=net.min_log_var_x)
    return dict(zip(losses, flat[sum(sizes) :].tolist(), strict=True))


def _generator(device: torch.device | str, *entropy: int) -> torch.Generator:
    seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed))


def _check_same_run(saved: dict, run: dict) -> None:
    """Raise ValueError unless a state is of this run.

    The number of steps may differ, and so may the information, which is estimated later.
    """
    free = ("num_steps", "information", "damping")
    for name in (run | saved).keys() - free:
        if saved.get(name) != run.get(name):
            raise ValueError(
                f"FV-VAE training: expected a state with {name} = {run.get(name)!r}, got one with "
                f"{saved.get(name)!r}; start this run without the state"
            )


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
