"""Training by stochastic gradient descent, on one worker or several: the one loop of all networks.

What is trained says what it is made of (`Trainee`); the loop takes the steps. Gradients are
averaged over the examples of all workers, whose shares may differ in size: averaging over workers,
as torch's DistributedDataParallel does, would give other results then. On the CPU a run that is
stopped and goes on from its state gives the same bits as without the stop.
"""

import copy
import itertools
import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over the workers, and gives each the sum."""

Rate = Callable[[int], float]
"""Factor of the learning rates at a step of a phase, counted from 0."""

OnStep = Callable[[int, dict[str, float], Callable[[], dict]], None]
"""Is told after each step: steps done, the mean losses over workers, and a function that copies the
state: tensors and plain values, for torch.save and torch.load(weights_only=True)."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters with a learning rate and a weight decay of their own."""

    parameters: tuple[nn.Parameter, ...]
    learning_rate: float
    decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a training: what is trained, and how.

    Attributes:
        optimiser: makes the optimiser of this phase from torch's parameter groups.
        rate: None leaves the learning rates as they are.
        clip_norm: longest gradient over all workers and parameters together; 0: no limit.
        begin: called when the phase begins, or is gone on with.
    """

    num_steps: int
    groups: tuple[Group, ...]
    optimiser: Callable[[list[dict[str, Any]]], Optimizer]
    rate: Rate | None = None
    clip_norm: float = 0.0
    begin: Callable[[], None] = lambda: None


class Part(NamedTuple):
    """Mean losses of a part of a worker's batch, of `count` examples; `total` is minimised."""

    losses: dict[str, Tensor]
    count: int


class Trainee(ABC):
    """What a training run is of.

    Attributes:
        name: for messages.
        advice: what to do where a loss is not finite.
        run: plain values that a state must share with the run that goes on from it.
        free: names in `run` that may differ all the same.
    """

    name: str
    advice: str
    run: dict[str, object]
    free: tuple[str, ...] = ()

    @abstractmethod
    def phases(self) -> Sequence[Phase]:
        """Return the phases, in their order."""

    @abstractmethod
    def parameters(self) -> Iterable[nn.Parameter]:
        """Return all parameters, trained or not, in an order that all workers share."""

    @abstractmethod
    def parts(self, step: int) -> Iterable[Part]:
        """Yield this worker's share of a batch, in parts whose gradients are added up.

        Its randomness may depend on seed, step and rank alone.
        """

    @abstractmethod
    def state(self) -> dict:
        """Return tensors and plain values for `load`; the loop copies them."""

    @abstractmethod
    def load(self, state: dict) -> None:
        """Go on from a state."""

    def buffers(self) -> Iterable[Tensor]:
        """Return the tensors that steps change without a gradient: they are averaged too."""
        return ()

    def after_step(self, step: int) -> dict[str, float]:
        """Return more numbers after so many steps, by name, for the curves."""
        return {}

    def is_over(self, step: int) -> bool:
        """Return whether to end after so many steps, before the last phase does."""
        return False


def train(
    trainee: Trainee,
    *,
    all_reduce: Reduce = lambda tensor: tensor,
    state: dict | None = None,
    on_step: OnStep = lambda *_: None,
) -> None:
    """Take all steps of all phases, or those after a state.

    Args:
        all_reduce: called once a step, beside what the trainee itself sends.
        state: what `on_step`'s last argument returned.

    Raises:
        ValueError: a state of another run, or a loss that is not finite.
    """
    first = 0
    if state is not None:
        _check_same_run(trainee, state["run"])
        trainee.load(state)
        first = state["step"]
    phases = trainee.phases()
    ends = list(itertools.accumulate(phase.num_steps for phase in phases))
    number, optimiser, saved = -1, None, None
    for step in range(first, ends[-1]):
        if trainee.is_over(step):
            break
        current = bisect_right(ends, step)
        phase = phases[current]
        if current != number or optimiser is None:
            number = current
            phase.begin()
            optimiser = phase.optimiser([_torch_group(group) for group in phase.groups])
            if state is not None and step == first and state.get("phase", 0) == current:
                saved = state["optimiser"]
        step_in_phase = step - ends[current] + phase.num_steps
        losses = _step(trainee, phase, optimiser, saved, (step, step_in_phase), all_reduce)
        saved = None
        losses |= trainee.after_step(step + 1)
        on_step(step + 1, losses, partial(_state, trainee, optimiser, step + 1, current))


