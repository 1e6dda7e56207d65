"""Training of a network on clips of labelled videos, by one worker or several.

Letters: f kept frames of this worker, v its videos, b clips, n frames of a clip, K classes.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from encoders.fields import said
from encoders.networks import training
from encoders.networks.augment import augmented, augmented_maps
from encoders.networks.base import Clips, Network
from encoders.networks.end_point import from_levels

Stream = Callable[[Iterator[int]], Iterator[tuple[Tensor, Tensor | None]]]
"""Videos in the order of their numbers: frames, and levels of flow, as `ClipSample` has them."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of frames with true flow.

    Attributes:
        frames: uint8 [p, 2, h, w, 3]; may be a mapped file.
        flow: [p, h, w, 2] from the first to the second, in px, NaN where it is not known.
    """

    frames: Tensor
    flow: Tensor


@dataclass(frozen=True, kw_only=True)
class ClipSample:
    """One worker's share of the training videos, and the functions by which it talks to others.

    Attributes:
        frames: uint8 [f, h, w, c], video by video, in order of time; may be a mapped file. Of
            networks that read maps: float [f, C, h, w].
        counts: [v] kept frames of each video, at least 1.
        targets: [v, K] of 0 and 1, or -1 where a video does not count for a class.
        run_frames: frames that are consecutive in the video; `counts` are multiples of it.
        flows: uint8 [f / run_frames, h, w, 2 (run_frames - 1)], levels of the flows of each run of
            frames, u and v in turn, for networks that learn flow.
        flow_bound_px: what the largest level stands for.
        pairs: what phases that read pairs learn from.
        stream: instead of `frames` and `flows`: yields those of each video of the numbers that it
            is given, in their order.
        multi_label: a video of any worker has several classes.
        rank, world_size, all_reduce, log, state, checkpoint: as in
            `encoders.codebooks.sample.FitSample`.
    """

    frames: Tensor
    counts: list[int]
    targets: Tensor
    run_frames: int = 1
    flows: Tensor | None = None
    flow_bound_px: float = 0.0
    pairs: Pairs | None = None
    stream: Stream | None = None
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
    has_flow = sample.flows is not None or sample.pairs is not None or sample.stream is not None
    if network.settings.learns_flow and not has_flow:
        raise ValueError(f"{network.name} training: expected flow of the clips, got none")
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


def flow_of(sample: ClipSample, flows: Tensor, places: list[int]) -> Tensor:
    """Return the flow [t, h, w, 2] in px from frames to the ones after them in their runs, out of
    the levels of all runs."""
    runs, offsets = zip(*(divmod(place, sample.run_frames) for place in places), strict=True)
    levels = flows[list(runs)].unflatten(3, (-1, 2))
    return from_levels(levels[torch.arange(len(runs)), :, :, list(offsets)], sample.flow_bound_px)


class _Training(training.Trainee):
    """A network and its clips, as the training loop takes them."""

    def __init__(self, network: Network, sample: ClipSample, crop_px: int, device: str) -> None:
        self.network, self.sample = network, sample
        self.crop_px, self.device = crop_px, torch.device(device)
        self.videos: Iterator[tuple[Tensor, Tensor | None]] | None = None
        self.name = network.name
        ends = torch.tensor(sample.counts).cumsum(0).tolist()
        self.starts = [end - count for end, count in zip(ends, sample.counts, strict=True)]
        settings = network.settings
        # As a saved state has them: lists stay lists, and tuples tuples.
        # A state of before knows no added settings.
        own = {f.name: getattr(settings, f.name) for f in said(settings)}
        self.run = {"network": network.name, **own, "seed": sample.seed}
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
        pairs = sample.pairs if self.network.reads_pairs else None
        count = len(pairs.frames) if pairs else len(sample.counts)
        chosen = self._chosen(step, count)
        noise = training.generator(self.device, sample.seed, step, sample.rank, 1)
        size = settings.part_clips or len(chosen)
        for first in range(0, len(chosen), size):
            part = chosen[first : first + size]
            clips = [self._clip(step, place, number, pairs) for place, number in part]
            flows = [flow.to(self.device) for _, flow in clips if flow is not None]
            frames = torch.stack([frames for frames, _ in clips]).to(self.device)
            # Pairs have no classes.
            rows = [0 if pairs else number for _, number in part]
            with self._precision():
                losses = self.network.losses(
                    Clips(frames, torch.stack(flows) if flows else None),
                    sample.targets[rows].to(self.device),
                    noise,
                    multi_label=sample.multi_label,
                )
            yield training.Part(losses, len(part))

    def _chosen(self, step: int, count: int) -> list[tuple[int, int]]:
        """Return place and number of this worker's examples of a step, out of `count`: its videos
        in random order, each once before one comes again."""
        sample = self.sample
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

    def _clip(
        self, step: int, place: int, number: int, pairs: Pairs | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the frames of an example, and its flow where the network learns it."""
        network, sample = self.network, self.sample
        draw = training.generator("cpu", sample.seed, step, sample.rank, 0, place)
        if pairs:
            flow = pairs.flow[number].float()[None]
            return augmented(pairs.frames[number], network.settings, self.crop_px, draw, flow)
        num_runs = sample.counts[number] // sample.run_frames
        places = network.clip_places(num_runs, sample.run_frames, draw)
        frames, flows = sample.frames, sample.flows
        own = [self.starts[number] + place for place in places]
        if sample.stream:
            frames, flows = self._streamed(step, sample.stream)
            own = [*places]
        frames = frames[own]
        if network.reads == "maps":
            return augmented_maps(frames, network.settings, draw), None
        flow = None
        if network.num_flows and flows is not None:
            flow = flow_of(sample, flows, own[: network.num_flows])
        return augmented(frames, network.settings, self.crop_px, draw, flow)

    def _streamed(self, step: int, stream: Stream) -> tuple[Tensor, Tensor | None]:
        """Return the next video: from the first one that is asked for on all are known."""
        if self.videos is None:
            steps, count = range(step, sum(self.network.settings.steps)), len(self.sample.counts)
            self.videos = stream(n for s in steps for _, n in self._chosen(s, count))
        return next(self.videos)

    def _precision(self) -> contextlib.AbstractContextManager:
        """Return bfloat16 on a GPU, whose range is that of float32: no loss needs scaling."""
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        return torch.autocast("cuda", torch.bfloat16)

    def state(self) -> dict:
        return {"model": self.network.state_dict()}

    def load(self, state: dict) -> None:
        self.network.load_state_dict(state["model"])
