"""Training of an FV-VAE by stochastic gradient descent, on one worker or several (DQ Algorithm 1).

Letters: b frames of a batch, T descriptors of a frame, C channels, K classes.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from torch import Tensor

from encoders.fv_vae_net import FvVaeNet, descriptor_moments
from encoders.settings import FvVaeSettings

OPTIMISERS = {
    "adadelta": partial(torch.optim.Adadelta, rho=0.95, eps=1e-6),  # Zeiler's values
    "adam": torch.optim.Adam,
}


def fit_fv_vae(  # noqa: PLR0913 - a training run has this many independent inputs
    batch: Callable[[int, torch.Generator], tuple[Tensor, Tensor | None]],
    descriptor_dim: int,
    num_classes: int,
    settings: FvVaeSettings,
    *,
    seed: int,
    multi_label: bool = False,
    rank: int = 0,
    all_reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    state: dict | None = None,
    on_step: Callable[[int, dict[str, float], Callable[[], dict]], None] = lambda *_: None,
) -> FvVaeNet:
    """Minimise the loss over `settings.num_steps` batches (DQ Algorithm 1).

    Gradients are averaged over the frames of all workers, whose shares may differ in size. The
    randomness of a step depends on (seed, step, rank) only, so that a run which is stopped and
    resumed gives the weights of an undisturbed one, bit for bit.

    Args:
        batch: (step, CPU generator of this step and rank) -> this worker's frames [b, T, C] and
            their targets [b, K] or None. The network goes where the frames are, in their dtype.
        num_classes: K; not used if lambda3 is 0.
        all_reduce: sums a tensor over workers and gives every worker the sum. Called once for the
            first batch's moments, then once a step.
        state: what `on_step`'s last argument returned; the run goes on behind it.
        on_step: called after each step with the number of steps done, the mean losses over workers
            (`total`, `reconstruction`, `regularisation`, `classification`) and a function that
            copies the state: tensors and plain values, for torch.save and
            torch.load(weights_only=True).

    Raises:
        ValueError: wrong shapes, no targets, a state of another run, or a loss that is not finite.
    """
    run = {**asdict(settings), "seed": seed, "multi_label": multi_label}
    net = FvVaeNet(descriptor_dim, num_classes, settings, seed=seed, multi_label=multi_label)
    optimiser = _optimiser(net)
    first_step = 0
    if state is not None:
        _check_same_run(state["run"], run)
        net.load_state_dict(state["model"])
        first_step = state["step"]
    for step in range(first_step, settings.num_steps):
        frames, targets = batch(step, _generator("cpu", seed, step, rank, 0))
        _check_frames(frames, descriptor_dim)
        if step == first_step:
            net.to(frames)
            if state is None:
                net.start_at(all_reduce(descriptor_moments(frames)))
            else:
                # torch would go on working in the caller's own tensors.
                optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
        noise = _generator(frames.device, seed, step, rank, 1)
        losses = _step(net, optimiser, net.loss(frames, targets, noise), len(frames), all_reduce)
        if not all(math.isfinite(value) for value in losses.values()):
            raise ValueError(
                f"FV-VAE training, step {step}: expected finite losses, got {losses}; are the "
                "descriptors finite and normalised? If so, lower fv_vae.learning_rate "
                f"({settings.learning_rate:g}), fv_vae.sigma_learning_rate_factor "
                f"({settings.sigma_learning_rate_factor:g}) or fv_vae.lambda3 "
                f"({settings.lambda3:g})"
            )
        on_step(step + 1, losses, partial(_state, net, optimiser, run, step + 1))
    return net


def _step(
    net: FvVaeNet,
    optimiser: torch.optim.Optimizer,
    loss: tuple[Tensor, dict[str, Tensor]],
    num_frames: int,
    all_reduce: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """One optimiser step on the gradients of all workers; the losses over all workers."""
    total, parts = loss
    losses = {"total": total, **parts}
    parameters = list(net.parameters())
    gradients = torch.autograd.grad(total, parameters)
    # Losses travel with the gradients: one message a step, and all workers stop on the same step.
    values = [value.detach().reshape(1) for value in losses.values()]
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), *values])
    reduced = all_reduce(torch.cat([flat * num_frames, flat.new_tensor([float(num_frames)])]))
    flat = reduced[:-1] / reduced[-1]
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, gradient in zip(parameters, flat[: sum(sizes)].split(sizes), strict=True):
        parameter.grad = gradient.view_as(parameter)
    optimiser.step()
    with torch.no_grad():
        net.log_var_x.clamp_(min=net.min_log_var_x)
    return dict(zip(losses, flat[sum(sizes) :].tolist(), strict=True))


def _optimiser(net: FvVaeNet) -> torch.optim.Optimizer:
    settings = net.settings
    sigmas = [net.log_var_z, net.log_var_x]
    others = [value for name, value in net.named_parameters() if not name.startswith("log_var")]
    groups = [
        {"params": others, "lr": settings.learning_rate},
        {"params": sigmas, "lr": settings.learning_rate * settings.sigma_learning_rate_factor},
    ]
    return OPTIMISERS[settings.optimiser](groups)


def _generator(device: torch.device | str, *entropy: int) -> torch.Generator:
    seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed))


def _state(net: FvVaeNet, optimiser: torch.optim.Optimizer, run: dict, step: int) -> dict:
    live = {"model": net.state_dict(), "optimiser": optimiser.state_dict()}
    return {"run": run, "step": step, **copy.deepcopy(live)}


def _check_same_run(saved: dict, wanted: dict) -> None:
    """More steps are welcome, and the information is estimated later; the rest must be the same."""
    free = ("num_steps", "information", "damping")
    for name in wanted.keys() - free:
        if saved.get(name) != wanted[name]:
            raise ValueError(
                f"FV-VAE training: expected a state with {name} = {wanted[name]!r}, got one with "
                f"{saved.get(name)!r}; start this run without the state"
            )


def _check_frames(frames: Tensor, descriptor_dim: int) -> None:
    if frames.ndim != 3 or frames.shape[2] != descriptor_dim or 0 in frames.shape:
        raise ValueError(
            f"FV-VAE training: expected frames of shape [b, T, {descriptor_dim}], none of them 0, "
            f"got {list(frames.shape)}; each worker needs at least one frame a step"
        )