def _torch_group(group: Group) -> dict[str, Any]:
    return {
        "params": list(group.parameters),
        "lr": group.learning_rate,
        "weight_decay": group.decay,
    }


def _step(
    trainee: Trainee,
    phase: Phase,
    optimiser: Optimizer,
    saved: dict | None,
    steps: tuple[int, int],
    all_reduce: Reduce,
) -> dict[str, float]:
    """Take a step on the gradients of all workers; return their mean losses.

    Args:
        saved: state of the optimiser to go on from: only now are the parameters on their device.
        steps: the step of the run, and of the phase.
    """
    step, step_in_phase = steps
    trained = {id(p) for group in phase.groups for p in group.parameters}
    parameters = [p for p in trainee.parameters() if id(p) in trained]
    flat, names, count = _gradients(trainee, step, parameters)
    buffers = list(trainee.buffers())
    flat = torch.cat([flat, *(buffer.flatten() * count for buffer in buffers)])
    # Losses are sent with the gradients: one message a step, and all workers stop on one step.
    reduced = all_reduce(torch.cat([flat, flat.new_tensor([float(count)])]))
    flat = reduced[:-1] / reduced[-1]
    sizes = [parameter.numel() for parameter in parameters]
    *gradients, values, means = flat.split(
        [*sizes, len(names), len(flat) - sum(sizes) - len(names)]
    )
    losses = dict(zip(names, values.tolist(), strict=True))
    if not all(math.isfinite(value) for value in losses.values()):
        raise ValueError(
            f"{trainee.name} training, step {step}: expected finite losses, got {losses}; "
            f"{trainee.advice}"
        )
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.view_as(parameter)
    if phase.clip_norm:
        nn.utils.clip_grad_norm_(parameters, phase.clip_norm)
    if saved is not None:
        # A copy, because torch would change the caller's tensors.
        optimiser.load_state_dict(copy.deepcopy(saved))
    if phase.rate is not None:
        for group, own in zip(phase.groups, optimiser.param_groups, strict=True):
            own["lr"] = group.learning_rate * phase.rate(step_in_phase)
    optimiser.step()
    with torch.no_grad():
        for buffer, mean in zip(
            buffers, means.split([buffer.numel() for buffer in buffers]), strict=True
        ):
            buffer.copy_(mean.view_as(buffer))
    return losses


def _gradients(
    trainee: Trainee, step: int, parameters: list[nn.Parameter]
) -> tuple[Tensor, list[str], int]:
    """Return gradients and losses of this worker's batch, flat, times its examples; the losses'
    names, and the number of examples."""
    total, names, count = None, [], 0
    for losses, size in trainee.parts(step):
        gradients = torch.autograd.grad(losses["total"], parameters, materialize_grads=True)
        values = [value.detach().reshape(1) for value in losses.values()]
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), *values]) * size
        total = flat if total is None else total.add_(flat)
        names, count = list(losses), count + size
    if total is None:
        raise RuntimeError(f"{trainee.name} training, step {step}: no examples on this worker")
    return total, names, count


def _state(trainee: Trainee, optimiser: Optimizer, step: int, phase: int) -> dict:
    progress = {"run": trainee.run, "step": step, "phase": phase}
    return copy.deepcopy(
        progress | trainee.state() | {"optimiser": optimiser.state_dict()},
    )


def _check_same_run(trainee: Trainee, saved: dict) -> None:
    """Raise ValueError unless a state is of this run."""
    run = trainee.run
    for name in (run | saved).keys() - {*trainee.free}:
        if saved.get(name) != run.get(name):
            raise ValueError(
                f"{trainee.name} training: expected a state with {name} = {run.get(name)!r}, got "
                f"one with {saved.get(name)!r}; start this run without the state"
            )


NEVER = -1e9
"""Score of a class that does not count: it has no part in a softmax, and no loss of its own."""


def counted(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores and targets [b, K] without the classes that a video does not count for, whose
    target is -1: they add nothing to a cross-entropy, and have no gradient."""
    return scores.masked_fill(targets < 0, NEVER), targets.clamp(min=0)


def generator(device: torch.device | str, *entropy: int) -> torch.Generator:
    """Return a generator whose numbers depend on a few whole numbers alone."""
    seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed))


def falls_at(steps: Sequence[int], factor: float) -> Rate:
    """Return a schedule: the rate is multiplied by `factor` at each of `steps`."""
    return lambda step: factor ** bisect_right(steps, step)


def decays(every: int, factor: float) -> Rate:
    """Return an exponential schedule: the rate is multiplied by `factor` in each `every` steps."""
    return lambda step: factor ** (step / every)
