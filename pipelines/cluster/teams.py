"""Teams of the workers of one Ray Train run, each with a codebook of its own at a time.

A codebook is the same bits however many teams there are: within a team its workers add up their
sums, and nothing passes between teams.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import cast

import ray
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.settings.sections import Fit

FIT_WORKER_BYTES = 2 * 2**30
"""Memory of a process that fits codebooks, beside twice its share of the sample."""

TEAM_BYTES = 2**26
"""Bytes of samples to fit codebooks on: less takes a team no longer than its start."""


def teams_at_once(
    settings: Fit, sample_bytes: Sequence[float], num_devices: float, memory: float = inf
) -> int:
    """Return the number of codebooks that are fitted at once.

    Args:
        sample_bytes: of each codebook's sample. num_devices: CPUs, or GPUs, for a worker each.
            memory: bytes for all workers.
    """
    size = settings.num_workers
    team_bytes = size * FIT_WORKER_BYTES + 2 * max(sample_bytes)
    room = min(num_devices // size, memory // team_bytes)
    pays = sum(sample_bytes) // TEAM_BYTES
    return min(len(sample_bytes), settings.codebooks_at_once or max(1, int(min(room, pays))))


@dataclass(frozen=True)
class Team:
    """A team of workers that fit a codebook together, as one of them sees it.

    Attributes:
        number: which team. rank, size: which worker of the team, of how many.
        group: those that sums are over; None where that is all of them, or one alone.
    """

    number: int = 0
    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, size: int) -> "Team":
        """Return this worker's team of `size` workers. All workers call it together."""
        context = ray.train.get_context()
        rank, workers = context.get_world_rank(), context.get_world_size()
        number, own_rank, group = rank // size, rank % size, None
        if 1 < size < workers:
            # Each process takes part in making every group.
            firsts = range(0, workers, size)
            groups = [dist.new_group(list(range(i, i + size))) for i in firsts]
            # The stub also knows the group of a process that is not a member.
            group = cast(dist.ProcessGroup, groups[number])
        return cls(number, own_rank, size, group)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Return the sum over the team, on the tensor's own device."""
        if self.size == 1:
            return tensor
        # nccl reduces tensors of its own device only; the caller's device comes back.
        total = tensor.detach().to(ray.train.torch.get_device(), copy=True)
        dist.all_reduce(total, group=self.group)
        return total.to(tensor.device)

    def agree(self, number: float) -> float:
        """Return the number of the team's first worker: all must take the same steps."""
        value = number if self.rank == 0 else 0.0
        return self.all_reduce(torch.tensor(value, dtype=torch.float64)).item()


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Dealer:
    """A dealer of codebooks to teams, in their order, but those on one sample to one team while
    others have something else to do: a team that reads no new sample loses no time.

    Where its process is lost it deals all out again; a team skips what is finished.

    Args:
        samples: that each codebook is fitted on.
    """

    def __init__(self, samples: list[str]) -> None:
        self.samples = samples
        self.left = list(range(len(samples)))
        self.held: dict[int, int] = {}

    def begin(self, team: int) -> None:
        """Start a team, perhaps again after its workers were lost: its codebook is then to be
        fitted again.
        """
        if team in self.held:
            self.left = sorted([*self.left, self.held.pop(team)])

    def stop(self) -> None:
        """Deal out no more: the run has failed."""
        self.left = []

    def take(self, team: int) -> int | None:
        """Return the index of the team's next codebook; None where none is left."""
        last = self.held.pop(team, None)
        if not self.left:
            return None
        own_sample = self.samples[last] if last is not None else ""
        other_samples = {self.samples[task] for task in self.held.values()}

        def wish(task: int) -> int:
            sample = self.samples[task]
            return 0 if sample == own_sample else 1 + (sample in other_samples)

        task = min(self.left, key=wish)
        self.left.remove(task)
        self.held[team] = task
        return task
