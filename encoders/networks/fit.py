"""Training of a network on clips of labelled videos, by one worker or several.

Letters: f kept frames of this worker, v its videos, b clips, n frames of a clip, K classes.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from encoders.networks import training
from encoders.networks.augment import augmented, augmented_maps
from encoders.networks.base import Clips, Network


@dataclass(frozen=True, kw_only=True)
class ClipSample:
    """One worker's share of the training videos, and the functions by which it talks to others.

    Attributes:
        frames: uint8 [f, h, w, c], video by video, in order of time; may be a mapped file. Of
            networks that read maps: float [f, C, h, w].
        counts: [v] kept frames of each video, at least 1.
        targets: [v, K] of 0 and 1.
        run_frames: frames that are consecutive in the video; `counts` are multiples of it.
        multi_label: a video of any worker has several classes.
        rank, world_size, all_reduce, log, state, checkpoint: as in
            `encoders.codebooks.sample.FitSample`.
    """

    frames: Tensor
    counts: list[int]
    targets: Tensor
    run_frames: int = 1
    multi_label: bool = False
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    all_reduce: training.Reduce = lambda tensor: tensor
    log: Callable[[str, int, float], None] = lambda *_: None
    state: dict | None = None
    checkpoint: Callable[[Callable[[], dict]], None] = field(default=lambda _: None)

    def after_step(self, step: int, losses: dict[str, float], state: Callable[[], dict]) -> None:
        """Log the losses of a training step by name, and offer the state after it."""
        for quantity, value in losses.items():
            self.log(quantity, step, value)
        self.checkpoint(state)


def fit_network(network: Network, sample: ClipSample, crop_px: int, device: str = "cpu") -> Network:
    """Train a network in place, in all its phases, and return it in evaluation mode.

    Raises:
        ValueError: a worker without videos, a state of another run, or a loss that is not finite.
    """
    if not sample.counts:
        raise ValueError(
            f"{network.name} training: expected videos on each of {sample.world_size} workers, got "
            f"none on worker {sample.rank}; lower fit.num_workers"
        )
    network.to(device)
    trainee = _Training(network, sample, crop_px, device)
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        training.train(
            trainee,
            all_reduce=sample.all_reduce,
            state=sample.state,
            on_step=sample.after_step,
        )
    network.current = ()
    return network.eval()


class _Training(training.Trainee):
    """A network and its clips, as the training loop takes them."""

    def __init__(self, network: Network, sample: ClipSample, crop_px: int, device: str) -> None:
        self.network, self.sample = network, sample
        self.crop_px, self.device = crop_px, torch.device(device)
        self.name = network.name
        ends = torch.tensor(sample.counts).cumsum(0).tolist()
        self.starts = [end - count for end, count in zip(ends, sample.counts, strict=True)]
        settings = network.settings
        # As a saved state has them: lists stay lists, and tuples tuples.
        self.run = {"network": network.name, **asdict(settings), "seed": sample.seed}
        self.advice = (
            f"lower {network.name}.learning_rate ({settings.learning_rate:g}), or set "
            f"{network.name}.clip_norm"
        )

    def phases(self) -> list[training.Phase]:
        return self.network.phases()

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.network.parameters())

    def buffers(self) -> list[Tensor]:
        return self.network.buffers_in_training()

    def parts(self, step: int) -> Iterator[training.Part]:
        settings, sample = self.network.settings, self.sample
        clips = self._clips(step)
        noise = training.generator(self.device, sample.seed, step, sample.rank, 1)
        size = settings.part_clips or len(clips)
        for first in range(0, len(clips), size):
            part = clips[first : first + size]
            frames = torch.stack([self._clip(step, place, video) for place, video in part])
            targets = sample.targets[[video for _, video in part]].to(self.device)
            with self._precision():
                losses = self.network.losses(
                    Clips(frames.to(self.device)), targets, noise, multi_label=sample.multi_label
                )
            yield training.Part(losses, len(part))

    def _clips(self, step: int) -> list[tuple[int, int]]:
        """Return place and video of this worker's clips of a step: its videos in random order, each
        once before one comes again."""
        sample, count = self.sample, len(self.sample.counts)
        ends = [
            self.network.settings.batch_clips * (sample.rank + i) // sample.world_size
            for i in (0, 1)
        ]
        size = max(1, ends[1] - ends[0])
        orders: dict[int, list[int]] = {}
        chosen = []
        for place in range(size):
            epoch, number = divmod(step * size + place, count)
            if epoch not in orders:
                draw = training.generator("cpu", sample.seed, epoch, sample.rank, 2)
                orders[epoch] = torch.randperm(count, generator=draw).tolist()
            chosen.append((place, orders[epoch][number]))
        return chosen

    def _clip(self, step: int, place: int, video: int) -> Tensor:
        network, sample = self.network, self.sample
        draw = training.generator("cpu", sample.seed, step, sample.rank, 0, place)
        num_runs = sample.counts[video] // sample.run_frames
        places = network.clip_places(num_runs, sample.run_frames, draw)
        frames = sample.frames[[self.starts[video] + place for place in places]]
        if network.reads == "maps":
            return augmented_maps(frames, network.settings, draw)
        return augmented(frames, network.settings, self.crop_px, draw)

    def _precision(self) -> contextlib.AbstractContextManager:
        """Return bfloat16 on a GPU, whose range is that of float32: no loss needs scaling."""
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        return torch.autocast("cuda", torch.bfloat16)

    def state(self) -> dict:
        return {"model": self.network.state_dict()}

    def load(self, state: dict) -> None:
        self.network.load_state_dict(state["model"])
