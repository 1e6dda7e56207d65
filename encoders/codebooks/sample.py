"""The sample that a codebook is fitted on: one worker's share of the sampled frames.

Letters: f frames of this worker, T descriptors of a frame, C channels, v videos, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from encoders.stream_specs import Scale


@dataclass(frozen=True, kw_only=True)
class FitSample:
    """Sampled frames, and the functions by which a fit talks to other workers and its caller.

    Attributes:
        frames: [f, T, C], any float dtype; whole videos, ascending by their number.
        video: [f] int64, the video of each frame, numbered from 0 over all workers.
        targets: [v, K] of 0 and 1, the labels of all videos, or -1 where a video does not count for
            a class; None without labels.
        multi_label: a video may have several labels.
        group: [v] int64, videos of one group belong together; None if each is its own group.
        levels: sides of the pyramid whose cells give a frame's descriptors, once for each view.
        scales: the sizes of the picture that a frame's descriptors are of, in their order.
        rank, world_size: number of this worker, and of workers.
        all_reduce: sums a tensor over the workers and gives each the sum.
        log: (quantity, step, value) for the training curves.
        state: state of an interrupted fit, or None.
        checkpoint: (function that returns the state) offers a state to keep; called at each step.
    """

    frames: Tensor
    video: Tensor
    targets: Tensor | None = None
    multi_label: bool = False
    group: Tensor | None = None
    levels: tuple[int, ...] = ()
    scales: tuple[Scale, ...] = ()
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    all_reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor
    log: Callable[[str, int, float], None] = lambda *_: None
    state: dict | None = None
    checkpoint: Callable[[Callable[[], dict]], None] = field(default=lambda _: None)

    def after_step(self, step: int, losses: dict[str, float], state: Callable[[], dict]) -> None:
        """Log the losses of a training step by name, and offer the state after it."""
        for quantity, value in losses.items():
            self.log(quantity, step, value)
        self.checkpoint(state)

    def descriptors(self) -> Tensor:
        """Return this worker's descriptors [f T, C]: a view of the frames."""
        return self.frames.view(-1, self.frames.shape[2])

    def gather(self, most: int) -> Tensor:
        """Draw at most `most` descriptors [n, C], float32, of all workers, with the seed.

        They are the same on each worker, and do not depend on the number of workers.
        """
        positions, total = self._positions()
        chosen = np.random.default_rng(self.seed).choice(total, min(most, total), replace=False)
        chosen.sort()
        gathered = torch.zeros(len(chosen), self.frames.shape[2])
        is_local, row = self._local(chosen, positions)
        gathered[is_local] = self.descriptors()[row.to(self.frames.device)].float().cpu()
        return self.all_reduce(gathered)

    def batches(self, size: int) -> tuple[int, Callable[[int], Tensor]]:
        """Return the steps of a pass over all workers' descriptors, and a function of the step.

        The function returns this worker's part [m, C] of a step's batch, in float32. The batches of
        a pass have at most `size` descriptors, and each descriptor is in one of them, those of a
        frame in different ones if possible. A batch depends on seed and step, but not on the number
        of workers.
        """
        positions, total = self._positions()
        cells, num_frames = self.frames.shape[1], total // self.frames.shape[1]
        steps_per_pass = -(-total // size)

        def batch(step: int) -> Tensor:
            number, part = divmod(step, steps_per_pass)
            generator = np.random.default_rng((self.seed, number))
            order = generator.permutation(num_frames)
            first_cell = generator.integers(cells, size=num_frames)
            dealt = np.arange(*(total * i // steps_per_pass for i in (part, part + 1)))
            frame = order[dealt % num_frames]
            cell = (first_cell[frame] + dealt // num_frames) % cells
            _, row = self._local(np.sort(frame * cells + cell), positions)
            return self.descriptors()[row.to(self.frames.device)].float()

        return steps_per_pass, batch

    def held_out(self, share: float) -> Tensor:
        """Draw the videos to evaluate a fit on, whole groups of them, with the seed: [v] bool.

        Groups in random order are taken if they bring the number of videos nearer to `share` of
        all; the smallest one if each is too large. If there is one group, its videos are drawn
        one by one.

        Raises:
            ValueError: there are fewer than two videos.
        """
        has_frames = self._frames_of_videos() > 0
        group = torch.arange(len(has_frames)) if self.group is None else self.group.cpu()
        # The last videos may have no frames on any worker.
        has_frames = functional.pad(has_frames, (0, len(group) - len(has_frames)))
        if len(group[has_frames].unique()) < 2:
            group = torch.arange(len(group))
        names = group[has_frames].unique()
        if len(names) < 2:
            raise ValueError(
                f"fit section: expected at least two videos to hold one out, got {len(names)}; set "
                "fv_vae.early_stopping_steps=0 or sample more videos"
            )
        order = names[np.random.default_rng(self.seed).permutation(len(names))]
        sizes = [int((group[has_frames] == name).sum()) for name in order]
        chosen, missing = [], share * sum(sizes)
        for index, size in enumerate(sizes):
            if size < 2 * missing and len(chosen) < len(names) - 1:
                chosen.append(index)
                missing -= size
        return torch.isin(group, order[chosen or [int(np.argmin(sizes))]])

    def _positions(self) -> tuple[NDArray[np.int64], int]:
        """Return the positions of this worker's frames among those of all workers, ascending.

        The second value is the number of descriptors of all workers.
        """
        frames_of = self._frames_of_videos()
        first = frames_of.cumsum(0) - frames_of
        video = self.video.cpu()
        starts = torch.searchsorted(video, video)
        positions = first[video] + torch.arange(len(video)) - starts
        return positions.numpy(), int(frames_of.sum()) * self.frames.shape[1]

    def _frames_of_videos(self) -> Tensor:
        """Return the number of frames [v] int64 of each video of all workers.

        The last videos are left out if they have none.
        """
        num_videos = int(self._largest(self.video.max() + 1 if len(self.video) else 0))
        frames_of = torch.zeros(num_videos, dtype=torch.float64)
        frames_of += torch.bincount(self.video.cpu(), minlength=num_videos)
        return self.all_reduce(frames_of).long()

    def _local(
        self, chosen: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """Return a mask of the chosen descriptors that are on this worker, and their rows here."""
        frame, cell = np.divmod(chosen, self.frames.shape[1])
        is_local = np.isin(frame, positions)
        row = np.searchsorted(positions, frame[is_local]) * self.frames.shape[1] + cell[is_local]
        return torch.from_numpy(is_local), torch.from_numpy(row)

    def _largest(self, number: Tensor | int) -> float:
        """Return the largest of the workers' numbers, by sums only."""
        numbers = torch.zeros(self.world_size, dtype=torch.float64)
        numbers[self.rank] = float(number)
        return float(self.all_reduce(numbers).max())
